"""What is written is what is read: arrays within the promised error, everything else to the letter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import ReadError
from astrid_pipeline.imaging import io
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.psf_model import PSF


def noise_frame(rng: np.random.Generator, sigma: float = 10.0, shape: tuple[int, int] = (120, 90)) -> Frame:
    data = rng.normal(500, sigma, shape).astype(np.float32)
    data[40, 50] = 60_000
    mask = np.zeros(shape, np.int32)
    mask[40, 50] = int(Mask.SATURATED | Mask.BLEED)
    stamp = np.exp(-(np.hypot(*np.mgrid[-5:6, -5:6]) ** 2) / 4)
    psf = PSF(
        np.stack([stamp, 0.1 * stamp]), ((0, 0), (1, 0)), shape, {"n_stars": 7, "chi2": np.float64(1.1)}
    )
    variance = (data + 25).astype(np.float32)
    return Frame(data, variance, mask, psf, None, {"exposure_id": "a-1", "mjd": 60000.125, "filter": "r"})


def test_frame_round_trip(tmp_path: Path) -> None:
    frame = noise_frame(np.random.default_rng(1))
    back = io.read_frame(io.write_frame(frame, tmp_path / "frame.fits"))
    assert frame.variance is not None
    assert back.variance is not None
    assert frame.psf is not None
    assert back.psf is not None
    step = io.sky_noise(frame.data) / io.LEVELS
    assert np.abs(back.data - frame.data).max() <= 0.51 * step + 1e-6 * 60_000
    assert np.abs(back.variance / frame.variance - 1).max() < 1e-3
    np.testing.assert_array_equal(back.mask, frame.mask)
    np.testing.assert_array_equal(back.psf.basis, frame.psf.basis)
    assert back.psf.exponents == frame.psf.exponents
    assert back.psf.shape == frame.psf.shape
    assert back.psf.quality == {"n_stars": 7, "chi2": 1.1}
    assert dict(back.meta) == dict(frame.meta)


def test_file_is_plain_fits_with_the_usual_names(tmp_path: Path) -> None:
    path = io.write_frame(noise_frame(np.random.default_rng(2)), tmp_path / "frame.fits")
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "VAR", "DQ", "PSF"]
        assert hdus[0].header["MJD-AVG"] == 60000.125
        assert hdus[0].header["FILTER"] == "r"


def test_a_frame_without_variance_psf_and_wcs(tmp_path: Path) -> None:
    frame = Frame(np.random.default_rng(3).normal(0, 1, (40, 50)))
    back = io.read_frame(io.write_frame(frame, tmp_path / "f.fits"))
    assert back.variance is None
    assert back.psf is None
    assert back.wcs is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    sigma=st.floats(1e-6, 1e5),
    level=st.floats(-1e6, 1e6),
    height=st.integers(3, 70),
    width=st.integers(3, 300),
)
def test_error_is_bounded_and_zeros_stay(
    tmp_path: Path, seed: int, sigma: float, level: float, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(level, sigma, (height, width)).astype(np.float32)
    data[0] = 0
    back = io.read_frame(io.write_frame(Frame(data), tmp_path / "f.fits"))
    # Float32 cannot tell values apart that differ by less than this.
    rounding = 2e-7 * float(np.abs(data).max())
    assert np.abs(back.data - data).max() <= 0.51 * io.sky_noise(data) / io.LEVELS + rounding
    np.testing.assert_array_equal(back.data[0], 0)


def test_images_without_noise_are_kept_exactly(tmp_path: Path) -> None:
    # RICE with a step from each tile was wrong by thousands here.
    data = np.full((300, 280), 7.25, np.float32)
    data[100, 100] = 54_321.5
    back = io.read_frame(io.write_frame(Frame(data), tmp_path / "f.fits"))
    np.testing.assert_array_equal(back.data, data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(meta=st.dictionaries(st.text(max_size=20), json_values, max_size=8))
def test_any_metadata_survive(tmp_path: Path, meta: dict) -> None:
    frame = Frame(np.arange(12.0).reshape(3, 4), meta={**meta, "exposure_id": "x"})
    back = io.read_frame(io.write_frame(frame, tmp_path / "f.fits"))
    assert dict(back.meta) == {**meta, "exposure_id": "x"}


def test_long_lists_survive(tmp_path: Path) -> None:
    inputs = [f"it's a name & {i}  " for i in range(400)]
    frame = Frame(np.arange(12.0).reshape(3, 4), meta={"inputs": tuple(inputs), "n": np.int64(3)})
    back = io.read_frame(io.write_frame(frame, tmp_path / "f.fits"))
    assert back.meta["inputs"] == inputs
    assert back.meta["n"] == 3


def header_of(projection: str) -> fits.Header:
    header = fits.Header()
    header.update(NAXIS=2, NAXIS1=400, NAXIS2=300, CRPIX1=180.0, CRPIX2=-30.0, CRVAL1=36.9, CRVAL2=-5.2)
    header.update(CD1_1=-9e-5, CD1_2=1e-6, CD2_1=1.2e-6, CD2_2=9.1e-5, CUNIT1="deg", CUNIT2="deg")
    suffix = {"TAN": "TAN", "TPV": "TPV", "ZPN": "ZPN", "SIP": "TAN-SIP"}[projection]
    header.update(CTYPE1=f"RA---{suffix}", CTYPE2=f"DEC--{suffix}", RADESYS="ICRS")
    if projection == "TPV":
        header.update(PV1_0=1e-4, PV1_1=1.001, PV1_2=2e-4, PV1_4=3e-3, PV2_1=0.999, PV2_5=-2e-3)
    if projection == "ZPN":
        header.update(PV2_1=1.0, PV2_3=44.0)
    if projection == "SIP":
        header.update(A_ORDER=2, B_ORDER=2, A_2_0=2e-6, A_1_1=-1e-6, B_0_2=3e-6, B_1_1=1e-6)
    return header


@pytest.mark.parametrize("projection", ["TAN", "TPV", "ZPN", "SIP"])
def test_distortions_survive(tmp_path: Path, projection: str) -> None:
    wcs = WCS(header_of(projection))
    frame = Frame(np.random.default_rng(4).normal(0, 1, (300, 400)), wcs=wcs)
    back = io.read_frame(io.write_frame(frame, tmp_path / "f.fits")).wcs
    assert back is not None
    points = np.array([[0.0, 0.0], [399.0, 299.0], [200.0, 10.0]])
    np.testing.assert_allclose(back.all_pix2world(points, 0), wcs.all_pix2world(points, 0), rtol=0, atol=1e-9)


def make_difference(rng: np.random.Generator) -> Difference:
    frame = noise_frame(rng)
    assert frame.variance is not None
    assert frame.psf is not None
    score = rng.normal(0, 1, frame.shape)
    score[3, 4] = np.nan
    planes = [rng.normal(0, 5, frame.shape) for _ in range(4)]
    return Difference(
        planes[0], frame.variance, frame.mask << 12, frame.psf, score, planes[1], np.full(frame.shape, 2.5),
        planes[2], planes[3], WCS(header_of("TAN")), {"method": "zogy", "score_sigma": 1.002},
    )  # fmt: skip


def test_difference_round_trip(tmp_path: Path) -> None:
    difference = make_difference(np.random.default_rng(5))
    back = io.read_difference(io.write_difference(difference, tmp_path / "d.fits"))
    for name in ("data", "flux", "science", "reference"):
        values = getattr(difference, name)
        assert np.abs(getattr(back, name) - values).max() <= 0.51 * io.sky_noise(values) / io.LEVELS + 1e-5
    assert np.nanmax(np.abs(back.score - difference.score)) <= 0.51 / io.SCORE_LEVELS + 1e-6
    np.testing.assert_array_equal(np.isnan(back.score), np.isnan(difference.score))
    np.testing.assert_array_equal(back.flux_err, difference.flux_err)
    np.testing.assert_array_equal(back.mask, difference.mask)
    assert dict(back.meta) == dict(difference.meta)
    assert back.wcs is not None


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = io.write_frame(noise_frame(np.random.default_rng(6)), tmp_path / "frame.fits")
    with pytest.raises(ReadError, match=r"frame\.fits: holds no difference"):
        io.read_difference(path)
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "other.fits")
    with pytest.raises(ReadError, match="something else"):
        io.read_frame(tmp_path / "other.fits")


def test_absent_and_truncated_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.fits: is not there"):
        io.read_frame(tmp_path / "none.fits")
    path = io.write_frame(noise_frame(np.random.default_rng(7)), tmp_path / "cut.fits")
    whole = path.read_bytes()
    # The last 900 bytes are padding: 1,200 fewer take pixels of the PSF away.
    for length in (len(whole) - 1200, *(int(len(whole) * share) for share in (0.9, 0.7, 0.5, 0.2, 0.0))):
        path.write_bytes(whole[:length])
        with pytest.raises(ReadError, match=r"cut\.fits"):
            io.read_frame(path)
