"""The correction of the PSF ratio, from all sources of the frame together."""

from __future__ import annotations

import numpy as np

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import Surface, add, join, normalised_coefficients
from astrid_pipeline.imaging.subtract.columns import columns, orders, shapes
from astrid_pipeline.imaging.subtract.inputs import Pair, parts
from astrid_pipeline.imaging.subtract.stars import Stamps

#: Order of the PSF's derivatives that its correction is made of; 4 describes width, ellipticity, coma and core.
ORDER = 4
#: Degree over the frame of the correction's coefficients, by order of the derivative.
SHAPE_DEGREES = {0: 1, 1: 2, 2: 3, 3: 2, 4: 2}
#: Width of the prior of those coefficients, in units of the PSF's Gaussian width to the power of the order, by order:
#: PSFs measured from stars are wrong by some per cent, in their wings by less. Higher degrees are the less likely.
SHAPE_PRIOR = {0: 0.02, 1: 0.05, 2: 0.10, 3: 0.03, 4: 0.02}


def fit_shape(stamps: Stamps, pair: Pair, ratio: Surface, shift: Surface) -> tuple[PSF, Surface, Surface]:
    """Fit the correction of the PSF ratio from all sources together; return Q, and ratio and shift with what is left.

    Normal equations are summed over sources, those that fit badly counting less (weights 1 / (1 + χ²/9), two rounds),
    with a Gaussian prior on each coefficient.
    """
    import torch

    difference, design, weight = columns(stamps, ratio, shift, ORDER)
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
            norms - 2 * (local * rights).sum(1) + ((local[:, None, :] @ blocks)[:, 0] * local).sum(1)
        ) / pixels
        source_weight = 1 / (1 + (chi2 / max(float(np.median(chi2)), 1e-6)) ** 2 / 9)
    surfaces = [Surface(pair.shape, degrees[a], solution[start[a] : start[a + 1]]) for a in range(j)]
    shift = join(
        pair.shape,
        [add(Surface(pair.shape, shift.degree, shift.coefficients[:, i]), surfaces[1 + i]) for i in (0, 1)],
    )
    gain = surfaces[0]
    product = Surface(pair.shape, ratio.degree, ratio.coefficients)
    middle = float(product.coefficients[0])
    ratio = add(product, Surface(pair.shape, gain.degree, gain.coefficients * middle))
    return corrected_psf(parts(pair.science)[1], pair.shape, surfaces), ratio, shift


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
