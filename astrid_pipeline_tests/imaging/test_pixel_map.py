from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from astrid_pipeline.errors import RegistrationError
from astrid_pipeline.imaging.pixel_map import Lattice, PixelMap, Polynomial, identity, monomials, wcs_map
from astrid_pipeline_tests.imaging.star_fields import tan_wcs

SHAPE = (300, 420)


def _sip() -> WCS:
    wcs = tan_wcs(SHAPE, scale=1.0)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[2, 0], a[1, 1], a[3, 0], b[0, 2], b[1, 2] = 3e-6, -2e-6, 4e-9, -3e-6, 5e-9
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    return wcs


def _zpn() -> WCS:
    # A corner of a wide camera far from the axis, as VISTA's detectors see it.
    header = fits.Header()
    header.update(
        CTYPE1="RA---ZPN", CTYPE2="DEC--ZPN", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=4200.0, CRPIX2=-3900.0,
        CD1_1=-9.5e-5, CD1_2=-2e-7, CD2_1=1.6e-7, CD2_2=-9.5e-5, PV2_1=1.0, PV2_3=42.0, PV2_5=-1e4,
    )  # fmt: skip
    return WCS(header)


def _tpv() -> WCS:
    header = fits.Header()
    header.update(
        CTYPE1="RA---TPV", CTYPE2="DEC--TPV", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=210.0, CRPIX2=150.0,
        CD1_1=-7.3e-5, CD1_2=0.0, CD2_1=0.0, CD2_2=7.3e-5,
        PV1_0=1e-5, PV1_1=1.01, PV1_2=1e-3, PV1_4=0.02, PV2_0=-2e-5, PV2_1=0.99, PV2_4=-0.03, PV2_7=0.4,
    )  # fmt: skip
    return WCS(header)


@pytest.mark.parametrize("make", [_sip, _zpn, _tpv])
def test_the_spline_follows_every_distortion(make) -> None:
    """The slow twin is astropy itself, through the sky, at every pixel of some rows."""
    source = make()
    lon, lat = source.all_pix2world(210, 150, 0)
    target = tan_wcs(SHAPE, scale=0.4, angle=7, ra=float(lon))
    target.wcs.crval = [float(lon), float(lat)]
    target.wcs.set()
    found = PixelMap.tabulate(wcs_map(target, source), SHAPE)
    rows, columns = np.array([0.0, 97.0, 299.0]), np.arange(420.0)
    x, y = np.meshgrid(columns, rows)
    u, v = source.all_world2pix(*target.all_pix2world(x, y, 0), 0, tolerance=1e-8, maxiter=60)
    assert np.abs(found.x.rows(rows, columns) - u).max() < 1e-3
    assert np.abs(found.y.rows(rows, columns) - v).max() < 1e-3
    # Not a map that anything would follow: it has to move pixels about.
    assert np.abs(u - x).max() > 1


def test_a_map_to_itself_is_the_identity() -> None:
    function = wcs_map(_sip(), _sip())
    x, y = np.meshgrid(np.arange(0.0, 420, 37), np.arange(0.0, 300, 41))
    u, v = function(x, y)
    assert np.abs(u - x).max() < 1e-5
    assert np.abs(v - y).max() < 1e-5


def test_points_and_rows_of_a_lattice_agree_and_mirror() -> None:
    x, y = np.linspace(-20, 450, 9), np.linspace(-20, 320, 8)
    values = np.sin(y[:, None] / 90) * 5 + 0.01 * x + 300
    lattice = Lattice(x, y, values)
    at_x, at_y = np.array([0.0, 33.3, 419.0]), np.array([1.5, 200.25])
    rows = lattice.rows(at_y, at_x)
    points = lattice(*np.meshgrid(at_x, at_y))
    np.testing.assert_allclose(rows, points, atol=1e-10)
    np.testing.assert_allclose(lattice.mirrored(419.0).rows(at_y, at_x), 419.0 - rows, atol=1e-9)


def test_the_jacobian_is_that_of_the_map() -> None:
    def turned(x, y):
        x, y = np.asarray(x, float), np.asarray(y, float)
        return 0.9 * x - 0.2 * y + 3 + 1e-4 * x**2, 0.3 * x + 1.1 * y

    found = PixelMap.tabulate(turned, SHAPE)
    jacobian = found.jacobian(100.0, 50.0)
    np.testing.assert_allclose(jacobian, [[0.9 + 2e-2, -0.2], [0.3, 1.1]], atol=1e-8)


def test_a_rough_map_is_refused() -> None:
    def rough(x, y):
        x, y = identity(x, y)
        return x + 5 * np.sin(x * 2), y

    with pytest.raises(RegistrationError, match="not smooth"):
        PixelMap.tabulate(rough, SHAPE)


def test_a_map_without_an_answer_is_refused() -> None:
    def half(x, y):
        x, y = identity(x, y)
        return np.where(x > 200, np.nan, x), y

    with pytest.raises(RegistrationError, match="no answer"):
        PixelMap.tabulate(half, SHAPE)


def test_a_wcs_without_sky_axes_is_refused() -> None:
    plain = WCS(naxis=2)
    with pytest.raises(RegistrationError, match="celestial"):
        wcs_map(plain, tan_wcs(SHAPE))


@pytest.mark.parametrize("degree", [-1, 0, 1, 2, 4])
def test_polynomials_have_all_their_terms(degree: int) -> None:
    x, y = np.array([3.0, 7.0]), np.array([-1.0, 5.0])
    terms = monomials(degree, x, y, (1.0, 2.0), 4.0)
    wanted = [
        ((x - 1) / 4) ** i * ((y - 2) / 4) ** j for i in range(degree + 1) for j in range(degree + 1 - i)
    ]
    assert terms.shape == (2, len(wanted))
    if wanted:
        np.testing.assert_allclose(np.sort(terms, axis=1), np.sort(np.stack(wanted, axis=1), axis=1))
    moved = Polynomial(degree, np.ones((len(wanted), 2)), (1.0, 2.0), 4.0)(x, y)
    np.testing.assert_allclose(moved[0], np.sum(wanted, axis=0) if wanted else 0 * x)
