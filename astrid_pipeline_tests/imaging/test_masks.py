"""The masks of calibration against planted truth: cosmic rays, saturation, trails, columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from astrid_pipeline.imaging.calibrate import cosmic_rays, defects, saturation, trails
from astrid_pipeline_tests.imaging.raw_frames import ray_field, star_field

SKY, READ_NOISE = 300.0, 6.0
NOISE = float(np.sqrt(SKY + READ_NOISE**2))


def observe(rng: np.random.Generator, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a sky-free frame of this light, and its variance."""
    data = (rng.poisson(light + SKY) + rng.normal(0, READ_NOISE, light.shape)).astype(np.float32)
    variance = np.maximum(data, 0) + np.float32(READ_NOISE**2)
    return data - defects.local_median(data, 48), variance


def nothing(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros(shape, bool)


@pytest.mark.parametrize("fwhm", [1.8, 2.4, 3.5])
def test_cosmic_rays_are_found_and_no_star_is_harmed(fwhm: float) -> None:
    rng = np.random.default_rng(int(fwhm * 10))
    shape = (700, 700)
    stars, table = star_field(rng, shape, fwhm, 400)
    rays = ray_field(rng, shape, 180)
    residual, variance = observe(rng, stars + rays)
    measured = cosmic_rays.typical_fwhm(residual, variance, nothing(shape))
    # The pixel's own width is in it, 0.68 px in quadrature, and a Moffat core is a little sharper than its FWHM says.
    assert measured == pytest.approx(np.hypot(fwhm, 0.68), rel=0.12)
    found = cosmic_rays.find_cosmic_rays(residual, variance, nothing(shape), measured)
    touched = ndimage.binary_dilation(rays > 0.5 * NOISE, iterations=2)
    assert (found & ~touched).sum() <= 2
    x, y = np.round(table[:, :2].T).astype(int)
    clean = ~ndimage.maximum_filter(touched, 3)[y, x]
    assert clean.sum() > 300
    assert not ndimage.maximum_filter(found & ~touched, 3)[y, x][clean].any()
    empty = stars < NOISE
    for low, share in ((20, 0.98), (10, 0.75 if fwhm < 2 else 0.9)):
        bright = (rays > low * NOISE) & empty
        assert bright.sum() > 100
        assert found[bright].mean() >= share


def test_cosmic_rays_need_no_stars_to_be_found() -> None:
    rng = np.random.default_rng(3)
    rays = ray_field(rng, (300, 300), 40)
    residual, variance = observe(rng, rays)
    assert cosmic_rays.typical_fwhm(residual, variance, nothing(rays.shape)) is None
    found = cosmic_rays.find_cosmic_rays(residual, variance, nothing(rays.shape), None)
    assert found[rays > 30 * NOISE].mean() > 0.9


def slow_excess(
    image: np.ndarray, variance: np.ndarray, usable: np.ndarray, y: int, x: int, fwhm: float
) -> float:
    """One pixel's sharpness as the module's text defines it."""
    best = -np.inf
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        r = np.exp((dy**2 + dx**2) / (2 * (fwhm / 2.3548) ** 2))
        beside = [(y + s * dy, x + s * dx) for s in (1, -1)]
        beside = [p for p in beside if usable[p]]
        if not beside:
            continue
        bound = r if len(beside) == 2 else r**3
        mean = sum(image[p] for p in beside) / len(beside)
        noise2 = sum(variance[p] for p in beside) / len(beside) ** 2
        limit = bound * max(mean, 0)
        error = np.sqrt(variance[y, x] + bound**2 * noise2 + (cosmic_rays.TOLERANCE * limit) ** 2)
        best = max(best, (image[y, x] - limit) / error)
    return best


def test_sharpness_agrees_with_its_slow_twin() -> None:
    rng = np.random.default_rng(4)
    image = rng.normal(0, 5, (30, 34)).astype(np.float32)
    image[10, 10] += 300
    variance = rng.uniform(20, 30, image.shape).astype(np.float32)
    usable = rng.random(image.shape) > 0.1
    usable[0] = usable[-1] = usable[:, 0] = usable[:, -1] = False
    at = np.flatnonzero(usable)
    fast = cosmic_rays._excess(image, variance, usable, at, image.shape[1], 2.1)
    slow = [slow_excess(image, variance, usable, *divmod(int(i), image.shape[1]), 2.1) for i in at]
    np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    fwhm=st.floats(1.6, 6.0), x=st.floats(-0.5, 0.5), y=st.floats(-0.5, 0.5), snr=st.floats(20, 3000),
    ellipticity=st.floats(0, 0.1), beta=st.floats(2.5, 8.0),
)  # fmt: skip
def test_no_noiseless_star_is_sharper_than_the_bound(
    fwhm: float, x: float, y: float, snr: float, ellipticity: float, beta: float
) -> None:
    width = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    fine = np.arange(-12.4, 12.5, 0.2)
    xx, yy = np.meshgrid(fine - x, fine - y)
    star = (1 + (xx**2 * (1 + ellipticity) + yy**2 * (1 - ellipticity)) / width**2) ** -beta
    star = star.reshape(25, 5, 25, 5).mean(axis=(1, 3))
    star *= snr * NOISE / star.max()
    found = cosmic_rays.find_cosmic_rays(
        star.astype(np.float32),
        (star + NOISE**2).astype(np.float32),
        nothing(star.shape),
        np.hypot(fwhm, 0.68),
    )
    assert not found.any()


def test_half_sample_mode_is_where_the_values_are_dense() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(1.0, 0.02, 150), rng.uniform(0, 4, 250)])
    assert cosmic_rays._half_sample_mode(np.sort(values)) == pytest.approx(1.0, abs=0.03)


def bled_star(shape: tuple[int, int], well: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts of a star that bled, and where it is saturated and where charge ran beyond the core."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    star = 4e5 * np.exp(-((x - 60) ** 2 + (y - 80) ** 2) / 8) + 300 / (
        1 + ((x - 60) ** 2 + (y - 80) ** 2) / 100
    )
    core = star > well
    bleed = (np.abs(x - 60) <= 1) & (np.abs(y - 80) < 45) & ~core
    star = np.minimum(star, well)
    star[bleed & (np.abs(y - 80) < 25)] = well
    tail = bleed & (np.abs(y - 80) >= 25)
    star[tail] = np.maximum(star[tail], 0.1 * well)
    return star, core, bleed


def test_saturation_and_bleeding_are_followed_along_the_columns() -> None:
    rng = np.random.default_rng(6)
    star, core, bleed = bled_star((160, 130), 60_000)
    # A neighbour that is bright and whole must not be taken for a bleed.
    yy, xx = np.mgrid[:160, :130]
    star += 3e4 * np.exp(-((xx - 100) ** 2 + (yy - 40) ** 2) / 6)
    data = (rng.poisson(star) + rng.normal(0, 6, star.shape)).astype(np.float32)
    peak = np.where(core | (star >= 60_000), 65_000, data + 500).astype(np.float32)
    mask = saturation.saturation_mask(data, np.sqrt(np.maximum(data, 0) + 36), peak, 60_000)
    saturated = (mask & int(saturation.Mask.SATURATED)) != 0
    bled = (mask & int(saturation.Mask.BLEED)) != 0
    assert saturated[core].all()
    assert (saturated | bled)[bleed].mean() > 0.97
    assert bled[bleed & (np.abs(yy - 80) > 12)].mean() > 0.97
    far = (np.abs(xx - 60) > 12) | (np.abs(yy - 80) > 52)
    assert not (saturated | bled)[far].any()


def test_without_a_level_nothing_is_saturated() -> None:
    data = np.full((20, 20), 1e6, np.float32)
    assert not saturation.saturation_mask(data, 1.0, data, None).any()


def test_radon_quadrant_agrees_with_sums_along_its_own_lines() -> None:
    """Each sum is over one pixel a column, on a line of the rise it says, made from two halves of half the rise."""
    rng = np.random.default_rng(7)
    n = 16
    image = rng.normal(0, 1, (n, n)).astype(np.float32)

    def rows(rise: int, width: int) -> list[int]:
        if width == 1:
            return [0]
        half = rows(rise // 2, width // 2)
        return half + [(rise + 1) // 2 + row for row in half]

    sums = trails.radon_quadrant(image)
    assert sums.shape == (n, 2 * n)
    for rise in range(n):
        line = rows(rise, n)
        # Discrete, but never more than a pixel or so off the straight line.
        assert np.abs(np.array(line) - rise * np.arange(n) / (n - 1)).max() <= 1.0
        for height in range(2 * n):
            at = [height - n + row for row in line]
            expected = sum(float(image[y, x]) for x, y in enumerate(at) if 0 <= y < n)
            assert sums[rise, height] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("angle", "brightness", "width"), [(0.5, 3.0, 1.2), (1.9, 1.5, 1.5), (2.8, 25.0, 2.5)]
)
def test_trails_are_found_whole_and_only_them(angle: float, brightness: float, width: float) -> None:
    rng = np.random.default_rng(int(angle * 100))
    shape = (512, 640)
    stars, _ = star_field(rng, shape, 2.4, 150)
    y, x = np.mgrid[: shape[0], : shape[1]]
    across = (x - 320) * np.sin(angle) - (y - 250) * np.cos(angle)
    light = brightness * NOISE * np.exp(-(across**2) / (2 * width**2))
    residual, variance = observe(rng, stars + light)
    found = trails.find_trails(residual, np.sqrt(variance), nothing(shape), fwhm=2.4)
    assert len(found) == 1
    mask = trails.trail_mask(shape, found)
    assert mask[light > 0.3 * NOISE].mean() > 0.98
    # What it costs: a band of few widths.
    assert mask[np.abs(across) > 6 * width + 8].mean() < 0.002


def test_no_trail_where_there_is_none() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        stars, _ = star_field(rng, (512, 512), 2.4, 300)
        residual, variance = observe(rng, stars)
        assert trails.find_trails(residual, np.sqrt(variance), nothing(stars.shape)) == []


def test_edges_of_shade_are_no_trails() -> None:
    rng = np.random.default_rng(8)
    light = np.zeros((512, 512))
    light[470:] -= 60  # a vignetted strip
    light += 80 * np.linspace(0, 1, 512)[None, :] ** 4  # and a steep sky
    residual, variance = observe(rng, light)
    assert trails.find_trails(residual, np.sqrt(variance), nothing(light.shape)) == []


def test_bad_columns_show_in_a_light_frame() -> None:
    rng = np.random.default_rng(9)
    stars, _ = star_field(rng, (512, 512), 2.4, 300)
    light = stars.copy()
    light[:, 100] += 1.5 * NOISE
    light[200:, 300] -= 1.5 * NOISE
    residual, variance = observe(rng, light)
    found = defects.light_columns(residual, np.sqrt(variance), nothing(light.shape))
    assert found[:, 100].all()
    assert found[256:, 300].all()
    assert not found[:128, 300].any()
    found[:, [100, 300]] = False
    assert not found.any()


def test_local_median_follows_a_slope_and_passes_over_stars() -> None:
    y, x = np.mgrid[:200, :230]
    slope = (100 + 0.2 * x + 0.1 * y).astype(np.float32)
    image = slope.copy()
    image[::20, ::20] += 1e4
    inner = np.s_[40:-40, 40:-40]
    np.testing.assert_allclose(defects.local_median(image, 16)[inner], slope[inner], atol=0.5)
