"""Figures of a list of detections against the truth, each with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.matching import MATCH_RADIUS, NEITHER, RIGHT, average_precision, match
from astrid_pipeline.learning.unet import CLASSES

Floats = npt.NDArray[np.float64]

#: Edges of the S/N bins that recall is given in.
SNR_EDGES: tuple[float, ...] = (3, 4, 5, 6, 7, 10, 15, 50)

#: Truth below this S/N is not asked for; Rubin's requirement is stated here.
MIN_SNR = 6.0

#: Peaks below this score have no part in the calibration error: nine tenths of them are surely noise, and would
#: hide what the others do.
ECE_FLOOR = 0.1

#: Resamplings of an interval; the 2.5 and 97.5 % points are then good to about a tenth of its width.
RESAMPLES = 200


@dataclass(frozen=True)
class Value:
    """A number and the 95 % interval of what it would be on other images of the same kind."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "–"
        known = np.isfinite(self.low) and np.isfinite(self.high)
        return f"{self.value:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if known else "")


@dataclass(frozen=True)
class Judged:
    """Detections of many images with what each is.

    Attributes
    ----------
    table:
        image (number), x, y, score, and verdict, truth (row number or -1), truth_snr, truth_distance (px), for
        truth of at least `min_snr`.
    truth:
        The truth table with its column ``image``; only rows that could be found (not artefacts, usable pixels).
    megapixels:
        (images,) usable megapixels.
    min_snr:
        Truth below this counts neither way.
    """

    table: pd.DataFrame
    truth: pd.DataFrame
    megapixels: Floats
    min_snr: float

    @property
    def wanted(self) -> npt.NDArray[np.int64]:
        """(images,) number of truths asked for."""
        asked = self.truth["image"][self.truth["snr"] >= self.min_snr]
        return np.bincount(asked, minlength=len(self.megapixels)).astype(np.int64)


def judge(
    found: pd.DataFrame,
    truth: pd.DataFrame,
    megapixels: pd.Series,
    *,
    min_snr: float = MIN_SNR,
    radius: float = MATCH_RADIUS,
) -> Judged:
    """Match detections with the truth, image by image.

    Parameters
    ----------
    found:
        image_id, x, y, score.
    truth:
        `shards.TRUTH`.
    megapixels:
        Usable megapixels by image_id: which images there are, including those where nothing was found.
    """
    number = {str(name): i for i, name in enumerate(megapixels.index)}
    truth = truth[truth["image_id"].isin(list(number))].reset_index(drop=True)
    truth = truth.assign(image=truth["image_id"].map(number).astype(int))
    found = found[found["image_id"].isin(list(number))].reset_index(drop=True)
    found = found.assign(image=found["image_id"].map(number).astype(int))
    verdict = np.zeros(len(found), np.int64)
    which = np.full(len(found), -1, np.int64)
    by_image = {int(k): v for k, v in truth.groupby("image").groups.items()}  # type: ignore[call-overload]
    for image, rows in found.groupby("image").groups.items():
        known = np.asarray(by_image.get(int(image), []), int)  # type: ignore[call-overload]
        v, w = match(found.loc[rows], truth.loc[known], min_snr=min_snr, radius=radius)
        verdict[np.asarray(rows)] = v
        if len(known):
            which[np.asarray(rows)] = np.where(w >= 0, known[w], -1)
    snr = truth["snr"].to_numpy(float)
    xy = truth[["x", "y"]].to_numpy(float)
    hit = which >= 0
    far = np.full(len(found), np.nan)
    far[hit] = np.hypot(*(found.loc[hit, ["x", "y"]].to_numpy(float) - xy[which[hit]]).T)
    table = found.assign(
        verdict=verdict,
        truth=which,
        truth_snr=np.where(hit, snr[which], np.nan) if len(snr) else np.nan,
        truth_distance=far,
    )
    real = truth[truth["label"].isin(CLASSES) & truth["usable"]]
    return Judged(table, real, megapixels.to_numpy(float), min_snr)


def bootstrap(
    figure: Callable[[npt.NDArray[np.int64]], float],
    images: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Value:
    """Return a figure of all images and its interval from drawing images with replacement.

    Images are drawn whole: detections of one image share its sky, seeing and artefacts.

    Parameters
    ----------
    figure:
        Called with (images,) how often each image counts.
    """
    value = figure(np.ones(images, np.int64))
    rng = np.random.default_rng(seed)
    draws = [
        figure(np.bincount(rng.integers(images, size=images), minlength=images)) for _ in range(resamples)
    ]
    if resamples < 2 or not np.isfinite(draws).any():
        return Value(value)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Value(value, float(low), float(high))


def _ranked(judged: Judged) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.bool_]]:
    """Return image, score and whether right, of what counts, by falling score."""
    table = judged.table[judged.table["verdict"] != NEITHER].sort_values(
        "score", ascending=False, kind="stable"
    )
    return (
        table["image"].to_numpy(np.int64),
        table["score"].to_numpy(float),
        (table["verdict"] == RIGHT).to_numpy(),
    )


def figures_of(
    judged: Judged, threshold: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Value]:
    """Return the figures of one method.

    ``ap``; and at `threshold` ``precision``, ``recall``, ``f1``, ``false_per_mpix``; ``false_per_mpix_at_recall_90``;
    ``precision_at_1_per_mpix``, the precision if there were one true change a megapixel; ``recall_at_precision_95``,
    the most that any threshold gives; ``position_error`` (px, median); ``position_over_bound``, the median of the
    points' errors over what their bounds would make it.
    """
    image, score, right = _ranked(judged)
    wanted, area = judged.wanted, judged.megapixels

    def at_threshold(counts: npt.NDArray[np.int64]) -> tuple[float, float, float, float]:
        used = (score >= threshold) * counts[image]
        good, bad = float((used * right).sum()), float((used * ~right).sum())
        return good, bad, float((wanted * counts).sum()), float((area * counts).sum())

    def ap(counts: npt.NDArray[np.int64]) -> float:
        times = counts[image]
        return average_precision(
            np.repeat(score, times), np.repeat(right.astype(int), times), int((wanted * counts).sum())
        )

    def precision(counts: npt.NDArray[np.int64]) -> float:
        good, bad, _, _ = at_threshold(counts)
        return good / (good + bad) if good + bad else float("nan")

    def recall(counts: npt.NDArray[np.int64]) -> float:
        good, _, asked, _ = at_threshold(counts)
        return good / asked if asked else float("nan")

    def f1(counts: npt.NDArray[np.int64]) -> float:
        good, bad, asked, _ = at_threshold(counts)
        return 2 * good / (asked + good + bad) if asked + good + bad else float("nan")

    def false_rate(counts: npt.NDArray[np.int64]) -> float:
        _, bad, _, mpix = at_threshold(counts)
        return bad / mpix if mpix else float("nan")

    def sparse(counts: npt.NDArray[np.int64]) -> float:
        r, f = recall(counts), false_rate(counts)
        return r / (r + f) if r + f > 0 else float("nan")

    def at_recall(counts: npt.NDArray[np.int64]) -> float:
        times, asked = counts[image], (wanted * counts).sum()
        reached = np.flatnonzero(np.cumsum(times * right) >= 0.9 * asked)
        if not len(reached) or not asked:
            return float("nan")
        return float((times * ~right)[: reached[0] + 1].sum() / (area * counts).sum())

    def at_precision(counts: npt.NDArray[np.int64]) -> float:
        times, asked = counts[image], (wanted * counts).sum()
        good, every = np.cumsum(times * right), np.cumsum(times)
        reached = np.flatnonzero((good >= 0.95 * every) & (every > 0))
        return float(good[reached[-1]] / asked) if len(reached) and asked else float("nan")

    near = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    near_image, near_px = near["image"].to_numpy(np.int64), near["truth_distance"].to_numpy(float)

    def position(counts: npt.NDArray[np.int64]) -> float:
        far = np.repeat(near_px, counts[near_image])
        return float(np.median(far)) if len(far) else float("nan")

    points = near.assign(bound=_bounds(judged, near["truth"]))
    points = points[points["bound"].notna()]
    point_image = points["image"].to_numpy(np.int64)
    # An error of σ an axis has a median length of √(2 ln 2) σ.
    share = points["truth_distance"].to_numpy(float) / (
        np.sqrt(2 * np.log(2)) * points["bound"].to_numpy(float)
    )

    def over_bound(counts: npt.NDArray[np.int64]) -> float:
        every = np.repeat(share, counts[point_image])
        return float(np.median(every)) if len(every) else float("nan")

    every: dict[str, Callable[[npt.NDArray[np.int64]], float]] = {
        "ap": ap,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "false_per_mpix": false_rate,
        "precision_at_1_per_mpix": sparse,
        "false_per_mpix_at_recall_90": at_recall,
        "recall_at_precision_95": at_precision,
        "position_error": position,
        "position_over_bound": over_bound,
    }
    return {name: bootstrap(f, len(area), seed=seed, resamples=resamples) for name, f in every.items()}


def _bounds(judged: Judged, which: pd.Series) -> Floats:
    """Return the bound of each of these truths' positions, px an axis; NaN of trails, and where it is not known."""
    truth = judged.truth.reindex(which)
    if "position_bound" not in truth:
        return np.full(len(which), np.nan)
    return np.where(truth["label"] == "moving", np.nan, truth["position_bound"].to_numpy(float))


def recall_by_snr(judged: Judged, threshold: float, edges: tuple[float, ...] = SNR_EDGES) -> pd.DataFrame:
    """Return recall in bins of true S/N: columns snr_low, snr_high, truths, found, recall, low, high (Wilson, 95 %).

    `judged` has to be made with a `min_snr` of the lowest edge or less.
    """
    good = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    found = judged.truth.index.isin(good["truth"])
    snr = judged.truth["snr"].to_numpy(float)
    rows = []
    for low, high in pairwise(edges):
        inside = (snr >= low) & (snr < high)
        n, k = int(inside.sum()), int((inside & found).sum())
        p = k / n if n else float("nan")
        rows.append((low, high, n, k, p, *wilson(k, n)))
    return pd.DataFrame(rows, columns=["snr_low", "snr_high", "truths", "found", "recall", "low", "high"])


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of k in n."""
    if not n:
        return float("nan"), float("nan")
    p, scale = k / n, 1 / (1 + z**2 / n)
    middle = (p + z**2 / (2 * n)) * scale
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) * scale
    return float(middle - half), float(middle + half)


def snr_at_half(judged: Judged, threshold: float) -> float:
    """Return the S/N at which half of the truths are found, from a logistic curve in log S/N; NaN if never."""
    from scipy.optimize import minimize

    good = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    found = judged.truth.index.isin(good["truth"]).astype(float)
    z = np.log(np.maximum(judged.truth["snr"].to_numpy(float), 0.1))
    if not 0 < found.sum() < len(found):
        return float("nan")

    def loss(p: Floats) -> tuple[float, Floats]:
        value = p[0] * (z - p[1])
        residual = 1 / (1 + np.exp(-value)) - found
        nll = float(np.mean(np.logaddexp(0, value) - found * value))
        return nll, np.array([residual @ (z - p[1]), -p[0] * residual.sum()]) / len(z)

    best = minimize(loss, np.array([5.0, np.log(5.0)]), jac=True, method="BFGS")
    return float(np.exp(best.x[1])) if best.x[0] > 0 else float("nan")
