"""Solving from the frames themselves how they differ: sky, flux ratio, shift, and the shape of their PSFs.

What ZOGY assumes to be known (Zackay, Ofek & Gal-Yam 2016, section 3.4, eqs 37-39, solve it for one number each) is
found here as smooth surfaces over the frame, from up to 1500 sources:

1. each source by itself gives flux ratio, shift and second moments of the PSF difference, with errors;
2. robust polynomials, whose degree the sources decide, pass through flux ratio and shift; variables, movers and
   transients stand out and are left behind;
3. all sources together give the correction of the PSF ratio: derivatives of the PSF up to fourth order and its
   wings, with coefficients that vary over the frame (the freedom that a fitted kernel has, without its noise).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import SubtractionError
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import Surface, frequencies, normalised_coefficients
from astrid_pipeline.imaging.subtract.inputs import Pair, parts
from astrid_pipeline.imaging.subtract.stars import (
    MODEL_ERROR,
    Measured,
    Stamps,
    cut_stamps,
    derivatives,
    orders,
)
from astrid_pipeline.imaging.subtract.surfaces import Fit, fit_surface

if TYPE_CHECKING:
    import torch

#: Degree up to which the shift may vary: distortion left by a fit of low order has some two periods over the frame.
SHIFT_DEGREE = 9
#: Degree up to which the flux ratio may vary: flat-field and extinction gradients are smoother than that.
RATIO_DEGREE = 3
#: Order of the PSF's derivatives that its correction is made of; 4 describes width, ellipticity, coma and core.
ORDER = 4
#: Degree over the frame of the correction's coefficients, by order of the derivative.
SHAPE_DEGREES = {0: 1, 1: 2, 2: 3, 3: 2, 4: 2}
#: Width of the prior of those coefficients, in units of the PSF's Gaussian width to the power of the order, by order:
#: PSFs measured from stars are wrong by some per cent, in their wings by less. Higher degrees are the less likely.
SHAPE_PRIOR = {0: 0.02, 1: 0.05, 2: 0.10, 3: 0.03, 4: 0.02}
#: Fewer sources than this give flux ratio and shift only.
MIN_FOR_SHAPE = 6
#: Fewer sources than this cannot be told from a variable.
MIN_SOURCES = 3


@dataclass(frozen=True, eq=False)
class Match:
    """How the reference becomes the science frame: N ≈ ratio · (Q ∗ R)(x + shift) + sky, with Q / P_r the kernel.

    Attributes
    ----------
    ratio:
        Flux of a source in the science frame over that in the reference; one surface.
    shift:
        (dx, dy), px: a source at x in the science frame is at x + shift in the reference; two surfaces.
    psf:
        Q, the science PSF corrected such that P_r ∗ N = ratio · Q ∗ R for sources that do not change.
    sky:
        Smooth level of science − ratio · reference, units of the science frame.
    sources, n_matched:
        Sources looked at, and those that the surfaces rest on.
    dx_rms, dy_rms:
        Registration left after the shift's removal: scatter of the sources beyond their errors, and the surface's
        own error.
    ratio_error, ratio_scatter:
        Standard error of the flux ratio, and the scatter of the sources about it beyond their errors (relative).
    """

    ratio: Surface
    shift: Surface
    psf: PSF
    sky: Surface
    sources: int = 0
    n_matched: int = 0
    dx_rms: float = 0.0
    dy_rms: float = 0.0
    ratio_error: float = 0.0
    ratio_scatter: float = 0.0
    notes: list[str] = field(default_factory=list)


def solve_match(pair: Pair, device: torch.device) -> Match:
    """Return how the two frames differ, measured on the sources that they have in common.

    Raises
    ------
    SubtractionError
        If the frames have too few sources in common and no zero points that give the flux ratio.
    """
    shape = pair.shape
    stamps = cut_stamps(pair, device)
    psf = parts(pair.science)[1]
    if len(stamps.x) < MIN_SOURCES:
        ratio = Surface.constant(shape, _ratio_of_zero_points(pair))
        note = f"{len(stamps.x)} sources in common: flux ratio from the zero points, shift not solved"
        return Match(
            ratio,
            Surface.constant(shape, [0.0, 0.0]),
            psf,
            fit_sky(pair, ratio),
            len(stamps.x),
            0,
            notes=[note],
        )
    ratio = Surface.constant(shape, _first_ratio(stamps))
    shift = Surface.constant(shape, [0.0, 0.0])
    sky = fit_sky(pair, ratio)
    # The columns are linear in the shift only to about 0.3 px: a second round starts from the first one's solution.
    for _ in range(2):
        measured = measure(stamps, pair, ratio, shift, sky, order=2)
        good = _sane(measured)
        if good.sum() < MIN_SOURCES:
            raise SubtractionError(
                f"{int(good.sum())} of {len(good)} sources have a common profile in both frames",
                where=pair.science.name,
                remedy="check that the frames are registered (align) and their PSFs are right",
            )
        x, y = stamps.x, stamps.y
        factor = ratio.at(x, y)
        a = measured.values[:, 0]
        fit_a = fit_surface(
            shape, x[good], y[good], (factor * a)[good], (factor * measured.errors[:, 0])[good], RATIO_DEGREE
        )
        before = shift.at(x, y)
        fits = [
            fit_surface(
                shape,
                x[good],
                y[good],
                (before[:, i] + measured.values[:, 1 + i] / a)[good],
                measured.errors[good, 1 + i],
                SHIFT_DEGREE,
            )
            for i in (0, 1)
        ]
        ratio, shift = fit_a.surface, _join(shape, [f.surface for f in fits])
        sky = fit_sky(pair, ratio)
    inliers = np.flatnonzero(good)[fit_a.inliers & fits[0].inliers & fits[1].inliers]
    chosen = np.zeros(len(good), bool)
    chosen[inliers] = True
    if chosen.sum() >= MIN_FOR_SHAPE:
        psf, ratio, shift = fit_shape(stamps.take(chosen), pair, ratio, shift, sky)
    scale = float(np.median(ratio.at(stamps.x, stamps.y)))
    return Match(
        ratio,
        shift,
        psf,
        sky,
        len(stamps.x),
        int(chosen.sum()),
        fits[0].left,
        fits[1].left,
        fit_a.error / scale,
        fit_a.scatter / scale,
    )


def _join(shape: tuple[int, int], surfaces: list[Surface]) -> Surface:
    """Return several surfaces as one with a trailing axis."""
    degree = max(s.degree for s in surfaces)
    out = np.zeros((len(Surface.terms(degree)), len(surfaces)))
    for i, surface in enumerate(surfaces):
        out[: len(surface.coefficients), i] = surface.coefficients
    return Surface(shape, degree, out)


def _ratio_of_zero_points(pair: Pair) -> float:
    zero_points = [frame.meta.get("zero_point") for frame in (pair.science, pair.reference)]
    values = [float(z) if z is not None else float("nan") for z in zero_points]
    if not np.isfinite(values).all():
        raise SubtractionError(
            "the two frames have fewer than three sources in common, and no zero points",
            where=pair.science.name,
            remedy="give both frames meta['zero_point'], or use deeper or wider frames",
        )
    return float(10 ** (0.4 * (values[0] - values[1])))


def _first_ratio(stamps: Stamps) -> float:
    """Return the median flux ratio of the sources, from sums within 1.3 FWHM or so, less the sky around."""
    import torch

    n, r = (stamps.middle(image).double() for image in (stamps.science, stamps.reference))
    side = n.shape[-1]
    d = torch.arange(side, device=n.device) - side // 2
    radius = torch.hypot(d[:, None].double(), d[None, :].double())
    inner, ring = radius <= 0.55 * stamps.reach, radius >= 0.85 * stamps.reach
    sums = [
        ((image - image[:, ring].median(dim=1).values[:, None, None]) * inner).sum((1, 2)) for image in (n, r)
    ]
    ratio = (sums[0] / sums[1])[sums[1] > 0]
    if not len(ratio) or not float(ratio.median()) > 0:
        return 1.0
    return float(ratio.median())


def columns(
    stamps: Stamps, pair: Pair, ratio: Surface, shift: Surface, sky: Surface, order: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (difference, columns, weights) of the compared parts, (n, m, m), (n, J, m, m), (n, m, m).

    The difference is the proper one (eq 13), whose noise is white, so that least squares are the best there are. The
    columns are the derivatives of Q ∗ P_r ∗ T, filtered alike, with T the maximum-likelihood image of both frames: the
    derivatives of Q ∗ R itself would carry the reference's noise, which is in the difference too, and a faint source's
    flux ratio would come out 10 % low where the reference is the broader. T's noise is independent of the difference's.
    """
    import torch

    device, size = stamps.science.device, stamps.size
    beta = torch.as_tensor(ratio.at(stamps.x, stamps.y), device=device).float()[:, None, None]
    delta = torch.as_tensor(shift.at(stamps.x, stamps.y), device=device).float()
    level = torch.as_tensor(sky.at(stamps.x, stamps.y), device=device).float()[:, None, None]
    ky, kx = frequencies(size, device)
    variance_n = stamps.science_variance
    variance_r = beta**2 * stamps.reference_variance
    s_n, s_r = (v.flatten(1).median(dim=1).values[:, None, None] for v in (variance_n, variance_r))
    p_n, p_r = stamps.psf_science, stamps.psf_reference
    den = s_n * p_r.abs() ** 2 + s_r * p_n.abs() ** 2
    den = den.clamp_min(1e-8 * float(den.max()))
    white = torch.sqrt((s_n + s_r) / den)
    science = torch.fft.rfft2(stamps.science - level)
    phase = torch.exp(1j * (kx * delta[:, 0, None, None] + ky * delta[:, 1, None, None]))
    reference = torch.fft.rfft2(beta * stamps.reference) * phase
    difference = stamps.middle(torch.fft.irfft2(white * (p_r * science - p_n * reference), s=(size, size)))
    both = (p_n.conj() * science * s_r + p_r.conj() * reference * s_n) / den
    model = white * p_n * p_r * both
    out = [
        stamps.middle(torch.fft.irfft2(model * column, s=(size, size)))
        for column in shapes(size, order, device)
    ]
    design = torch.stack(out, dim=1)
    noise = stamps.middle(variance_n + variance_r) + (MODEL_ERROR * design[:, 0]) ** 2
    return difference, design, 1 / noise


def shapes(size: int, order: int, device: torch.device) -> torch.Tensor:
    """Return the transforms that the PSF's correction is made of: derivatives, those of order ≥ 2 damped.

    A Gaussian of 0.5 px takes the edge off high orders at frequencies where there is more noise than star.
    """
    import torch

    ky, kx = frequencies(size, device)
    damping = torch.exp(-(kx**2 + ky**2) * 0.5**2 / 2)
    out = derivatives(size, order, device)
    high = torch.as_tensor([sum(t) >= 2 for t in orders(order)], device=device)
    out[high] *= damping
    return out


def measure(stamps: Stamps, pair: Pair, ratio: Surface, shift: Surface, sky: Surface, order: int) -> Measured:
    """Fit each source by itself: amplitude (relative to `ratio`), shift, and second moments of the PSF difference."""
    import torch

    difference, design, weight = columns(stamps, pair, ratio, shift, sky, order)
    j = design.shape[1]
    flat = torch.cat([design.flatten(2), torch.ones_like(difference).flatten(1)[:, None]], dim=1).double()
    y = difference.flatten(1).double()
    w = weight.flatten(1).double()
    normal = torch.einsum("nap,np,nbp->nab", flat, w, flat)
    scale = torch.sqrt(torch.diagonal(normal, dim1=1, dim2=2)).clamp_min(1e-30)
    normal = normal / scale[:, :, None] / scale[:, None, :] + 1e-9 * torch.eye(j + 1, device=w.device)
    right = torch.einsum("nap,np->na", flat, w * y) / scale
    inverse = torch.linalg.inv(normal)
    solution = torch.einsum("nab,nb->na", inverse, right)
    left = y - torch.einsum("nap,na->np", flat, solution / scale)
    chi2 = (w * left**2).sum(1) / (y.shape[1] - j - 1)
    errors = torch.sqrt(torch.diagonal(inverse, dim1=1, dim2=2) * chi2.clamp_min(1.0)[:, None]) / scale
    values = solution / scale
    values[:, 0] += 1
    return Measured(
        values[:, :j].cpu().numpy(),
        errors[:, :j].cpu().numpy(),
        chi2.cpu().numpy(),
    )


def _sane(measured: Measured) -> npt.NDArray[np.bool_]:
    """Return sources worth averaging: significant in both frames, shifts within reach, not far from their profile."""
    shift = np.hypot(measured.values[:, 1], measured.values[:, 2])
    # Twice the median of χ² leaves constant sources of any brightness in, and most variables on galaxies out.
    usual = np.median(measured.chi2)
    return np.asarray(
        (measured.values[:, 0] > 5 * measured.errors[:, 0])
        & (shift < 3)
        & (measured.chi2 < max(2 * usual, 2.0))
    )


def fit_sky(pair: Pair, ratio: Surface) -> Surface:
    """Return the smooth level of science − ratio · reference where neither frame shows a source.

    PSFs that differ move flux about but keep its sum, so that means over cells of 64 px need no matched PSFs.
    """
    cell = 64
    height, width = pair.shape
    beta = ratio.image()
    # 2.5 sigma of a single pixel on both sides: symmetric, so that the cut itself shifts nothing.
    empty = (
        ~pair.bad
        & (np.abs(pair.reference.data) < 2.5 * pair.reference_sigma)
        & (np.abs(pair.science.data) < 2.5 * pair.science_sigma)
    )
    difference = np.where(empty, pair.science.data - beta * pair.reference.data, np.float32(0))
    rows, columns_ = np.arange(0, height, cell), np.arange(0, width, cell)
    total = np.add.reduceat(np.add.reduceat(difference, rows, axis=0, dtype=np.float64), columns_, axis=1)
    count = np.add.reduceat(np.add.reduceat(empty, rows, axis=0, dtype=np.int64), columns_, axis=1)
    middle_y = (rows + np.minimum(rows + cell, height) - 1) / 2
    middle_x = (columns_ + np.minimum(columns_ + cell, width) - 1) / 2
    yy, xx = np.meshgrid(middle_y, middle_x, indexing="ij")
    enough = count >= 100
    if not enough.any():
        return Surface.constant(pair.shape, 0.0)
    sigma = np.hypot(pair.science_sigma, float(np.median(beta)) * pair.reference_sigma)
    fit: Fit = fit_surface(
        pair.shape,
        xx[enough],
        yy[enough],
        total[enough] / count[enough],
        sigma / np.sqrt(count[enough]),
        6,
    )
    return fit.surface


def fit_shape(
    stamps: Stamps, pair: Pair, ratio: Surface, shift: Surface, sky: Surface
) -> tuple[PSF, Surface, Surface]:
    """Fit the correction of the PSF ratio from all sources together; return Q, and ratio and shift with what is left.

    Normal equations are summed over sources, those that fit badly counting less (weights 1 / (1 + χ²/9), two rounds),
    with a Gaussian prior on each coefficient.
    """
    import torch

    difference, design, weight = columns(stamps, pair, ratio, shift, sky, ORDER)
    n, j = design.shape[:2]
    flat, y, w = design.flatten(2).double(), difference.flatten(1).double(), weight.flatten(1).double()
    # Each source has a level of its own: taken out by weighted means.
    total = w.sum(1, keepdim=True)
    y = y - (w * y).sum(1, keepdim=True) / total
    flat = flat - (w[:, None] * flat).sum(2, keepdim=True) / total[:, None]
    blocks = torch.einsum("nap,np,nbp->nab", flat, w, flat).cpu().numpy()
    rights = torch.einsum("nap,np->na", flat, w * y).cpu().numpy()
    norms = (w * y**2).sum(1).cpu().numpy()
    powers = [sum(t) for t in orders(ORDER)]
    width = parts(pair.science)[1].fwhm() / 2.355
    degrees = [SHAPE_DEGREES[p] for p in powers]
    full = Surface.design(pair.shape, max(degrees), stamps.x, stamps.y)
    terms = [len(Surface.terms(d)) for d in degrees]
    start = np.concatenate([[0], np.cumsum(terms)])
    prior = np.concatenate(
        [
            [SHAPE_PRIOR[p] * width**p / (1 + sum(t)) for t in Surface.terms(d)]
            for p, d in zip(powers, degrees, strict=True)
        ]
    )
    source_weight = np.ones(n)
    pixels = y.shape[1]
    for _ in range(3):
        normal = np.zeros((start[-1], start[-1]))
        right = np.zeros(start[-1])
        for a in range(j):
            phi_a = full[:, : terms[a]]
            right[start[a] : start[a + 1]] = phi_a.T @ (source_weight * rights[:, a])
            for b in range(a, j):
                block = phi_a.T @ ((source_weight * blocks[:, a, b])[:, None] * full[:, : terms[b]])
                normal[start[a] : start[a + 1], start[b] : start[b + 1]] = block
                normal[start[b] : start[b + 1], start[a] : start[a + 1]] = block.T
        normal += np.diag(1 / prior**2)
        solution = np.linalg.solve(normal, right)
        local = np.stack([full[:, : terms[a]] @ solution[start[a] : start[a + 1]] for a in range(j)], axis=1)
        chi2 = (
            norms - 2 * (local * rights).sum(1) + np.einsum("na,nab,nb->n", local, blocks, local)
        ) / pixels
        source_weight = 1 / (1 + (chi2 / max(float(np.median(chi2)), 1e-6)) ** 2 / 9)
    surfaces = [Surface(pair.shape, degrees[a], solution[start[a] : start[a + 1]]) for a in range(j)]
    shift = _join(
        pair.shape,
        [_sum(Surface(pair.shape, shift.degree, shift.coefficients[:, i]), surfaces[1 + i]) for i in (0, 1)],
    )
    gain = surfaces[0]
    product = Surface(pair.shape, ratio.degree, ratio.coefficients)
    middle = float(product.coefficients[0])
    ratio = _sum(product, Surface(pair.shape, gain.degree, gain.coefficients * middle))
    return corrected_psf(parts(pair.science)[1], pair.shape, surfaces), ratio, shift


def _sum(a: Surface, b: Surface) -> Surface:
    """Return the sum of two single surfaces."""
    if len(a.coefficients) < len(b.coefficients):
        a, b = b, a
    out = a.coefficients.copy()
    out[: len(b.coefficients)] += b.coefficients
    return Surface(a.shape, a.degree, out)


def corrected_psf(psf: PSF, shape: tuple[int, int], surfaces: list[Surface]) -> PSF:
    """Return Q(x) = P_n(x) ∗ (1 + Σ_j a_j(x) h_j), j of order ≥ 2, as one polynomial PSF over the frame."""
    import torch

    degree = max((sum(t) for t in psf.exponents), default=0)
    degree = min(max(degree, 3), 4)
    exponents = tuple(t for t in Surface.terms(degree))
    nodes = np.cos(np.pi * (np.arange(degree + 2) + 0.5) / (degree + 2))
    u, v = (g.ravel() for g in np.meshgrid(nodes, nodes))
    x, y = (u + 1) / 2 * (shape[1] - 1), (v + 1) / 2 * (shape[0] - 1)
    size = psf.size + 8
    size += size % 2
    stamps = np.zeros((len(x), size, size))
    s = psf.size
    # The middle of the stamp goes to pixel `size // 2`.
    offset = size // 2 - s // 2
    stamps[:, offset : offset + s, offset : offset + s] = np.tensordot(
        normalised_coefficients(psf, x, y), psf.basis, axes=1
    )
    correction = np.zeros_like(stamps)
    image = torch.fft.rfft2(torch.as_tensor(stamps))
    for surface, t, column in zip(
        surfaces, orders(ORDER), shapes(size, ORDER, torch.device("cpu")), strict=True
    ):
        if sum(t) >= 2:
            amplitude = surface.at(x, y)[:, None, None]
            correction += amplitude * torch.fft.irfft2(image * column, s=(size, size)).numpy()
    total = (stamps + correction)[:, offset : offset + s, offset : offset + s]
    total /= total.sum((1, 2), keepdims=True)
    design = np.stack([u**i * v**j for i, j in exponents], axis=-1)
    basis = (np.linalg.pinv(design) @ total.reshape(len(total), -1)).reshape(-1, s, s)
    return PSF(basis, exponents, shape, dict(psf.quality))
