"""Cutting a frame into overlapping tiles and putting them together again without seams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.subtract.arrays import fast_length

if TYPE_CHECKING:
    import torch

#: Side of what a tile contributes, px, about: transforms of some 340 px fit a processor's cache, and the margins cost
#: less than half again.
STEP = 256
#: Neighbouring tiles pass into one another over this many pixels, linearly.
BLEND = 16


@dataclass(frozen=True)
class Grid:
    """Tiles of `size`² px; tile (i, j) begins at row i·step_y − border, and so on.

    The outer `margin` of a tile is thrown away: there, convolutions have wrapped around. The next `BLEND` pixels
    are shared with the neighbour. Outside the frame there is nothing: zeros, of zero variance.
    """

    shape: tuple[int, int]
    margin: int
    rows: int
    columns: int
    step_y: int
    step_x: int
    size: int

    @property
    def border(self) -> int:
        """How far the first tile begins outside the frame."""
        return self.margin + BLEND // 2

    @property
    def inner(self) -> slice:
        """What of a tile, along either axis, no convolution has wrapped around into."""
        return slice(self.margin, self.size - self.margin)

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of the frame padded so that every tile is whole."""
        return (self.rows - 1) * self.step_y + self.size, (self.columns - 1) * self.step_x + self.size

    def centres(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return x, y of the middle of each tile's own part, shape (rows, columns)."""
        y = (np.arange(self.rows) + 0.5) * self.step_y - 0.5
        x = (np.arange(self.columns) + 0.5) * self.step_x - 0.5
        yy, xx = np.meshgrid(y.astype(np.float64), x.astype(np.float64), indexing="ij")
        return xx, yy

    def offsets(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (dy, dx) of a tile's pixels from its centre, in units of half a step."""
        start = -self.border
        pixel = np.arange(self.size, dtype=np.float64) + start
        y = (pixel - (self.step_y / 2 - 0.5)) / (self.step_y / 2)
        x = (pixel - (self.step_x / 2 - 0.5)) / (self.step_x / 2)
        return np.asarray(y, np.float64), np.asarray(x, np.float64)

    def window(self, step: int, index: int, count: int) -> npt.NDArray[np.float32]:
        """Return the weight of tile `index` of `count` along one axis; over all tiles it is 1 all over the frame."""
        position = np.arange(self.size) - self.border  # 0 at the first pixel of the tile's own part
        rise = np.clip((position + BLEND / 2 + 0.5) / BLEND, 0, 1)
        fall = np.clip((position - step + BLEND / 2 + 0.5) / BLEND, 0, 1)
        if index == 0:  # nobody shares the frame's border
            rise[:] = 1
        if index == count - 1:
            fall[:] = 0
        return np.asarray(rise - fall, np.float32)


def make_grid(shape: tuple[int, int], margin: int, step: int = STEP) -> Grid:
    """Return tiles that cover a frame evenly, their own part between 0.8 and 1.4 `step` px wide.

    Of those widths the one is taken whose transforms hold the fewest pixels.
    """
    best: Grid | None = None
    for side in range(int(0.8 * step), int(1.4 * step) + 1, 8):
        rows, columns = (max(1, math.ceil(n / side)) for n in shape)
        step_y, step_x = math.ceil(shape[0] / rows), math.ceil(shape[1] / columns)
        size = fast_length(max(step_y, step_x) + BLEND + 2 * margin)
        if best is None or rows * columns * size**2 < best.rows * best.columns * best.size**2:
            best = Grid(shape, margin, rows, columns, step_y, step_x, size)
    assert best is not None
    return best


def pad(image: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the image with zeros around it such that every tile is inside."""
    height, width = grid.padded
    out = image.new_zeros((height, width))
    b = grid.border
    h, w = min(image.shape[0], height - b), min(image.shape[1], width - b)
    out[b : b + h, b : b + w] = image[:h, :w]
    return out


def row_of_tiles(padded: torch.Tensor, grid: Grid, row: int, first: int, last: int) -> torch.Tensor:
    """Return tiles `first` to `last` (exclusive) of a row, (n, size, size), as a view."""
    y = row * grid.step_y
    strip = padded[y : y + grid.size, first * grid.step_x :]
    return strip.unfold(1, grid.size, grid.step_x)[:, : last - first].permute(1, 0, 2)


class Mosaic:
    """Sums windowed tiles into whole images."""

    def __init__(self, grid: Grid, count: int, device: torch.device) -> None:
        import torch

        self.grid = grid
        self.image = torch.zeros((count, *grid.shape), device=device)
        self.rows, self.columns = (
            [torch.as_tensor(grid.window(step, i, n), device=device) for i in range(n)]
            for step, n in ((grid.step_y, grid.rows), (grid.step_x, grid.columns))
        )

    def add(self, tiles: torch.Tensor, row: int, column: int) -> None:
        """Add the inner part of the tile (count, inner, inner) at (row, column)."""
        g = self.grid
        y, x = row * g.step_y - g.border + g.margin, column * g.step_x - g.border + g.margin
        part = tiles * (self.rows[row][g.inner, None] * self.columns[column][g.inner])
        y0, x0 = max(y, 0), max(x, 0)
        y1, x1 = min(y + part.shape[1], g.shape[0]), min(x + part.shape[2], g.shape[1])
        self.image[:, y0:y1, x0:x1] += part[:, y0 - y : y1 - y, x0 - x : x1 - x]
