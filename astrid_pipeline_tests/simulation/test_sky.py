"""Drawing sources, and how many of them there are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.simulation.psf import constant_psf
from astrid_pipeline.simulation.sky import (
    SERSIC_INDICES,
    draw_galaxies,
    draw_magnitudes,
    render,
    sersic_radius,
)


def galaxy(**changes):
    row = {"x": 128.3, "y": 127.8, "flux": 1e5, "re": 6.0, "index": 1.0, "axis_ratio": 1.0, "angle": 0.0}
    return pd.DataFrame([{**row, **changes}])


def test_exponential_disc_is_the_profile_convolved():
    """Against the slow way: the disc on a fine grid, blurred with a Gaussian-like PSF by brute force."""
    from scipy.signal import fftconvolve

    psf = constant_psf((129, 129), 2.4)
    image = np.zeros((129, 129), np.float32)
    render(image, galaxy(x=64.0, y=64.0, re=4.0, axis_ratio=0.5, angle=0.6), psf)
    fine = 9
    grid = (np.arange(129 * fine) + 0.5) / fine - 0.5 - 64
    dx, dy = np.meshgrid(grid, grid)
    along, across = dx * np.cos(0.6) + dy * np.sin(0.6), -dx * np.sin(0.6) + dy * np.cos(0.6)
    radius = np.hypot(along, across / 0.5) / 4.0
    b = 2 - 1 / 3 + 0.009876
    light = np.exp(-b * radius) * 0.5 * (1 + np.cos(np.pi * np.clip((radius / 8 - 0.75) / 0.25, 0, 1)))
    light = light.reshape(129, fine, 129, fine).sum((1, 3))
    # The PSF's stamp has the pixel in it already: blur the fine light with the Moffat alone would need another
    # integral, so compare through a second, broader blur that makes one pixel's box irrelevant.
    expected = fftconvolve(1e5 * light / light.sum(), psf.model(41).stamp(), mode="same")
    box = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    smooth = fftconvolve(image, box, mode="same"), fftconvolve(expected, box, mode="same")
    assert np.abs(smooth[0] - smooth[1]).max() < 0.03 * smooth[1].max()
    assert image.sum() == pytest.approx(1e5, rel=2e-3)


@pytest.mark.parametrize("index", SERSIC_INDICES)
def test_half_of_the_light_is_within_the_effective_radius(index):
    radii = sersic_radius(np.random.default_rng(0), np.full(4000, index))
    # The cut at eight radii takes up to 6 % of the light of the steepest profile.
    assert np.mean(radii < 1) == pytest.approx(0.5, abs=0.05)


def test_sources_at_the_border_are_cut_not_folded():
    psf = constant_psf((40, 40), 2.4)
    sources = pd.DataFrame({"x": [-0.4, 39.4, 20.0], "y": [10.0, 39.7, -6.0], "flux": [1e4, 1e4, 1e4]})
    small, large = np.zeros((40, 40), np.float32), np.zeros((140, 140), np.float32)
    render(small, sources, psf)
    render(large, sources.assign(x=sources["x"] + 50, y=sources["y"] + 50), psf)
    np.testing.assert_allclose(small, large[50:90, 50:90], atol=0.02)


def test_a_trail_is_as_long_as_it_moved():
    psf = constant_psf((80, 80), 2.4)
    image = np.zeros((80, 80), np.float32)
    render(image, pd.DataFrame({"x": [40.0], "y": [40.0], "flux": [1e4], "dx": [12.0], "dy": [0.0]}), psf)
    point = np.zeros((80, 80), np.float32)
    render(point, pd.DataFrame({"x": [40.0], "y": [40.0], "flux": [1e4]}), psf)
    profile, star = image[30:51].sum(0), point[30:51].sum(0)
    # A uniform line of length L is flat over L and adds nothing across.
    assert profile[37:44].std() < 0.02 * profile[37:44].mean()
    assert profile[40] == pytest.approx(1e4 / 12, rel=0.02)
    np.testing.assert_allclose(image[30:51].sum(1) / image.sum(), point[30:51].sum(1) / star.sum(), atol=2e-3)


def test_faint_and_bright_stars_have_one_profile():
    psf = constant_psf((301, 301), 2.4)
    faint, bright = np.zeros((301, 301), np.float32), np.zeros((301, 301), np.float32)
    render(faint, pd.DataFrame({"x": [150.2], "y": [150.4], "flux": [1e2]}), psf)
    render(bright, pd.DataFrame({"x": [150.2], "y": [150.4], "flux": [1e7]}), psf)
    assert np.abs(bright / 1e5 - faint).max() < 0.01  # electrons, where the noise is ten or more


def test_magnitudes_grow_with_the_slope():
    mag = draw_magnitudes(np.random.default_rng(0), 200_000, 12.0, 20.0, 0.25)
    assert mag.min() >= 12
    assert mag.max() <= 20
    ratio = np.sum((mag > 18) & (mag < 19)) / np.sum((mag > 16) & (mag < 17))
    assert np.log10(ratio) / 2 == pytest.approx(0.25, abs=0.01)


def test_brighter_galaxies_are_larger():
    table = draw_galaxies(np.random.default_rng(0), 5000, 14.5, 21.5)
    bright, faint = table[table["mag"] < 18]["re"].median(), table[table["mag"] > 20.5]["re"].median()
    assert bright > 1.5 * faint
    assert table["axis_ratio"].between(0.25, 1).all()
