"""Bad pixels and columns, learned from the calibration frames (and bad columns also from a light frame)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import Mask, MaskArray
from astrid_pipeline.imaging.raw import Section

#: σ of the dark (or bias) level beyond which a pixel is hot. Subtraction removes the mean of a hot pixel but not its
#: photon noise and flicker; at 8 σ nothing is flagged by chance.
HOT = 8.0

#: Times the detector's read noise beyond which a pixel is noisy (needs 5 bias frames or more).
NOISY = 3.0

#: Response, relative to its neighbourhood, outside of which a pixel is dead or not to be trusted.
RESPONSE = (0.5, 1.5)

#: Share of bad pixels that makes a whole column bad, and the number of adjoining ones that does so in a part of it.
COLUMN_SHARE = 0.3

#: σ of a column's median against its neighbours' that makes it bad.
COLUMN_SIGMA = 8.0


def learn(
    biases: Sequence[Image],
    bias: Image | None,
    dark: Image | None,
    dark_variance: Image | None,
    flats: Mapping[str, Image],
    sections: Sequence[Section],
) -> MaskArray | None:
    """Return the detector's mask from its calibration frames, or None without any.

    Hot pixels come from the dark and the bias, noisy ones from the scatter of the bias frames, dead ones from the
    flats; a column is bad if many of its pixels are, or if its median stands out of its neighbours'.
    """
    known = next((image for image in (bias, dark, *flats.values()) if image is not None), None)
    if known is None:
        return None
    bad = np.zeros(known.shape, bool)
    columns = np.zeros(known.shape, bool)
    for image in (bias, dark):
        if image is not None:
            bad |= outliers(image)
            columns |= odd_columns(image, sections)
    if len(biases) >= 5:
        bad |= noisy(biases)
    for flat in flats.values():
        bad |= dead(flat)
        columns |= odd_columns(flat, sections)
    columns |= full_columns(bad | columns, sections)
    mask = np.zeros(known.shape, np.int32)
    mask[bad] |= np.int32(Mask.BAD_PIXEL)
    mask[columns] |= np.int32(Mask.BAD_COLUMN)
    return mask


def _robust_sigma(values: npt.NDArray[np.floating]) -> float:
    sample = values.ravel()[:: max(1, values.size // 1_000_000)]
    low, high = np.percentile(sample, [15.87, 84.13])
    return float(high - low) / 2


def local_median(image: Image, size: int = 9, step: int = 1) -> Image:
    """Return a smooth version of an image: medians of boxes, interpolated. Cheap, for structure of many pixels.

    With `step`, only every so many rows and columns of a box are looked at.
    """
    height, width = image.shape
    ny, nx = max(1, height // size), max(1, width // size)
    part = image[: ny * size, : nx * size].reshape(ny, min(size, height), nx, min(size, width))
    boxes = part[:, ::step, :, ::step].transpose(0, 2, 1, 3).reshape(ny, nx, -1)
    coarse = np.median(boxes, axis=2, overwrite_input=True).astype(np.float32)
    coarse = ndimage.median_filter(coarse, size=3, mode="nearest")
    zoom = (np.arange(height) + 0.5) / size - 0.5, (np.arange(width) + 0.5) / size - 0.5
    rows = np.clip(zoom[0], 0, ny - 1)
    cols = np.clip(zoom[1], 0, nx - 1)
    y0, x0 = rows.astype(int), cols.astype(int)
    y1, x1 = np.minimum(y0 + 1, ny - 1), np.minimum(x0 + 1, nx - 1)
    fy, fx = (rows - y0).astype(np.float32)[:, None], (cols - x0).astype(np.float32)
    low = coarse[y0] * (1 - fy) + coarse[y1] * fy
    # `take` keeps the rows' order in memory, which an index would turn round.
    smooth = np.take(low, x0, axis=1)
    smooth *= 1 - fx
    other = np.take(low, x1, axis=1)
    other *= fx
    smooth += other
    return smooth


def outliers(image: Image) -> npt.NDArray[np.bool_]:
    """Return pixels that stand `HOT` σ out of their surroundings, to either side."""
    residual = image - local_median(image)
    sigma = _robust_sigma(residual)
    return np.abs(residual) > HOT * sigma if sigma > 0 else np.zeros(image.shape, bool)


def noisy(stack: Sequence[Image]) -> npt.NDArray[np.bool_]:
    """Return pixels whose scatter over a stack is `NOISY` times the usual."""
    total = np.zeros(stack[0].shape, np.float64)
    square = np.zeros(stack[0].shape, np.float64)
    for image in stack:
        delta = image - stack[0]
        total += delta
        square += np.square(delta)
    n = len(stack)
    variance = np.maximum(square - total**2 / n, 0) / (n - 1)
    return variance > NOISY**2 * np.median(variance)


def dead(flat: Image) -> npt.NDArray[np.bool_]:
    """Return pixels whose response is outside of `RESPONSE`, relative to their neighbourhood."""
    local = local_median(flat)
    low, high = RESPONSE
    return ~((flat > low * local) & (flat < high * local))


def odd_columns(image: Image, sections: Sequence[Section]) -> npt.NDArray[np.bool_]:
    """Return columns (each amplifier's part by itself) whose median stands `COLUMN_SIGMA` out of the neighbours'."""
    out = np.zeros(image.shape, bool)
    for y0, y1, x0, x1 in sections:
        part = image[y0:y1, x0:x1]
        if part.shape[1] < 16:
            continue
        profile = np.median(part, axis=0)
        residual = profile - ndimage.median_filter(profile, size=9, mode="nearest")
        # The profile's own scatter, and what the pixels' noise leaves in a median of so many.
        floor = _robust_sigma(part[:, 2:] - part[:, :-2]) / np.sqrt(2) * np.sqrt(np.pi / 2 / part.shape[0])
        sigma = max(_robust_sigma(residual), floor)
        if sigma > 0:
            out[y0:y1, x0:x1] |= np.abs(residual)[None, :] > COLUMN_SIGMA * sigma
    return out


def full_columns(bad: npt.NDArray[np.bool_], sections: Sequence[Section]) -> npt.NDArray[np.bool_]:
    """Return whole columns of an amplifier of which more than `COLUMN_SHARE` is bad."""
    out = np.zeros(bad.shape, bool)
    for y0, y1, x0, x1 in sections:
        out[y0:y1, x0:x1] = bad[y0:y1, x0:x1].mean(axis=0) > COLUMN_SHARE
    return out


#: Pieces into which a column of a light frame is cut: a trap spoils a column from its row on.
_PIECES = 8

#: σ of a piece's median, and share of a pixel's noise, by which two adjoining pieces must stand out. A column that is
#: off by less than a quarter of its noise stays below 1 σ in a matched filter.
PIECE_SIGMA = 6.0
PIECE_DEPTH = 0.25


def light_columns(
    residual: Image, noise: Image | float, unusable: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return bad columns, or parts of them, that a light frame itself shows.

    Parameters
    ----------
    residual:
        (h, w), sky removed.
    noise:
        σ of a pixel: (h, w), or one number.
    unusable:
        Pixels that are masked already.
    """
    height, width = residual.shape
    out = np.zeros(residual.shape, bool)
    if height < 16 * _PIECES or width < 32:
        return out
    edges = np.linspace(0, height, _PIECES + 1).astype(int)
    odd = np.zeros((_PIECES, width), bool)
    sign = np.zeros((_PIECES, width))
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        sigma = np.broadcast_to(np.asarray(noise, np.float32), residual.shape)[low:high]
        # Masked pixels (and stars, by the median) count for nothing: they are put at the sky's level.
        part = np.where(unusable[low:high], 0, residual[low:high] / sigma)
        profile = np.median(part, axis=0)
        deviation = profile - ndimage.median_filter(profile, size=11, mode="nearest")
        error = max(_robust_sigma(deviation), float(np.sqrt(np.pi / 2 / (high - low))))
        odd[i] = np.abs(deviation) > max(PIECE_SIGMA * error, PIECE_DEPTH)
        sign[i] = np.sign(deviation)
    # Two pieces of a column that are off to the same side: a star or a galaxy does not do that.
    pair = odd[1:] & odd[:-1] & (sign[1:] == sign[:-1])
    both = np.zeros_like(odd)
    both[1:] |= pair
    both[:-1] |= pair
    # Half a dozen odd columns side by side are an edge-on galaxy, not a defect.
    wide = ndimage.binary_opening(both, np.ones((1, 5), bool))
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        out[low:high] = both[i] & ~wide[i]
    return out
