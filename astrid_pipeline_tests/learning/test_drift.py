"""Drift: the index and the distance against analytic truth and scipy, false alarms at the stated rate, a canary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.drift import (
    LEAST,
    LEVELS,
    PSI_LIMIT,
    Canary,
    baseline_of,
    canary,
    canary_differs,
    compare,
    ks,
    psi,
)
from astrid_pipeline_tests.learning.helpers import toy_set


def test_the_index_of_a_shifted_gaussian_is_its_symmetric_divergence() -> None:
    # Σ (a − e) ln(a / e) tends to KL + KL = d² for two Gaussians d apart; ten bins see a little less of it.
    rng = np.random.default_rng(1)
    quantiles = np.quantile(rng.normal(size=400_000), LEVELS)
    for shift in (0.3, 0.6):
        found = psi(rng.normal(shift, 1, 200_000), quantiles)
        assert 0.85 * shift**2 < found < 1.02 * shift**2


def test_where_nothing_drifted_the_index_is_its_own_noise() -> None:
    rng = np.random.default_rng(2)
    quantiles = stats.norm.ppf(np.clip(LEVELS, 1e-4, 1 - 1e-4))
    found = [psi(rng.normal(size=100), quantiles) for _ in range(400)]
    assert np.mean(found) == pytest.approx(9 / 100, rel=0.2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(LEAST, 400), st.floats(-1, 1))
def test_the_distance_is_scipy_s(seed: int, n: int, shift: float) -> None:
    values = np.random.default_rng(seed).uniform(0, 1, n) + shift
    distance, chance = ks(values, LEVELS)  # the quantiles of a uniform distribution are the levels
    expected = stats.kstest(values, "uniform")
    assert distance == pytest.approx(expected.statistic, abs=1e-9)
    assert chance == pytest.approx(expected.pvalue, rel=0.05, abs=1e-6)


def test_a_lump_in_both_is_no_distance() -> None:
    rng = np.random.default_rng(5)
    draw = lambda n: np.where(rng.random(n) < 0.6, 20.0, rng.uniform(0, 20, n))  # noqa: E731
    quantiles = np.quantile(draw(100_000), LEVELS)
    distance, _ = ks(draw(2000), quantiles)
    assert distance < 0.05
    assert psi(draw(2000), quantiles) < 0.05
    assert psi(np.full(2000, 20.0), quantiles) > PSI_LIMIT


def test_a_night_like_the_training_seldom_alarms_and_another_does() -> None:
    rng = np.random.default_rng(7)
    names = [f"feature{k}" for k in range(20)]
    baseline = {name: np.quantile(rng.normal(size=50_000), LEVELS) for name in names}
    alarms = sum(
        bool(compare({name: rng.normal(size=120) for name in names}, baseline).drifted.any())
        for _ in range(200)
    )
    assert alarms <= 6  # one in a hundred is meant
    table = compare({name: rng.normal(name == "feature3", 1, 120) for name in names}, baseline)
    assert table[table.drifted].quantity.tolist() == ["feature3"]


def test_images_are_judged_by_their_median_and_few_values_say_nothing() -> None:
    baseline = {"seeing": np.linspace(2, 4, 41), "score": LEVELS}
    table = compare({"seeing": [3.0, 3.1], "score": np.zeros(LEAST - 1)}, baseline)
    assert table.quantity.tolist() == ["seeing"]
    assert not table.drifted.any()
    assert compare({"seeing": [5.0]}, baseline).drifted.tolist() == [True]
    assert not len(compare({"seeing": [np.nan]}, baseline))


def test_a_baseline_is_that_of_the_images(tmp_path) -> None:
    shards = toy_set(tmp_path, range(45), (96, 96), sources=6)
    found = baseline_of(shards, np.linspace(0.5, 1, 60))
    assert {"seeing", "score"} <= set(found)
    assert found["score"][0] == 0.5
    assert found["score"][-1] == 1
    assert all(len(q) == len(LEVELS) for q in found.values())


def test_the_canary_sings_the_same_and_tells_a_broken_model() -> None:
    detector = load_model()
    seen = canary(detector)
    assert len(seen.scores) >= 6
    assert canary(detector) == seen
    assert canary_differs(seen, seen.as_dict()) is None
    noted = detector.facts["canary"]  # by whichever processor made the model
    assert canary_differs(seen, noted) is None
    silent = Canary(tuple(0.0 for _ in seen.scores), 0)
    assert "scores differ" in str(canary_differs(silent, seen.as_dict()))
    assert "simulation has changed" in str(canary_differs(Canary(seen.scores[1:], 0), seen.as_dict()))
    assert "false detections" in str(canary_differs(Canary(seen.scores, seen.false + 5), seen.as_dict()))
