"""What a network is punished for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def heat_loss(logits: Tensor, heat: Tensor, weight: Tensor) -> Tensor:
    """Return CenterNet's focal loss of heat maps, a source (Zhou et al. 2019, eq. 1, α = 2, β = 4).

    At the pixel of a source, where `heat` is exactly 1, it is -(1 - p)² log p; elsewhere -(1 - heat)⁴ p² log(1 - p),
    so that a peak beside the right pixel costs little. The sum is divided by the number of sources.

    Parameters
    ----------
    logits, heat:
        (N, classes, H, W).
    weight:
        (N, H, W); 0 where nothing counts.
    """
    logits = logits.float()
    p = torch.sigmoid(logits)
    centre = heat == 1
    hit = (1 - p) ** 2 * F.logsigmoid(logits)
    miss = (1 - heat) ** 4 * p**2 * F.logsigmoid(-logits)
    total = torch.where(centre, hit, miss) * weight[:, None]
    sources = (centre * weight[:, None]).sum()
    return -total.sum() / sources.clamp(min=1)


def mask_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Return soft Dice plus focal cross-entropy of the mask.

    Dice (Milletari et al. 2016) is blind to how few pixels are sources; the focal term (Lin et al. 2017, γ = 2)
    keeps its gradient alive where it is flat, and is divided by the number of source pixels.

    Parameters
    ----------
    logits, mask, weight:
        (N, H, W).
    """
    logits = logits.float()
    p = torch.sigmoid(logits)
    inside = (p * mask * weight).sum()
    dice = 1 - (2 * inside + 1) / ((p * weight).sum() + (mask * weight).sum() + 1)
    wrong = torch.where(mask > 0, 1 - p, p)
    focal = wrong**2 * F.binary_cross_entropy_with_logits(logits, mask, reduction="none") * weight
    return dice + focal.sum() / (mask * weight).sum().clamp(min=1)
