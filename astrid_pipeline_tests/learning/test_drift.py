"""Drift: index and distance against analytic truth and scipy; nights like the training pass, others are told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astrid_pipeline.learning.drift import (
    LEAST,
    LEVELS,
    PSI_LIMIT,
    Seen,
    baseline_of,
    compare,
    ks,
    limits,
    look,
    psi,
    scores_of,
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


def _sky(rng: np.random.Generator, images: int, crowd: float = 0.0, **shift: float) -> Seen:
    """Return images of one simulated sky: each has features of its own, as what is in it has."""
    names = [f"e{k}" for k in range(images)]
    rows = []
    for name in names:
        n = int(rng.integers(12, 40))
        own = crowd + rng.normal(0, 0.25)
        rows.append(
            pd.DataFrame(
                {
                    "exposure_id": name,
                    "chi2": np.exp(own + shift.get("chi2", 0.0) + rng.normal(0, 0.3, n)),
                    "elongation": 1 + np.exp(rng.normal(own + shift.get("elongation", 0.0), 0.3, n)),
                }
            )
        )
    seeing = shift.get("seeing", 1.0) * rng.uniform(2.2, 3.2, images)
    noise = shift.get("noise", 1.0) * rng.normal(1, 0.01, images)
    about = pd.DataFrame(
        {
            "exposure_id": names,
            "seeing": seeing,
            "score_sigma_raw": noise,
            "usable_mpix": np.full(images, 1.0),
        }
    )
    return look(pd.concat(rows), pd.DataFrame(), about, "exposure_id")


def _training(rng: np.random.Generator, images: int = 140) -> dict[str, dict[str, list[float]]]:
    skies = [_sky(rng, 1, crowd=float(rng.normal(0.3, 0.5))) for _ in range(images)]
    table = pd.concat([sky.images for sky in skies])
    out = {}
    for name in ("chi2", "elongation", "seeing", "score_sigma_raw"):
        out[name] = {"images": np.quantile(table[name], LEVELS).tolist()}
        if name in ("chi2", "elongation"):
            values = np.concatenate([sky.values[name]["value"] for sky in skies])
            out[name]["values"] = np.quantile(values, LEVELS).tolist()
    return out


def test_a_night_is_one_draw_of_a_sky_and_seldom_alarms() -> None:
    rng = np.random.default_rng(7)
    baseline = _training(rng)
    # All exposures of a night show the same sky: so many candidates are no proof of anything.
    tables = [compare(_sky(rng, 6, crowd=float(rng.normal(0.3, 0.5))), baseline) for _ in range(200)]
    assert sum(bool(table.drifted.any()) for table in tables) <= 6
    # As distributions alone, most of these nights would have been told.
    assert np.mean([bool(((t.psi > PSI_LIMIT) & (t.chance < 0.001)).any()) for t in tables]) > 0.5
    # And a night that is cleaner than the training is none either.
    clean = compare(_sky(rng, 6, crowd=-0.9), baseline)
    assert clean.set_index("quantity").loc["elongation", "psi"] > 1
    assert not clean.set_index("quantity").loc["elongation", "drifted"]


@pytest.mark.parametrize(
    ("quantity", "shift"), [("chi2", 2.5), ("elongation", 2.5), ("seeing", 1.6), ("score_sigma_raw", 1.2)]
)
def test_what_no_image_of_the_training_shows_is_told(quantity: str, shift: float) -> None:
    rng = np.random.default_rng(8)
    baseline = _training(rng)
    name = {"score_sigma_raw": "noise"}.get(quantity, quantity)
    told = [compare(_sky(rng, 6, **{name: shift}), baseline) for _ in range(20)]
    assert sum(quantity in set(table.loc[table.drifted, "quantity"]) for table in told) >= 18


def test_limits_are_the_most_extreme_image_and_a_margin_on_the_sides_that_count() -> None:
    images = np.linspace(2.0, 4.0, 41)
    assert limits("sharpness", images) == pytest.approx((1.9, 4.1))
    assert limits("dipole", images) == (-np.inf, pytest.approx(4.1))
    assert limits("mask_distance", images) == (pytest.approx(1.9), np.inf)
    low, high = limits("seeing", images)  # of ratios
    assert (low, high) == pytest.approx((2 * (2 / 3) ** 0.1, 4 * (4 / 3) ** 0.1))
    assert limits("score_sigma_raw", np.ones(41)) == pytest.approx((0.95, 1.05))


def test_an_image_s_own_statistic_wants_some_candidates_and_unmeasured_errors_are_none() -> None:
    candidates = pd.DataFrame(
        {"key": ["a"] * 5 + ["b"] * 4, "chi2": [1, 2, 3, 4, 5, 9, 9, 9, 9], "snr": -6.0}
    )
    images = pd.DataFrame(
        {"key": ["a", "b", "c"], "psf_ratio_error": [0.1, np.nan, None], "usable_mpix": 0.5}
    )
    seen = look(candidates, pd.DataFrame({"key": ["a"] * 3, "score": 0.9}), images, "key")
    assert seen.images.loc["a", "chi2"] == 4  # the upper quartile
    assert np.isnan(seen.images.loc["b", "chi2"])
    assert seen.images.loc["a", "snr"] == 6
    assert seen.images["psf_ratio_error"].tolist() == [0.1, 0, 0]
    assert seen.images["candidates_per_mpix"].tolist() == [10, 8, 0]
    assert seen.images.loc["a", "score"] == 0.9


def test_few_values_say_nothing_and_an_older_baseline_neither() -> None:
    rng = np.random.default_rng(9)
    baseline = _training(rng)
    few = compare(_sky(rng, 1, chi2=3.0), baseline)
    assert few.quantity.tolist() == ["seeing", "score_sigma_raw"]
    assert LEAST == 40
    assert not len(compare(_sky(rng, 6), {"chi2": LEVELS.tolist()}))  # type: ignore[dict-item]
    assert not len(compare(look(pd.DataFrame(), pd.DataFrame(), pd.DataFrame({"k": []}), "k"), baseline))


def test_a_baseline_is_that_of_the_images_each_of_which_counts_alike(tmp_path) -> None:
    shards = toy_set(tmp_path, range(45), (96, 96), sources=6)
    found = baseline_of(shards)
    assert {"seeing", "psf_ratio_error"} <= set(found)
    detections = pd.DataFrame({"image_id": np.repeat([f"i{k}" for k in range(45)], 3), "score": 0.9})
    crowded = pd.DataFrame({"image_id": "i0", "score": np.full(10_000, 0.1)})
    scores = scores_of(pd.concat([detections, crowded], ignore_index=True))["score"]
    assert scores["images"][0] == 0.1
    assert scores["images"][1:] == [0.9] * 40
    assert scores["values"][1:] == [0.9] * 40  # one of 45 images, however many are in it
    assert all(len(q) == len(LEVELS) for each in found.values() for q in each.values())
