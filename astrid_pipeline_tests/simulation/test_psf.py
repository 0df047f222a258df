"""The simulated PSF against Moffats summed pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.simulation.psf import SkyPSF, constant_psf, fold, frequencies, shear, varying_psf
from astrid_pipeline.simulation.sky import render


def moffat_by_hand(shape, x, y, fwhm, beta, e1=0.0, e2=0.0):
    """A unit Moffat integrated over each pixel with Gauss's quadrature of 7 × 7 points."""
    height, width = shape
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    nodes, weights = np.polynomial.legendre.leggauss(7)
    xx = (np.arange(width)[:, None] + nodes / 2).ravel() - x
    yy = (np.arange(height)[:, None] + nodes / 2).ravel() - y
    dx, dy = np.meshgrid(xx, yy)
    inverse = np.linalg.inv(np.array([[1 + e1, e2], [e2, 1 - e1]]) / math.sqrt(1 - e1 * e1 - e2 * e2))
    r2 = inverse[0, 0] * dx * dx + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy * dy
    light = (beta - 1) / (math.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta
    return np.einsum("aibj,i,j->ab", light.reshape(height, 7, width, 7), weights / 2, weights / 2)


@settings(max_examples=15, deadline=None)
@given(
    x=st.floats(24, 40),
    y=st.floats(24, 40),
    fwhm=st.floats(1.8, 4.0),
    beta=st.floats(2.6, 4.5),
    ellipticity=st.floats(0, 0.3),
    angle=st.floats(0, 3.1),
)
def test_a_star_is_drawn_as_the_integral_over_pixels(x, y, fwhm, beta, ellipticity, angle):
    psf = constant_psf((65, 65), fwhm, ellipticity=ellipticity, angle=angle, beta=beta)
    image = np.zeros((65, 65), np.float32)
    render(image, pd.DataFrame({"x": [x], "y": [y], "flux": [1e5]}), psf)
    expected = 1e5 * moffat_by_hand((65, 65), x, y, fwhm, beta, *shear(ellipticity, angle))
    # 1e-3 of the flux is what differencing needs; the drawing is ten times better.
    assert np.abs(image - expected).max() < 1e-4 * 1e5
    assert image.sum() == pytest.approx(expected.sum(), rel=1e-3)


def test_folding_the_spectrum_is_taking_every_second_sample():
    rng = np.random.default_rng(3)
    fine = rng.normal(size=(32, 32))
    coarse = np.fft.irfft2(fold(np.fft.rfft2(fine)), s=(16, 16))
    # Half the samples in each direction: the sums differ by the factor of four in the normalisation.
    np.testing.assert_allclose(coarse, 4 * fine[::2, ::2], atol=1e-12)


def test_frequencies_belong_to_the_oversampled_grid():
    fy, fx = frequencies(16)
    assert fy.shape == (32, 1)
    assert fx.shape == (1, 17)
    assert fx[0, -1] == 1.0  # cycles per pixel: twice Nyquist


@pytest.mark.parametrize("place", [(40, 40), (255, 255), (470, 60)])
def test_model_is_what_is_drawn(place):
    psf = varying_psf(np.random.default_rng(0), (512, 512), 2.4, variation=0.12, ellipticity=0.15)
    x, y = place
    image = np.zeros((512, 512), np.float32)
    render(image, pd.DataFrame({"x": [float(x)], "y": [float(y)], "flux": [1.0]}), psf)
    stamp = psf.model().stamp(x, y)
    half = len(stamp) // 2
    cut = image[y - half : y + half + 1, x - half : x + half + 1]
    assert np.abs(cut - stamp).max() < 1e-3 * stamp.max()


def test_varying_psf_reaches_its_variation_and_follows_the_moffat():
    psf = varying_psf(np.random.default_rng(1), (300, 400), 2.5, variation=0.12, ellipticity=0.15)
    assert not psf.is_constant
    x, y = np.meshgrid(np.linspace(0, 399, 21), np.linspace(0, 299, 21))
    widths = psf.fwhm_at(x, y) / 2.5
    assert widths.min() == pytest.approx(0.88, abs=1e-6)
    assert widths.max() == pytest.approx(1.12, abs=1e-6)
    at_corner = SkyPSF(
        psf.shape, (float(psf.fwhm_at(399, 299)),), (sum(psf.e1),), (sum(psf.e2),), psf.beta
    )  # at u = v = 1 every monomial is 1
    stamp, direct = psf.model(31).stamp(399, 299), at_corner.model(31).stamp()
    assert (
        np.abs(stamp - direct).sum() < 0.02
    )  # the quadratic bends the profile by less than 2 % of its light


def test_model_has_unit_sum_and_its_centre_in_the_middle():
    psf = constant_psf((100, 100), 2.2)
    stamp = psf.model().stamp()
    grid = np.arange(len(stamp)) - len(stamp) // 2
    assert stamp.sum() == pytest.approx(1)
    assert abs((stamp.sum(0) * grid).sum()) < 1e-4
    assert abs((stamp.sum(1) * grid).sum()) < 1e-4
    assert psf.model().basis[0].sum() == pytest.approx(1, abs=2e-3)
