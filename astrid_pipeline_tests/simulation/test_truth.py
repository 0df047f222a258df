"""The truth's signal-to-noise against analytic noise, and against a matched filter run on drawn frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.simulation import simulate_pair
from astrid_pipeline.simulation.psf import constant_psf
from astrid_pipeline.simulation.sky import render
from astrid_pipeline.simulation.truth import TRUTH, ideal_flux_error, table

SHAPE = (512, 512)


def test_error_in_even_noise_is_analytic():
    psf = constant_psf((100, 100), 2.4).model()
    variance = np.full((100, 100), 225.0)
    errors = ideal_flux_error([50.0, 20.0], [50.0, 70.0], psf, variance)
    np.testing.assert_allclose(errors, 15 * np.sqrt(psf.noise_area()), rtol=1e-6)


def test_a_reference_without_noise_changes_nothing():
    sharp, broad = (constant_psf((100, 100), f).model() for f in (2.0, 2.6))
    variance = np.full((100, 100), 225.0)
    alone = ideal_flux_error([50.0], [50.0], broad, variance)
    both = ideal_flux_error([50.0], [50.0], broad, variance, (sharp, np.full((100, 100), 1e-3), 1.25))
    assert both[0] == pytest.approx(alone[0], rel=1e-3)


def test_an_equal_reference_doubles_the_variance():
    psf = constant_psf((100, 100), 2.4).model()
    variance = np.full((100, 100), 225.0)
    alone = ideal_flux_error([50.0], [50.0], psf, variance)
    both = ideal_flux_error([50.0], [50.0], psf, variance, (psf, variance, 1.0))
    assert both[0] == pytest.approx(np.sqrt(2) * alone[0], rel=1e-6)


def zogy_flux(science, reference, p_n, p_r, s_n, s_r, ratio):
    """Zackay et al. 2016, eqs 13-17 and 41-42, written out slowly: the flux image of a pair with even noise."""
    shape = science.shape

    def spectrum(stamp):
        image = np.zeros(shape)
        image[: len(stamp), : len(stamp)] = stamp
        return np.fft.fft2(np.roll(image, (-(len(stamp) // 2), -(len(stamp) // 2)), (0, 1)))

    n, r, pn, pr = np.fft.fft2(science), np.fft.fft2(reference), spectrum(p_n), spectrum(p_r)
    den = s_n**2 * ratio**2 * abs(pr) ** 2 + s_r**2 * abs(pn) ** 2
    score = np.fft.ifft2(ratio * np.conj(pn) * np.conj(pr) * (ratio * pr * n - pn * r) / den).real
    return score / np.mean(ratio**2 * abs(pn) ** 2 * abs(pr) ** 2 / den)


@pytest.mark.parametrize("case", [{}, {"science_fwhm": 2.1, "reference_fwhm": 2.7}])
def test_snr_is_what_the_matched_filter_finds(case):
    """Pulls of the proper flux with the table's errors have mean 0 and width 1."""
    pulls = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        pair = simulate_pair(rng, SHAPE, stars=0, galaxies=0, transients=400, snr=(3, 30), fading=0.3, **case)
        o = pair.options
        s_n = np.sqrt(o.sky + o.read_noise**2)
        s_r = s_n / np.sqrt(o.reference_depth)
        ratio = 1 / o.flux_ratio
        truth = pair.changes
        flux = zogy_flux(
            pair.science.data - o.sky,
            pair.reference.data - o.sky,
            pair.science_psf.stamp(),
            pair.reference_psf.stamp(),
            s_n,
            s_r,
            ratio,
        )
        # At sub-pixel positions by interpolating the band-limited flux image.
        from scipy.ndimage import map_coordinates

        found = map_coordinates(flux, [truth["y"], truth["x"]], order=5, mode="wrap")
        pulls.append((found - truth["flux"]) / (truth["flux"].abs() / truth["snr"]))
    pull = np.concatenate(pulls)
    n = len(pull)
    assert n > 300
    assert abs(pull.mean()) < 4 / np.sqrt(n)
    # The spread of a standard deviation of n draws is 1/√(2n).
    assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * n))


def test_variance_is_that_of_the_pixels():
    rng = np.random.default_rng(5)
    pair = simulate_pair(rng, SHAPE, stars=0, galaxies=0, transients=0, clouds=0.3)
    for frame, sky in ((pair.science, 200 * 1.15), (pair.reference, 200)):
        assert frame.data.mean() == pytest.approx(sky, rel=2e-3)
        assert frame.data.var() == pytest.approx(frame.variance.mean(), rel=0.02)
        meta = frame.meta
        from_meta = frame.data.mean() / meta["gain"] + (meta["read_noise"] / meta["gain"]) ** 2
        assert from_meta == pytest.approx(frame.data.var(), rel=0.02)


@pytest.mark.parametrize("length", [0.5, 4.0, 15.0])
def test_trail_loss_is_that_of_the_drawn_trail(length):
    psf = constant_psf((101, 101), 2.4)
    images = []
    for dx in (length, 0.0):
        image = np.zeros((101, 101), np.float32)
        render(image, pd.DataFrame({"x": [50.0], "y": [50.0], "flux": [1.0], "dx": [dx], "dy": [0.0]}), psf)
        images.append(np.sqrt(np.square(image, dtype=float).sum()))
    assert psf.trail_loss(length, 0.0)[0] == pytest.approx(images[0] / images[1], rel=2e-3)


def test_truth_tables_have_their_schema_even_when_empty():
    assert list(table([]).columns) == TRUTH.names
    filled = table([{"x": 1.0, "y": 2.0, "kind": "artefact", "class": "ghost"}])
    assert not filled["on_galaxy"].iloc[0]
    assert np.isnan(filled["snr"].iloc[0])
