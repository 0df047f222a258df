"""The parts of the subtraction that see to what is left: sky, holes, halos, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, Mask
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract import fill, fill_solver, halos, score, sky, subtract
from astrid_pipeline.imaging.subtract.arrays import Surface
from astrid_pipeline.imaging.subtract.inputs import light_of, make_pair, rounded
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf
from astrid_pipeline_tests.imaging.subtraction_scenes import Scene

SHAPE = (512, 512)


def pair_with(sky_left, seed=0):
    science, reference = Scene(shape=SHAPE, stars=200, seed=seed).build()
    return make_pair(science.replace(data=science.data + sky_left), reference)


def test_a_smooth_sky_is_found_to_a_hundredth_of_the_noise():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / 512
    truth = 5 + 8 * x - 6 * x * y
    level = sky.fit_sky(pair_with(truth), Surface.constant(SHAPE, 0.8))
    assert level.mesh is None
    # Noise of the difference is 10.8 a pixel, 4096 pixels a cell, few terms.
    assert np.sqrt(np.mean((level.image() - truth) ** 2)) < 0.2


def test_a_glow_in_a_corner_is_taken_out_by_the_mesh():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    glow = 60 * np.exp(-0.5 * (np.hypot(x, y) / 90) ** 2)
    level = sky.fit_sky(pair_with(glow), Surface.constant(SHAPE, 0.8))
    left = glow - level.image()
    corner = np.s_[32:160, 32:160]
    assert np.abs(glow[corner]).mean() > 15
    assert np.sqrt(np.mean(left[corner] ** 2)) < 3
    assert np.sqrt(np.mean(left[300:, 300:] ** 2)) < 0.8


def test_transients_do_not_lift_the_sky():
    science, reference = Scene(shape=SHAPE, stars=100).build()
    rng = np.random.default_rng(1)
    new = draw(SHAPE, rng.uniform(0, 512, 60), rng.uniform(0, 512, 60), np.full(60, 3000.0), 2.8)
    pair = make_pair(science.replace(data=science.data + new), reference)
    level = sky.fit_sky(pair, Surface.constant(SHAPE, 0.8))
    assert np.abs(level.image()).max() < 0.6


def test_a_hole_is_filled_such_that_the_difference_vanishes():
    shape = (96, 96)
    psf_n, psf_r = gaussian_psf(2.8, shape, 21), gaussian_psf(2.3, shape, 21)
    at = np.array([47.3]), np.array([48.6]), np.array([1e6])
    truth = draw(shape, *at, 2.8), draw(shape, *at, 2.3)
    bad = [image > 3e4 for image in truth]
    assert all(b.sum() > 5 for b in bad)
    broken = [np.where(b, 3e4, image).astype(np.float32) for b, image in zip(bad, truth, strict=True)]
    n, r = fill.fill_pair(
        broken[0],
        broken[1],
        bad[0],
        bad[1],
        psf_n,
        psf_r,
        Surface.constant(shape, [0.0, 0.0]),
        (10.0, 5.0),
        torch.device("cpu"),
    )
    assert np.array_equal(n[~bad[0]], broken[0][~bad[0]])
    q, p = (
        torch.fft.rfft2(torch.as_tensor(np.roll(np.pad(psf.stamp(), (0, 75)), (-10, -10), (0, 1))))
        for psf in (psf_n, psf_r)
    )
    unlike = torch.fft.irfft2(p * torch.fft.rfft2(torch.as_tensor(n).double()), s=shape) - torch.fft.irfft2(
        q * torch.fft.rfft2(torch.as_tensor(r).double()), s=shape
    )
    # The smooth filling leaves thousands; what is left now is below the noise of a pixel.
    assert float(unlike.abs().max()) < 10


@pytest.mark.parametrize("hole", ["science", "reference", "both"])
def test_small_holes_are_the_least_squares_of_the_difference(hole):
    """The slow twin: D's change with each pixel drawn one by one, and numpy's least squares with the same prior."""
    rng = np.random.default_rng(5)
    size, sigmas = 48, (10.0, 5.0)
    psf_n, psf_r = gaussian_psf(2.8, (size, size), 21), gaussian_psf(2.3, (size, size), 21)
    images = [rng.normal(0, s, (1, size, size)).astype(np.float32) for s in sigmas]
    images[0][0, 24, 26] = 900.0
    bad = [np.zeros((1, size, size), bool) for _ in images]
    if hole != "reference":
        bad[0][0, 22:25, 23:27] = True
    if hole != "science":
        bad[1][0, 24:27, 24:26] = True
    shift = Surface.constant((size, size), [0.2, -0.1])
    solver = fill_solver.Solver(psf_n, psf_r, shift, sigmas, size, torch.device("cpu"))
    solver.weight = torch.ones_like(solver.weight)  # the borders count: the correlations know of no fading
    x = y = np.array([24])
    solved = solver.solve_small(tuple(images), tuple(bad), x, y)
    operator, *_ = solver._operator(x, y)
    start = operator.difference(*(torch.as_tensor(i) for i in images))
    columns, places = [], []
    for frame in (0, 1):
        for _, row, column in np.argwhere(bad[frame]):
            one = [torch.zeros((1, size, size)) for _ in images]
            one[frame][0, row, column] = 1.0
            columns.append(operator.difference(*one).numpy().ravel())
            places.append((frame, row, column))
    design, right = np.stack(columns, axis=1).astype(float), -start.numpy().ravel().astype(float)
    ridge = np.eye(len(places)) / fill_solver.PRIOR**2
    amount = np.zeros(len(places))
    for _ in range(fill_solver.ROUNDS):
        amount += np.linalg.solve(design.T @ design + ridge, design.T @ (right - design @ amount))
    expected = [image.copy() for image in images]
    for (frame, row, column), by in zip(places, amount, strict=True):
        expected[frame][0, row, column] += by
    # What the PSFs let nothing through of is known to rounding only; D itself agrees to a fiftieth of its noise.
    left = [operator.difference(*(torch.as_tensor(i) for i in pair)) for pair in (solved, expected)]
    assert float((left[0] - left[1]).abs().max()) < 0.25
    if hole != "reference":  # where the science frame's spike was
        assert float(left[0].abs().max()) < 60
    for frame in (0, 1):
        assert np.array_equal(solved[frame][~bad[frame]], images[frame][~bad[frame]])


def test_smooth_fill_keeps_what_is_good_and_bridges_the_rest():
    y, x = np.mgrid[:80, :90].astype(np.float32)
    image = 3 * x + y
    bad = np.zeros(image.shape, bool)
    bad[40:43, 30:60] = True
    bad[0:40, 80:] = True
    out = fill.smooth_fill(image, bad)
    assert np.array_equal(out[~bad], image[~bad])
    assert np.abs(out[41, 33:57] - image[41, 33:57]).max() < 8
    assert np.isfinite(out).all()


def test_noise_around_a_bright_star_is_measured_ring_by_ring():
    rng = np.random.default_rng(0)
    shape = (200, 200)
    y, x = np.mgrid[:200, :200]
    radius = np.hypot(x - 100, y - 100)
    static = 2e5 * np.exp(-0.5 * (radius / 1.5) ** 2)
    noisy = (radius > 8) & (radius < 16)
    flux = rng.normal(0, np.where(noisy, 4.0, 1.0)).astype(np.float32)
    flux[100, 112] = 60.0  # a transient within the ring does not hide itself
    variance = np.ones(shape, np.float32)
    assert halos.raise_variance(flux, variance, static.astype(np.float32), np.zeros(shape, bool), 1.0) == 1
    assert variance[100, 112] == pytest.approx(16, rel=0.5)
    assert (variance[radius > 40] == 1).all()
    quiet = np.ones(shape, np.float32)
    halos.raise_variance(
        rng.normal(0, 1, shape).astype(np.float32), quiet, static.astype(np.float32), radius > 1e9, 1.0
    )
    assert quiet.max() < 1.7


def test_what_is_left_beside_spilled_charge_counts_as_noise():
    rng = np.random.default_rng(1)
    shape = (200, 200)
    y, x = np.mgrid[:200, :200]
    static = 2e5 * np.exp(-0.5 * (np.hypot(x - 100, y - 100) / 1.5) ** 2)
    bad = (np.hypot(x - 100, y - 100) < 3) | ((np.abs(x - 100) < 2) & (np.abs(y - 100) < 20))
    flux = rng.normal(0, 1, shape).astype(np.float32)
    flux[115, 103] = 9.0
    variance = np.ones(shape, np.float32)
    halos.raise_variance(flux, variance, static.astype(np.float32), bad, 3.0)
    assert 9.0 / np.sqrt(variance[115, 103]) < 5
    assert np.median(variance[bad == 0]) == 1
    # A bad column that no bright star spilled into is left as it is.
    column = np.abs(x - 40) < 2
    variance[:] = 1
    flux[115, 43] = 9.0
    halos.raise_variance(flux, variance, static.astype(np.float32), bad | column, 3.0)
    assert variance[115, 43] == 1


def test_sources_that_changed_do_not_speak_for_the_match():
    rng = np.random.default_rng(3)
    shape = (300, 300)
    static = np.zeros(shape)
    at = [(50, 50), (50, 200), (150, 120), (220, 60), (220, 220)]
    for cx, cy in at:
        static += draw(shape, np.array([float(cx)]), np.array([float(cy)]), np.array([4e4]), 4.0)
    flux = rng.normal(0, 30, shape)
    moved = np.array(at[:2])
    for cx, cy in moved:
        box = (slice(cy - 20, cy + 21), slice(cx - 20, cx + 21))
        flux[box] += 0.3 * np.gradient(static, axis=1)[box]
    planes = flux.astype(np.float32), np.full(shape, 900.0, np.float32), static.astype(np.float32)
    nowhere = np.zeros(shape, bool)
    _, deaf = score.variance_left(*planes, nowhere, moved)
    assert deaf.sigma_x < 0.06
    # With too few others to speak all of them are heard.
    _, all_heard = score.variance_left(*planes, nowhere, np.array(at[:3]))
    assert all_heard == score.variance_left(*planes, nowhere)[1]


def test_what_matching_left_is_measured_not_assumed():
    rng = np.random.default_rng(0)
    shape = (400, 400)
    static = np.zeros(shape)
    for _ in range(60):
        static += draw(shape, rng.uniform(0, 400, 1), rng.uniform(0, 400, 1), np.array([4e4]), 4.0)
    gx, gy = np.gradient(static, axis=1), np.gradient(static, axis=0)
    shifts = rng.normal(0, 0.05, (2, 20, 20)).repeat(20, 1).repeat(20, 2)
    flux = rng.normal(0, 1, shape) * 30 + shifts[0] * gx + 0.2 * shifts[1] * gy
    variance = np.full(shape, 900.0, np.float32)
    extra, left = score.variance_left(
        flux.astype(np.float32), variance, static.astype(np.float32), np.zeros(shape, bool)
    )
    assert left.sigma_x == pytest.approx(0.05, rel=0.35)
    assert left.sigma_y < 0.03
    assert extra[static < 1].max() < 90


def test_the_mask_keeps_both_frames_bits():
    a, b = np.zeros((2, 60, 60), np.int32)
    a[30, 30], b[20, 20] = Mask.BLEED, Mask.SATURATED
    mask = score.difference_mask(a, b, 2.5)
    assert mask[30, 30] == Mask.BLEED
    assert mask[20, 20] == Mask.SATURATED << REFERENCE_SHIFT
    assert mask[30, 31] == Mask.BLEED
    assert mask[30, 36] == 0
    assert (mask[:, 0] == Mask.EDGE).all()
    assert mask[25, 5] == 0


def test_light_from_beyond_the_frame_is_not_trusted():
    shape = (100, 120)
    star = draw(shape, np.array([60.0]), np.array([1.0]), np.array([1e5]), 2.8).astype(np.float32)
    leak = score.edge_leak(star, star, gaussian_psf(2.8, shape, 21).stamp(), 10.0)
    assert leak[0:3, 58:63].all()
    assert not leak[20:].any()
    assert not leak[:, 5:40].any()


def test_wide_psfs_fade_to_a_circle_and_tight_ones_stay():
    wide = gaussian_psf(2.5, (50, 50), 21)
    assert rounded(wide).basis[0, 0, 0] == 0
    assert rounded(wide).stamp() == pytest.approx(wide.stamp(), abs=1e-5)
    tight = gaussian_psf(4.0, (50, 50), 15)
    assert rounded(tight) is tight


def test_fluxes_count_the_wings_that_the_filters_do_not_reach():
    # A PSF with a halo: 3 % of its light lies where `rounded` fades it out.
    offset = np.arange(25) - 12
    radius = np.hypot(offset[:, None], offset)
    stamp = np.exp(-0.5 * (radius / 1.0) ** 2) / (2 * np.pi) + 2e-4 * (radius > 8)
    psf = PSF.from_stamp(stamp / stamp.sum())
    assert light_of(rounded(psf)) < 0.96 * light_of(psf)
    shape, rng = (200, 200), np.random.default_rng(0)
    sky = [
        Frame(
            rng.normal(0, 3, shape), np.full(shape, 9.0), psf=psf, meta={"sky_subtracted": True, "gain": 1.0}
        )
        for _ in range(2)
    ]
    pattern = np.zeros(shape)
    for x0 in range(25, 200, 30):
        for y0 in range(25, 200, 30):
            pattern[y0 - 12 : y0 + 13, x0 - 12 : x0 + 13] += 8000 * psf.stamp()
    frames = [frame.replace(data=(frame.data + pattern).astype(np.float32)) for frame in sky]
    changed = frames[0].data.copy()
    changed[103:128, 103:128] += 9000 * psf.stamp()
    difference = subtract(frames[0].replace(data=changed.astype(np.float32)), frames[1], device="cpu")
    assert difference.flux[115, 115] == pytest.approx(9000, abs=4 * float(difference.flux_err[115, 115]))
    assert difference.flux_err[115, 115] < 50


def test_frames_without_variance_are_prepared():
    science, reference = Scene(shape=(256, 256), stars=100, brightest=1e5).build()
    pair = make_pair(Frame(science.data + 300, psf=science.psf), reference)
    assert pair.science.variance is not None
    assert abs(float(np.median(pair.science.data))) < 1.5
