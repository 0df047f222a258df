"""What a source can say of the difference between two frames: amplitude, shift, and shape, as linear columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from astrid_pipeline.imaging.subtract.arrays import Array, Surface, frequencies, moved
from astrid_pipeline.imaging.subtract.stars import Stamps

if TYPE_CHECKING:
    import torch

#: Relative error of a stamp's pixels besides their noise, so that the brightest star does not decide alone.
MODEL_ERROR = 0.005


@dataclass(eq=False)
class Measured:
    """What single sources say.

    Attributes
    ----------
    values, errors:
        (n, J) amplitudes of the columns `names`, and their errors as the scatter within the stamp has them.
    chi2:
        (n,) reduced χ² of what is left.
    snr:
        (n,) amplitude of the first column over its error.
    """

    values: Array
    errors: Array
    chi2: Array

    @property
    def snr(self) -> Array:
        """Signal-to-noise of the flux ratio."""
        return np.asarray(self.values[:, 0] / self.errors[:, 0])


def derivatives(size: int, order: int, device: torch.device) -> torch.Tensor:
    """Return the transforms (J, size, size // 2 + 1) of 1, ∂x, ∂y, ∂xx, ∂xy, ∂yy, … up to `order`."""
    import torch

    ky, kx = frequencies(size, device)
    one = torch.ones((size, size // 2 + 1), device=device)
    columns = []
    for total in range(order + 1):
        for j in range(total + 1):
            columns.append((1j) ** total * (kx ** (total - j) * ky**j * one))
    out = torch.stack([c.to(torch.complex64) for c in columns])
    # The Nyquist row and column of an odd derivative have no real counterpart.
    odd = torch.as_tensor([sum(t) % 2 == 1 for t in orders(order)], device=device)
    out[odd, size // 2, :] = 0
    out[odd, :, size // 2] = 0
    return out


def orders(order: int) -> list[tuple[int, int]]:
    """Return (powers of ∂x, of ∂y) in the order of `derivatives`."""
    return [(total - j, j) for total in range(order + 1) for j in range(total + 1)]


def columns(
    stamps: Stamps, ratio: Surface, shift: Surface, order: int
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
    ky, kx = frequencies(size, device)
    variance_n = stamps.science_variance
    variance_r = beta**2 * stamps.reference_variance
    s_n, s_r = (v.flatten(1).median(dim=1).values[:, None, None] for v in (variance_n, variance_r))
    p_n, p_r = stamps.psf_science, stamps.psf_reference
    den = s_n * p_r.abs() ** 2 + s_r * p_n.abs() ** 2
    den = den.clamp_min(1e-8 * float(den.max()))
    white = torch.sqrt((s_n + s_r) / den)
    science = torch.fft.rfft2(stamps.science)
    phase = moved(delta[:, 0], delta[:, 1], ky, kx)
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


def measure(stamps: Stamps, ratio: Surface, shift: Surface, order: int) -> Measured:
    """Fit each source by itself: amplitude (relative to `ratio`), shift, and second moments of the PSF difference."""
    import torch

    difference, design, weight = columns(stamps, ratio, shift, order)
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
