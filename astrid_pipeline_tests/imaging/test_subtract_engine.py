"""The tiled filters against the paper's equations written out plainly, and the small parts they rest on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract import classic, zogy
from astrid_pipeline.imaging.subtract.arrays import Surface, add, fast_length, join
from astrid_pipeline.imaging.subtract.engine import Scene, filter_tiles
from astrid_pipeline.imaging.subtract.surfaces import fit_surface, robust_sigma
from astrid_pipeline.imaging.subtract.tiles import Mosaic, make_grid, pad, row_of_tiles
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf


def scene_of(science, reference, v_n, v_r, psf_n, psf_r, sigmas, shift=(0.0, 0.0)):
    shape = science.shape
    send = (torch.as_tensor(np.asarray(a, np.float32)) for a in (science, reference, v_n, v_r))
    return Scene(*send, 0.0, 0.0, *sigmas, psf_n, psf_n, psf_r, Surface.constant(shape, list(shift)))


def plain_zogy(n, r, v_n, v_r, psf_n, psf_r, s_n, s_r):
    """ZOGY from the paper's equations on the whole frame, in float64, for constant PSFs and F_n = F_r = 1."""
    shape = n.shape

    def transform(psf):
        grid = np.zeros(shape)
        stamp = psf.stamp()
        half = stamp.shape[0] // 2
        grid[: stamp.shape[0], : stamp.shape[1]] = stamp
        return np.fft.fft2(np.roll(grid, (-half, -half), (0, 1)))

    p_n, p_r = transform(psf_n), transform(psf_r)
    den = s_n**2 * abs(p_r) ** 2 + s_r**2 * abs(p_n) ** 2
    d_hat = (p_r * np.fft.fft2(n) - p_n * np.fft.fft2(r)) / np.sqrt(den)  # 13
    f_d = 1 / np.sqrt(s_n**2 + s_r**2)  # 15
    p_d = p_n * p_r / (f_d * np.sqrt(den))  # 14
    s = np.fft.ifft2(f_d * d_hat * p_d.conj()).real  # 12
    k_n = np.fft.ifft2(p_n.conj() * abs(p_r) ** 2 / den).real  # 28
    k_r = np.fft.ifft2(p_r.conj() * abs(p_n) ** 2 / den).real  # 29
    v = np.fft.ifft2(
        np.fft.fft2(v_n) * np.fft.fft2(k_n**2) + np.fft.fft2(v_r) * np.fft.fft2(k_r**2)
    ).real  # 26, 27
    f_s = (abs(p_n) ** 2 * abs(p_r) ** 2 / den).mean()  # 42
    return np.fft.ifft2(d_hat).real / f_d, s / f_s, v / f_s**2, np.fft.fftshift(np.fft.ifft2(p_d).real)


@pytest.mark.parametrize("shape", [(150, 170), (420, 130)])  # one tile, and two
def test_tiles_agree_with_the_equations_on_the_whole_frame(shape):
    rng = np.random.default_rng(0)
    psf_n, psf_r = gaussian_psf(2.9, shape, 21), gaussian_psf(2.3, shape, 21)
    x, y = rng.uniform(30, shape[1] - 30, 30), rng.uniform(30, shape[0] - 30, 30)
    flux = 10 ** rng.uniform(2, 4, 30)
    n = draw(shape, x, y, flux, 2.9) + rng.normal(0, 10, shape)
    r = draw(shape, x, y, flux, 2.3) + rng.normal(0, 5, shape)
    v_n, v_r = (100 + draw(shape, x, y, flux, w) / g for w, g in ((2.9, 1), (2.3, 4)))
    v_r = v_r - 75
    out = filter_tiles(scene_of(n, r, v_n, v_r, psf_n, psf_r, (10.0, 5.0)), zogy.filters)
    d, alpha, variance, p_d = plain_zogy(n, r, v_n, v_r, psf_n, psf_r, 10.0, 5.0)
    inner = np.s_[24:-24, 24:-24]  # the whole-frame transform wraps around, the tiles do not
    sigma = np.sqrt(variance)
    assert np.abs((out.flux.numpy() - alpha) / sigma)[inner].max() < 2e-3
    assert np.abs(out.variance.numpy() / variance - 1)[inner].max() < 2e-3
    # D's own kernel is longer than a tile's margin by a tail of some 1e-3.
    assert np.abs(out.difference.numpy() - d)[inner].max() < 0.02 * 10
    half = out.psf.size // 2
    cy, cx = shape[0] // 2, shape[1] // 2
    stamp = p_d[cy - half : cy + half + 1, cx - half : cx + half + 1]
    assert np.abs(out.psf.stamp() - stamp / stamp.sum()).max() < 1e-3


@pytest.mark.parametrize("filters", [zogy.filters, classic.filters])
@pytest.mark.parametrize("widths", [(2.8, 2.2), (2.2, 2.8)])
def test_a_lone_source_comes_back_with_its_flux_and_shape(filters, widths):
    shape = (120, 140)
    psf_n, psf_r = (gaussian_psf(w, shape, 21) for w in widths)
    n = draw(shape, np.array([70.0]), np.array([60.0]), np.array([1000.0]), widths[0])
    ones = np.ones(shape)
    out = filter_tiles(scene_of(n, 0 * n, ones, ones / 4, psf_n, psf_r, (1.0, 0.5)), filters)
    assert float(out.flux[60, 70]) == pytest.approx(1000.0, rel=2e-3)
    half = 7
    seen = out.difference.numpy()[60 - half : 61 + half, 70 - half : 71 + half]
    middle = out.psf.size // 2
    expected = 1000.0 * out.psf.stamp()[middle - half : middle + half + 1, middle - half : middle + half + 1]
    assert np.abs(seen - expected).max() < 0.01 * expected.max()


def varying(widths, shape):
    """A PSF whose stamp is linear in u from one Gaussian to another, and the star field it makes."""
    left, right = (gaussian_psf(w, shape, 21).stamp() for w in widths)
    return PSF(np.stack([(left + right) / 2, (right - left) / 2]), ((0, 0), (1, 0)), shape)


def place(image, psf, x, y, flux):
    for x0, y0, f in zip(x, y, flux, strict=True):
        image[y0 - 10 : y0 + 11, x0 - 10 : x0 + 11] += f * psf.stamp(x0, y0)


def test_varying_psfs_leave_neither_stars_nor_seams():
    shape = (120, 900)
    rng = np.random.default_rng(3)
    psf_n, psf_r = varying((2.5, 3.1), shape), varying((2.4, 2.1), shape)
    x, y = rng.integers(20, shape[1] - 20, 60), rng.integers(20, shape[0] - 20, 60)
    flux = np.full(60, 1e4)
    n, r = np.zeros(shape), np.zeros(shape)
    place(n, psf_n, x, y, flux)
    place(r, psf_r, x, y, flux)
    ones = np.ones(shape)
    scene = scene_of(n, r, 100 * ones, 25 * ones, psf_n, psf_r, (10.0, 5.0))
    out = filter_tiles(scene, zogy.filters)
    assert make_grid(shape, 32).columns >= 3
    score = (out.flux / out.variance.sqrt()).numpy()
    brightness = 1e4 / float(out.variance.sqrt().median())
    assert brightness > 150
    assert np.abs(score).max() < 0.002 * brightness
    # One new source at each end has its flux, although the PSF is another in each place.
    for x0 in (60, 250, 450, 800):
        n2 = n.copy()
        place(n2, psf_n, [x0], [60], [5000.0])
        scene = scene_of(n2, r, 100 * ones, 25 * ones, psf_n, psf_r, (10.0, 5.0))
        assert float(filter_tiles(scene, zogy.filters).flux[60, x0]) == pytest.approx(5000, rel=0.004)


def test_a_shift_is_taken_out_inside_the_transform():
    shape = (128, 128)
    psf_n, psf_r = gaussian_psf(2.8, shape, 21), gaussian_psf(2.4, shape, 21)
    at = np.array([64.2]), np.array([61.7]), np.array([1e4])
    n = draw(shape, *at, 2.8)
    r = draw(shape, at[0] + 0.3, at[1] - 0.2, at[2], 2.4)
    ones = np.ones(shape)
    kept = filter_tiles(scene_of(n, r, ones, ones, psf_n, psf_r, (1, 1), (0.3, -0.2)), zogy.filters).flux
    lost = filter_tiles(scene_of(n, r, ones, ones, psf_n, psf_r, (1, 1)), zogy.filters).flux
    assert float(kept.abs().max()) < 1e-3 * 1e4
    assert float(lost.abs().max()) > 0.05 * 1e4


@given(height=st.integers(1, 1500), width=st.integers(1, 900), margin=st.integers(4, 32))
def test_windows_of_all_tiles_sum_to_one(height, width, margin):
    grid = make_grid((height, width), margin)
    for count, step, length in ((grid.rows, grid.step_y, height), (grid.columns, grid.step_x, width)):
        total = np.zeros((count - 1) * step + grid.size)
        for i in range(count):
            total[i * step : i * step + grid.size] += grid.window(step, i, count)
        assert total[grid.border : grid.border + length] == pytest.approx(1, abs=1e-6)
        assert grid.size >= step + 16 + 2 * margin


def test_tiles_put_together_give_the_frame_back():
    shape = (300, 700)
    image = torch.as_tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    grid = make_grid(shape, 20)
    mosaic = Mosaic(grid, 1, torch.device("cpu"))
    padded = pad(image, grid)
    for row in range(grid.rows):
        for column in range(grid.columns):
            tile = row_of_tiles(padded, grid, row, column, column + 1)[:, grid.inner, grid.inner]
            mosaic.add(tile, row, column)
    assert torch.allclose(mosaic.image[0], image, atol=1e-6)


@given(st.integers(1, 20_000))
def test_fast_lengths_are_smooth_even_and_near(n):
    length = fast_length(n)
    assert n <= length <= max(2, 1.34 * n)
    assert length % 2 == 0
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    assert length == 1


def test_surfaces_evaluate_alike_and_add():
    shape = (30, 50)
    rng = np.random.default_rng(0)
    a, b = (Surface(shape, d, rng.normal(size=len(Surface.terms(d)))) for d in (3, 1))
    y, x = np.mgrid[:30, :50]
    assert np.allclose(a.image(), a.at(x, y), atol=1e-5)
    assert np.allclose(add(a, b).at(x, y), a.at(x, y) + b.at(x, y))
    both = join(shape, [a, b])
    assert np.allclose(both.at(x, y)[..., 1], b.at(x, y))


def test_a_surface_follows_what_the_sources_say_and_no_more():
    shape = (1000, 1000)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 1000, (2, 200))
    error = rng.uniform(0.005, 0.05, 200)

    def truth(x, y):
        return 0.1 * np.sin(2 * np.pi * 0.8 * x / 1000 + 1) + 0.05 * y / 1000

    values = truth(x, y) + rng.normal(0, error)
    values[:10] += 1.0  # outliers
    fit = fit_surface(shape, x, y, values, error, 9)
    assert not fit.inliers[:10].any()
    assert fit.inliers[10:].mean() > 0.97
    gx, gy = rng.uniform(50, 950, (2, 500))
    left = fit.surface.at(gx, gy) - truth(gx, gy)
    assert np.sqrt(np.mean(left**2)) < 0.012
    assert fit.left == pytest.approx(np.sqrt(np.mean(left**2)), abs=0.008)
    # Nothing but noise: a constant, known to the error of the mean.
    flat = fit_surface(shape, x, y, 3 + rng.normal(0, error), error, 9)
    assert np.abs(flat.surface.at(gx, gy) - 3).max() < 0.01


def test_of_five_sources_two_that_moved_are_left_behind():
    x, y = np.array([60.0, 100, 180, 120, 130]), np.array([180.0, 70, 200, 210, 130])
    error = np.array([0.002, 0.005, 0.011, 0.035, 0.043])
    fit = fit_surface((256, 256), x, y, np.array([-0.317, -0.052, -0.017, -0.033, 0.383]), error, 9)
    assert fit.inliers.tolist() == [False, True, True, True, False]
    assert fit.surface.at(128, 128) == pytest.approx(-0.04, abs=0.03)
    assert fit.left < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_a_surface_does_not_run_off_at_the_border(seed: int):
    shape = (1000, 1000)
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 1000, (2, 130))
    error = rng.uniform(0.005, 0.03, 130)
    phase, turn = rng.uniform(0, 2 * np.pi, 2)

    def truth(x, y):
        along = np.cos(turn) * x + np.sin(turn) * y
        return 0.1 * np.sin(2 * np.pi * 1.6 * along / 1000 + phase)

    fit = fit_surface(shape, x, y, truth(x, y) + rng.normal(0, error), error, 9)
    along = np.linspace(0, 999, 200)
    sides = [(along, 0 * along), (along, 0 * along + 999), (0 * along, along), (0 * along + 999, along)]
    for u, v in sides:
        # What the surface lacks on the border is of the size of the shift itself, not of its polynomials.
        assert np.abs(fit.surface.at(u, v) - truth(u, v)).max() < 0.12


def test_robust_sigma_sees_through_one_sided_artefacts():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2.0, 100_000)
    values[:3000] = 40.0
    assert robust_sigma(values) == pytest.approx(2.0, rel=0.01)
    assert robust_sigma(values[3000:]) == pytest.approx(2.0, rel=0.01)
