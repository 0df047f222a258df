"""FITS files of many makes become raw exposures."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives.fits_reader import exposure_id_of, read_exposure, summarise
from astrid_pipeline.archives.geometry import AmplifierPlan, moved_wcs, parse_cut, tiles
from astrid_pipeline.archives.keywords import load_keywords
from astrid_pipeline.errors import HeaderError
from astrid_pipeline.imaging import io
from astrid_pipeline.imaging.calibrate import calibrate
from astrid_pipeline.imaging.calibrate.amplifiers import assemble
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.raw import Kind
from astrid_pipeline_tests.archives.some_fits import LIGHT, TAN, header, pixels, write, write_four_amplifiers


def test_an_ordinary_file(tmp_path: Path) -> None:
    raw = read_exposure(write(tmp_path / "a.fits", None, TAN))
    assert raw.kind is Kind.LIGHT
    assert not raw.calibrated
    assert raw.wcs is not None
    np.testing.assert_array_equal(raw.amplifiers[0].data, pixels())
    assert raw.amplifiers[0].data.dtype == np.float32
    assert raw.meta["exposure_id"] == "a"
    assert raw.meta["unit"] == "adu"
    assert raw.meta["gain"] == 1.5
    assert raw.meta["saturation"] == 65535
    assert raw.meta["pixel_scale"] == pytest.approx(0.72)


@pytest.mark.parametrize("suffix", ["fits.gz", "fits.bz2", "fits.xz", "fits.fz", "fit", "FTS"])
def test_compressed_and_otherwise_named_files(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path / "b.fits", None, TAN)
    path = tmp_path / f"c.{suffix}"
    if suffix.endswith("fz"):
        hdu = fits.CompImageHDU(pixels(), header(LIGHT, TAN), compression_type="RICE_1")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(suffix[5:], bytes)
        path.write_bytes(pack(plain.read_bytes()))
    raw = read_exposure(path)
    np.testing.assert_array_equal(raw.amplifiers[0].data, pixels())
    assert raw.wcs is not None
    assert raw.meta["exposure_id"] == exposure_id_of(path) == "c"


def test_four_amplifiers_are_put_together(tmp_path: Path) -> None:
    truth = pixels(3, (80, 100), 5000.0)
    gains = (1.1, 1.2, 1.3, 1.4)
    path = write_four_amplifiers(tmp_path / "mef.fits", truth, gains)
    raw = read_exposure(path)
    assert [a.gain for a in raw.amplifiers] == list(gains)
    # Each has the zero level 200: the assembled image is the truth less that.
    np.testing.assert_allclose(assemble(raw).data, truth - 200.0, atol=3)
    assert raw.wcs is not None
    np.testing.assert_allclose(raw.wcs.wcs.crpix, [32.5, 24.5])
    frame = calibrate(raw)
    assert frame.shape == truth.shape
    assert np.median(frame.data[:40, :50]) == pytest.approx((5000 - 200) * 1.1, rel=0.01)
    assert np.median(frame.data[40:, 50:]) == pytest.approx((5000 - 200) * 1.3, rel=0.01)


def test_amplifiers_side_by_side_in_one_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    left, right = rng.poisson(900, (30, 20)), rng.poisson(1900, (30, 20))
    overscan = rng.normal(100, 1, (2, 30, 6))
    data = np.hstack([overscan[0], left, right, overscan[1]]).round().astype(np.uint16)
    cards = {
        "DATASECA": "[7:26,1:30]", "BIASSECA": "[1:6,1:30]", "GAINA": 1.5, "RDNOISEA": 4.0,
        "DATASECB": "[27:46,1:30]", "BIASSECB": "[47:52,1:30]", "GAINB": 2.5, "RDNOISEB": 5.0,
    }  # fmt: skip
    raw = read_exposure(write(tmp_path / "two.fits", data, cards))
    assert [(a.gain, a.read_noise) for a in raw.amplifiers] == [(1.5, 4.0), (2.5, 5.0)]
    np.testing.assert_allclose(assemble(raw).data, np.hstack([left, right]) - 100.0, atol=2.5)


def test_trimming_moves_the_wcs(tmp_path: Path) -> None:
    sections = {"TRIMSEC": "[17:64,5:48]", "BIASSEC": "[2:14,1:48]"}
    raw = read_exposure(write(tmp_path / "t.fits", None, TAN, sections))
    amplifier = raw.amplifiers[0]
    assert amplifier.data_section == (4, 48, 16, 64)
    assert amplifier.overscan_section == (0, 48, 1, 14)
    assert raw.wcs is not None
    whole = WCS(header(TAN))
    np.testing.assert_allclose(raw.wcs.all_pix2world([[0, 0]], 0), whole.all_pix2world([[16, 4]], 0))


def test_sections_of_a_trimmed_file_are_only_history(tmp_path: Path) -> None:
    raw = read_exposure(write(tmp_path / "t.fits", None, TRIMSEC="[33:96,1:48]", BIASSEC="[1:20,1:48]"))
    assert raw.amplifiers[0].data_section == (0, 48, 0, 64)
    assert raw.amplifiers[0].overscan_section is None
    with pytest.raises(HeaderError, match="larger than the image"):
        read_exposure(write(tmp_path / "u.fits", None, TRIMSEC="[1:100,1:48]"))


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_a_flipped_amplifiers_wcs_points_to_the_same_sky(flip_x: bool, flip_y: bool) -> None:
    wcs = WCS(header(TAN))
    plan = AmplifierPlan((2, 42, 5, 55), None, (100, 140, 200, 250), flip_x, flip_y)
    moved = moved_wcs(wcs, plan)
    assert moved is not None
    for x, y in ((5, 2), (30, 20), (54, 41)):
        there = (249 + 5 - x if flip_x else x + 195, 139 + 2 - y if flip_y else y + 98)
        np.testing.assert_allclose(
            moved.all_pix2world([there], 0), wcs.all_pix2world([(x, y)], 0), atol=1e-10
        )


def test_sections_are_read_as_iraf_writes_them() -> None:
    cut = parse_cut(" [ 20 : 11, 1:512] ")
    assert cut is not None
    assert cut.section == (0, 512, 10, 20)
    assert (cut.flip_x, cut.flip_y) == (True, False)
    for text in (None, "UNKNOWN", "[0:5,1:2]", "[1:5]", 3):
        assert parse_cut(text) is None


def test_tiling() -> None:
    assert tiles([(0, 2, 0, 2), (0, 2, 2, 5)])
    assert not tiles([(0, 2, 0, 2), (0, 2, 3, 5)])
    assert not tiles([(0, 2, 0, 3), (0, 2, 2, 5)])


def test_noise_planes_and_flags_beside_the_image(tmp_path: Path) -> None:
    sky = np.random.default_rng(5).normal(10, 2, (40, 50)).astype(np.float32)
    flags = np.zeros(sky.shape, np.int16)
    flags[3, 4] = 1
    error = np.full(sky.shape, 2, np.float32)
    error[7, 7] = 0
    with np.errstate(divide="ignore"):
        inverse = error**-2.0
    for name, plane in (("ERR", error), ("VAR", error**2), ("IVAR", inverse)):
        hdus = fits.HDUList(
            [
                fits.PrimaryHDU(None, header(LIGHT)),
                fits.ImageHDU(sky, header(TAN, BUNIT="electron/s"), name="SCI"),
                fits.ImageHDU(plane, name=name),
                fits.ImageHDU(flags, name="DQ"),
            ]
        )
        hdus.writeto(tmp_path / "n.fits", overwrite=True)
        raw = read_exposure(tmp_path / "n.fits")
        assert raw.calibrated
        assert raw.variance is not None
        assert raw.mask is not None
        assert raw.variance[0, 0] == pytest.approx(4)
        assert raw.meta["gain"] == 60.0  # electrons a unit: the exposure time
        frame = calibrate(raw)
        assert frame.mask[3, 4] & Mask.BAD_PIXEL
        assert frame.mask[7, 7] & Mask.NO_DATA
        assert frame.variance is not None
        assert frame.variance[0, 0] == pytest.approx(4)


def test_surface_brightness_becomes_flux(tmp_path: Path) -> None:
    data = np.random.default_rng(6).normal(1, 0.1, (20, 20)).astype(np.float32)
    raw = read_exposure(write(tmp_path / "j.fits", data, BUNIT="MJy/sr", PIXAR_SR=1e-14))
    np.testing.assert_allclose(raw.amplifiers[0].data, data * 10, rtol=1e-5)
    assert raw.meta["unit"] == "nJy"
    with pytest.raises(HeaderError, match="area of a pixel"):
        read_exposure(write(tmp_path / "k.fits", data, BUNIT="MJy/sr"))


def test_several_detectors_are_named_one_by_one(tmp_path: Path) -> None:
    hdus = [fits.PrimaryHDU(None, header(LIGHT))]
    for number in (1, 2):
        hdus.append(fits.ImageHDU(pixels(number), header(TAN, CCDNUM=number), name=f"CCD{number}"))
    path = tmp_path / "mosaic.fits"
    fits.HDUList(hdus).writeto(path)
    with pytest.raises(HeaderError, match=r"2 detectors.*mosaic\.fits\[1\]"):
        read_exposure(path)
    raw = read_exposure(f"{path}[2]")
    np.testing.assert_array_equal(raw.amplifiers[0].data, pixels(2))
    assert raw.meta["exposure_id"] == "mosaic.2"
    assert raw.meta["detector"] == "2"
    assert [s.url for s in summarise(path, load_keywords())] == [f"{path}[1]", f"{path}[2]"]
    with pytest.raises(HeaderError, match="use one of 1, 2"):
        read_exposure(f"{path}[7]")


def test_what_astrid_wrote_comes_back_with_its_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    mask = np.zeros((60, 70), np.int32)
    mask[5, 6] = int(Mask.SATURATED)
    meta = {"exposure_id": "own", "gain": 1.0, "unit": "electron", "mjd": 60000.5, "exposure": 30.0}
    frame = Frame(rng.normal(100, 10, (60, 70)), np.full((60, 70), 100.0), mask, None, WCS(header(TAN)), meta)
    raw = read_exposure(io.write_frame(frame, tmp_path / "own.fits"))
    assert raw.calibrated
    again = calibrate(raw, find_trails=False)
    assert np.abs(again.data - frame.data).max() < 0.5
    assert again.variance is not None
    assert np.median(again.variance) == pytest.approx(100, rel=1e-3)
    assert again.mask[5, 6] & Mask.SATURATED
    assert again.meta["mjd"] == 60000.5


def test_signed_integers_saturate_at_their_own_ceiling(tmp_path: Path) -> None:
    raw = read_exposure(write(tmp_path / "s.fits", pixels().astype(np.int16)))
    assert raw.meta["saturation"] == 32767
    assert "gain" not in read_exposure(write(tmp_path / "g.fits", None, GAIN=None)).meta


def test_a_broken_wcs_is_no_wcs(tmp_path: Path) -> None:
    assert read_exposure(write(tmp_path / "w.fits", None, TAN, CD1_1=0.0)).wcs is None
    assert read_exposure(write(tmp_path / "l.fits", None, TAN, CTYPE1="LINEAR", CTYPE2="LINEAR")).wcs is None


@pytest.mark.parametrize(
    ("telescope", "bits"), [("HST", Mask.SATURATED), ("other", Mask.BAD_PIXEL | Mask.SUSPECT)]
)
def test_flags_mean_what_their_instrument_says(tmp_path: Path, telescope: str, bits: Mask) -> None:
    flags = np.zeros((20, 30), np.int16)
    flags[3, 4] = 256
    hdus = [fits.PrimaryHDU(None, header(LIGHT, TELESCOP=telescope))]
    hdus.append(fits.ImageHDU(pixels(1, flags.shape), header(FLATCORR="COMPLETE"), name="SCI"))
    hdus.append(fits.ImageHDU(flags, name="DQ"))
    fits.HDUList(hdus).writeto(tmp_path / "f.fits")
    mask = read_exposure(tmp_path / "f.fits").mask
    assert mask is not None
    assert mask[3, 4] == bits
    assert mask.sum() == bits
