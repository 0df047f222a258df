"""The method ``zogy``: proper image subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27).

With F_n = F_r = 1 (the reference is scaled to the science frame's flux first) and den = σ_n² |P_r|² + σ_r² |P_n|²:

- S = conj(P_n P_r) (P_r N − P_n R) / den                                          (eqs 12, 17)
- D / F_D = (P_r N − P_n R) √(σ_n² + σ_r²) / √den, of which P_D is the PSF           (eqs 13-15)

D's noise is white, and S is the most sensitive statistic there is for a new point source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.subtract.arrays import power
from astrid_pipeline.imaging.subtract.inputs import Pair
from astrid_pipeline.imaging.subtract.pipeline import make_difference

if TYPE_CHECKING:
    import torch

#: den is kept above this share of σ_n² + σ_r², where both PSFs have nothing and the quotients are 0/0.
FLOOR = 1e-10


def difference(pair: Pair, device: torch.device) -> Difference:
    """Return ZOGY's difference of a pair."""
    return make_difference(pair, filters, device)


def filters(
    p_n: torch.Tensor, p_r: torch.Tensor, v_n: float, v_r: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W and W_D (see `engine`) from the transforms of the PSFs and the variances of the sky."""
    import torch

    den = power(p_r).mul_(v_n).add_(power(p_n), alpha=v_r).clamp_min_(FLOOR * (v_n + v_r)).reciprocal_()
    return torch.conj(p_n * p_r) * den, torch.sqrt((v_n + v_r) * den)
