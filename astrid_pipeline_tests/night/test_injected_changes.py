"""Variable stars, faded sources and moving objects put into frames: analytic truth, and found again with their sign."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.night.injected_changes import (
    MOST,
    STAR_SHARE,
    plan_changes,
    science_part,
    trail_gain,
    with_faded,
)
from astrid_pipeline.night.injections import inject_exposure
from astrid_pipeline_tests.report.example import make_difference


@pytest.mark.parametrize("length", [0.0, 0.7, 3.0, 12.0, 40.0])
def test_a_trail_s_gain_is_that_of_a_drawn_one(length: float) -> None:
    sigma, size = 1.4, 121
    yy, xx = np.mgrid[:size, :size] - size // 2
    offsets = (np.arange(400) + 0.5) / 400 * length - length / 2
    trail = np.mean([np.exp(-((xx - t) ** 2 + yy**2) / (2 * sigma**2)) for t in offsets], axis=0)
    point = np.exp(-(xx**2 + yy**2) / (2 * sigma**2))
    assert float(trail_gain(length, sigma)) == pytest.approx((trail**2).sum() / (point**2).sum(), rel=2e-3)


def _starry():
    difference = make_difference((600, 600))
    yy, xx = np.mgrid[:600, :600]
    at = [(x, y) for x in range(30, 580, 40) for y in range(30, 580, 40)]
    width = difference.psf.fwhm() / 2.3548
    for k, (x, y) in enumerate(at):
        near = np.s_[max(y - 15, 0) : y + 16, max(x - 15, 0) : x + 16]
        star = 300 * (1 + k % 9) * np.exp(-((xx[near] - x) ** 2 + (yy[near] - y) ** 2) / (2 * width**2))
        difference.reference[near] += star.astype(np.float32)
    return difference, at


def test_each_kind_is_planned_as_it_is_in_the_sky() -> None:
    difference, stars = _starry()
    taken = pd.DataFrame({"x": [300.0], "y": [300.0]})
    plan = plan_changes(difference, np.random.default_rng(4), taken, 120.0, (3.0, 50.0))
    assert set(plan.kind) == {"variable", "fading", "moving"}
    variable = plan[plan.kind == "variable"]
    assert len(variable) <= np.ceil(STAR_SHARE * len(stars))
    apart = [
        min(np.hypot(x - a, y - b) for a, b in stars) for x, y in zip(variable.x, variable.y, strict=True)
    ]
    assert max(apart) < 0.5
    light = 2 * np.pi * (difference.psf.fwhm() / 2.3548) ** 2 * 300 * 9
    assert (variable.flux.abs() <= 1.1 * MOST * light).all()
    assert (plan[plan.kind == "fading"].flux < 0).all()
    moving = plan[plan.kind == "moving"]
    assert (moving.flux > 0).all()
    assert moving.length.between(1.5, 25).all()
    # The longer the trail, the more light it takes to reach an S/N.
    error = difference.flux_err[moving.y.round().astype(int), moving.x.round().astype(int)]
    gain = trail_gain(moving.length.to_numpy(), difference.psf.fwhm() / 2.3548)
    np.testing.assert_allclose(moving.flux * np.sqrt(gain) / error, moving.snr, rtol=1e-5)
    xy = plan[["x", "y"]].to_numpy()
    far = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    assert far[~np.eye(len(xy), dtype=bool)].min() >= 6 * difference.psf.fwhm()
    assert np.hypot(plan.x - 300, plan.y - 300).min() >= 6 * difference.psf.fwhm()


def test_what_faded_goes_into_the_reference_alone() -> None:
    from astrid_pipeline.imaging.inject import render
    from astrid_pipeline.simulation import simulate_pair

    pair = simulate_pair(np.random.default_rng(1), (200, 200), transients=0, stars=800)
    plan = pd.DataFrame(
        {
            "x": [60.0, 140.0],
            "y": [60.0, 140.0],
            "flux": [-500.0, 700.0],
            "kind": ["fading", "moving"],
            "length": [0.0, 10.0],
            "angle": [0.0, 0.5],
        }
    )
    assert science_part(plan).kind.tolist() == ["trail"]
    changed = with_faded(pair.reference, plan, 0.5, np.random.default_rng(2))
    added = changed.data - pair.reference.data
    assert added[50:71, 50:71].sum() == pytest.approx(1000, rel=0.2)
    assert not added[120:160, 120:160].any()
    assert render(pair.science, science_part(plan)).sum() == pytest.approx(700, rel=0.02)


def test_all_kinds_are_found_again_with_their_sign() -> None:
    from astrid_pipeline.imaging import subtract
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.simulation import simulate_pair

    pair = simulate_pair(np.random.default_rng(8), (512, 512), transients=0)
    difference = subtract(pair.science, pair.reference)
    injected = inject_exposure(
        pair.science,
        pair.reference,
        difference,
        np.random.default_rng(3),
        load_model(),
        per_megapixel=40,
        others_per_megapixel=80,
    )
    bright = injected.truth[injected.truth.snr > 9]
    assert set(bright.kind) == {"point", "variable", "fading", "moving"}
    found = bright.groupby("kind").found.mean()
    assert (found >= 0.6).all(), found
    faded = bright[(bright.kind == "fading") & bright.found]
    assert (faded.measured_flux < 0).all()
    points = bright[(bright.kind != "moving") & bright.found]
    assert float(np.median(points.measured_flux / points.flux)) == pytest.approx(1.0, abs=0.08)
