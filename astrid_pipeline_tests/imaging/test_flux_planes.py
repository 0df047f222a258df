"""What is read of a difference around some places measures as the whole does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import ReadError
from astrid_pipeline.imaging import forced_photometry, io
from astrid_pipeline.imaging.flux_planes import read_flux_planes
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.psf_model import PSF

#: Three tiles by four, the last ones cut.
SHAPE = (600, 800)


def make_difference(wcs: bool = True) -> Difference:
    rng = np.random.default_rng(3)
    planes = [rng.normal(0, 5, SHAPE) for _ in range(6)]
    stamp = np.zeros((5, 5))
    stamp[2, 2] = 1.0
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
    header.update({"CRPIX1": 400.0, "CRPIX2": 300.0, "CDELT1": -1e-4, "CDELT2": 1e-4})
    return Difference(
        planes[0], planes[1] ** 2, rng.integers(0, 2**20, SHAPE).astype(np.int32), PSF.from_stamp(stamp), planes[2],
        planes[3], np.abs(planes[4]), planes[5], planes[0], WCS(header) if wcs else None, {"mjd": 6e4, "filter": "r"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, Difference]:
    path = io.write_difference(make_difference(), tmp_path_factory.mktemp("planes") / "d.fits")
    return path, io.read_difference(path)


places = st.lists(
    st.tuples(st.floats(-15, SHAPE[1] + 15), st.floats(-15, SHAPE[0] + 15)), min_size=1, max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places)
def test_it_measures_as_the_whole_does(stored, where):
    path, whole = stored
    x, y = np.array(where).T
    ra, dec = whole.wcs.all_pix2world(x, y, 0)
    part = read_flux_planes(path, ra, dec)
    assert part.shape == whole.shape
    assert dict(part.meta) == dict(whole.meta)
    expected = forced_photometry(whole, ra, dec)
    assert forced_photometry(part, ra, dec).equals(expected)


def test_only_the_tiles_around_the_places_are_read(stored):
    path, whole = stored
    at = np.array([[252.0, 100.0], [700.0, 590.0]])  # beside the border of two tiles; in the last one
    ra, dec = whole.wcs.all_pix2world(*at.T, 0)
    part = read_flux_planes(path, ra, dec)
    filled = part.flux != 0
    tiles = {
        (i, j) for i, j in np.ndindex(3, 4) if filled[i * 256 : (i + 1) * 256, j * 256 : (j + 1) * 256].any()
    }
    assert tiles == {(0, 0), (0, 1), (2, 2)}
    np.testing.assert_array_equal(part.flux[filled], whole.flux[filled])
    # Where most tiles are wanted, all are read at once.
    everywhere = np.stack(np.meshgrid(np.arange(0, 800, 50), np.arange(0, 600, 50)), -1).reshape(-1, 2)
    ra, dec = whole.wcs.all_pix2world(*everywhere.T, 0)
    part = read_flux_planes(path, ra, dec)
    for name in ("flux", "flux_err", "mask"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))


def test_without_a_wcs_nothing_is_near(tmp_path):
    path = io.write_difference(make_difference(wcs=False), tmp_path / "d.fits")
    part = read_flux_planes(path, np.array([150.0]), np.array([2.0]))
    assert part.wcs is None
    assert not part.flux.any()


def test_what_cannot_be_read_is_named(stored, tmp_path):
    path, whole = stored
    place = whole.wcs.all_pix2world([250.0], [100.0], 0)
    with pytest.raises(ReadError, match=r"none\.fits: is not there"):
        read_flux_planes(tmp_path / "none.fits", *place)
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "other.fits")
    with pytest.raises(ReadError, match="something else"):
        read_flux_planes(tmp_path / "other.fits", *place)
    content = path.read_bytes()
    for share in (0.6, 0.3, 0.05, 0.0):
        (tmp_path / "cut.fits").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ReadError, match=r"cut\.fits"):
            read_flux_planes(tmp_path / "cut.fits", *place)
