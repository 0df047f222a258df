"""Our evaluation of forests against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.svm import OneClassSVM

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.calibration import sigmoid
from astrid_pipeline.learning.classical import Classical, fit_classical
from astrid_pipeline.learning.ensemble import INPUTS, Ensemble, fit_ensemble
from astrid_pipeline.learning.real_bogus import RealBogus, fit_real_bogus
from astrid_pipeline.learning.trees import Forest, average_path, from_boosting, from_isolation

NAMES = tuple("abcdef")


def _table(n: int, seed: int = 0, missing: float = 0.1) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(NAMES)))
    y = x[:, 0] + x[:, 1] ** 2 + 0.3 * rng.normal(size=n) > 0.7
    x[rng.random(x.shape) < missing] = np.nan
    return pd.DataFrame(x, columns=list(NAMES)), y


def test_boosted_trees_answer_as_scikit_learn_does():
    table, y = _table(2000)
    model = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(table.to_numpy(), y)
    forest, baseline = from_boosting(model)
    other, _ = _table(3000, seed=1, missing=0.3)
    x = other.to_numpy()
    np.testing.assert_allclose(baseline + forest.apply(x).sum(axis=1), model.decision_function(x), atol=1e-9)


def test_isolation_trees_answer_as_scikit_learn_does():
    table, _ = _table(1000, missing=0)
    x = table.to_numpy(np.float32).astype(float)
    model = IsolationForest(n_estimators=50, max_samples=128, random_state=0).fit(x)
    depth = from_isolation(model).apply(x).mean(axis=1)
    np.testing.assert_allclose(-(2.0 ** (-depth / average_path(128))), model.score_samples(x), atol=1e-7)


def test_mean_depth_of_a_search_that_fails():
    assert average_path([0, 1, 2]).tolist() == [0, 0, 1]
    assert float(average_path(256)) == pytest.approx(10.245, abs=0.01)  # Liu et al. 2008: 10.2448


def test_positions_that_never_end_are_refused():
    ok = {
        "feature": np.array([0, -1, -1], np.int32),
        "threshold": np.zeros(3),
        "right": np.array([2, 0, 0], np.int32),
        "missing_left": np.zeros(3, bool),
        "value": np.zeros(3),
        "roots": np.array([0], np.int32),
    }
    Forest(left=np.array([1, 0, 0], np.int32), **ok)
    for bad in ([0, 0, 0], [7, 0, 0], [-1, 0, 0]):
        with pytest.raises(ValueError, match="fit together"):
            Forest(left=np.array(bad, np.int32), **ok)


def test_real_bogus_learns_and_is_kept_without_loss(tmp_path):
    table, y = _table(1500)
    model = fit_real_bogus(table, y, NAMES, groups=np.arange(1500) // 10, seed=1)
    other, truth = _table(1500, seed=2)
    assert np.mean((model.probability(other) > 0.5) == truth) > 0.8
    model.save(tmp_path / "rb.safetensors")
    again = RealBogus.load(tmp_path / "rb.safetensors")
    np.testing.assert_array_equal(again.logit(other), model.logit(other))
    assert again.features == NAMES
    np.testing.assert_allclose(sigmoid(model.logit(other)), model.probability(other))


def test_the_order_of_columns_does_not_matter_but_their_absence_does():
    table, y = _table(500)
    model = fit_real_bogus(table, y, NAMES)
    np.testing.assert_array_equal(model.logit(table[list(NAMES[::-1])]), model.logit(table))
    with pytest.raises(ModelError, match="columns b"):
        model.logit(table.drop(columns="b"))


@pytest.mark.parametrize("positives", [0, 5, 100])
def test_too_few_examples(positives):
    table, _ = _table(100)
    with pytest.raises(ModelError, match="too few"):
        fit_real_bogus(table, np.arange(100) < positives, NAMES)


def test_classical_detectors_answer_as_scikit_learn_does(tmp_path):
    table, _ = _table(800)
    model = fit_classical(table, NAMES, seed=4)
    scaled = model.scale(table).astype(np.float32).astype(float)
    order = np.random.default_rng(4).permutation(
        len(scaled)
    )  # the solver stops where the order led it, to 1e-3
    svm = OneClassSVM(nu=0.05, gamma=1 / len(NAMES)).fit(scaled[order])
    np.testing.assert_allclose(model.one_class(table), -svm.decision_function(scaled), atol=1e-4)
    forest = IsolationForest(n_estimators=128, max_samples=128, random_state=4).fit(scaled)
    np.testing.assert_allclose(model.isolation(table), -forest.score_samples(scaled), atol=1e-7)
    model.save(tmp_path / "c.safetensors")
    again = Classical.load(tmp_path / "c.safetensors")
    for method in ("isolation", "one_class"):
        np.testing.assert_array_equal(getattr(again, method)(table), getattr(model, method)(table))


def test_what_is_unlike_the_real_ones_scores_higher():
    table, _ = _table(800, missing=0)
    model = fit_classical(table, NAMES)
    far = table + 8
    assert model.isolation(far).min() > np.percentile(model.isolation(table), 95)
    assert np.mean(model.one_class(far) > 0) > 0.99
    assert np.mean(model.one_class(table) > 0) < 0.15


def test_a_column_without_any_value_does_no_harm():
    table, _ = _table(100, missing=0)
    table["f"] = np.nan
    assert np.isfinite(fit_classical(table, NAMES).isolation(table)).all()


def test_the_ensemble_trusts_the_model_that_is_right(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.random(3000) < 0.4
    good = np.where(y, 2.0, -2.0) + rng.normal(0, 1.5, 3000)
    inputs = np.column_stack([rng.normal(size=3000), good, rng.normal(size=3000), np.full(3000, np.nan)])
    model = fit_ensemble(inputs, y)
    assert np.argmax(np.abs(model.weights)) == INPUTS.index("real_bogus")
    assert model.weights[1] > 10 * np.abs(model.weights[[0, 2, 3]]).max()
    p = model.probability(inputs)
    assert abs(p[p > 0.8].mean() - y[p > 0.8].mean()) < 0.03
    model.save(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(Ensemble.load(tmp_path / "e.safetensors").probability(inputs), p)
    assert len(model.probability(np.zeros((0, 4)))) == 0
