from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter1d

from astrid_pipeline.imaging.interpolation import (
    coefficients,
    fill_masked,
    kernel,
    noise_widening,
    to_coefficients,
)
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.pixel_map import PixelMap
from astrid_pipeline.imaging.resample import resample
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf

SHAPE = (120, 150)


def affine(matrix, shift=(0.0, 0.0), centre=(75.0, 60.0), shape=SHAPE) -> PixelMap:
    m = np.asarray(matrix, float)

    def function(x, y):
        x, y = np.asarray(x, float) - centre[0], np.asarray(y, float) - centre[1]
        u = m[0, 0] * x + m[0, 1] * y + centre[0] + shift[0]
        return u, m[1, 0] * x + m[1, 1] * y + centre[1] + shift[1]

    return PixelMap.tabulate(function, shape)


def turn(degrees: float, scale: float = 1.0, mirror: bool = False) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return scale * np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])


def smooth_noise(rng, shape=SHAPE, sigma=1.8) -> np.ndarray:
    return (gaussian_filter(rng.normal(size=shape), sigma) * 50 + 100).astype(np.float32)


MAPS = {
    "shift": (turn(0), (0.37, -0.61)),
    "small turn": (turn(1.3), (2.2, -3.7)),
    "quarter turn": (turn(90.5), (0.3, 0.2)),
    "mirrored": (turn(-0.8, mirror=True), (1.5, 0.4)),
    "upside down": (turn(180.7), (0.0, 0.0)),
    "mirrored quarter": (turn(89.0, mirror=True), (0.25, 0.75)),
    "any angle": (turn(33.0), (0.3, 0.1)),
}


@pytest.mark.parametrize("name", MAPS)
def test_pixels_are_those_of_a_slow_spline(name: str) -> None:
    """The slow twin is scipy's two-dimensional quintic spline at each pixel's exact position."""
    data = smooth_noise(np.random.default_rng(1))
    pixel_map = affine(*MAPS[name])
    out = resample(data, None, np.zeros(SHAPE, np.int32), pixel_map)
    x, y = np.meshgrid(np.arange(150.0), np.arange(120.0))
    u, v = pixel_map.function(x, y)
    wanted = map_coordinates(data.astype(float), [v, u], order=5, mode="mirror")
    inside = (u > 6) & (u < 143) & (v > 6) & (v < 113)
    assert inside.sum() > 4000
    # The scatter of the image is 8; rows and columns one after the other cost a thousandth of that in a small turn.
    assert np.abs(out.data - wanted)[inside].max() < 0.08
    assert (out.mask[inside] == 0).all()


def test_both_ways_give_the_same() -> None:
    data = smooth_noise(np.random.default_rng(2))
    empty = np.zeros(SHAPE, np.int32)
    # 2.8 degrees go row by row, 2.9 take the two-dimensional way: no jump between them.
    a, b = (resample(data, None, empty, affine(turn(angle), (0.4, 0.3))).data for angle in (2.859, 2.869))
    assert np.abs(a - b)[15:-15, 15:-15].max() < 1.0
    assert np.abs(a - b)[15:-15, 15:-15].std() < 0.1


@pytest.mark.parametrize("method", ["quintic", "lanczos3", "lanczos4"])
def test_a_constant_stays_constant(method: str) -> None:
    data = np.full(SHAPE, 1234.5, np.float32)
    out = resample(data, data, np.zeros(SHAPE, np.int32), affine(turn(0.7), (5.3, -4.2)), method=method)
    inside = out.mask & int(Mask.NO_DATA) == 0
    np.testing.assert_allclose(out.data[inside], 1234.5, rtol=2e-5)
    assert out.variance is not None
    np.testing.assert_allclose(out.variance[inside], 1234.5, rtol=2e-5)


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(ValueError, match="lanczos4"):
        kernel("nearest")


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(60, 90),
    y=st.floats(50, 70),
    fwhm=st.floats(2.4, 6.0),
    degrees=st.floats(-180, 180),
    scale=st.floats(0.8, 1.6),
    mirror=st.booleans(),
)
def test_flux_and_place_of_a_star_are_kept(x, y, fwhm, degrees, scale, mirror) -> None:
    star = draw(SHAPE, np.array([x]), np.array([y]), np.array([1e4]), fwhm).astype(np.float32)
    pixel_map = affine(turn(degrees, scale, mirror))
    out = resample(star, None, np.zeros(SHAPE, np.int32), pixel_map)
    assert out.data.sum() == pytest.approx(1e4, rel=3e-3)
    rows, columns = np.mgrid[0:120, 0:150]
    found = (out.data * columns).sum() / out.data.sum(), (out.data * rows).sum() / out.data.sum()
    u, v = pixel_map.function(*found)
    assert np.hypot(u - x, v - y) < 0.02


def test_area_follows_a_distortion() -> None:
    """On a map whose pixels grow to one side a flat sky gets the area of each pixel."""

    def function(x, y):
        x, y = np.asarray(x, float), np.asarray(y, float)
        return x + 2e-4 * (x - 75) ** 2, y + 1e-4 * (y - 60) * (x - 75)

    pixel_map = PixelMap.tabulate(function, SHAPE)
    out = resample(np.full(SHAPE, 100, np.float32), None, np.zeros(SHAPE, np.int32), pixel_map)
    inside = (out.mask & int(Mask.NO_DATA)) == 0
    rows, columns = np.mgrid[0:120, 0:150].astype(float)
    area = np.abs(np.linalg.det(pixel_map.jacobian(columns, rows)))
    np.testing.assert_allclose(out.data[inside], 100 * area[inside], rtol=1e-4)
    assert np.ptp(area) > 0.05


def test_stars_come_out_where_and_as_they_are() -> None:
    """A drawn star field, moved, is the field drawn at the moved places: to a percent of the peak at 2.4 px FWHM."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(15, 135, 30), rng.uniform(15, 105, 30)
    flux = rng.uniform(1e3, 1e5, 30)
    out = resample(
        draw(SHAPE, x + 0.43, y - 0.29, flux, 2.4).astype(np.float32),
        None,
        np.zeros(SHAPE, np.int32),
        affine(turn(0), (0.43, -0.29)),
    )
    wanted = draw(SHAPE, x, y, flux, 2.4)
    assert np.abs(out.data - wanted)[8:-8, 8:-8].max() < 0.01 * wanted.max()


def test_every_mask_bit_survives() -> None:
    """Each bit lands on all pixels whose position has the masked pixel next to it, and on no others."""
    mask = np.zeros(SHAPE, np.int32)
    for k, bit in enumerate(Mask):
        mask[20 + 7 * k, 30 + 8 * k] = int(bit)
    pixel_map = affine(turn(0.5), (1.3, 0.6))
    out = resample(smooth_noise(np.random.default_rng(4)), None, mask, pixel_map)
    x, y = np.meshgrid(np.arange(150.0), np.arange(120.0))
    u, v = pixel_map.function(x, y)
    for k, bit in enumerate(Mask):
        near = (np.abs(u - (30 + 8 * k)) < 1) & (np.abs(v - (20 + 7 * k)) < 1)
        has = (out.mask & int(bit)) != 0
        border = (u < 3) | (u > 146) | (v < 3) | (v > 116)
        np.testing.assert_array_equal(has[~border], near[~border], err_msg=bit.name)
        assert near.sum() in (3, 4, 5)


@pytest.mark.parametrize("method", ["quintic", "lanczos4"])
def test_masked_pixels_send_no_ripples(method: str) -> None:
    rng = np.random.default_rng(5)
    clean = rng.normal(0, 1, SHAPE).astype(np.float32)
    spoilt, mask = clean.copy(), np.zeros(SHAPE, np.int32)
    spoilt[60, 70], mask[60, 70] = 1e6, int(Mask.COSMIC_RAY)
    spoilt[30:40, 100:112], mask[30:40, 100:112] = 6e4, int(Mask.SATURATED)
    pixel_map = affine(turn(0), (0.5, 0.5))
    a = resample(clean, None, np.zeros(SHAPE, np.int32), pixel_map, method=method).data
    b = resample(spoilt, None, mask, pixel_map, method=method)
    good = b.mask == 0
    # The filled values differ from what was there by some of the noise, and side lobes carry a part of that.
    assert np.abs(a - b.data)[good].max() < 1.5
    assert np.abs(a - b.data)[good].std() < 0.03


def test_outside_is_no_data_and_coverage_says_so() -> None:
    out = resample(
        smooth_noise(np.random.default_rng(6)), None, np.zeros(SHAPE, np.int32), affine(turn(0), (30.0, 0.0))
    )
    outside = (out.mask & int(Mask.NO_DATA)) != 0
    assert outside[:, 120:].all()
    assert not outside[:, :120].any()
    assert out.coverage == pytest.approx(0.8)
    assert (out.data[outside] == 0).all()
    edge = (out.mask & int(Mask.EDGE)) != 0
    assert edge[:, 118].all()
    assert not edge[5:-5, 5:100].any()


@pytest.mark.parametrize(("name", "fwhm"), [("shift", 2.2), ("small turn", 3.0), ("any angle", 3.0)])
def test_the_variance_is_what_a_matched_filter_meets(name: str, fwhm: float) -> None:
    """By Monte Carlo: the scatter of PSF-weighted sums over resampled white noise of a known, uneven variance."""
    rng = np.random.default_rng(7)
    uneven = (4 + 3 * np.sin(np.arange(150) / 25)[None, :] * np.ones((120, 1))).astype(np.float32)
    pixel_map = affine(*MAPS[name])
    psf = gaussian_psf(fwhm, SHAPE, 15).stamp()
    norm = np.sqrt(np.square(psf).sum())
    pulls, pixels = [], []
    for _ in range(12):
        noise = (rng.normal(size=SHAPE) * np.sqrt(uneven)).astype(np.float32)
        out = resample(noise, uneven, np.zeros(SHAPE, np.int32), pixel_map)
        assert out.variance is not None
        scaled = np.where(out.mask == 0, out.data / np.sqrt(out.variance), np.nan)
        pixels.append(scaled[np.isfinite(scaled)])
        for row in range(10, 110, 8):
            for column in range(10, 140, 8):
                part = scaled[row - 7 : row + 8, column - 7 : column + 8]
                if part.shape == (15, 15) and np.isfinite(part).all():
                    pulls.append((psf * part).sum() / norm)
    predicted = noise_widening(kernel(), fwhm)
    error = 1 / np.sqrt(2 * len(pulls))
    assert np.std(pulls) == pytest.approx(predicted, abs=4 * error)
    assert predicted == pytest.approx(1, abs=0.03)
    # The pixels themselves scatter less: that is the correlation, and why it may not be measured from them.
    assert 0.8 < np.concatenate(pixels).std() < 0.97


def test_a_kernels_noise_is_that_of_its_weights() -> None:
    rng = np.random.default_rng(8)
    out = resample(
        rng.normal(size=(400, 400)).astype(np.float32),
        None,
        np.zeros((400, 400), np.int32),
        affine([[1.003, 0], [0, 1.003]], (0, 0), (200.0, 200.0), (400, 400)),
    )
    inner = out.data[30:-30, 30:-30] / 1.003**2
    c = kernel().autocorrelation()
    assert np.mean(inner * inner) == pytest.approx(c[0] ** 2, rel=0.02)
    assert np.mean(inner[:, 1:] * inner[:, :-1]) == pytest.approx(c[0] * c[1], abs=0.01)


def test_a_shrinking_map_does_not_alias() -> None:
    """On pixels 2.5 times as large white noise keeps its power; without a wider kernel it would fold back."""
    rng = np.random.default_rng(9)
    out = resample(
        rng.normal(size=(250, 250)).astype(np.float32),
        np.ones((250, 250), np.float32),
        np.zeros((250, 250), np.int32),
        affine([[2.5, 0], [0, 2.5]], (0, 0), (48.0, 48.0), (96, 96)),
    )
    assert out.variance is not None
    pulls = (out.data / np.sqrt(out.variance))[out.mask == 0]
    assert pulls.std() == pytest.approx(0.93, abs=0.08)


def test_spline_coefficients_are_scipys() -> None:
    image = np.random.default_rng(10).normal(size=(67, 45)).astype(np.float32)
    own = image.astype(float)
    to_coefficients(own)
    np.testing.assert_allclose(own, spline_filter1d(image, 5, axis=0, mode="mirror", output=float), atol=1e-6)
    both = coefficients(image, 8, prefilter=True)[8:-8, 8:-8]
    twin = spline_filter1d(spline_filter1d(image, 5, axis=0, mode="mirror"), 5, axis=1, mode="mirror")
    np.testing.assert_allclose(both[4:-4, 4:-4], twin[4:-4, 4:-4], atol=2e-3)


def test_filling_is_what_a_loop_does() -> None:
    rng = np.random.default_rng(11)
    data = rng.normal(10, 1, (30, 40)).astype(np.float32)
    bad = rng.random((30, 40)) < 0.3
    bad[5:12, 8:20] = True
    bad[0, :6] = True
    wanted, unknown = data.astype(float).copy(), bad.copy()
    while unknown.any():
        values, still = wanted.copy(), unknown.copy()
        for row, column in zip(*np.nonzero(unknown), strict=True):
            total = weight = 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    y, x = row + dy, column + dx
                    if (dy or dx) and 0 <= y < 30 and 0 <= x < 40 and not unknown[y, x]:
                        near = 0.5 if dy and dx else 1.0
                        total, weight = total + near * wanted[y, x], weight + near
            if weight:
                values[row, column], still[row, column] = total / weight, False
        wanted, unknown = values, still
    np.testing.assert_allclose(fill_masked(data, bad), wanted, rtol=1e-5)


def test_large_holes_get_the_median() -> None:
    data = np.full((200, 200), 7.0, np.float32)
    bad = np.zeros((200, 200), bool)
    bad[40:160, 40:160] = True
    data[bad] = np.float32(1e9)
    filled = fill_masked(data, bad)
    assert (filled == 7.0).all()


def test_a_frame_all_masked_is_not_fatal() -> None:
    out = resample(
        np.ones((40, 40), np.float32),
        None,
        np.full((40, 40), int(Mask.NO_DATA), np.int32),
        affine(turn(0), (0.5, 0.5), (20.0, 20.0), (40, 40)),
    )
    assert np.isfinite(out.data).all()
    assert ((out.mask & int(Mask.NO_DATA)) != 0).all()


@pytest.mark.parametrize("turn", [0.3, 40.0])
def test_several_threads_give_the_same(turn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    data = rng.normal(0, 1, (190, 210)).astype(np.float32)
    mask = (rng.random(data.shape) < 0.01).astype(np.int32) * int(Mask.BAD_PIXEL)
    angle = np.radians(turn)

    def function(x, y):  # type: ignore[no-untyped-def]
        x, y = np.asarray(x, float) - 100, np.asarray(y, float) - 90
        return (
            100.3 + np.cos(angle) * x - np.sin(angle) * y,
            90.6 + np.sin(angle) * x + np.cos(angle) * y,
        )

    pixel_map = PixelMap.tabulate(function, (160, 3000 if turn < 1 else 180))
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(resample(data, np.abs(data) + 1, mask, pixel_map))
    for name in ("data", "variance", "mask", "coverage"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_the_variance_is_the_straight_line_between_pixels() -> None:
    """Against the bilinear sum written out, on a map that shifts and stretches a little."""
    rng = np.random.default_rng(4)
    variance = rng.uniform(1, 3, (80, 90)).astype(np.float32)

    def function(x, y):  # type: ignore[no-untyped-def]
        return np.asarray(x, float) * 1.001 + 0.37 + 0 * np.asarray(y), np.asarray(y, float) * 0.999 + 0.21

    pixel_map = PixelMap.tabulate(function, (70, 80))
    moved = resample(variance, variance, np.zeros(variance.shape, np.int32), pixel_map)
    area = 1.001 * 0.999
    assert moved.variance is not None
    for y, x in rng.integers(5, 65, (50, 2)):
        u, v = (float(a) for a in function(x, y))
        i, j = int(u), int(v)
        du, dv = u - i, v - j
        wanted = (1 - dv) * ((1 - du) * variance[j, i] + du * variance[j, i + 1])
        wanted += dv * ((1 - du) * variance[j + 1, i] + du * variance[j + 1, i + 1])
        assert moved.variance[y, x] == pytest.approx(area * wanted, rel=1e-3)
