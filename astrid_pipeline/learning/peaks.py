"""From a network's planes to a list of peaks, and from peaks and candidates to one table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.candidate_shapes import REGION_SIGMA
from astrid_pipeline.learning.calibration import logit
from astrid_pipeline.learning.unet import CLASSES

# A heat map is a Gaussian of 1.5 px: two peaks nearer than 2 px are one.
_HALF_WINDOW = 2

#: A peak and a candidate nearer than this are the same; the score's own peak wanders by about 1 px at S/N 5.
JOIN_RADIUS = 3.0

#: Places looked at between a peak and the trail it may lie on: every other pixel of the longest half trail.
_STEPS = 64
#: Share of them that has to be as bright as a trail: a star's residual or a gap may lie between, the sky may not. Noise
#: alone is that bright in 7 % of the places.
_ON_TRAIL = 0.75

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


def marked_regions(
    mask: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return (H, W) numbers of the connected regions (8 neighbours) over `MASK_LEVEL`, and (regions + 1,) their pixels.

    Outside, the number is 0, which has no pixels.
    """
    from scipy.ndimage import label

    regions, count = label(mask > MASK_LEVEL, structure=np.ones((3, 3)))
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    areas[0] = 0
    return regions, areas


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
    from scipy.ndimage import maximum_filter

    heat, mask = probability[:-1], probability[-1]
    real = combine(heat)
    top = maximum_filter(real, size=2 * _HALF_WINDOW + 1, mode="constant")
    rows, cols = np.nonzero((real >= threshold) & (real == top) & ~unusable)
    order = np.argsort(-real[rows, cols], kind="stable")
    rows, cols = rows[order], cols[order]
    rows, cols = _without_ties(rows, cols)
    regions, areas = marked_regions(mask)
    height, width = real.shape
    keep = _one_a_trail(regions[rows, cols], heat[:, rows, cols].argmax(axis=0))
    rows, cols = rows[keep], cols[keep]
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


def _one_a_trail(region: npt.NDArray[np.int32], kind: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return which peaks stay, by falling heat: in a part of the mask whose surest peak is a mover, only that one."""
    keep = np.ones(len(region), bool)
    trails: set[int] = set()
    seen: set[int] = set()
    for i, (part, c) in enumerate(zip(region, kind, strict=True)):
        if part == 0:
            continue
        keep[i] = part not in trails
        if part not in seen and CLASSES[c] == "moving":
            trails.add(part)
        seen.add(part)
    return keep


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


def join(
    peaks: pd.DataFrame,
    candidates: pd.DataFrame,
    score: npt.NDArray[np.floating],
    radius: float = JOIN_RADIUS,
) -> npt.NDArray[np.int64]:
    """Return, for each peak, the row number of the nearest candidate within `radius` px, or -1.

    A candidate belongs to one peak only: the nearest pair is joined first. Peaks that are left take a candidate whose
    trail they lie on: a network sees a trail's middle less exactly than a connected region's.

    Parameters
    ----------
    score:
        (height, width) significance, σ; NaN where it is not known. A trail is one as far as it goes on: a bad column
        that a satellite crosses is one region too, whose axis runs over empty sky.
    """
    joined = np.full(len(peaks), -1, np.int64)
    if not len(peaks) or not len(candidates):
        return joined
    from scipy.spatial import cKDTree

    mine, theirs = peaks[["x", "y"]].to_numpy(float), candidates[["x", "y"]].to_numpy(float)
    pairs = cKDTree(mine).sparse_distance_matrix(cKDTree(theirs), radius, output_type="ndarray")
    taken = np.zeros(len(candidates), bool)
    _take(joined, taken, pairs["i"], pairs["j"], pairs["v"])
    long = np.flatnonzero(_trail_length(candidates) > 2 * radius)
    rest = np.flatnonzero(joined < 0)
    free = long[~taken[long]]
    if len(free) and len(rest):
        i, j = np.nonzero(_on_trails(mine[rest], candidates, free, score, radius))
        _take(joined, taken, rest[i], free[j], np.hypot(*(mine[rest[i]] - theirs[free[j]]).T))
    return joined


def one_a_candidate(
    peaks: pd.DataFrame,
    candidates: pd.DataFrame,
    joined: npt.NDArray[np.int64],
    score: npt.NDArray[np.floating],
    radius: float = JOIN_RADIUS,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return which peaks stay, and their candidates, once every trail has one peak only: its surest.

    A network that is not sure of a long trail sees beads on it. `peaks` are in the order of their heat; those joined to
    another candidate, which lies on the trail or crosses it, stay. `score` is that of `join`.
    """
    keep, joined = np.ones(len(peaks), bool), joined.copy()
    trails = np.flatnonzero(_trail_length(candidates) > 2 * radius)
    if not len(peaks) or not len(trails):
        return keep, joined
    near = _on_trails(peaks[["x", "y"]].to_numpy(float), candidates, trails, score, radius)
    for column, trail in enumerate(trails):
        beads = np.flatnonzero(near[:, column] & keep & ((joined < 0) | (joined == trail)))
        if len(beads):
            keep[beads[1:]] = False
            joined[beads] = trail
    return keep, joined


def _trail_length(candidates: pd.DataFrame) -> npt.NDArray[np.float64]:
    if "trail" not in candidates:
        return np.zeros(len(candidates))
    return np.nan_to_num(candidates["trail"].to_numpy(float))


def _on_trails(
    places: npt.NDArray[np.float64],
    candidates: pd.DataFrame,
    rows: npt.NDArray[np.int64],
    score: npt.NDArray[np.floating],
    radius: float,
) -> npt.NDArray[np.bool_]:
    """Return (places, rows): whether (x, y) places lie within `radius` px of the lines of candidates that are trails.

    And whether the trail goes on from the candidate's place to there: at `_ON_TRAIL` of the known pixels between, half
    of the significance that makes a region.
    """
    table = candidates.iloc[rows]
    half = _trail_length(table) / 2
    angle = np.deg2rad(np.nan_to_num(table["angle"].to_numpy(float)))
    sign = table["sign"].to_numpy(float)
    offset = places[:, None] - table[["x", "y"]].to_numpy(float)
    ux, uy = np.cos(angle), np.sin(angle)
    along = np.clip(offset[..., 0] * ux + offset[..., 1] * uy, -half, half)
    near = np.hypot(offset[..., 0] - along * ux, offset[..., 1] - along * uy) <= radius
    height, width = score.shape
    share = np.linspace(0, 1, _STEPS)
    for i, j in np.argwhere(near):
        step = share * along[i, j]
        column = np.clip(np.rint(table["x"].iat[j] + step * ux[j]).astype(int), 0, width - 1)
        row = np.clip(np.rint(table["y"].iat[j] + step * uy[j]).astype(int), 0, height - 1)
        between = score[row, column] * sign[j]
        known = np.isfinite(between)
        bright = between[known] >= REGION_SIGMA / 2
        near[i, j] = bool(known.any()) and bool(bright.mean() >= _ON_TRAIL)
    return near


def _take(
    joined: npt.NDArray[np.int64],
    taken: npt.NDArray[np.bool_],
    i: npt.NDArray[np.int64],
    j: npt.NDArray[np.int64],
    far: npt.NDArray[np.float64],
) -> None:
    """Join pairs (i, j), the nearest first, each side once; changes `joined` and `taken`."""
    for k in np.lexsort((j, i, far)):
        if joined[i[k]] < 0 and not taken[j[k]]:
            joined[i[k]], taken[j[k]] = j[k], True


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
