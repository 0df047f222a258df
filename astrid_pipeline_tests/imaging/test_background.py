"""The sky and its noise: against truth, against a slow twin, and on awkward input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.background import clipped_statistics, measure_background
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline_tests.imaging.moffat_fields import sersic, star_field


def gradient(shape: tuple[int, int]) -> np.ndarray:
    return 200 + 20 * np.linspace(-1, 1, shape[1])[None] + 10 * np.linspace(-1, 1, shape[0])[:, None] ** 2


@pytest.mark.parametrize("shape", [(512, 512), (400, 701), (1000, 320)])
def test_a_gradient_under_noise_is_found_to_a_tenth_of_the_noise(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    sky = gradient(shape)
    found = measure_background(sky + rng.normal(0, 6, shape))
    assert found.level.shape == found.rms.shape == shape
    # The corners, continued from the cells beside them, are the worst.
    assert np.abs(found.level - sky).max() < 1.5
    assert np.std(found.level - sky) < 0.6
    assert np.abs(found.rms / 6 - 1).max() < 0.08
    assert abs(np.mean(found.rms) / 6 - 1) < 0.005


def test_the_error_it_states_is_the_error_it_makes() -> None:
    rng = np.random.default_rng(2)
    true, stated, noise, noise_stated = [], [], [], []
    for _ in range(6):
        found = measure_background(rng.normal(50, 4, (512, 512)))
        true.append(np.std(found.level[32:-32, 32:-32] - 50))
        stated.append(found.level_err)
        noise.append(np.std(found.rms[32:-32, 32:-32] / 4))
        noise_stated.append(found.rms_err)
    assert 0.6 < np.mean(stated) / np.mean(true) < 1.7
    assert 0.6 < np.mean(noise_stated) / np.mean(noise) < 1.7


@pytest.mark.parametrize(
    ("radius", "index", "flux", "limit"),
    [(12, 1, 1e5, 0.15), (25, 1, 5e5, 0.2), (40, 1, 2e6, 0.4), (20, 4, 4e5, 0.4)],
)
def test_a_galaxy_is_not_eaten(radius: float, index: float, flux: float, limit: float) -> None:
    """The sky under a galaxy rises by less than 0.4 sigma, where a mesh without masks rises by a sigma and more."""
    import sep

    shape = (768, 768)
    rng = np.random.default_rng(3)
    galaxy = sersic(shape, 390, 370, radius, index, flux)
    image = (rng.poisson(200 + galaxy) + rng.normal(0, 5, shape)).astype(np.float32)
    ours = measure_background(image).level
    plain = sep.Background(image).back()
    centre = (slice(350, 391), slice(370, 411))
    assert np.abs(ours[centre] - 200).max() < limit * 15
    if index == 1 and radius > 20:
        assert np.abs(ours[centre] - 200).max() < 0.3 * np.abs(plain[centre] - 200).max()


def test_stars_do_not_raise_the_sky_or_its_noise() -> None:
    field = star_field(512, 600)
    found = measure_background(field.data)
    sigma = np.sqrt(225)
    assert abs(np.median(found.level) - 200) < 0.1 * sigma
    assert abs(np.median(found.rms) / sigma - 1) < 0.015


def test_byte_order_type_and_values_that_are_not_finite_make_no_difference() -> None:
    rng = np.random.default_rng(4)
    counts = rng.poisson(300, (256, 256)).astype(np.uint16)
    plain = measure_background(counts.astype(np.float32))
    for other in (
        counts,
        counts.astype(">f4"),
        counts.astype(">f8"),
        counts.astype(np.int32),
        counts[:, ::-1],
    ):
        found = measure_background(other)
        assert np.median(found.level) == pytest.approx(np.median(plain.level), abs=0.15)
    holes = counts.astype(float)
    holes[10:40, 10:40] = np.nan
    holes[100, :] = np.inf
    found = measure_background(holes)
    assert np.isfinite(found.level).all()
    assert np.abs(found.level - 300).max() < 5


def test_masked_pixels_do_not_count_and_large_holes_are_bridged() -> None:
    rng = np.random.default_rng(5)
    sky = gradient((512, 512))
    image = sky + rng.normal(0, 5, sky.shape)
    mask = np.zeros(sky.shape, np.int32)
    image[100:300, 150:330] += 4000
    mask[100:300, 150:330] = Mask.SATURATED
    mask[400:] |= Mask.INTERPOLATED  # usable all the same
    for given_mask in (mask, (mask & Mask.SATURATED) != 0):
        found = measure_background(image, given_mask)
        assert np.abs(found.level - sky).max() < 4
        assert np.abs(found.level - sky)[400:].max() < 1.5


def test_a_nebula_over_the_whole_frame_is_survived() -> None:
    rng = np.random.default_rng(6)
    image = sersic((256, 256), 128, 128, 150, 1, 3e7, 1.0) + rng.normal(100, 5, (256, 256))
    found = measure_background(image)
    assert np.isfinite(found.level).all()
    assert (found.rms > 0).all()


@pytest.mark.parametrize("shape", [(20, 30), (40, 33), (64, 64), (8, 200)])
def test_small_frames(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    found = measure_background(rng.normal(10, 2, shape))
    assert np.abs(found.level - 10).max() < 1.5
    assert np.abs(found.rms - 2).max() < 0.8


@pytest.mark.parametrize(
    "image", [np.full((64, 64), 3.0), np.full((64, 64), np.nan), np.zeros((4, 64, 64)), np.zeros((5, 5))]
)
def test_what_has_no_sky_is_refused(image: np.ndarray) -> None:
    with pytest.raises(PixelError):
        measure_background(image)


@settings(max_examples=15)
@given(scale=st.floats(1e-3, 1e4), shift=st.floats(-1e3, 1e3))
def test_units_do_not_matter(scale: float, shift: float) -> None:
    """Sky and noise of a * image + b are a * sky + b and a * noise."""
    image = np.random.default_rng(8).normal(30, 3, (128, 128))
    plain = measure_background(image)
    other = measure_background(scale * (image + shift))
    # float32 keeps 7 digits of a level that may be 300 times the noise.
    assert np.abs(other.level / scale - shift - plain.level).max() < 0.05
    assert np.abs(other.rms / scale / plain.rms - 1).max() < 0.02


def slow_clipped(values: np.ndarray) -> tuple[float, float]:
    """The obvious twin: cut at three sigma about the mean, again and again."""
    quartiles = np.sort(values)[(np.array([0.25, 0.75]) * (len(values) - 1)).astype(int)]
    centre = np.sort(values)[int(0.5 * (len(values) - 1))]
    sigma = (quartiles[1] - quartiles[0]) / 1.349
    for _ in range(3):
        kept = values[np.abs(values - centre) <= 3 * sigma]
        centre, sigma = kept.mean(), kept.std() / 0.986578
    return centre, sigma


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), number=st.integers(20, 400), outliers=st.integers(0, 10))
def test_clipped_statistics_do_what_their_slow_twin_does(seed: int, number: int, outliers: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(100, 7, (3, number)).astype(np.float32)
    values[:, :outliers] += 500
    table = np.concatenate([values, np.full((3, 5), np.inf, np.float32)], axis=1)
    level, sigma, count = clipped_statistics(table)
    assert (count == number).all()
    for row in range(3):
        centre, spread = slow_clipped(values[row].astype(float))
        assert level[row] == pytest.approx(centre, abs=1e-3)
        assert sigma[row] == pytest.approx(spread, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
def test_whole_numbers_do_not_bias_the_noise(sigma: float) -> None:
    values = np.rint(np.random.default_rng(9).normal(1000, sigma, (40, 4000))).astype(np.float32)
    found = clipped_statistics(values)[1]
    assert np.mean(found) == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.015)
