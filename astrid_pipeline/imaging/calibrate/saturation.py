"""Saturated pixels, and the charge that spilled from them along the columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import Mask, MaskArray

#: σ by which a pixel must stand out of those beside it to count as spilled charge.
BLEED_SIGMA = 5.0

#: Rows without excess after which a bleed has ended.
_GAP = 3

#: A saturated core this much taller than wide (plus two rows) has spilled: stars are round, and an elongated PSF
#: seldom reaches 1.5.
_TALL = 1.5


def find_saturated(peak: Image, level: float) -> npt.NDArray[np.bool_]:
    """Return pixels at or above the saturation level, and the four that adjoin each: charge spills before it shows."""
    saturated = peak >= level
    return ndimage.binary_dilation(saturated) if saturated.any() else saturated


def find_bleeding(
    data: Image, noise: Image | float, saturated: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return the pixels that charge from saturated ones has run into, up and down their columns.

    A column of a saturated group belongs to the bleed where the group is taller than it is wide, and further on as
    long as it stands `BLEED_SIGMA` out of the columns on both sides of the group, which see the same halo.

    Parameters
    ----------
    data:
        (h, w), sky removed.
    noise:
        σ of a pixel: (h, w), or one number.
    saturated:
        As `find_saturated` gives it.
    """
    bleed = np.zeros(data.shape, bool)
    if not saturated.any():
        return bleed
    sigma = np.broadcast_to(np.asarray(noise, np.float32), data.shape)
    labels, _ = ndimage.label(saturated, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        group = labels[box] == number
        rows, columns = box
        counts = group.sum(axis=0)
        # The round core's size: without the columns that ran over, a group is as tall as it is wide.
        core = int(np.median(group.sum(axis=1)[group.any(axis=1)]))
        widest = int(group.sum(axis=1).max())
        middle = rows.start + int(np.argmax(group.sum(axis=1)))
        if group.shape[0] > _TALL * widest + 2:
            tall = group & (np.abs(np.arange(rows.start, rows.stop) - middle) > widest / 2 + 1)[:, None]
            bleed[box] |= tall
        reach = max(widest, core) // 2 + 3
        for column in np.flatnonzero(counts) + columns.start:
            hit = np.flatnonzero(group[:, column - columns.start]) + rows.start
            for start, direction in ((hit[0] - 1, -1), (hit[-1] + 1, 1)):
                end = _follow(data, sigma, column, start, direction, columns, reach)
                low, high = sorted((start, end))
                if direction * (end - start) > 0:
                    bleed[low + (direction < 0) : high + (direction < 0), column] = True
    return bleed


def _follow(
    data: Image,
    sigma: npt.NDArray[np.float32],
    column: int,
    start: int,
    direction: int,
    columns: slice,
    reach: int,
) -> int:
    """Return the row after the last one of a bleed that begins at `start` and runs in `direction`."""
    if not 0 <= start < data.shape[0]:
        return start
    rows = np.arange(start, data.shape[0]) if direction > 0 else np.arange(start, -1, -1)
    beside = [x for x in (columns.start - reach, columns.stop - 1 + reach) if 0 <= x < data.shape[1]]
    if not beside:
        return start
    level = np.max([data[rows, x] for x in beside], axis=0)
    # The halo's own noise at the places compared is of the same order as the pixel's.
    excess = data[rows, column] - level > BLEED_SIGMA * np.sqrt(2) * sigma[rows, column]
    if not excess[: _GAP + 1].any():
        return start
    last_true = np.maximum.accumulate(np.where(excess, np.arange(excess.size), -1))
    ended = np.flatnonzero(np.arange(excess.size) - last_true > _GAP)
    length = int(last_true[ended[0]]) + 1 if ended.size else int(last_true[-1]) + 1
    return start + direction * length


def saturation_mask(data: Image, noise: Image | float, peak: Image, level: float | None) -> MaskArray:
    """Return SATURATED and BLEED bits; nothing without a saturation level."""
    mask = np.zeros(data.shape, np.int32)
    if level is None or not np.isfinite(level):
        return mask
    saturated = find_saturated(peak, level)
    if saturated.any():
        mask[saturated] |= np.int32(Mask.SATURATED)
        mask[find_bleeding(data, noise, saturated)] |= np.int32(Mask.BLEED)
    return mask
