"""Corrections by labels: what they learn, what they leave alone, and that none is judged on what it was fitted to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.calibration import logit, sigmoid
from astrid_pipeline.learning.correction import (
    BASE,
    Correction,
    boost,
    filled,
    fit_correction,
    judge_correction,
)
from astrid_pipeline.learning.trees import from_gradient_boosting

FEATURES = ("a", "b")


def labelled(n: int, seed: int, wrong: bool) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A detector that knows the truth but for noise; `wrong`: it takes everything of a > 1 for real."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"a": rng.normal(size=n), "b": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n))}
    )
    real = rng.random(n) < 0.5
    # Of two Gaussians at ±1 the logit is twice the value: the detector is calibrated.
    score = sigmoid(2 * (np.where(real, 1.0, -1.0) + rng.normal(size=n)))
    if wrong:
        odd = table["a"].to_numpy() > 1
        real = real & ~odd
        score = np.where(odd, 0.97, score)
    return table, real, score


def test_a_systematic_error_is_learned_and_the_rest_kept():
    table, real, score = labelled(400, 1, wrong=True)
    made = fit_correction(table, real, score, FEATURES, groups=np.arange(400))
    other, truth, before = labelled(2000, 2, wrong=True)
    after = made(other, before)
    odd = other["a"].to_numpy() > 1
    assert np.median(before[odd]) == pytest.approx(0.97)
    assert np.median(after[odd]) < 0.2
    assert np.median(np.abs(logit(after[~odd]) - logit(before[~odd]))) < 1.0
    assert ((after > 0.5) == truth).mean() > ((before > 0.5) == truth).mean()
    verdict, _ = judge_correction(table, real, score, FEATURES, groups=np.arange(400))
    assert verdict.promoted, verdict.reason
    assert verdict.gain.low > 0


def test_a_good_detector_is_left_alone():
    """A correction of nothing must be promoted seldom: the lower end of the interval is a one-sided 2.5 %."""
    promoted = 0
    for seed in range(5):
        table, real, score = labelled(120, seed, wrong=False)
        verdict, _ = judge_correction(table, real, score, FEATURES, groups=np.arange(120), resamples=100)
        promoted += verdict.promoted
    assert promoted <= 1


def test_no_label_is_judged_by_what_learned_from_its_sky():
    """Labels that follow from nothing but the piece of sky: learned by heart they would look perfect."""
    rng = np.random.default_rng(3)
    sky = np.repeat(np.arange(30), 10)
    table = pd.DataFrame({"a": sky + 0.01 * rng.normal(size=300), "b": rng.normal(size=300)})
    real = (rng.random(30) < 0.5)[sky]
    score = np.full(300, 0.5) + 0.01 * rng.random(300)
    verdict, after = judge_correction(table, real, score, FEATURES, groups=sky, resamples=50)
    assert not verdict.promoted
    assert verdict.after.value < 0.8
    assert len(after) == 300
    shuffled, _ = judge_correction(table, real, score, FEATURES, groups=np.arange(300), resamples=50)
    assert shuffled.after.value > 0.95, "with neighbours on both sides it does look perfect"


def test_only_labels_that_the_champion_has_not_seen_are_judged_on():
    table, real, score = labelled(200, 4, wrong=True)
    judged = np.arange(200) >= 120
    verdict, _ = judge_correction(
        table, real, score, FEATURES, groups=np.arange(200), judged=judged, resamples=50
    )
    assert verdict.labels == 80
    none, _ = judge_correction(table, real, score, FEATURES, groups=np.arange(200), judged=real, resamples=50)
    assert not none.promoted
    assert "not learned from" in none.reason


def test_too_few_labels_are_refused():
    table, real, score = labelled(60, 5, wrong=True)
    real[:] = False
    real[:9] = True
    with pytest.raises(ModelError, match="too few"):
        fit_correction(table, real, score, FEATURES, groups=np.arange(60))
    with pytest.raises(ModelError, match="too few"):
        judge_correction(table, real, score, FEATURES, groups=np.arange(60))
    table, real, score = labelled(60, 6, wrong=True)
    with pytest.raises(ModelError, match="one piece of sky"):
        judge_correction(table, real, score, FEATURES, groups=np.zeros(60))


def test_the_arrays_say_what_scikit_learn_says(tmp_path):
    table, real, score = labelled(150, 7, wrong=True)
    rows = filled(np.column_stack([table["a"], table["b"], logit(score)]))
    model = boost(rows, real, np.ones(150), 30, 0)
    forest = from_gradient_boosting(model)
    made = Correction(forest, (*FEATURES, BASE), {})
    np.testing.assert_allclose(made(table, score), model.predict_proba(rows)[:, 1], rtol=1e-6)
    tensors, facts = made.parts()
    again = Correction.from_parts(tensors, facts, tmp_path)
    np.testing.assert_array_equal(again(table, score), made(table, score))
    with pytest.raises(ModelError, match="damaged"):
        Correction.from_parts(tensors, {"features": ["a"]}, tmp_path)
    assert len(made(table.head(0), [])) == 0


def test_weights_count_as_repeats():
    table, real, score = labelled(100, 8, wrong=True)
    rows = filled(np.column_stack([table["a"], table["b"], logit(score)]))
    twice = np.r_[np.arange(100), np.flatnonzero(real)]
    once = boost(rows, real, np.where(real, 2.0, 1.0), 3, 0).predict_proba(rows)
    repeated = boost(rows[twice], real[twice], np.ones(len(twice)), 3, 0).predict_proba(rows)
    assert np.corrcoef(once[:, 1], repeated[:, 1])[0, 1] > 0.98


def test_a_detector_keeps_its_correction_in_its_file(tmp_path):
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.learning.second_stage import real_bogus_features

    detector = load_model()
    rng = np.random.default_rng(9)
    names = real_bogus_features()
    table = pd.DataFrame(rng.normal(size=(80, len(names))), columns=list(names)).assign(
        unet_raw=rng.uniform(0.05, 1, 80)
    )
    before = detector.score(table)["score"].to_numpy()
    real = table["dipole"].to_numpy() > 0
    made = fit_correction(table, real, before, names, groups=np.arange(80))
    corrected = detector.replace(correction=made)
    corrected.save(tmp_path / "d.safetensors")
    after = load_model(tmp_path / "d.safetensors").score(table)["score"].to_numpy()
    np.testing.assert_allclose(after, corrected.score(table)["score"], rtol=1e-3)
    assert after[real].mean() > after[~real].mean() + 0.1
    assert np.abs(after - before).max() > 0.05
