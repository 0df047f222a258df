"""Combining planes that lie on one grid: outliers out, the rest averaged with weights, masks decided by weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.mask import UNUSABLE, Mask, MaskArray, is_set

Image = npt.NDArray[np.float32]
Stack = npt.NDArray[np.float32]
_Bool = npt.NDArray[np.bool_]

#: Rows treated at once, so that ten frames' work arrays stay small.
BLOCK = 128
#: Share of the local brightness by which frames may differ and not be outliers: interpolation and registration make
#: 5 % of a star's steep flank, seeing that varies within an exposure some more.
FLANK = 0.15
#: An outlier's neighbours go too where they lie off by this share of what an outlier needs: its own faint edge.
EDGE_SHARE = 0.5
#: Variance of the median of many values over that of their mean.
MEDIAN_EXCESS = np.pi / 2


@dataclass(frozen=True, eq=False)
class Combined:
    """The mean, its variance and mask, the share of pixels any frame covers, and of values clipped as outliers."""

    data: Image
    variance: Image
    mask: MaskArray
    coverage: float
    clipped: tuple[float, ...]


def combine(
    data: Sequence[Image],
    variance: Sequence[Image],
    masks: Sequence[MaskArray],
    weights: Sequence[npt.NDArray[np.floating] | float],
    *,
    widths: Sequence[float] | None = None,
    clip: float | None = 4.0,
) -> Combined:
    """Average N planes of one grid and flux scale.

    Parameters
    ----------
    data, variance, masks:
        N planes each, (H, W).
    weights:
        Of each plane: a number, or (H, W). They should not hold the sources' own noise, which would make the PSF of
        the mean depend on brightness.
    widths:
        FWHM of each plane's PSF: stars' cores differ by its square and are no outliers for that.
    clip:
        Values further from the others than so many σ are left out; None keeps all. With three planes or more "the
        others" are their median; of two that disagree the brighter one goes, since cosmic rays and moving objects
        only add light.

    Returns
    -------
    Combined
        variance is that of the weighted mean of independent planes. A mask bit is set where planes of half the weight
        or more have it, NO_DATA where none has data. Where no plane is good the mean of the masked values stands.
    """
    number = len(data)
    height, width = data[0].shape
    good = [~is_set(mask) for mask in masks]
    out_data, out_variance = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    kept = good
    if clip is not None and number > 1:
        kept = _clip(data, variance, good, widths or [1.0] * number, clip)
    mask = _mask(masks, weights)
    blank = (mask & int(Mask.NO_DATA)) != 0
    for rows in _blocks(height):
        w = np.stack([_rows(weight, rows, width) for weight in weights])
        use = np.stack([k[rows] for k in kept]).astype(np.float32)
        covered = np.stack([(m[rows] & int(Mask.NO_DATA)) == 0 for m in masks])
        none = use.sum(axis=0) == 0
        used = w * np.where(none, covered, use)
        total = used.sum(axis=0)
        total[total == 0] = 1
        z, v = np.stack([d[rows] for d in data]), np.stack([d[rows] for d in variance])
        out_data[rows] = (used * z).sum(axis=0) / total
        out_variance[rows] = (used * used * v).sum(axis=0) / total**2
    out_data[blank] = 0
    if blank.any():
        out_variance[blank] = np.median(out_variance[~blank]) if (~blank).any() else 1
    clipped = tuple(
        int(np.count_nonzero(g & ~k)) / max(int(np.count_nonzero(g)), 1)
        for g, k in zip(good, kept, strict=True)
    )
    return Combined(out_data, out_variance, mask, float(1 - blank.mean()), clipped)


def _blocks(height: int) -> Iterator[slice]:
    for start in range(0, height, BLOCK):
        yield slice(start, min(start + BLOCK, height))


def _rows(weight: npt.NDArray[np.floating] | float, rows: slice, width: int) -> Image:
    if isinstance(weight, np.ndarray):
        return weight[rows].astype(np.float32)
    return np.full((rows.stop - rows.start, width), weight, np.float32)


def _clip(
    data: Sequence[Image],
    variance: Sequence[Image],
    good: Sequence[_Bool],
    widths: Sequence[float],
    clip: float,
) -> list[_Bool]:
    """Return which good values are no outliers."""
    from scipy.ndimage import binary_dilation, maximum_filter

    height, width = data[0].shape
    centre, count = np.empty((height, width), np.float32), np.empty((height, width), np.int16)
    for rows in _blocks(height):
        stack = np.stack([np.where(g[rows], d[rows], np.inf) for d, g in zip(data, good, strict=True)])
        stack.sort(axis=0)
        n = np.isfinite(stack).sum(axis=0)
        low = np.take_along_axis(stack, np.maximum((n - 1) // 2, 0)[None], axis=0)[0]
        high = np.take_along_axis(
            stack, np.where(n == 2, 0, np.minimum(n // 2, len(data) - 1))[None], axis=0
        )[0]
        centre[rows] = np.where(n > 0, 0.5 * (low + high), 0)
        count[rows] = n
    broadest, sharpest, usual = max(widths), min(widths), float(np.median(widths))
    # Where a broad PSF's wings are light that a sharp one has nearer its core, the core decides what may differ.
    bright = maximum_filter(np.abs(centre), 3 + 2 * min(6, int(np.ceil(broadest - sharpest))))
    # The centre of two is the lower one; its error counts in full.
    excess = np.where(count <= 2, 1.0, MEDIAN_EXCESS / np.maximum(count, 1)).astype(np.float32)
    kept = []
    for plane, noise, fine, fwhm in zip(data, variance, good, widths, strict=True):
        # Peaks go with 1 / FWHM². The centre of two frames may be either one's value.
        others = (broadest, sharpest) if len(data) == 2 else (usual,)
        flank = FLANK + max(abs((other / fwhm) ** 2 - 1) for other in others)
        limit = np.sqrt(noise * (1 + excess))
        limit *= np.float32(clip)
        limit += np.float32(flank) * bright
        away = np.abs(plane - centre)
        out = fine & (away > limit) & (count > 1)
        if out.any():
            out |= (
                fine & binary_dilation(out, np.ones((3, 3), bool)) & (away > EDGE_SHARE * limit) & (count > 1)
            )
        kept.append(fine & ~out)
    return kept


def _mask(masks: Sequence[MaskArray], weights: Sequence[npt.NDArray[np.floating] | float]) -> MaskArray:
    """Return the bits that planes of half the weight have; NO_DATA where none has data."""
    shape = masks[0].shape
    no_data = int(Mask.NO_DATA)
    touched = np.flatnonzero(np.bitwise_or.reduce([m.reshape(-1) for m in masks]))
    out = np.zeros(shape, np.int32).reshape(-1)
    if not len(touched):
        return out.reshape(shape)
    values = np.stack([m.reshape(-1)[touched] for m in masks])
    w = np.stack(
        [
            np.asarray(weight, np.float32).reshape(-1)[touched]
            if isinstance(weight, np.ndarray)
            else np.full(len(touched), weight, np.float32)
            for weight in weights
        ]
    )
    covered = (values & no_data) == 0
    w = w * covered
    total = w.sum(axis=0)
    bits = np.zeros(len(touched), np.int32)
    for bit in Mask:
        if bit == Mask.NO_DATA:
            continue
        has = (values & int(bit)) != 0
        if has.any():
            bits |= np.where((w * has).sum(axis=0) >= 0.5 * total, np.int32(int(bit)), np.int32(0))
    # Nothing good at all, though no single bit has half the weight: then all that is wrong is said.
    spoilt = covered.any(axis=0) & ~((values & int(UNUSABLE)) == 0).any(axis=0)
    every = np.bitwise_or.reduce(np.where(covered, values, 0), axis=0)
    bits = np.where(spoilt, bits | every, bits)
    out[touched] = np.where(covered.any(axis=0), bits, np.int32(no_data)).astype(np.int32)
    return out.reshape(shape)
