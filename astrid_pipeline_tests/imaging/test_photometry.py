"""Forced photometry and injection against each other and against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import InputError
from astrid_pipeline.imaging import forced_photometry, inject
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.inject import flux_at_snr, render
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.photometry import FORCED, interpolate
from astrid_pipeline.imaging.quality import psf_flux
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf

SHAPE = (80, 100)


def frame(**changes):
    base = Frame(
        np.zeros(SHAPE),
        np.full(SHAPE, 100.0),
        psf=gaussian_psf(2.6, SHAPE, 21),
        meta={"gain": 2.0, "exposure_id": "f"},
    )
    return base.replace(**changes)


def tan_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [-1e-4, 1e-4]
    wcs.wcs.crpix = [50, 40]
    return wcs


def difference(flux, wcs=None, mask=None):
    zeros = np.zeros(SHAPE)
    return Difference(
        zeros, zeros + 1, mask, gaussian_psf(2.6, SHAPE), zeros, flux, zeros + 5.0, zeros, zeros, wcs=wcs
    )


@given(x=st.floats(12, 87), y=st.floats(12, 67))
def test_flux_between_the_pixels(x, y):
    image = draw(SHAPE, np.array([x]), np.array([y]), np.array([1000.0]), 3.5)
    fine = draw(SHAPE, np.array([round(x)]), np.array([round(y)]), np.array([1000.0]), 3.5)
    value = interpolate(image.astype(np.float32), np.array([x]), np.array([y]))[0]
    assert value == pytest.approx(fine.max(), rel=2e-3)


def test_table_has_its_schema_and_limits():
    table = forced_photometry(difference(np.full(SHAPE, 20.0)), x=[10.2, -5.0], y=[10.0, 3.0])
    assert list(table.columns) == FORCED.names
    assert table.flux[0] == pytest.approx(20.0)
    assert table.snr[0] == pytest.approx(4.0)
    assert table.upper_limit[0] == pytest.approx(35.0)
    assert np.isnan(table.flux[1])
    assert table["flags"][1] == Mask.NO_DATA
    negative = forced_photometry(difference(np.full(SHAPE, -20.0)), x=10, y=10)
    assert negative.upper_limit[0] == pytest.approx(15.0)


def test_sky_and_pixel_positions_agree():
    wcs = tan_wcs()
    flux = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE)
    ra, dec = wcs.all_pix2world([20.0, 60.5], [30.0, 50.25], 0)
    by_sky = forced_photometry(difference(flux, wcs), ra, dec)
    by_pixel = forced_photometry(difference(flux, wcs), x=[20.0, 60.5], y=[30.0, 50.25])
    pd.testing.assert_frame_equal(by_sky, by_pixel, atol=1e-3, rtol=1e-6)
    far = forced_photometry(difference(flux, wcs), [np.nan, 10.0], [0.0, 80.0])
    assert far.flux.isna().all()


def test_flags_are_the_mask_there():
    mask = np.zeros(SHAPE, np.int32)
    mask[30, 20] = Mask.SATURATED
    table = forced_photometry(difference(np.zeros(SHAPE), mask=mask), x=[20.3, 22.0], y=[29.8, 30.0])
    assert table["flags"].tolist() == [Mask.SATURATED, 0]


@pytest.mark.parametrize("arguments", [{}, {"x": [1]}, {"x": [1], "y": [1, 2]}, {"ra": [1], "dec": [1]}])
def test_photometry_refuses_half_positions(arguments):
    with pytest.raises(InputError):
        forced_photometry(difference(np.zeros(SHAPE)), **arguments)


@settings(max_examples=20)
@given(x=st.floats(15, 84), y=st.floats(15, 64), flux=st.floats(10, 1e5))
def test_an_injected_point_is_the_psf(x, y, flux):
    light = render(frame(), pd.DataFrame({"x": [x], "y": [y], "flux": [flux]}))
    expected = draw(SHAPE, np.array([x]), np.array([y]), np.array([flux]), 2.6)
    assert light.sum() == pytest.approx(flux, rel=2e-3)
    assert np.abs(light - expected).max() < 2e-3 * expected.max()


def test_an_injected_trail_has_its_length_and_angle():
    angle, length = 0.6, 14.0
    table = pd.DataFrame(
        {"x": [50.0], "y": [40.0], "flux": [1e4], "kind": ["trail"], "length": [length], "angle": [angle]}
    )
    light = render(frame(), table)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    along = (x - 50) * np.cos(angle) + (y - 40) * np.sin(angle)
    across = -(x - 50) * np.sin(angle) + (y - 40) * np.cos(angle)
    width = 2.6 / 2.3548
    total = light.sum()
    assert total == pytest.approx(1e4, rel=2e-3)
    assert (light * along**2).sum() / total == pytest.approx(length**2 / 12 + width**2 + 1 / 12, rel=0.02)
    assert (light * across**2).sum() / total == pytest.approx(width**2 + 1 / 12, rel=0.03)


def test_injection_adds_photon_noise_and_variance_and_saturation():
    table = pd.DataFrame({"x": [30.0, 200.0], "y": [40.0, 40.0], "flux": [2e5, 1e6]})
    before = frame(meta={"saturation": 15_000.0})
    after = inject(before, table, np.random.default_rng(1))
    assert before.data.max() == 0  # the frame itself is untouched
    assert after.data.max() <= 15_000
    full = (after.mask & Mask.SATURATED) != 0
    assert 1 <= full.sum() < 12
    light = render(before, table)
    assert np.allclose(after.variance, 100 + light / 2, rtol=1e-5)
    pull = (after.data - light)[~full & (light > 50)] / np.sqrt(light[~full & (light > 50)] / 2)
    assert pull.std() == pytest.approx(1, abs=0.25)
    again = inject(before, table, np.random.default_rng(1))
    assert np.array_equal(after.data, again.data)
    taken = inject(frame(), pd.DataFrame({"x": [30.0], "y": [40.0], "flux": [-500.0]}))
    assert taken.data.sum() == pytest.approx(-500, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({"psf": None}, {"x": [1.0], "y": [1.0], "flux": [1.0]}),
        ({}, {"x": [1.0], "y": [1.0]}),
        ({}, {"x": [np.nan], "y": [1.0], "flux": [1.0]}),
    ],
)
def test_injection_refuses(changes, table):
    with pytest.raises(InputError):
        inject(frame(**changes), pd.DataFrame(table))


def test_an_injected_dipole_is_a_star_moved():
    blank = Frame(np.zeros((80, 80)), psf=gaussian_psf(3.0, (80, 80), 25), meta={"gain": 1.0})
    dipole = pd.DataFrame(
        {"x": [40.2], "y": [39.7], "flux": [500.0], "kind": ["dipole"], "length": [0.8], "angle": [0.5]}
    )
    dx, dy = 0.4 * np.cos(0.5), 0.4 * np.sin(0.5)
    points = pd.DataFrame({"x": [40.2 + dx, 40.2 - dx], "y": [39.7 + dy, 39.7 - dy], "flux": [500.0, -500.0]})
    np.testing.assert_allclose(render(blank, dipole), render(blank, points), atol=1e-4)
    light = render(blank, dipole)
    assert light.sum() == pytest.approx(0, abs=0.01)
    # The first moment is the flux times the separation.
    assert (light * np.arange(80)).sum() == pytest.approx(500 * 0.8 * np.cos(0.5), rel=0.01)


@pytest.mark.parametrize("snr", [3.0, 10.0, 60.0])
@pytest.mark.parametrize("level", [100.0, 900.0])
def test_a_source_of_a_wanted_snr_scatters_like_that(snr, level):
    """Sources are injected with their photons' noise and measured with the PSF: f / scatter is the S/N asked for."""
    rng = np.random.default_rng(int(snr + level))
    x, y = (g.ravel() + 0.3 for g in np.meshgrid(np.arange(20.0, 780, 20), np.arange(20.0, 780, 20)))
    gain = 2.0
    sky = rng.poisson(level * gain, (800, 800)) / gain - level
    psf = gaussian_psf(2.8, sky.shape, 21)
    meta = {"gain": gain, "sky_subtracted": True, "noise_correlation": 1.0}
    frame = Frame(sky, np.full(sky.shape, level / gain), psf=psf, meta=meta)
    flux = flux_at_snr(frame, x, y, snr)
    assert np.ptp(flux) < 1e-3 * flux[0]
    measured, _ = psf_flux(inject(frame, pd.DataFrame({"x": x, "y": y, "flux": flux}), rng), x, y)
    assert flux[0] / measured.std() == pytest.approx(snr, rel=0.07)


def test_a_snr_needs_noise_and_psf():
    with pytest.raises(InputError, match="PSF and variance"):
        flux_at_snr(Frame(np.ones((20, 20))), [5], [5], 10)
