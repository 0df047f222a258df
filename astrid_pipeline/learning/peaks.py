"""From a network's planes to a list of peaks, and from peaks and candidates to one table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.calibration import logit
from astrid_pipeline.learning.unet import CLASSES

# A heat map is a Gaussian of 1.5 px: two peaks nearer than 2 px are one.
_HALF_WINDOW = 2

#: A peak and a candidate nearer than this are the same; the score's own peak wanders by about 1 px at S/N 5.
JOIN_RADIUS = 3.0

#: Share of the mask head's probability above which a pixel belongs to the source.
MASK_LEVEL = 0.5

#: Columns of `find_peaks`.
PEAK_COLUMNS: tuple[str, ...] = (
    "x",
    "y",
    "unet_raw",
    *(f"raw_{name}" for name in CLASSES),
    "mask_area",
    "mask_mean",
)


def combine(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (H, W): the probability that any of the (classes, H, W) heat maps is right, 1 - Π (1 - p)."""
    return 1 - np.prod(1 - heat, axis=0)


def find_peaks(
    probability: npt.NDArray[np.float32],
    unusable: npt.NDArray[np.bool_],
    threshold: float,
) -> pd.DataFrame:
    """Return the local maxima of the heat maps, brightest first.

    Parameters
    ----------
    probability:
        (classes + 1, H, W): the heat maps and the mask, after the sigmoid.
    unusable:
        (H, W); no peak lies on such a pixel.
    threshold:
        Least combined heat.

    Returns
    -------
    DataFrame
        `PEAK_COLUMNS`: position (px, refined by a parabola through the logarithm, which is exact for a Gaussian),
        combined heat, heat of each class, pixels of the mask that the peak lies in or within 1 px of, and the
        mask's mean probability in the 3 × 3 pixels around.
    """
    from scipy.ndimage import label, maximum_filter

    heat, mask = probability[:-1], probability[-1]
    real = combine(heat)
    top = maximum_filter(real, size=2 * _HALF_WINDOW + 1, mode="constant")
    rows, cols = np.nonzero((real >= threshold) & (real == top) & ~unusable)
    order = np.argsort(-real[rows, cols], kind="stable")
    rows, cols = rows[order], cols[order]
    rows, cols = _without_ties(rows, cols)
    regions, count = label(mask > MASK_LEVEL, structure=np.ones((3, 3)))
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    areas[0] = 0
    height, width = real.shape
    log = np.log(np.maximum(real, 1e-12))
    table = {name: np.zeros(len(rows)) for name in PEAK_COLUMNS}
    for i, (row, col) in enumerate(zip(rows, cols, strict=True)):
        near = np.s_[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        table["mask_area"][i] = areas[regions[near]].max()
        table["mask_mean"][i] = mask[near].mean()
        for axis, name, n in ((0, "y", height), (1, "x", width)):
            at = (row, col)[axis]
            shift = 0.0
            if 0 < at < n - 1:
                before, after = (
                    (log[row - 1, col], log[row + 1, col])
                    if axis == 0
                    else (
                        log[row, col - 1],
                        log[row, col + 1],
                    )
                )
                curvature = before - 2 * log[row, col] + after
                if curvature < 0:
                    shift = float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5))
            table[name][i] = at + shift
    table["unet_raw"] = real[rows, cols].astype(np.float64)
    for c, name in enumerate(CLASSES):
        table[f"raw_{name}"] = heat[c, rows, cols].astype(np.float64)
    return pd.DataFrame(table, columns=list(PEAK_COLUMNS))


def _without_ties(
    rows: npt.NDArray[np.intp], cols: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the peaks less those within the window of an equal one (plateaus of a saturated sigmoid)."""
    keep = np.ones(len(rows), bool)
    if len(rows) > 1:
        from scipy.spatial import cKDTree

        for i, j in sorted(cKDTree(np.c_[cols, rows]).query_pairs(_HALF_WINDOW * np.sqrt(2) + 1e-6)):
            if keep[i]:
                keep[j] = False
    return rows[keep], cols[keep]


def join(peaks: pd.DataFrame, candidates: pd.DataFrame, radius: float = JOIN_RADIUS) -> npt.NDArray[np.int64]:
    """Return, for each peak, the row number of the nearest candidate within `radius` px, or -1.

    A candidate belongs to one peak only: the nearest pair is joined first.
    """
    joined = np.full(len(peaks), -1, np.int64)
    if not len(peaks) or not len(candidates):
        return joined
    from scipy.spatial import cKDTree

    mine = cKDTree(peaks[["x", "y"]].to_numpy(float))
    theirs = cKDTree(candidates[["x", "y"]].to_numpy(float))
    pairs = mine.sparse_distance_matrix(theirs, radius, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs["j"], pairs["i"], pairs["v"]))]
    taken = np.zeros(len(candidates), bool)
    for i, j in zip(pairs["i"], pairs["j"], strict=True):
        if joined[i] < 0 and not taken[j]:
            joined[i], taken[j] = j, True
    return joined


def class_probabilities(peaks: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return (peaks, classes): the heats of each class as shares that sum to 1."""
    heat = peaks[[f"raw_{name}" for name in CLASSES]].to_numpy(float) + 1e-9
    return heat / heat.sum(axis=1, keepdims=True)


def unet_features(peaks: pd.DataFrame) -> pd.DataFrame:
    """Return what the second stage learns of the network: logits of the heats and the mask's size."""
    features = {f"unet_{name}": logit(peaks[f"raw_{name}"]) for name in CLASSES}
    features["unet_logit"] = logit(peaks["unet_raw"])
    features["unet_mask_area"] = peaks["mask_area"].to_numpy(float)
    features["unet_mask_mean"] = peaks["mask_mean"].to_numpy(float)
    return pd.DataFrame(features, index=peaks.index)
