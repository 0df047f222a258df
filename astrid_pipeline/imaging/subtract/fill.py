"""Filling unusable pixels before a Fourier transform, so that they leave no ringing and no false change.

A filled pixel must look alike to both frames: where the reference is usable, the science frame gets what the reference,
blurred to its PSF, shows there; where it is not, the reference gets a smooth continuation of its surroundings first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image

#: Widths of the Gaussians that holes are filled with, px: the narrowest that reaches usable pixels counts.
WIDTHS = (1.0, 2.5, 6.0)
#: Share of a Gaussian's weight that must lie on usable pixels.
ENOUGH = 0.05


def smooth_fill(data: Image, bad: npt.NDArray[np.bool_]) -> Image:
    """Return the data with bad pixels replaced by the mean of usable ones around; 0 where none is within 20 px."""
    if not bad.any():
        return data
    out = np.where(bad, np.float32(0), data)
    left = bad.copy()
    for width in WIDTHS:
        if not left.any():
            break
        for box in _boxes(left, int(4 * width) + 1):
            holes = left[box]
            good = (~bad[box]).astype(np.float32)
            weight = ndimage.gaussian_filter(good, width, truncate=3.5)
            value = ndimage.gaussian_filter(np.where(bad[box], np.float32(0), data[box]), width, truncate=3.5)
            fill = holes & (weight > ENOUGH)
            out[box][fill] = value[fill] / weight[fill]
            holes &= ~fill
    return out


def _boxes(holes: npt.NDArray[np.bool_], margin: int, cell: int = 64) -> list[tuple[slice, slice]]:
    """Return cells of the frame that hold holes, each grown by `margin`... as slices that do not share holes.

    Cells rather than connected holes: a frame with ten thousand cosmic rays has no more cells than one with a few.
    """
    height, width = holes.shape
    rows, columns = np.arange(0, height, cell), np.arange(0, width, cell)
    count = np.add.reduceat(np.add.reduceat(holes, rows, axis=0, dtype=np.int32), columns, axis=1)
    return [
        (
            slice(max(y - margin, 0), min(y + cell + margin, height)),
            slice(max(x - margin, 0), min(x + cell + margin, width)),
        )
        for y, x in zip(rows[np.nonzero(count)[0]], columns[np.nonzero(count)[1]], strict=True)
    ]
