"""Which class a change is: told by its shape against the PSF as much as by the network's heats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.change_class import (
    FEATURES,
    LEAST,
    ChangeClass,
    class_features,
    fit_change_class,
)
from astrid_pipeline.learning.peaks import class_probabilities
from astrid_pipeline.learning.schema import CLASSES


def _peaks(n: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Return peaks whose heats say nothing of a mover and whose shape says it all, and their classes."""
    rng = np.random.default_rng(seed)
    label = rng.choice(CLASSES, n)
    moving, variable = label == "moving", label == "variable"
    table = pd.DataFrame(
        {
            "image_id": [f"i{k % 40}" for k in range(n)],
            "raw_transient": np.where(variable, 0.2, 0.6),
            "raw_variable": np.where(variable, 0.6, 0.1),
            "raw_moving": 0.5,
            "fwhm": 3.0 * np.where(moving, 1.5, 1.0),
            "fwhm_ratio": np.where(moving, 1.5, 1.0) + rng.normal(0, 0.05, n),
            "elongation": np.where(moving, 2.2, 1.1) + rng.normal(0, 0.1, n),
            "trail": np.where(moving, 8.0, 2.0),
            "sharpness": 1.0,
            "chi2": 1.0,
            "neg_fraction": 0.1,
            "snr": rng.uniform(5, 40, n),
            "ref_distance": np.where(variable, 0.2, 20.0),
            "ref_ratio": np.where(variable, 0.5, 10.0),
        }
    )
    return table, label


@pytest.fixture(scope="module")
def fitted() -> ChangeClass:
    return fit_change_class(*_peaks(900))


def test_a_shape_tells_what_the_heats_do_not(fitted):
    table, label = _peaks(400, seed=1)
    shares = fitted(table)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (np.array(CLASSES)[shares.argmax(axis=1)] == label).mean() > 0.97
    by_heat = np.array(CLASSES)[class_probabilities(table).argmax(axis=1)]
    assert (by_heat == label).mean() < 0.75
    heats_alone = load_model().replace(classes=None)
    np.testing.assert_array_equal(heats_alone.class_shares(table), class_probabilities(table))


def test_measurements_are_in_units_of_the_psf():
    table, _ = _peaks(200)
    wider = table.assign(
        **{name: 2 * table[name] for name in ("fwhm", "trail", "ref_distance")}  # fwhm_ratio stays
    )
    pd.testing.assert_frame_equal(class_features(table), class_features(wider))
    assert list(class_features(table).columns) == list(FEATURES)


def test_a_peak_without_a_candidate_is_told_by_its_heats(fitted):
    table, _ = _peaks(50)
    alone = table.assign(**dict.fromkeys(table.columns[4:], np.nan))
    shares = fitted(alone)
    assert np.isfinite(shares).all()
    assert np.allclose(shares.sum(axis=1), 1)


def test_it_answers_as_scikit_learn_and_comes_back_from_its_file(fitted):
    from sklearn.ensemble import HistGradientBoostingClassifier

    from astrid_pipeline.learning.trees import from_classes_boosting

    table, label = _peaks(600)
    rows = class_features(table).to_numpy()
    number = np.array([CLASSES.index(name) for name in label])
    model = HistGradientBoostingClassifier(max_iter=12, random_state=0).fit(rows, number)
    mine = ChangeClass(*from_classes_boosting(model), {})
    np.testing.assert_allclose(mine(table), model.predict_proba(rows), atol=1e-9)
    again = ChangeClass.from_parts(*fitted.parts(), Path("a.safetensors"))
    np.testing.assert_array_equal(again(table), fitted(table))
    assert fitted(table[:0]).shape == (0, 3)


def test_too_few_of_a_class_and_a_damaged_file_are_told(fitted):
    table, label = _peaks(300)
    keep = (label != "moving") | (np.cumsum(label == "moving") < LEAST)
    with pytest.raises(ModelError, match=rf"{LEAST - 1} moving"):
        fit_change_class(table[keep], label[keep])
    tensors, facts = fitted.parts()
    with pytest.raises(ModelError, match="other measurements"):
        ChangeClass.from_parts(tensors, {**facts, "features": ["snr"]}, Path("a"))
    with pytest.raises(ModelError, match="damaged"):
        ChangeClass.from_parts({**tensors, "classes.baselines": np.zeros(2)}, facts, Path("a"))
    with pytest.raises(ModelError, match="snr"):
        fitted(table.drop(columns="snr"))


def test_the_detector_keeps_it_in_its_file(tmp_path, fitted):
    detector = load_model().replace(classes=fitted, profiles=())
    detector.save(tmp_path / "d.safetensors")
    table, _ = _peaks(50)
    again = load_model(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(again.class_shares(table), fitted(table))
