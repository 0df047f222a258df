"""Calibration against known light: levels, noise, masters, and what must be refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.errors import CalibrationError
from astrid_pipeline.imaging import io
from astrid_pipeline.imaging.calibrate import MasterCalibration, build_masters, calibrate
from astrid_pipeline.imaging.calibrate.amplifiers import assemble, linearise, smooth_levels, subtract_overscan
from astrid_pipeline.imaging.calibrate.build import CLIP, combine
from astrid_pipeline.imaging.mask import UNUSABLE, Mask
from astrid_pipeline.imaging.raw import Amplifier, Kind, RawExposure
from astrid_pipeline_tests.imaging.raw_frames import Camera

LIGHT = 400.0


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


@pytest.fixture(scope="module")
def masters(camera: Camera) -> MasterCalibration:
    return build_masters(camera.calibrations(np.random.default_rng(10)))


def good(frame) -> np.ndarray:
    return (frame.mask & int(UNUSABLE)) == 0


def test_overscan_follows_the_rows_and_flips_come_right(camera: Camera) -> None:
    raw = camera.expose(np.random.default_rng(1), LIGHT, 0)
    assembled = assemble(raw)
    assert assembled.data.shape == camera.shape
    expected = LIGHT * camera.flat / camera.gain_map() + camera.bias
    pull = (assembled.data - expected) / np.sqrt(LIGHT * camera.flat + 25) * camera.gain_map()
    # The drift of 8 counts along the rows, or an amplifier the wrong way round, would show at once.
    assert abs(pull.mean()) < 0.02
    assert 0.97 < pull.std() < 1.03
    np.testing.assert_allclose(assembled.levels, camera.levels, atol=1)
    np.testing.assert_allclose(
        np.multiply(assembled.overscan_noise, camera.gains), camera.read_noise, rtol=0.05
    )


def test_overscan_of_real_rows_is_not_smoothed_away() -> None:
    rng = np.random.default_rng(2)
    smooth = 1000 + 5 * np.linspace(-1, 1, 400) ** 2
    few = rng.normal(0, 4, (400, 20))
    np.testing.assert_allclose(
        smooth_levels(np.mean(smooth[:, None] + few, axis=1), 4.0, 20), smooth, atol=0.6
    )
    rows = smooth + rng.normal(0, 6, 400)
    kept = smooth_levels(np.mean(rows[:, None] + few, axis=1), 4.0, 20)
    assert np.std(kept - rows) < 1.5


def test_overscan_above_the_data_corrects_columns() -> None:
    rng = np.random.default_rng(3)
    level = 500 + 20 * np.sin(np.arange(64) / 9)
    data = level + rng.normal(0, 1, (60, 64))
    amplifier = Amplifier(data.astype(np.float32), (0, 48, 0, 64), (0, 48, 0, 64), (50, 60, 0, 64))
    corrected, mean, noise = subtract_overscan(amplifier)
    assert abs(np.median(corrected, axis=0)).max() < 1.5
    assert mean == pytest.approx(500, abs=15)
    assert noise == pytest.approx(1.0, rel=0.25)


def test_linearity_polynomial() -> None:
    counts = np.array([[0.0, 100.0, 30_000.0]], np.float32)
    m = counts.astype(float)
    np.testing.assert_allclose(linearise(counts, (1e-6, 2e-12)), m * (1 + 1e-6 * m + 2e-12 * m**2), rtol=1e-6)


def test_masters_measure_the_detector(camera: Camera, masters: MasterCalibration) -> None:
    assert masters.bias is not None
    assert masters.dark is not None
    assert masters.bad is not None
    usable = (masters.bad & int(UNUSABLE)) == 0
    gain = camera.gain_map()
    np.testing.assert_allclose(masters.read_noise, camera.read_noise, rtol=0.04)
    for measured, variance, truth in (
        (masters.bias, masters.bias_variance, camera.bias),
        (masters.dark, masters.dark_variance, camera.dark / gain),
        (masters.flats["r"], masters.flat_variances["r"], camera.flat / np.median(camera.flat)),
    ):
        assert variance is not None
        pull = ((measured - truth) / np.sqrt(variance))[usable]
        # The sky of a bias master carries the overscan's error, 1 count / √24 a row, on top.
        assert abs(np.median(pull)) < 0.25
        assert 0.9 < np.percentile(np.abs(pull), 68.27) < 1.15
    assert set(masters.provenance) == {"bias", "dark", "flat:r"}
    assert len(masters.provenance["flat:r"]) == 5


def test_bad_pixels_and_columns_are_learned(camera: Camera, masters: MasterCalibration) -> None:
    assert masters.bad is not None
    bits = masters.bad.ravel()
    assert (bits[camera.hot] & Mask.BAD_PIXEL).astype(bool).all()
    assert (bits[camera.dead] & Mask.BAD_PIXEL).astype(bool).all()
    assert (masters.bad[:, camera.trap] & Mask.BAD_COLUMN).astype(bool).all()
    unexpected = np.ones(bits.size, bool)
    unexpected[np.concatenate([camera.hot, camera.dead])] = False
    unexpected.reshape(camera.shape)[:, camera.trap] = False
    assert (bits[unexpected] != 0).mean() < 2e-4


def test_calibrated_frame_has_the_light_and_its_noise(camera: Camera, masters: MasterCalibration) -> None:
    rng = np.random.default_rng(20)
    y, x = np.mgrid[: camera.shape[0], : camera.shape[1]]
    light = LIGHT + 3e4 * np.exp(-((x - 60) ** 2 + (y - 90) ** 2) / 50)
    raw = camera.expose(rng, light, 120, exposure_id="night-1")
    frame = calibrate(raw, masters)
    assert frame.variance is not None
    pull = ((frame.data - light) / np.sqrt(frame.variance))[good(frame)]
    # 0.01: the master frames' own error, common to all pixels, is a hundredth of the noise.
    assert abs(pull.mean()) < 0.03
    assert 0.97 < pull.std() < 1.03
    assert frame.meta["unit"] == "electron"
    assert frame.meta["gain"] == 1.0
    assert frame.meta["calibration"] == "overscan,bias,dark,flat"
    assert frame.meta["exposure_id"] == "night-1"
    level = (60_000 - np.mean(camera.levels)) * np.mean(camera.gains)
    assert frame.meta["saturation"] == pytest.approx(level, rel=0.1)
    assert (frame.mask[:4] & int(Mask.EDGE)).all()
    assert not (frame.mask[4:-4, 4:-4] & int(Mask.EDGE)).any()


def test_twin_written_out_pixel_by_pixel(camera: Camera, masters: MasterCalibration) -> None:
    """The arithmetic of one pixel, spelled out, and of ccdproc for the steps that it has."""
    import ccdproc
    from astropy import units as u
    from astropy.nddata import CCDData

    raw = camera.expose(np.random.default_rng(21), LIGHT, 60)
    frame = calibrate(raw, masters, find_trails=False, find_cosmic_rays=False)
    assert frame.variance is not None
    assert masters.bias is not None
    assert masters.dark is not None
    assert masters.bias_variance is not None
    assert masters.dark_variance is not None
    counts = assemble(raw).data
    flat = masters.flats["r"]
    for y, x in ((10, 10), (100, 200), (150, 119), (150, 120)):
        gain = camera.gains[int(x >= camera.half)]
        noise = masters.read_noise[int(x >= camera.half)]
        assert noise is not None
        above = float(counts[y, x] - masters.bias[y, x]) * gain
        electrons = (above - float(masters.dark[y, x]) * 60 * gain) / float(flat[y, x])
        assert frame.data[y, x] == pytest.approx(electrons, rel=1e-5)
        masters_part = float(masters.bias_variance[y, x] + masters.dark_variance[y, x] * 3600) * gain**2
        variance = (noise**2 + max(above, 0) + masters_part) / float(flat[y, x]) ** 2
        variance += electrons**2 * float(masters.flat_variances["r"][y, x]) / float(flat[y, x]) ** 2
        assert frame.variance[y, x] == pytest.approx(variance, rel=1e-4)
    ccd = CCDData(counts, unit="adu")
    ccd = ccdproc.subtract_bias(ccd, CCDData(masters.bias, unit="adu"))
    ccd = ccdproc.subtract_dark(
        ccd, CCDData(masters.dark, unit="adu"), dark_exposure=1 * u.s, data_exposure=60 * u.s, scale=True
    )
    ccd = ccdproc.gain_correct(ccd.multiply(camera.gain_map()), 1 * u.electron / u.adu)
    theirs = ccd.data / flat
    np.testing.assert_allclose(frame.data[good(frame)], theirs[good(frame)], rtol=1e-4, atol=1e-2)


def test_gain_is_measured_from_flats_where_the_header_has_none(camera: Camera) -> None:
    masters = build_masters(camera.calibrations(np.random.default_rng(30), gain_in_header=False))
    assert masters.gain_source == "photon transfer of the flats"
    np.testing.assert_allclose(np.array(masters.gains, float), camera.gains, rtol=0.03)
    raw = camera.expose(np.random.default_rng(31), LIGHT, 60, gain_in_header=False)
    frame = calibrate(raw, masters)
    assert frame.meta["gain_source"] == "photon transfer of the flats"
    assert np.median(frame.data[good(frame)]) == pytest.approx(LIGHT, rel=0.03)


def test_without_gain_a_frame_stays_in_counts_and_without_variance(camera: Camera) -> None:
    raw = camera.expose(np.random.default_rng(32), LIGHT, 10, gain_in_header=False)
    frame = calibrate(raw)
    assert frame.variance is None
    assert frame.meta["unit"] == "adu"
    assert frame.meta["calibration"] == "overscan"


def test_without_masters_noise_comes_from_the_overscan(camera: Camera) -> None:
    raw = camera.expose(np.random.default_rng(33), LIGHT, 1)
    frame = calibrate(raw)
    assert frame.variance is not None
    assert frame.meta["read_noise"] == pytest.approx(camera.read_noise, rel=0.05)


def test_zero_level_unknown_means_noise_unknown() -> None:
    rng = np.random.default_rng(34)
    data = rng.normal(1300, 12, (64, 64)).astype(np.float32)
    whole = (0, 64, 0, 64)
    raw = RawExposure((Amplifier(data, whole, whole, None, 2.0, 6.0),), meta={"saturation": 60_000.0})
    frame = calibrate(raw)
    assert frame.variance is None
    assert frame.meta["calibration"] == "none"
    with_pedestal = dataclasses.replace(raw, meta={"pedestal": -1000.0})
    frame = calibrate(with_pedestal)
    assert frame.variance is not None
    assert np.median(frame.data) == pytest.approx(600, abs=3)
    assert np.median(frame.variance) == pytest.approx(636, rel=0.02)


def test_hot_outliers_of_single_frames_do_not_reach_a_master() -> None:
    rng = np.random.default_rng(40)
    stack = [rng.normal(100, 5, (300, 20)).astype(np.float32) for _ in range(7)]
    for i, image in enumerate(stack):
        image[10 * i + 5, 3] += 4000
    mean, variance = combine(stack)
    for i in range(7):
        assert abs(mean[10 * i + 5, 3] - 100) < 5 * np.sqrt(variance[10 * i + 5, 3])
    np.testing.assert_allclose(np.median(variance), 25 / 7, rtol=0.1)
    # The slow twin: every pixel by itself, as the docstring says.
    sigma2 = np.mean(
        [np.diff(np.percentile(a - b, [15.87, 84.13]))[0] ** 2 / 8 for a, b in itertools.pairwise(stack)]
    )
    for y, x in ((5, 3), (15, 3), (100, 10), (299, 19)):
        values = np.array([image[y, x] for image in stack], float)
        keep = (values - np.median(values)) ** 2 <= CLIP**2 * sigma2 * (1 + np.pi / 14)
        assert mean[y, x] == pytest.approx(values[keep].mean(), rel=1e-5)
        assert variance[y, x] == pytest.approx(sigma2 / keep.sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"binning": "2x2"}, "another binning"),
        ({"instrument": "other"}, "another instrument"),
        ({"temperature": -10.0}, "°C"),
        ({"mjd": 60100.0}, "days away"),
        ({"filter": "z"}, "no flat for filter 'z'"),
    ],
)
def test_masters_refuse_what_they_do_not_fit(
    camera: Camera, masters: MasterCalibration, change: dict, message: str
) -> None:
    raw = camera.expose(np.random.default_rng(50), LIGHT, 10, exposure_id="x", **change)
    with pytest.raises(CalibrationError, match=message) as caught:
        calibrate(raw, masters)
    assert caught.value.where == "x"
    assert caught.value.remedy


def test_another_gain_is_refused(camera: Camera, masters: MasterCalibration) -> None:
    raw = camera.expose(np.random.default_rng(51), LIGHT, 10)
    other = tuple(dataclasses.replace(a, gain=(a.gain or 0) * 2) for a in raw.amplifiers)
    with pytest.raises(CalibrationError, match="gain"):
        masters.matches(dataclasses.replace(raw, amplifiers=other))


def test_masters_of_mixed_settings_are_refused(camera: Camera) -> None:
    rng = np.random.default_rng(52)
    bias = camera.expose(rng, 0, 0, Kind.BIAS)
    with pytest.raises(CalibrationError, match="different binning"):
        build_masters([bias, camera.expose(rng, 0, 0, Kind.BIAS, binning="2x2")])
    darks = [camera.expose(rng, 0, 100, Kind.DARK, temperature=t) for t in (-20.0, -10.0)]
    with pytest.raises(CalibrationError, match="°C"):
        build_masters([bias, *darks])
    with pytest.raises(CalibrationError, match="no bias, dark or flat"):
        build_masters([camera.expose(rng, LIGHT, 10)])
    with pytest.raises(CalibrationError, match="without exposure time"):
        build_masters([bias, camera.expose(rng, 0, 0, Kind.DARK)])


def test_over_and_underexposed_flats_are_left_out(camera: Camera) -> None:
    rng = np.random.default_rng(53)
    frames = [camera.expose(rng, 0, 0, Kind.BIAS) for _ in range(3)]
    bright = camera.expose(rng, 90_000, 5, Kind.FLAT, exposure_id="bright")
    with pytest.raises(CalibrationError, match="bright: level"):
        build_masters([*frames, bright])
    masters = build_masters([*frames, bright, *(camera.expose(rng, 30_000, 5, Kind.FLAT) for _ in range(3))])
    assert len(masters.provenance["flat:r"]) == 3
    assert masters.provenance["rejected"][0].startswith("bright")


def test_only_light_frames_are_calibrated(camera: Camera, masters: MasterCalibration) -> None:
    with pytest.raises(CalibrationError, match="is a flat frame"):
        calibrate(camera.expose(np.random.default_rng(54), 30_000, 5, Kind.FLAT), masters)


def test_masters_survive_a_file(tmp_path: Path, masters: MasterCalibration) -> None:
    back = io.read_masters(io.write_masters(masters, tmp_path / "masters.fits"))
    for name in ("bias", "bias_variance", "dark", "dark_variance", "bad"):
        np.testing.assert_array_equal(getattr(back, name), getattr(masters, name))
    np.testing.assert_array_equal(back.flats["r"], masters.flats["r"])
    np.testing.assert_array_equal(back.flat_variances["r"], masters.flat_variances["r"])
    for name in ("instrument", "binning", "shape", "sections", "gains", "read_noise", "mjd", "provenance"):
        assert getattr(back, name) == getattr(masters, name)


def test_archive_frames_keep_pixels_and_get_noise_only_if_it_is_known() -> None:
    rng = np.random.default_rng(60)
    whole = (0, 128, 0, 128)
    sky = rng.normal(1000, np.sqrt(1000 / 2 + 9), (128, 128)).astype(np.float32)
    meta = {"gain": 2.0, "read_noise": 6.0, "unit": "adu"}

    def archived(data: np.ndarray, **more: object) -> RawExposure:
        return RawExposure((Amplifier(data, whole, whole),), calibrated=True, meta={**meta, **more})

    frame = calibrate(archived(sky))
    np.testing.assert_array_equal(frame.data, sky)
    assert frame.variance is not None
    assert np.median(frame.variance) == pytest.approx(509, rel=0.01)
    assert calibrate(archived(sky, sky_subtracted=True)).variance is None
    assert calibrate(archived(sky, n_combined=3.0)).variance is None
    # The sky was taken away and nobody says so: the noise gives it away.
    silent = calibrate(archived(sky - 1000))
    assert silent.variance is None
    assert silent.meta["noise_ratio"] > 1.3
    given = np.full((128, 128), 77, np.float32)
    own = dataclasses.replace(archived(sky), variance=given)
    np.testing.assert_array_equal(calibrate(own).variance, given)


def test_bayer_cells_are_summed() -> None:
    rng = np.random.default_rng(61)
    colours = np.tile([[200.0, 500.0], [500.0, 300.0]], (40, 50))
    data = rng.poisson(colours).astype(np.float32)
    whole = (0, 80, 0, 100)
    amplifier = Amplifier(data, whole, whole, None, 1.0, 3.0)
    meta = {"bayer": "RGGB", "pedestal": 0.0, "pixel_scale": 2.0, "filter": "RGGB"}
    frame = calibrate(RawExposure((amplifier,), meta=meta))
    assert frame.shape == (40, 50)
    np.testing.assert_allclose(frame.data, data.reshape(40, 2, 50, 2).sum(axis=(1, 3)))
    assert frame.variance is not None
    assert np.median(frame.variance) == pytest.approx(1536, rel=0.02)
    assert frame.meta["pixel_scale"] == 4.0


def test_dead_frames_are_refused_and_nan_is_masked(camera: Camera) -> None:
    raw = camera.expose(np.random.default_rng(62), LIGHT, 10)
    pixels = raw.amplifiers[0].data.copy()
    pixels[50:53, 60] = np.nan
    hurt = dataclasses.replace(
        raw, amplifiers=(dataclasses.replace(raw.amplifiers[0], data=pixels), raw.amplifiers[1])
    )
    frame = calibrate(hurt)
    assert np.isfinite(frame.data).all()
    assert (frame.mask[50:53, 60] & int(Mask.NO_DATA)).all()


def test_the_saturation_level_is_the_linearised_one_of_the_lowest_amplifier() -> None:
    from astrid_pipeline.imaging.calibrate.reduction import Reduction

    shape = (40, 60)
    bias, dark = np.full(shape, 20, np.float32), np.full(shape, 0.5, np.float32)
    reduction = Reduction(((0, 40, 0, 30), (0, 40, 30, 60)), (1.5, 2.0), exposure=60.0, bias=bias, dark=dark)
    curves = ((2e-6,), (1e-6,))
    found = reduction.saturation(50_000, (1000.0, 1500.0), curves)
    # counts above zero, made linear, less bias and dark, times the gain
    first = (49_000 * (1 + 2e-6 * 49_000) - 20 - 30) * 1.5
    second = (48_500 * (1 + 1e-6 * 48_500) - 20 - 30) * 2.0
    assert found == pytest.approx(min(first, second), rel=1e-5)


def test_rows_in_strips_and_threads_change_nothing(
    camera: Camera, masters: MasterCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    from astrid_pipeline.imaging.calibrate import reduction

    raw = camera.expose(np.random.default_rng(8), 500.0, 60.0)
    frames = []
    for size, threads in ((10**9, "1"), (7 * camera.shape[1], "3")):
        monkeypatch.setattr(reduction, "_STRIP", size)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        frames.append(calibrate(raw, masters))
    np.testing.assert_array_equal(frames[0].data, frames[1].data)
    assert frames[0].variance is not None
    assert frames[1].variance is not None
    np.testing.assert_array_equal(frames[0].variance, frames[1].variance)
    np.testing.assert_array_equal(frames[0].mask, frames[1].mask)
