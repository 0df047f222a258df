"""The noise of every pixel: gain from header, sky or stars, scaled to the sky that is seen, correlated or not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import convolve

from astrid_pipeline.imaging.background import measure_background
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.noise import (
    Gain,
    StarTransfer,
    estimate_variance,
    find_gain,
    header_gain,
    noise_correlation,
    settle_gain,
    sky_ratio,
    source_light,
)
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline_tests.imaging.moffat_fields import moffat, star_field


def test_what_the_header_says_of_the_gain() -> None:
    assert header_gain({"gain": 2.5}) == Gain(2.5, "header")
    assert header_gain({"unit": "electron"}) == Gain(1.0, "unit")
    assert header_gain({"unit": "electron/s", "exposure": 30}).value == 30  # type: ignore[union-attr]
    for meta in ({}, {"gain": 0.0}, {"gain": -1}, {"gain": np.nan}, {"unit": "electron/s"}, {"unit": "adu"}):
        assert header_gain(meta) is None


@pytest.mark.parametrize(("gain", "read"), [(1.0, 0.0), (2.5, 0.0), (0.4, 8.0), (4.0, 12.0)])
def test_the_sky_tells_the_gain(gain: float, read: float) -> None:
    level = 500.0
    rms = np.sqrt(level / gain + (read / gain) ** 2)
    found = find_gain({"read_noise": read}, level, rms)
    assert found is not None
    assert found.value == pytest.approx(gain, rel=1e-6)
    assert "sky" in found.source
    # A stated gain that agrees stays; one that makes the sky noisier than it is does not.
    assert find_gain({"gain": gain, "read_noise": read}, level, rms) == Gain(gain, "header")
    wrong = find_gain({"gain": gain / 4, "read_noise": read}, level, rms)
    assert wrong is not None
    assert wrong.value == pytest.approx(gain, rel=1e-6)
    assert "stated" in wrong.source
    assert find_gain({}, None, rms) is None


def test_the_stars_refute_only_what_makes_them_too_noisy() -> None:
    stars = StarTransfer(Gain(2.0, "stars"), least=1.0)
    assert settle_gain(Gain(1.5, "header"), stars) == Gain(1.5, "header")
    assert settle_gain(Gain(50.0, "header"), stars) == Gain(50.0, "header")
    refuted = settle_gain(Gain(0.1, "header"), stars)
    assert refuted is not None
    assert refuted.value == 2.0
    assert "0.1" in refuted.source
    assert settle_gain(None, stars) == Gain(2.0, "stars")
    assert settle_gain(None, StarTransfer(None, 1.0)).value == 1.0  # type: ignore[union-attr]
    assert settle_gain(Gain(3.0, "header"), None) == Gain(3.0, "header")
    assert settle_gain(None, None) is None


def test_the_variance_of_empty_sky_is_the_measured_one_and_stars_add_their_photons() -> None:
    field = star_field(512, 300, gain=2.0)
    sky = measure_background(field.data)
    data = field.data - sky.level
    variance = estimate_variance(data, sky, 2.0)
    empty = ~sky.objects
    assert np.allclose(variance[empty], np.square(sky.rms)[empty])
    bright = field.variance > 3 * np.median(field.variance)
    ratio = variance[bright] / field.variance[bright]
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert (np.abs(ratio - 1) < 0.35).mean() > 0.9
    assert np.allclose(estimate_variance(data, sky, np.inf), np.square(sky.rms))


def test_the_noise_of_the_sky_is_known_to_a_percent() -> None:
    for gain, seed in ((0.5, 1), (1.0, 2), (4.0, 3)):
        field = star_field(512, 250, gain=gain, seed=seed)
        sky = measure_background(field.data)
        truth = np.sqrt(200 / gain + (5 / gain) ** 2)
        assert np.median(sky.rms) == pytest.approx(truth, rel=0.015)


def test_a_ratio_of_noise_is_measured_with_its_spread() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 3, (512, 512)).astype(np.float32)
    usable = np.ones(noise.shape, bool)
    usable[50:90, 60:300] = False
    ratio, spread = sky_ratio(noise, np.full(noise.shape, 4.0, np.float32), usable)
    assert ratio == pytest.approx(1.5, rel=0.01)
    assert spread < 0.02
    uneven = noise * np.linspace(0.8, 1.2, 512, dtype=np.float32)[None]
    ratio, spread = sky_ratio(uneven, np.full(noise.shape, 9.0, np.float32), usable)
    assert ratio == pytest.approx(1.0, rel=0.02)
    assert 0.07 < spread < 0.2
    assert sky_ratio(noise[:60, :60], np.full((60, 60), 9.0, np.float32), usable[:60, :60])[
        0
    ] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "kernel",
    [
        np.ones((1, 1)),
        np.outer([0.5, 0.5], [0.5, 0.5]),
        np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
        np.outer([0, 1, 0.4], [0, 1, 0.4]),
        np.outer([-0.25, 1, -0.25], [0, 1, 0]),
    ],
)
def test_correlated_noise_is_recognised(kernel: np.ndarray) -> None:
    """White noise through a known kernel: what the PSF filter then widens has a closed form."""
    rng = np.random.default_rng(5)
    noise = convolve(rng.normal(0, 1, (600, 600)), kernel, mode="wrap").astype(np.float32)
    stamp = moffat(9, 2.4)
    both = convolve(np.pad(stamp, 4), kernel, mode="constant")
    true = np.sqrt(np.square(both).sum() / np.square(kernel).sum() / np.square(stamp).sum())
    variance = np.full(noise.shape, np.square(kernel).sum(), np.float32)
    found = noise_correlation(noise, variance, np.ones(noise.shape, bool), PSF.from_stamp(stamp, noise.shape))
    assert found == pytest.approx(true, rel=0.03)


def test_structure_of_the_sky_is_not_taken_for_correlated_noise() -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(6)
    structure = gaussian_filter(rng.normal(0, 1, (512, 512)), 8)
    noise = (rng.normal(0, 1, (512, 512)) + 0.25 * structure / structure.std()).astype(np.float32)
    psf = PSF.from_stamp(moffat(9, 2.4), noise.shape)
    found = noise_correlation(noise, np.ones_like(noise), np.ones(noise.shape, bool), psf)
    # Without taking it off, the structure would make 1.37 of it.
    assert found == pytest.approx(1, abs=0.13)


def test_a_frame_without_sky_has_correlation_one() -> None:
    psf = PSF.from_stamp(moffat(5, 2.4), (64, 64))
    assert noise_correlation(np.ones((64, 64)), np.ones((64, 64)), np.zeros((64, 64), bool), psf) == 1.0


def test_the_light_of_sources_is_the_mean_of_nine_pixels() -> None:
    """Against scipy's convolution of the whole frame, over the seams of the strips and at the borders."""
    field = star_field(150, 60)
    sky = measure_background(field.data)
    data = field.data - sky.level
    mask = np.zeros(data.shape, np.int32)
    mask[31:33, 40:44] = int(Mask.COSMIC_RAY)
    light = np.where(mask != 0, 0, data).astype(float)
    wanted = convolve(light, np.full((3, 3), 1 / 9), mode="nearest")
    wanted = np.maximum(np.where(light > 10 * sky.rms, np.maximum(wanted, light), wanted), 0) * sky.objects
    np.testing.assert_allclose(source_light(data, sky, mask), wanted, rtol=1e-4, atol=1e-3)


def test_the_spread_of_a_noise_model_is_found_on_many_blocks_too() -> None:
    """2048 rows of blocks are more than are looked at: what is left out changes nothing."""
    rng = np.random.default_rng(5)
    sigma = np.where(np.arange(2048) // 64 % 2, 1.1, 0.9).astype(np.float32)[:, None]
    data = (rng.normal(0, 1, (2048, 1024)) * sigma).astype(np.float32)
    ratio, spread = sky_ratio(data, np.ones_like(data), np.ones(data.shape, bool))
    assert ratio == pytest.approx(1, abs=0.12)
    assert spread == pytest.approx(0.148, abs=0.02)
