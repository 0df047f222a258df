"""Real files of real observatories: read, calibrated, grouped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.archives.fits_reader import read_exposure
from astrid_pipeline.archives.folder import FolderArchive
from astrid_pipeline.errors import HeaderError
from astrid_pipeline.imaging.calibrate import build_masters, calibrate
from astrid_pipeline.imaging.calibrate.amplifiers import assemble
from astrid_pipeline.imaging.io import sky_noise
from astrid_pipeline.imaging.mask import UNUSABLE, Mask
from astrid_pipeline.imaging.raw import Kind

pytestmark = pytest.mark.real_data


def test_lco_reads_four_corners_into_one_even_sky(shared_data: Path) -> None:
    raw = read_exposure(shared_data / "raw_frames/lco/mef_raw_test_frame.fits")
    assert [a.gain for a in raw.amplifiers] == [6.42, 6.23, 6.27, 6.26]
    assert [(a.flip_x, a.flip_y) for a in raw.amplifiers] == [
        (False, True), (False, False), (True, False), (True, True)
    ]  # fmt: skip
    frame = calibrate(raw)
    assert frame.shape == (1024, 1024)
    assert frame.meta["calibration"] == "overscan"
    assert frame.meta["mjd"] == pytest.approx(59495.0800596 + 94.975 / 2 / 86400, abs=2e-6)
    assert frame.wcs is not None
    sky = frame.wcs.all_pix2world([[511, 511]], 0)[0]
    np.testing.assert_allclose(sky, [287.3248172, 59.493929], atol=1e-6)
    quarters = [frame.data[y, x] for y in (np.s_[:512], np.s_[512:]) for x in (np.s_[:512], np.s_[512:])]
    # No flat was applied: a step of a tenth of the sky between quarters would be a wrong overscan, not a wrong flat.
    levels = [float(np.median(q)) for q in quarters]
    assert max(levels) / min(levels) < 1.1
    # Detector noise, as predicted from the header's gains and read noise, is the frame's.
    assert frame.variance is not None
    for quarter, variance in zip(quarters, (frame.variance[:512, :512],), strict=False):
        assert sky_noise(quarter) == pytest.approx(float(np.sqrt(np.median(variance))), rel=0.15)
    assert (frame.mask & int(Mask.SATURATED)).any()
    assert frame.meta["n_trails"] == 0


def test_saao_overscan_is_taken_off(shared_data: Path) -> None:
    raw = read_exposure(shared_data / "raw_frames/saao/a8280271.fits")
    amplifier = raw.amplifiers[0]
    assert amplifier.data_section == (0, 520, 16, 528)
    assert amplifier.overscan_section == (0, 520, 3, 13)
    # MJD-OBS is the whole day here, the time of day stands in UT; the temperature is in kelvin.
    assert raw.meta["mjd"] == pytest.approx(56486 + (57 * 60 + 33 + 75.02) / 86400, abs=1e-6)
    assert raw.meta["temperature"] == pytest.approx(-92.95)
    assert raw.meta["ra"] == pytest.approx(331.0333, abs=1e-3)
    assembled = assemble(raw)
    assert assembled.levels[0] == pytest.approx(214, abs=2)
    frame = calibrate(raw)
    # The strip of 8 rows that never sees light is at zero after the overscan, but for the bias pattern (3 counts).
    assert abs(float(np.median(frame.data[-7:, 50:-50]))) < 10
    assert frame.variance is not None
    good = (frame.mask & int(UNUSABLE)) == 0
    noise = float(np.sqrt(np.median(frame.variance[good])))
    assert sky_noise(frame.data[:500]) == pytest.approx(noise, rel=0.1)
    assert frame.meta["n_trails"] == 0


def test_raw_frames_archive(shared_data: Path) -> None:
    archive = FolderArchive(shared_data / "raw_frames")
    assert {f.name: len(archive.exposures(f)) for f in archive.fields()} == {
        "2021_SO2": 1,
        "Orion_SSDSI": 3,
        "rf0420": 1,
    }
    assert not archive.problems
    records = archive.calibrations("Apogee Alta", "2012-02-05")
    kinds = [record.kind for record in records]
    # The file called a flat says of itself that it is a bias frame.
    assert kinds == ["bias"] * 6 + ["dark"] * 5
    raws = [read_exposure(record.url) for record in records if record.exposure_id != "flattest"]
    masters = build_masters(raws)
    assert masters.shape == (100, 100)
    assert masters.temperature == pytest.approx(-35.0, abs=0.2)
    assert len(masters.provenance["bias"]) == 5


def test_vista_epochs_are_one_field_over_four_nights(shared_data: Path) -> None:
    archive = FolderArchive(shared_data / "vista_video_A")
    (field,) = archive.fields()
    assert field.filters == ("H",)
    assert field.site_longitude == pytest.approx(-70.4, abs=0.01)
    records = archive.exposures(field)
    assert [(r.exposure_id, r.night) for r in records] == [
        ("image_1", "2009-11-03"),
        ("image_7", "2009-11-17"),
        ("image_2", "2009-12-10"),
        ("image_3", "2010-01-03"),
    ]
    frame = calibrate(read_exposure(records[0].url))
    assert frame.variance is None  # sky taken away, seven exposures, interpolated: to be measured
    assert not (frame.mask & int(Mask.COSMIC_RAY | Mask.TRAIL)).any()
    assert frame.wcs is not None
    assert frame.wcs.wcs.ctype[0] == "RA---ZPN"
    assert frame.meta["zero_point"] == 30.0


def test_decam_stamps_share_a_header_but_not_an_exposure(shared_data: Path) -> None:
    archive = FolderArchive(shared_data / "decam_sfft_minis" / "input_data")
    (field,) = archive.fields()
    records = archive.exposures(field)
    assert len(records) == 10
    assert {r.filter for r in records} == {"i"}
    # The match kernels beside them are images without a time.
    assert len(archive.problems) == 9
    assert all(isinstance(p, HeaderError) and "MatchKernel" in str(p.where) for p in archive.problems)
    for record in records:
        assert calibrate(read_exposure(record.url)).variance is None


def test_bayer_frames_are_summed_with_their_wcs(shared_data: Path) -> None:
    solved = calibrate(read_exposure(shared_data / "pairs_same_night/panoptes_solved.fits.fz"))
    plain = calibrate(read_exposure(shared_data / "pairs_same_night/panoptes_unsolved.fits"))
    assert solved.shape == plain.shape == (350, 350)
    assert plain.wcs is None
    assert solved.wcs is not None
    np.testing.assert_allclose(
        solved.wcs.all_pix2world([[174.5, 174.5]], 0)[0], [303.2064, 46.0174], atol=3e-3
    )
    # A mosaic's own pattern, thousands of counts between colours, is gone.
    assert sky_noise(solved.data) < 0.05 * np.median(solved.data)


def test_hubble_rates_know_their_electrons_and_zero_point(shared_data: Path) -> None:
    raw = read_exposure(shared_data / "single_frames/hst_wfc3ir_f160w_im3433.fits")
    assert raw.calibrated
    assert raw.meta["unit"] == "electron/s"
    assert raw.meta["gain"] == pytest.approx(1808.81, abs=0.01)
    assert raw.meta["zero_point"] == pytest.approx(25.946, abs=2e-3)
    assert raw.meta["mjd"] == pytest.approx((56584.31302198 + 56584.38861161) / 2, abs=1e-6)


def test_everything_is_read_or_refused_by_type(shared_data: Path) -> None:
    kinds = {Kind.LIGHT: 0, Kind.BIAS: 0, Kind.DARK: 0, Kind.FLAT: 0}
    for folder in ("raw_frames", "single_frames", "pairs_same_night", "vista_video_A"):
        for path in sorted((shared_data / folder).rglob("*.f*")):
            kinds[read_exposure(path).kind] += 1
    assert kinds == {Kind.LIGHT: 16, Kind.BIAS: 6, Kind.DARK: 5, Kind.FLAT: 0}
