"""The method ``classic``: one frame convolved with a kernel that gives it the other's PSF, then a plain difference.

After Alard & Lupton (1998, ApJ 503, 325) and Alard (2000): kernel, flux scale and offset are solved by least squares on
the frames' own sources and vary over the frame. The kernel is Q / P_r (Q the matched science PSF, see `match`), or its
inverse where the reference is the broader, so that no frame is deconvolved; a trace of regularisation keeps it quiet at
frequencies that the PSF does not pass.

The score is the plain matched filter of that difference with its PSF. Its noise is the true one (both frames', through
the kernel), but noise correlated by the kernel makes it less sensitive than ``zogy``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.subtract.inputs import Pair
from astrid_pipeline.imaging.subtract.pipeline import make_difference

if TYPE_CHECKING:
    import torch

#: |P|² is kept above this: a PSF passes less than a hundredth of the signal there, which no kernel should make up for.
REGULARISATION = 1e-4


def difference(pair: Pair, device: torch.device) -> Difference:
    """Return the classic difference of a pair."""
    return make_difference(pair, filters, device)


def filters(
    p_n: torch.Tensor, p_r: torch.Tensor, v_n: float, v_r: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W and W_D (see `engine`); per tile the sharper frame is the one that is convolved."""
    import torch

    # The broader PSF has the lesser power.
    power_n, power_r = (p.abs().square().sum((-2, -1), keepdim=True) for p in (p_n, p_r))
    sharp = torch.where(power_r >= power_n, p_r, p_n)
    broad = torch.where(power_r >= power_n, p_n, p_r)
    kernel = torch.conj(sharp) / (sharp.abs().square() + REGULARISATION)
    return torch.conj(broad) * kernel, kernel
