"""What a network is punished for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: How a sum over a process's crops becomes that over the whole batch.
Whole = Callable[[Tensor], Tensor]


def _alone(value: Tensor) -> Tensor:
    return value


def heat_loss(logits: Tensor, heat: Tensor, weight: Tensor, whole: Whole = _alone) -> Tensor:
    """Return CenterNet's focal loss of heat maps, a source (Zhou et al. 2019, eq. 1, α = 2, β = 4).

    At the pixel of a source, where `heat` is exactly 1, it is -(1 - p)² log p; elsewhere -(1 - heat)⁴ p² log(1 - p),
    so that a peak beside the right pixel costs little. The sum is divided by the number of sources.

    Parameters
    ----------
    logits, heat:
        (N, classes, H, W).
    weight:
        (N, H, W); 0 where nothing counts.
    whole:
        `ranks.total` where other processes have the rest of the batch.
    """
    logits = logits.float()
    p = torch.sigmoid(logits)
    centre = heat == 1
    hit = (1 - p) ** 2 * F.logsigmoid(logits)
    miss = (1 - heat) ** 4 * p**2 * F.logsigmoid(-logits)
    total = torch.where(centre, hit, miss) * weight[:, None]
    sources = (centre * weight[:, None]).sum()
    cost, sources = whole(torch.stack([total.sum(), sources]))
    return -cost / sources.clamp(min=1)


def mask_loss(logits: Tensor, mask: Tensor, weight: Tensor, whole: Whole = _alone) -> Tensor:
    """Return soft Dice plus focal cross-entropy of the mask.

    Dice (Milletari et al. 2016) is blind to how few pixels are sources; the focal term (Lin et al. 2017, γ = 2)
    keeps its gradient alive where it is flat, and is divided by the number of source pixels.

    Parameters
    ----------
    logits, mask, weight:
        (N, H, W).
    whole:
        As in `heat_loss`.
    """
    logits = logits.float()
    p = torch.sigmoid(logits)
    wrong = torch.where(mask > 0, 1 - p, p)
    focal = wrong**2 * F.binary_cross_entropy_with_logits(logits, mask, reduction="none") * weight
    sums = (p * mask * weight, p * weight, mask * weight, focal)
    inside, predicted, true, cost = whole(torch.stack([part.sum() for part in sums]))
    dice = 1 - (2 * inside + 1) / (predicted + true + 1)
    return dice + cost / true.clamp(min=1)
