"""Filtering two frames tile by tile, with PSFs that vary over the frame; the method decides by which filters.

Every linear method makes of the unlikeness U = P_r N − Q R (zero where nothing changed) a score S = W U and a
difference D = W_D U. With the reference scaled to the science frame's flux (F_n = F_r = 1; numbers of the equations
of Zackay, Ofek & Gal-Yam 2016):

- k_n = W P_r, k_r = W Q                             (eqs 28, 29)
- V(S_N) = V(ε_n) ∗ k_n², V(S_R) = V(ε_r) ∗ k_r²     (eqs 26, 27)
- F_S = Σ_f W P_r P_n / N_pix, α = S / F_S, σ_α = √V(S) / F_S   (eqs 41-43)

The frame is cut into tiles, each filtered with the W of its centre. Within the tile the PSFs, and the shift between the
frames, are expanded as quadratic polynomials of position: U becomes a sum of six images, each multiplied by its
monomial, so that a source is matched with its own PSFs wherever it stands; F_S and V(S) follow the same polynomials. So
there are no seams to hide, and a tile may be large.

The variance of a pixel estimated from its own counts rises where noise is positive, which skews the score. Where the
frames' variances are of that kind, the counts' noise is taken out of them, and the light expected if nothing changed is
put in its place: the maximum-likelihood image of both frames, whose noise is independent of D's (section 3 of the
paper: D and the coadded image are the two halves of the sufficient statistic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import (
    Array,
    Surface,
    frequencies,
    moved,
    power,
)
from astrid_pipeline.imaging.subtract.terms import MONOMIALS, SMALL, Terms
from astrid_pipeline.imaging.subtract.tiles import Grid, Mosaic, make_grid, pad, row_of_tiles

if TYPE_CHECKING:
    import torch

#: Terms that change no pixel of the tile's PSFs by more than this share of the peak are left out: that much of a star
#: of S/N 500 is a quarter of a sigma.
NEGLIGIBLE = 5e-4
#: (P_n, P_r, σ_n², σ_r²) → (W, W_D), see the module's text; D scaled such that a change of flux f is f · P_D.
Filters = Callable[[Any, Any, float, float], tuple[Any, Any]]


@dataclass(eq=False)
class Scene:
    """What the subtraction needs: science frame and scaled reference, (height, width) on the device, no holes.

    Attributes
    ----------
    science, reference:
        N − sky, and ratio · R, units of the science frame; masked pixels filled.
    science_variance, reference_variance:
        Their variances without the counts' own noise (`science_slope` times the data taken off).
    science_slope, reference_slope:
        Variance per unit of data that the expected light adds; 0 where the variance maps are expectations already.
    science_sigma, reference_sigma:
        Noise of the empty sky in a pixel.
    psf_science, psf_matched, psf_reference:
        P_n, Q (P_n corrected so that P_r ∗ N = Q ∗ R) and P_r.
    shift:
        Where a source of the science frame stands in the reference, relative.
    """

    science: torch.Tensor
    reference: torch.Tensor
    science_variance: torch.Tensor
    reference_variance: torch.Tensor
    science_slope: float
    reference_slope: float
    science_sigma: float
    reference_sigma: float
    psf_science: PSF
    psf_matched: PSF
    psf_reference: PSF
    shift: Surface


@dataclass(eq=False)
class Filtered:
    """What comes out, (height, width) on the device, units of the science frame.

    Attributes
    ----------
    difference:
        D.
    flux, variance:
        α, and its variance where nothing changed, both at each pixel.
    static:
        Flux that the reference shows at each pixel through the same filter, k_r ∗ R / F_S: where sources are, and how
        steep.
    psf:
        P_D at the centre of the frame.
    own_noise:
        What a new source of flux f adds to the variance of its own flux beyond what is in it, divided by f.
    difference_weights:
        (Σ d_n², Σ d_r²): what the pixels' variances contribute to D's.
    """

    difference: torch.Tensor
    flux: torch.Tensor
    variance: torch.Tensor
    static: torch.Tensor
    psf: PSF
    own_noise: float
    difference_weights: tuple[float, float]


def margin_of(scene: Scene) -> int:
    """Return how far the filters reach: two PSF radii, but never over 32 px, where they are below 1e-5."""
    size = max(scene.psf_science.size, scene.psf_reference.size)
    return int(min(max(size, 16), 32))


def filter_tiles(scene: Scene, filters: Filters) -> Filtered:
    """Run a subtraction; see the module's text for the equations."""
    import torch

    device = scene.science.device
    grid = make_grid((int(scene.science.shape[0]), int(scene.science.shape[1])), margin_of(scene))
    work = _Worker(scene, filters, grid, device)
    mosaic = Mosaic(grid, 4, device)
    # On a CPU one tile at a time stays in the cache; a GPU wants many.
    batch = 1 if device.type == "cpu" else 64
    for row in range(grid.rows):
        normalisations = work.normalisations(row)
        for first in range(0, grid.columns, batch):
            last = min(first + batch, grid.columns)
            out = work.run(row, first, last, normalisations)
            for i in range(last - first):
                mosaic.add(out[:, i], row, first + i)
    psf, own_noise, weights = work.summary()
    difference, flux, variance, static = mosaic.image
    return Filtered(
        difference,
        flux,
        variance.clamp_min_(1e-30 + 1e-6 * float(torch.median(variance[::8, ::8]))),
        static,
        psf,
        own_noise,
        weights,
    )


class _Worker:
    """The filters of each tile."""

    def __init__(self, scene: Scene, filters: Filters, grid: Grid, device: torch.device) -> None:
        import torch

        self.scene, self.filters, self.grid, self.device = scene, filters, grid, device
        self.v_n, self.v_r = scene.science_sigma**2, scene.reference_sigma**2
        self.padded = [
            pad(image, grid)
            for image in (
                scene.science,
                scene.reference,
                scene.science_variance,
                scene.reference_variance,
            )
        ]
        self.n, self.q, self.r = (
            Terms(psf, grid, device) for psf in (scene.psf_science, scene.psf_matched, scene.psf_reference)
        )
        self.ky, self.kx = frequencies(grid.size, device)
        half = torch.full((SMALL // 2 + 1,), 2.0, device=device)
        half[0] = half[-1] = 1.0
        self.half = half / SMALL**2  # Σ_f over the half plane, divided by N_pix
        dy, dx = grid.offsets()
        inner = grid.inner
        self.monomials = torch.stack(
            [
                torch.as_tensor(np.multiply.outer(dy[inner] ** q, dx[inner] ** p), device=device).float()
                for p, q in MONOMIALS
            ]
        )
        self.shift = self._shift_terms()
        sizes = np.maximum(self.q.size_of_terms, self.r.size_of_terms)
        sizes = np.maximum(
            sizes, np.abs(self.shift).max((0, 1, 3)) * 0.6
        )  # a PSF's slope is some 0.6 of its peak a px
        self.used = [t for t in range(6) if t == 0 or sizes[t] > NEGLIGIBLE]

    def _shift_terms(self) -> Array:
        """Return the polynomials of the shift within each tile, (rows, columns, 6, 2)."""
        x, y = self.grid.centres()
        at = np.stack(
            [
                self.scene.shift.at(x + i * self.grid.step_x / 2, y + j * self.grid.step_y / 2)
                for i, j in self.q.nodes
            ],
            axis=-2,
        )
        design = np.array([[i**p * j**q for p, q in MONOMIALS] for i, j in self.q.nodes], float)
        return np.asarray(np.einsum("tm,rcmk->rctk", np.linalg.pinv(design), at))

    def _tensor(self, values: npt.NDArray, kind: str = "complex") -> torch.Tensor:
        import torch

        return torch.as_tensor(
            values, device=self.device, dtype=torch.complex64 if kind == "complex" else torch.float32
        )

    def _combine(self, coefficients: Array, basis: torch.Tensor) -> torch.Tensor:
        """Return Σ_k c_k basis_k for coefficients (..., K), as (..., L, L // 2 + 1)."""
        c = self._tensor(coefficients)
        flat = c.reshape(-1, c.shape[-1]) @ basis.flatten(1)
        return flat.reshape(*c.shape[:-1], *basis.shape[1:])

    def run(
        self,
        row: int,
        first: int,
        last: int,
        normalisations: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Return difference, flux, variance and static flux of the tiles' inner parts, (4, n, inner, inner)."""
        import torch

        size, inner = self.grid.size, self.grid.inner
        part = (row, slice(first, last))
        f_s, noise, *small = (values[first:last] for values in normalisations)

        def back(image: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft2(image, s=(size, size))[:, inner, inner]

        n, r, u_n, u_r = (
            torch.fft.rfft2(row_of_tiles(image, self.grid, row, first, last)) for image in self.padded
        )
        shift = self._tensor(self.shift[part], "float")  # (n, 6, 2)
        r *= moved(shift[:, 0, 0], shift[:, 0, 1], self.ky, self.kx)

        p_n = self._combine(self.n.terms[part][:, 0], self.n.basis)
        terms_r = self._combine(self.r.terms[part][:, self.used], self.r.basis)  # (n, t, L, L/2+1)
        terms_q = self._combine(self.q.terms[part][:, self.used], self.q.basis)
        p_r, q0 = terms_r[:, 0], terms_q[:, 0]
        filter_s, filter_d = self.filters(p_n, p_r, self.v_n, self.v_r)

        expected = q0 * r  # Q ∗ R, of which the slopes are what a shift changes
        static = back(filter_s * expected)
        flux = difference = torch.zeros(())
        for i, t in enumerate(self.used):
            unlike = terms_r[:, i] * n
            if t:
                unlike -= terms_q[:, i] * r
                along = self.kx * shift[:, t, 0, None, None] + self.ky * shift[:, t, 1, None, None]
                unlike -= (1j * along) * expected
            else:
                unlike -= expected
            if t < 3:  # D is looked at, not cut at 5 sigma: the first order is enough
                looked_at = back(filter_d * unlike)
                difference = difference + self.monomials[t] * looked_at if t else looked_at
            unlike *= filter_s
            flux = flux + self.monomials[t] * back(unlike) if t else back(unlike)
        variance = back(self._variance(n, r, u_n, u_r, p_n, p_r, small))
        scale = 1 / torch.tensordot(f_s, self.monomials, dims=1)
        variance = variance * torch.tensordot(noise, self.monomials, dims=1) * scale.square()
        return torch.stack([difference, flux * scale, variance, static * scale])

    def _variance(
        self,
        n: torch.Tensor,
        r: torch.Tensor,
        u_n: torch.Tensor,
        u_r: torch.Tensor,
        p_n: torch.Tensor,
        p_r: torch.Tensor,
        small: list[torch.Tensor],
    ) -> torch.Tensor:
        """Return the transform of V(S_N) + V(S_R) (eqs 26, 27), with the photons of the light that is expected."""
        import torch

        square_n, square_r = (torch.fft.rfft2(_enlarge(k.square(), self.grid.size)) for k in small)
        total = u_n.mul_(square_n).add_(u_r.mul_(square_r))
        if self.scene.science_slope or self.scene.reference_slope:
            # The maximum-likelihood image of the sky under both frames; its own PSF-convolved forms are what N and R
            # are expected to be. A thousandth of the peak power keeps it from rising where there is no signal.
            floor = 1e-3 * (self.v_n + self.v_r)
            den = power(p_r).mul_(self.v_n).add_(power(p_n), alpha=self.v_r).add_(floor)
            sky = (p_n.conj() * n).mul_(self.v_r).add_(p_r.conj() * r, alpha=self.v_n)
            light = square_n.mul_(p_n).mul_(self.scene.science_slope)
            light.add_(square_r.mul_(p_r), alpha=self.scene.reference_slope)
            total += light.mul_(sky).mul_(den.reciprocal_())
        return total

    def normalisations(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return F_S and the sky variance of S, relative to the centre's, as polynomials (n, 6); and k_n, k_r.

        Of the n tiles of a row; k_n and k_r are (n, SMALL, SMALL). Summed on a grid of SMALL² frequencies, at nine
        nodes of each tile, the filter being that of the centre.
        """
        import torch

        nodes_n = self._combine(self.n.node_coefficients[row], self.n.small)  # (n, 9, S, S/2+1)
        nodes_r = self._combine(self.r.node_coefficients[row], self.r.small)
        nodes_q = self._combine(self.q.node_coefficients[row], self.q.small)
        p_n, p_r, q0 = nodes_n[:, 4], nodes_r[:, 4], nodes_q[:, 4]
        w, _ = self.filters(p_n, p_r, self.v_n, self.v_r)
        k_n, k_r = (torch.fft.irfft2(w * p, s=(SMALL, SMALL)) for p in (p_r, q0))
        f_s = (((w[:, None] * nodes_n).mul_(nodes_r)).real * self.half).sum((2, 3))
        unlike = power(nodes_r).mul_(self.v_n).add_(power(nodes_q), alpha=self.v_r)
        noise = (unlike * (power(w) * self.half)[:, None]).sum((2, 3))
        design = np.array([[i**p * j**q for p, q in MONOMIALS] for i, j in self.n.nodes], float)
        fit = self._tensor(np.linalg.pinv(design).T, "float")  # (9, 6)
        return f_s @ fit, (noise / noise[:, 4:5]) @ fit, k_n, k_r

    def summary(self) -> tuple[PSF, float, tuple[float, float]]:
        """Return P_D at the frame's centre, what a source's own photons add to its variance, and D's noise weights."""
        import torch

        p_n, p_r, q = (self._combine(m.middle, m.small) for m in (self.n, self.r, self.q))
        w, w_d = self.filters(p_n, p_r, self.v_n, self.v_r)
        stamp = torch.fft.irfft2(p_n * p_r * w_d, s=(SMALL, SMALL))
        half = SMALL // 2 - 1
        stamp = (
            torch.roll(stamp, (half, half), dims=(0, 1))[: 2 * half + 1, : 2 * half + 1]
            .double()
            .cpu()
            .numpy()
        )
        k_n = torch.fft.irfft2(w * p_r, s=(SMALL, SMALL))
        profile = torch.fft.irfft2(p_n, s=(SMALL, SMALL))
        f_s = float(((w * p_n * p_r).real * self.half).sum())
        mirrored = torch.flip(k_n, (0, 1)).roll((1, 1), (0, 1))  # k_n(−y): what each pixel weighs in the flux
        own = self.scene.science_slope * float((mirrored**2 * profile).sum()) / f_s**2
        own -= self._counted(p_n, p_r, k_n, torch.fft.irfft2(w * q, s=(SMALL, SMALL))) / f_s**2
        weights = [float((power(p * w_d) * self.half).sum()) for p in (p_r, q)]
        return PSF(stamp[None] / stamp.sum(), shape=self.grid.shape), max(own, 0.0), (weights[0], weights[1])

    def _counted(self, p_n: torch.Tensor, p_r: torch.Tensor, k_n: torch.Tensor, k_r: torch.Tensor) -> float:
        """Return what `_variance` holds already of a change's photons, at its place and per unit of its flux.

        The light expected under both frames contains part of what only one of them shows: little where the reference
        is the deeper and sharper, a third where it is neither.
        """
        import torch

        floor = 1e-3 * (self.v_n + self.v_r)
        den = power(p_r).mul_(self.v_n).add_(power(p_n), alpha=self.v_r).add_(floor)
        sky = power(p_n).mul_(self.v_r).div_(den)
        light = torch.fft.rfft2(k_n.square()) * p_n * self.scene.science_slope
        light = light + torch.fft.rfft2(k_r.square()) * p_r * self.scene.reference_slope
        return float((light.real * sky * self.half).sum())


def _enlarge(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """Return a kernel (n, SMALL, SMALL) whose middle is pixel [0, 0] on a grid of `size`²."""
    h = SMALL // 2
    if size <= SMALL:
        # Tiny frames: fold what reaches beyond.
        rolled = kernel.roll((size // 2, size // 2), (1, 2))[:, :size, :size]
        return rolled.roll((-(size // 2), -(size // 2)), (1, 2))
    out = kernel.new_zeros((len(kernel), size, size))
    out[:, :h, :h] = kernel[:, :h, :h]
    out[:, :h, -h:] = kernel[:, :h, -h:]
    out[:, -h:, :h] = kernel[:, -h:, :h]
    out[:, -h:, -h:] = kernel[:, -h:, -h:]
    return out
