"""Which detection is which true change; what is neither right nor wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.unet import CLASSES

#: A detection within this many pixels of the truth has found it: 1.5 FWHM of a sharp image, five times the
#: position error at S/N 5.
MATCH_RADIUS = 3.0

#: What a detection can be.
FALSE, RIGHT, NEITHER = 0, 1, -1


def distance(x: npt.ArrayLike, y: npt.ArrayLike, truth: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return (detections, truths) distances in px; to a trail, from the line along it."""
    px, py = np.asarray(x, float)[:, None], np.asarray(y, float)[:, None]
    tx, ty = truth["x"].to_numpy(float), truth["y"].to_numpy(float)
    length = np.nan_to_num(truth["length"].to_numpy(float)) * (truth["label"] == "moving").to_numpy()
    angle = np.nan_to_num(truth["angle"].to_numpy(float))
    ux, uy = np.cos(angle), np.sin(angle)
    along = np.clip((px - tx) * ux + (py - ty) * uy, -length / 2, length / 2)
    return np.hypot(px - tx - along * ux, py - ty - along * uy)


def match(
    found: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    min_snr: float = 5.0,
    radius: float = MATCH_RADIUS,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each detection of one image, `RIGHT`, `FALSE` or `NEITHER`, and the truth's row number or -1.

    The surest detection chooses first, the nearest truth; a second one of the same source is false. A detection of a
    change fainter than `min_snr`, or of one on unusable pixels, counts neither way.

    Parameters
    ----------
    found:
        Columns x, y, score.
    truth:
        Columns of `shards.TRUTH`; artefacts are nothing that can be found.
    """
    verdict = np.full(len(found), FALSE, np.int64)
    which = np.full(len(found), -1, np.int64)
    rows = np.flatnonzero(truth["label"].isin(CLASSES).to_numpy())
    if not len(found) or not len(rows):
        return verdict, which
    real = truth.iloc[rows]
    near = distance(found["x"], found["y"], real)
    counts = ((real["snr"] >= min_snr) & real["usable"]).to_numpy()
    taken = np.zeros(len(rows), bool)
    for i in np.argsort(-found["score"].to_numpy(float), kind="stable"):
        # What counts comes before what does not, so that an ignored neighbour cannot hide a miss.
        free = np.where(taken | ~counts, np.inf, near[i])
        j = int(np.argmin(free))
        if free[j] <= radius:
            verdict[i], which[i], taken[j] = RIGHT, rows[j], True
            continue
        j = int(np.argmin(np.where(counts, np.inf, near[i])))
        if not counts[j] and near[i, j] <= radius:
            verdict[i], which[i] = NEITHER, rows[j]
    return verdict, which


def average_precision(
    score: npt.ArrayLike, verdict: npt.ArrayLike, wanted: int, *, real_weight: float = 1.0
) -> float:
    """Return Σ (R_k - R_{k-1}) P_k over detections by falling score, R relative to all `wanted` truths.

    Truths that were never detected count as missed. Detections that are `NEITHER` are left out. NaN if nothing was
    wanted. With `real_weight` it is that of skies where true changes are so many times as frequent.
    """
    if wanted <= 0:
        return float("nan")
    s, v = np.asarray(score, float), np.asarray(verdict)
    s, v = s[v != NEITHER], v[v != NEITHER]
    if not len(s):
        return 0.0
    order = np.argsort(-s, kind="stable")
    s, right = s[order], np.cumsum(v[order] == RIGHT)
    last = np.r_[s[1:] != s[:-1], True]  # equal scores are one step
    right, count = right[last], (np.arange(len(s)) + 1)[last]
    gained = np.diff(np.r_[0, right])
    good, bad = real_weight * right, count - right
    return float(np.sum(gained * good / np.maximum(good + bad, 1e-300)) / wanted)
