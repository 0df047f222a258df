"""The sky under a frame and its noise, on a mesh, with everything that shines taken out first.

The difficulty is not the mesh but what goes into it: a galaxy as large as a mesh cell lifts the cell, the
lifted sky hides the galaxy's outskirts from the mask, and the subtraction eats the galaxy. So objects are found
on the frame binned 4 x 4 and 16 x 16, against a sky that is measured again after each round of masking; only
then is the sky measured at full resolution on what is left, and cells without enough of it are bridged by a
smooth surface through their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import is_set

#: Side of the blocks that objects are looked for in, px: about a star's diameter, so that a faint star fills one.
BIN = 4
#: Blocks of BIN x BIN blocks: the scale of galaxies' outskirts and of bright stars' halos.
COARSE = 4
#: A block this many sigma over the sky belongs to an object. At 3 the false ones take 0.1 % of the sky (1.2 %
#: once grown) and lower its mean by 0.001 of a pixel's noise.
OBJECT_SIGMA = 3.0
#: Rounds of masking and measuring again; the mask of a galaxy of 100 px stops growing after three.
ROUNDS = 4
#: Where the noise distribution is cut, in sigma.
CLIP = 3.0
#: Standard deviation of a Gaussian of unit width cut at +-CLIP = 3.
CLIPPED_SIGMA = 0.986578
#: A cell with a smaller share of usable pixels is bridged from its neighbours: its noise would be 3 times the others'.
MIN_FILLED = 0.10
#: Masked pixels of any kind, and objects, leave the statistics; this many must remain in the frame at all.
MIN_PIXELS = 64
#: Pixels of a cell that are looked at, if it has as many: rows are skipped beyond that. 2000 give the cell's noise to
#: 1.6 % and its level to 0.02 sigma, less than what faint stars do to either.
ENOUGH = 2000
#: While objects are looked for, fewer blocks do.
ENOUGH_BLOCKS = 500

_Bool = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Background:
    """The smooth sky of a frame and the noise of one pixel of it.

    Attributes
    ----------
    level, rms:
        (height, width) float32, units of the data: the sky, and the standard deviation of one pixel of empty sky.
    objects:
        (height, width) bool: where stars, galaxies and their outskirts were kept out of the measurement.
    level_err, rms_err:
        Measured standard error of `level` (units of the data) and of `rms` (relative): the scatter of single mesh
        cells about the smooth surface, divided by the square root of the cells that the surface averages.
    """

    level: Image
    rms: Image
    objects: _Bool
    level_err: float
    rms_err: float


def measure_background(
    data: npt.ArrayLike, mask: npt.ArrayLike | None = None, *, box: int = 64
) -> Background:
    """Measure the sky and its noise on a mesh of cells of about `box` pixels.

    Parameters
    ----------
    data:
        (height, width), any numeric type and byte order; values that are not finite are left out.
    mask:
        Boolean (True: leave out) or `Mask` bits (unusable ones are left out).
    box:
        Side of a cell, px. Structure of the sky smaller than about twice that stays in the data.

    Returns
    -------
    Background
        Each cell's clipped mean and standard deviation, smoothed over 3 x 3 cells and interpolated by bicubic
        splines.

    Raises
    ------
    PixelError
        If the image is not 2-D, has no usable pixels, or is constant.
    """
    image = np.ascontiguousarray(data, dtype=np.float32)
    if image.ndim != 2:
        raise PixelError(f"the image has {image.ndim} axes, not 2", remedy="hand over one plane of it")
    if box < 8:
        raise ValueError(f"box must be at least 8 px, not {box}")
    good = np.isfinite(image)
    if mask is not None:
        flags = np.asarray(mask)
        good &= ~(flags if flags.dtype == bool else is_set(flags))
    if good.sum() < MIN_PIXELS:
        raise PixelError(
            f"{int(good.sum())} usable pixels are too few to measure the sky", remedy="check the mask"
        )
    objects = _find_objects(image, good, box)
    if (good & ~objects).sum() < max(MIN_PIXELS, 0.02 * good.sum()):
        # Light everywhere (a galaxy or nebula over the whole frame): take the faintest part for sky.
        objects = image > np.percentile(image[good], 25)
    rows, columns = _Axis(image.shape[0], box), _Axis(image.shape[1], box)
    level, rms, filled = _cells(image, good & ~objects, rows, columns)
    if not (rms[filled] > 0).any():
        raise PixelError("the image is constant, it has no noise", remedy="check how the file was written")
    filled &= rms > 0
    smooth_level, level_err = _smooth(level, filled, rows, columns)
    rms = np.sqrt(np.maximum(rms**2 - _slope_variance(smooth_level), 0.25 * rms**2))
    smooth_log, rms_err = _smooth(np.log(np.where(filled, rms, 1.0)), filled, rows, columns)
    return Background(
        level=_surface(smooth_level, rows, columns),
        rms=np.exp(_surface(smooth_log, rows, columns)),
        objects=objects,
        level_err=level_err,
        rms_err=rms_err,
    )


class _Axis:
    """One axis cut into cells of equal size; the last may stick out of the frame."""

    def __init__(self, length: int, box: int) -> None:
        self.length = length
        self.cells = max(1, round(length / box))
        self.size = -(-length // self.cells)
        self.cells = -(-length // self.size)
        starts = np.arange(self.cells) * self.size
        self.centres = (starts + np.minimum(starts + self.size, length) - 1) / 2

    @property
    def padding(self) -> int:
        return self.cells * self.size - self.length

    def spline(self) -> tuple[_Float, _Float]:
        """Return the matrix (length, knots) that interpolates values at knots, and (knots, cells) that makes these.

        The knots are the cells' centres and, so that nothing is extrapolated by a cubic, one linearly continued
        point beyond each end.
        """
        from scipy.interpolate import make_interp_spline

        if self.cells == 1:
            return np.ones((self.length, 1)), np.ones((1, 1))
        extend = np.zeros((self.cells + 2, self.cells))
        extend[1:-1] = np.eye(self.cells)
        extend[0, :2] = 2, -1
        extend[-1, -2:] = -1, 2
        knots = np.concatenate(
            [[2 * self.centres[0] - self.centres[1]], self.centres, [2 * self.centres[-1] - self.centres[-2]]]
        )
        spline = make_interp_spline(knots, np.eye(len(knots)), k=min(3, len(knots) - 1))
        return spline(np.arange(self.length)), extend


def _cells(
    image: Image, usable: _Bool, rows: _Axis, columns: _Axis, pixels: int = ENOUGH
) -> tuple[_Float, _Float, _Bool]:
    """Return clipped mean and standard deviation of each cell, and where there were enough pixels for them."""
    shape = (rows.cells, columns.cells)
    level, rms, filled = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    step = max(1, rows.size * columns.size // pixels)
    enough = max(16, MIN_FILLED * rows.size * columns.size / step)
    for row in range(rows.cells):
        strip = slice(row * rows.size, min((row + 1) * rows.size, rows.length), step)
        values = np.where(usable[strip], image[strip], np.float32(np.inf))
        if columns.padding:
            values = np.pad(values, ((0, 0), (0, columns.padding)), constant_values=np.inf)
        cells = values.reshape(-1, columns.cells, columns.size).transpose(1, 0, 2).reshape(columns.cells, -1)
        level[row], rms[row], count = clipped_statistics(cells)
        filled[row] = count >= enough
    if not filled.any():
        # Few and scattered pixels: take the frame as one cell.
        mean, sigma, _ = clipped_statistics(image[usable][None])
        level[:], rms[:], filled[:] = mean[0], sigma[0], True
    return level, rms, filled


def clipped_statistics(values: npt.NDArray[np.floating]) -> tuple[_Float, _Float, npt.NDArray[np.int64]]:
    """Return mean, standard deviation and number of each row, cut at 3 sigma about the median.

    `values` is (rows, n) and is sorted in place; +inf marks what is to be left out. The first cut uses the
    quartiles, the second the standard deviation found, corrected for the cut: the result is the width of the
    Gaussian core, to 1 % for whole-numbered data down to a noise of one unit.
    """
    values.sort(axis=1)
    number = np.count_nonzero(np.isfinite(values), axis=1)
    rows = np.arange(len(values))
    top = np.maximum(number - 1, 0)
    first, low, middle, high, last = (
        np.where(number > 0, values[rows, (q * top).astype(int)], 0).astype(float)
        for q in (0, 0.25, 0.5, 0.75, 1)
    )
    centre, sigma = middle, (high - low) / 1.349
    # Data of which most values agree have no quartile range: start from the whole spread instead.
    sigma = np.where(sigma <= 0, (last - first) / 6, sigma)
    # The rows are sorted, so any cut is a range, and its sums are differences of running sums.
    offset = np.where(np.isfinite(values), values - middle[:, None].astype(np.float32), np.float32(0))
    sums = np.zeros((2, len(values), values.shape[1] + 1))
    np.cumsum(offset, axis=1, out=sums[0, :, 1:])
    np.cumsum(np.square(offset), axis=1, dtype=float, out=sums[1, :, 1:])
    for _ in range(3):
        begin = np.count_nonzero(values < (centre - CLIP * sigma)[:, None], axis=1)
        end = np.count_nonzero(values <= (centre + CLIP * sigma)[:, None], axis=1)
        mean, square = (sums[:, rows, end] - sums[:, rows, begin]) / np.maximum(end - begin, 1)
        sigma = np.sqrt(np.maximum(square - mean**2, 0)) / CLIPPED_SIGMA
        centre = middle + mean
    empty = number == 0
    return np.where(empty, 0.0, centre), np.where(empty, 0.0, sigma), number


def _smooth(cells: _Float, filled: _Bool, rows: _Axis, columns: _Axis) -> tuple[_Float, float]:
    """Return the cells without outliers and holes, smoothed over 3 x 3, and the standard error of the result."""
    from scipy.interpolate import RBFInterpolator
    from scipy.ndimage import median_filter

    values = cells.copy()
    if not filled.all():
        y, x = np.meshgrid(rows.centres / rows.size, columns.centres / columns.size, indexing="ij")
        known = np.column_stack([y[filled], x[filled]])
        if len(known) >= 6:
            # A thin-plate spline continues a gradient across the hole; the neighbours' scatter is smoothed.
            bridge = RBFInterpolator(
                known, cells[filled], neighbors=min(24, len(known)), smoothing=1.0, degree=1
            )
            values[~filled] = bridge(np.column_stack([y[~filled], x[~filled]]))
        else:
            values[~filled] = np.median(cells[filled])
    error = _cell_error(cells, filled)
    if min(cells.shape) < 3:
        return values, error
    # A cell that a halo or a nebula lifted is replaced by its neighbours' median; a gradient leaves that nearly alone.
    # (Beyond the edges the cells are continued by their point reflection, so that a gradient goes on.)
    median = median_filter(np.pad(values, 1, mode="reflect", reflect_type="odd"), size=3)[1:-1, 1:-1]
    off = np.abs(values - median)
    values = np.where(off > 3 * max(1.4826 * float(np.median(off)), error), median, values)
    # Smoothed with weights 1, 2, 1 along both axes, which keep a gradient as it is when the edges continue it; where
    # that changes more than the noise can have done, the sky bends, and the cell stays.
    smooth = values
    for axis in (0, 1):
        wide = np.pad(
            smooth, [(1, 1) if k == axis else (0, 0) for k in (0, 1)], mode="reflect", reflect_type="odd"
        )
        wide = np.moveaxis(wide, axis, 0)
        smooth = np.moveaxis((wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4, 0, axis)
    return np.where(np.abs(smooth - values) < 2 * error, smooth, values), error * 0.375


def _slope_variance(cells: _Float) -> _Float:
    """Return the variance within each cell that the sky's own gradient makes: step² / 12 along either axis."""
    variance = np.zeros_like(cells)
    for axis, number in enumerate(cells.shape):
        if number > 1:
            variance += np.gradient(cells, axis=axis) ** 2 / 12
    return variance


def _cell_error(cells: _Float, filled: _Bool) -> float:
    """Return the standard error of one cell, from second differences, which a gradient does not enter.

    Smoothing over 3 x 3 cells leaves 3/8 of it.
    """
    bends = []
    for values, known in ((cells, filled), (cells.T, filled.T)):
        whole = known[:-2] & known[1:-1] & known[2:]
        bends.append((values[:-2] - 2 * values[1:-1] + values[2:])[whole])
    bend = np.abs(np.concatenate(bends))
    # The second difference of independent values has sqrt(1 + 4 + 1) times their error.
    return float(1.4826 * np.median(bend) / np.sqrt(6)) if len(bend) else float(np.std(cells[filled]))


def _surface(cells: _Float, rows: _Axis, columns: _Axis) -> Image:
    """Interpolate the cells' values to every pixel."""
    (to_y, extend_y), (to_x, extend_x) = rows.spline(), columns.spline()
    knots = extend_y @ cells @ extend_x.T
    return (to_y.astype(np.float32) @ knots.astype(np.float32)) @ to_x.astype(np.float32).T


def _find_objects(image: Image, good: _Bool, box: int) -> _Bool:
    """Return where objects shine: blocks over the sky on the scale of stars and on that of galaxies' outskirts."""
    height, width = image.shape
    if min(height, width) < 4 * BIN * COARSE:
        return _find_in_pixels(image, good)
    fine, fine_good = _binned(image, good, BIN)
    coarse_box = max(box // BIN, 8)
    shining = np.zeros(fine.shape, bool)
    shining_count = 0
    for step in range(ROUNDS):
        # Large cells first: a galaxy is a smaller part of them, and its light does not hide it.
        size = coarse_box * 2 if step < ROUNDS - 2 else coarse_box
        rows, columns = _Axis(fine.shape[0], size), _Axis(fine.shape[1], size)
        level, rms, filled = _cells(fine, fine_good & ~shining, rows, columns, ENOUGH_BLOCKS)
        filled &= rms > 0
        if not filled.any():
            return np.zeros(image.shape, bool)
        over = fine - _surface(_smooth(level, filled, rows, columns)[0], rows, columns)
        sigma = float(np.median(rms[filled]))
        seeds = fine_good & (over > OBJECT_SIGMA * sigma)
        shining = grown(seeds)
        before = shining_count
        # What is left between the stars, on the scale of outskirts; stars must not lend it their light.
        rest, rest_good = _binned(over, fine_good & ~seeds, COARSE)
        if np.count_nonzero(rest_good) < 16:
            continue
        _, spread, _ = clipped_statistics(np.where(rest_good, rest, np.float32(np.inf)).reshape(1, -1))
        faint = grown(rest_good & (rest > OBJECT_SIGMA * spread[0]))
        faint = faint.repeat(COARSE, axis=0).repeat(COARSE, axis=1)[: fine.shape[0], : fine.shape[1]]
        # A lone coarse block over the sky is as likely noise; one that touches a bright object is its outskirts.
        shining |= _touching(faint, seeds)
        shining_count = int(np.count_nonzero(shining))
        if step >= ROUNDS - 2 and shining_count <= 1.02 * before:
            break
    return shining.repeat(BIN, axis=1).repeat(BIN, axis=0)[:height, :width]


def grown(mask: _Bool) -> _Bool:
    """Return a mask that holds each pixel's eight neighbours too."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    out = tall.copy()
    out[:, 1:] |= tall[:, :-1]
    out[:, :-1] |= tall[:, 1:]
    return out


def _touching(regions: _Bool, seeds: _Bool) -> _Bool:
    """Return those connected regions that hold a seed."""
    from scipy.ndimage import label

    labels, count = label(regions)
    keep = np.zeros(count + 1, bool)
    keep[np.unique(labels[seeds])] = True
    keep[0] = False
    return keep[labels]


def _find_in_pixels(image: Image, good: _Bool) -> _Bool:
    """Return the same for a frame too small to bin."""
    mean, sigma, _ = clipped_statistics(image[good].reshape(1, -1).copy())
    return grown(good & (image > mean[0] + OBJECT_SIGMA * sigma[0]))


def _binned(image: Image, good: _Bool, size: int) -> tuple[Image, _Bool]:
    """Return the mean of the good pixels of each block of `size` x `size`, and which blocks are half good or more.

    The frame is padded to whole blocks with pixels that are not good.
    """
    height, width = (-(-n // size) * size for n in image.shape)
    pad = ((0, height - image.shape[0]), (0, width - image.shape[1]))
    if any(p for _, p in pad):
        image, good = np.pad(image, pad), np.pad(good, pad)
    blocks = (height // size, size, width // size, size)
    if good.all():
        total = _block_sum(image.reshape(blocks), np.dtype(np.float32))
        return total * np.float32(1 / size**2), np.ones(total.shape, bool)
    total = _block_sum(np.where(good, image, np.float32(0)).reshape(blocks), np.dtype(np.float32))
    number = _block_sum(good.reshape(blocks), np.dtype(np.int16))
    return total / np.maximum(number, 1).astype(np.float32), number >= size * size / 2


def _block_sum(blocks: npt.NDArray[np.generic], kind: np.dtype) -> npt.NDArray:
    """Sum axes 1 and 3; rows first, along which memory is contiguous."""
    return blocks.sum(axis=1, dtype=kind).sum(axis=2, dtype=kind)
