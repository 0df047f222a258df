"""U-Net++: a U-Net whose levels are joined by dense nodes, so that a shallow answer exists beside the deep one.

Zhou et al. 2018 (arXiv:1807.10165), without deep supervision. Made of the U-Net's own blocks.

It is here to be compared: trained as the U-Net is, it found no more (models/MODEL_CARD.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astrid_pipeline.learning.unet import CLASSES, Heads, double_conv

# The dense nodes cost parameters, so the deepest level is narrower than the U-Net's to keep the count at 2.1
# million; they cost mostly work at full resolution: 227 GFLOP a megapixel, 2.4 times the U-Net's.
WIDTHS_PLUS: tuple[int, ...] = (16, 32, 64, 128, 240)


class UNetPlusPlus(nn.Module):
    """Node (i, j) sees all nodes (i, <j) of its level and the doubled node (i + 1, j - 1); (0, last) answers.

    Parameters are those of `unet.UNet`.
    """

    kind = "unetpp"

    def __init__(
        self,
        inputs: int = 4,
        classes: int = len(CLASSES),
        widths: Sequence[int] = WIDTHS_PLUS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "inputs": inputs,
            "classes": classes,
            "widths": list(widths),
            "dropout": dropout,
        }
        self.depth = len(widths)
        deep = self.depth - 2
        self.nodes = nn.ModuleDict()
        self.up = nn.ModuleDict()
        for i, width in enumerate(widths):
            share = dropout if i >= deep else 0.0
            self.nodes[f"{i}_0"] = double_conv(inputs if i == 0 else widths[i - 1], width, share)
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                share = dropout if i >= deep else 0.0
                self.up[f"{i}_{j}"] = nn.ConvTranspose2d(widths[i + 1], widths[i], 2, stride=2)
                self.nodes[f"{i}_{j}"] = double_conv((j + 1) * widths[i], widths[i], share)
        self.heads = Heads(widths[0], classes)

    @property
    def stride(self) -> int:
        """Heights and widths must be multiples of this."""
        return 2 ** (self.depth - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, classes + 1, H, W) logits of an (N, inputs, H, W) image, H and W multiples of `stride`."""
        rows: list[list[Tensor]] = []
        for i in range(self.depth):
            source = image if i == 0 else nn.functional.max_pool2d(rows[i - 1][0], 2)
            rows.append([self.nodes[f"{i}_0"](source)])
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                lifted = self.up[f"{i}_{j}"](rows[i + 1][j - 1])
                rows[i].append(self.nodes[f"{i}_{j}"](torch.cat([*rows[i], lifted], dim=1)))
        return self.heads(rows[0][-1])
