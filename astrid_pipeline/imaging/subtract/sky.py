"""The sky that is left between two frames after each has had its own taken away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.subtract.arrays import Array, Surface
from astrid_pipeline.imaging.subtract.inputs import Pair
from astrid_pipeline.imaging.subtract.surfaces import fit_surface

#: Side of a cell, px: PSFs that differ move flux about within some 10 px, but keep its sum.
CELL = 64
#: Every third row and second column are looked at: a cell's level is then known to a twentieth of a pixel's noise.
STRIDE = (3, 2)
#: Values further than this many sigma from their cell's median are no sky.
CLIP = 2.5
#: Pixels of the reference above this many sigma belong to sources.
SOURCE = 3.0
#: Cells with fewer usable pixels are bridged.
ENOUGH = 60
#: Degree of the smooth part.
DEGREE = 6
#: What cells show beyond the smooth part (a detector's glow in a corner) counts above this many standard errors of the
#: mean of 3 × 3 cells.
SIGNIFICANT = 5.0


@dataclass(frozen=True, eq=False)
class Level:
    """A smooth surface and, where cells ask for it, corrections on a mesh of `CELL` px: (rows, columns), or None."""

    surface: Surface
    mesh: Array | None = None

    def image(self) -> npt.NDArray[np.float32]:
        """Return the level of each pixel, (height, width)."""
        level = self.surface.image()
        if self.mesh is None:
            return level
        height, width = self.surface.shape
        rows, columns = ((np.arange(n) + 0.5) / CELL - 0.5 for n in (height, width))
        # Linear between the cells' centres, along one axis after the other.
        along = np.array([np.interp(columns, np.arange(self.mesh.shape[1]), row) for row in self.mesh])
        below = np.clip(np.floor(rows).astype(int), 0, len(along) - 1)
        above = np.minimum(below + 1, len(along) - 1)
        share = np.clip(rows - below, 0, 1)[:, None].astype(np.float32)
        along = along.astype(np.float32)
        return np.asarray(level + along[below] * (1 - share) + along[above] * share, np.float32)


def fit_sky(pair: Pair, ratio: Surface) -> Level:
    """Return the level of science − ratio · reference where neither frame shows a source."""
    height, width = pair.shape
    rows, columns = np.arange(0, height, STRIDE[0]), np.arange(0, width, STRIDE[1])
    sparse = (slice(None, None, STRIDE[0]), slice(None, None, STRIDE[1]))
    beta = ratio.image()[sparse]
    reference = pair.reference.data[sparse]
    usable = ~pair.bad[sparse] & (np.abs(reference) < SOURCE * pair.reference_sigma)
    difference = np.where(usable, pair.science.data[sparse] - beta * reference, np.float32(np.inf))
    sigma = float(np.hypot(pair.science_sigma, float(beta.mean()) * pair.reference_sigma))
    shape = (-(-height // CELL), -(-width // CELL))
    level, count = np.zeros(shape), np.zeros(shape, int)
    for i in range(shape[0]):
        strip = difference[(rows >= i * CELL) & (rows < (i + 1) * CELL)]
        for j in range(shape[1]):
            first, last = np.searchsorted(columns, (j * CELL, (j + 1) * CELL))
            level[i, j], count[i, j] = _clipped_mean(strip[:, first:last], sigma)
    enough = count >= ENOUGH
    if not enough.any():
        return Level(Surface.constant(pair.shape, 0.0))
    yy, xx = np.meshgrid(_centres(height), _centres(width), indexing="ij")
    errors = 1.1 * sigma / np.sqrt(np.maximum(count, 1))  # a mean clipped at 2.5 sigma is a tenth noisier
    fit = fit_surface(pair.shape, xx[enough], yy[enough], level[enough], errors[enough], DEGREE)
    beyond = np.where(enough, level - fit.surface.at(xx, yy), 0.0)
    return Level(fit.surface, _mesh(beyond, errors, enough))


def _centres(length: int) -> Array:
    start = np.arange(0, length, CELL)
    return np.asarray((start + np.minimum(start + CELL, length) - 1) / 2)


def _clipped_mean(values: npt.NDArray[np.float32], sigma: float) -> tuple[float, int]:
    """Return the mean of the finite values near their median, and how many they are."""
    values = values[np.isfinite(values)]
    if len(values) < ENOUGH:
        return 0.0, 0
    middle = float(np.median(values))
    for _ in range(2):  # the cut is centred on the mean that it gives
        core = values[np.abs(values - middle) < CLIP * sigma]
        if not len(core):
            return 0.0, 0
        middle = float(core.mean(dtype=np.float64))
    return middle, len(core)


def _mesh(beyond: Array, errors: Array, enough: npt.NDArray[np.bool_]) -> Array | None:
    """Return what the cells show beyond the smooth part, where 3 × 3 of them agree on it; None if nowhere."""
    weight = np.where(enough, 1 / errors**2, 0.0)
    total = ndimage.uniform_filter(weight, 3, mode="constant") * 9
    mean = ndimage.uniform_filter(weight * beyond, 3, mode="constant") * 9 / np.maximum(total, 1e-30)
    significant = np.abs(mean) * np.sqrt(total) > SIGNIFICANT
    if not significant.any():
        return None
    # The cells themselves, not their mean: a glow is steep. Their neighbours come along, so that nothing breaks off.
    keep = ndimage.binary_dilation(significant, np.ones((3, 3), bool)) & enough
    return np.where(keep, beyond, 0.0)
