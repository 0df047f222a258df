"""A PSF's transforms on a grid of frequencies, and how it varies within each tile, as polynomials of position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import Array, normalised_coefficients, spectra
from astrid_pipeline.imaging.subtract.tiles import Grid

if TYPE_CHECKING:
    import torch

#: Monomials of (dx, dy) by which PSFs and shift vary within a tile.
MONOMIALS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
#: Components of a PSF's basis that change no pixel by more than this share of the peak are dropped: a measured PSF has
#: up to 15, of which a handful say something.
COMPRESSED = 1e-5
#: Side of the small grid on which the normalisations are summed; it holds every PSF.
SMALL = 64


class Terms:
    """A PSF's transforms on one grid of frequencies, and its polynomial within each tile."""

    def __init__(self, psf: PSF, grid: Grid, device: torch.device) -> None:
        x, y = grid.centres()
        # Nine nodes determine the six monomials of each coefficient.
        self.nodes = [(i, j) for j in (-1, 0, 1) for i in (-1, 0, 1)]
        at = np.stack(
            [
                normalised_coefficients(psf, x + i * grid.step_x / 2, y + j * grid.step_y / 2)
                for i, j in self.nodes
            ],
            axis=-2,
        )  # (rows, columns, 9, K)
        height, width = grid.shape
        middle = normalised_coefficients(psf, (width - 1) / 2, (height - 1) / 2)
        flat, basis = _compressed(np.vstack([at.reshape(-1, at.shape[-1]), middle]), psf.basis)
        self.middle = flat[-1]
        self.node_coefficients = flat[:-1].reshape(*at.shape[:-1], -1)  # (rows, columns, 9, k)
        self.basis = spectra(basis, grid.size, device)
        self.small = spectra(basis, SMALL, device)
        design = np.array([[i**p * j**q for p, q in MONOMIALS] for i, j in self.nodes], float)
        self.terms = np.einsum("tm,rcmk->rctk", np.linalg.pinv(design), self.node_coefficients)
        stamps = self.terms.reshape(-1, self.terms.shape[-1]) @ basis.reshape(len(basis), -1)
        size = np.abs(stamps).max(1).reshape(-1, len(MONOMIALS)).max(0)
        self.size_of_terms = size / psf.stamp().max()  # (6,), of the peak


def _compressed(coefficients: Array, basis: Array) -> tuple[Array, Array]:
    """Return coefficients (n, k) and a basis (k, S, S) that give the same n stamps as (n, K) and (K, S, S) do."""
    pixels = basis.reshape(len(basis), -1)
    q, r = np.linalg.qr(pixels.T)
    u, scale, v = np.linalg.svd(coefficients @ r.T, full_matrices=False)
    new, left = u * scale, (v @ q.T)
    share = np.abs(new).max(0) * np.abs(left).max(1)
    dropped = np.cumsum(share[::-1])[::-1]
    kept = max(1, int((dropped > COMPRESSED * np.abs(coefficients[-1] @ pixels).max()).sum()))
    return new[:, :kept], left[:kept].reshape(kept, *basis.shape[1:])
