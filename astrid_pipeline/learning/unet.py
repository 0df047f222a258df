"""A U-Net that marks changes: one heat map a class for where they are, one mask for how far they reach.

Ronneberger, Fischer & Brox 2015 (arXiv:1505.04597) for the trunk; Zhou, Wang & Krähenbühl 2019 (CenterNet,
arXiv:1904.07850) for the heat maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astrid_pipeline.learning.schema import CLASSES

# 16 channels at full resolution, doubled a level; the deepest has 288 instead of 256, which brings the count to
# 2.1 million where it costs least (1/256 of the pixels). Twice the width costs three times and gained nothing.
WIDTHS: tuple[int, ...] = (16, 32, 64, 128, 288)

#: Heights and widths that a network takes are multiples of this: four halvings.
STRIDE = 2 ** (len(WIDTHS) - 1)

# Heat maps begin at 1 %: sources cover about that share of the pixels they are trained on, and without this start
# the loss of the empty pixels swamps the first hundred steps (Lin et al. 2017, arXiv:1708.02002, section 4.1).
_PRIOR = 0.01


def double_conv(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Return two 3 × 3 convolutions, each with batch normalisation and ReLU, then dropout of whole channels."""
    layers: list[nn.Module] = []
    for n in (inputs, outputs):
        layers += [
            nn.Conv2d(n, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


class Heads(nn.Module):
    """From the trunk's last features to (N, classes + 1, H, W) logits: the heat maps, then the mask."""

    def __init__(self, inputs: int, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.out = nn.Conv2d(inputs, classes + 1, 1)
        bias = -math.log((1 - _PRIOR) / _PRIOR)
        nn.init.normal_(self.out.weight, std=0.05)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of `features`."""
        return self.out(features)


class UNet(nn.Module):
    """Four halvings down, four doublings up, with the features of each level handed across.

    Parameters
    ----------
    inputs:
        Planes of the image (`channels.CHANNELS`).
    classes:
        Heat maps (`CLASSES`).
    widths:
        Channels of each level, finest first.
    dropout:
        Share of channels dropped in the two deepest levels while training, and when uncertainty is sampled.
    """

    kind = "unet"

    def __init__(
        self,
        inputs: int = 4,
        classes: int = len(CLASSES),
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "inputs": inputs,
            "classes": classes,
            "widths": list(widths),
            "dropout": dropout,
        }
        deep = len(widths) - 2
        self.down = nn.ModuleList(
            double_conv(a, b, dropout if level >= deep else 0.0)
            for level, (a, b) in enumerate(zip([inputs, *widths[:-1]], widths, strict=True))
        )
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for level in range(len(widths) - 2, -1, -1):
            self.up.append(nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2))
            self.merge.append(
                double_conv(2 * widths[level], widths[level], dropout if level >= deep else 0.0)
            )
        self.heads = Heads(widths[0], classes)

    @property
    def stride(self) -> int:
        """Heights and widths must be multiples of this."""
        return 2 ** (len(self.down) - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, classes + 1, H, W) logits of an (N, inputs, H, W) image, H and W multiples of `stride`."""
        kept = []
        for level, block in enumerate(self.down):
            image = block(image if level == 0 else nn.functional.max_pool2d(image, 2))
            kept.append(image)
        image = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            image = merge(torch.cat([kept.pop(), up(image)], dim=1))
        return self.heads(image)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def build_network(kind: str, **options: Any) -> nn.Module:
    """Return a new network of a known `kind` (unet, unetpp).

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind == "unet":
        return UNet(**options)
    if kind == "unetpp":
        from astrid_pipeline.learning.unetpp import UNetPlusPlus

        return UNetPlusPlus(**options)
    raise ValueError(f"no network is called {kind!r}; there are unet and unetpp")
