"""Whether a night looks like what the detector learned from: distributions against those of its training, and a canary.

Each watched quantity of the training is kept as 41 quantiles. A night is compared by the population stability index
over ten bins of equal mass, Σ (a − e) ln(a / e), and by the Kolmogorov-Smirnov distance. The canary is a set of
simulated skies that is the same for ever: what a detector finds there is noted when it is made, and has to be found
again whenever it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.candidates import FEATURES
from astrid_pipeline.learning.shards import ShardSet

if TYPE_CHECKING:
    from astrid_pipeline.learning.detector import Detector

Floats = npt.NDArray[np.float64]

#: Quantiles kept of each quantity: deciles and tails are among them, and a Kolmogorov-Smirnov distance is good to
#: .02.
LEVELS: Floats = np.linspace(0, 1, 41)
BINS = 10
#: The index above which credit scoring, where it comes from, speaks of another population; 0.1 calls for a look.
PSI_LIMIT = 0.25
#: Chance that a night which did not drift is said to have drifted, over all quantities together.
FALSE_CHANCE = 0.01
#: Fewer values than this say nothing: the index's own noise, (bins − 1) / n, is then as large as its limit.
LEAST = 40
#: Of the images themselves there are few a night: their median is compared, with the training's whole range.
IMAGE_QUANTITIES: tuple[str, ...] = ("seeing", "score_sigma")
#: Share of the training's images on either side that a night's median may lie in.
IMAGE_TAIL = 0.005

_CANARY_SEED, _CANARY_IMAGES, _CANARY_SHAPE = 20_261_128, 2, (256, 256)
#: Scores of the canary may differ so much between processors and precisions (bfloat16 has three digits).
CANARY_TOLERANCE = 0.05


def baseline_of(shards: ShardSet, score: npt.ArrayLike) -> dict[str, list[float]]:
    """Return the quantiles of what is watched: features of the candidates, seeing and noise, scores of detections.

    Parameters
    ----------
    shards:
        Images that stand for the training, such as the held-out ones.
    score:
        Scores of the detections in them.
    """
    values: dict[str, Any] = {
        name: shards.candidates[name] for name in FEATURES if name in shards.candidates.columns
    }
    values |= {name: shards.images[name] for name in IMAGE_QUANTITIES}
    return {**_quantiles(values), **scores_of(score)}


def scores_of(score: npt.ArrayLike) -> dict[str, list[float]]:
    """Return the baseline's row of detections' scores; nothing of too few."""
    return _quantiles({"score": score})


def _quantiles(values: Mapping[str, Any]) -> dict[str, list[float]]:
    out = {}
    for name, column in values.items():
        known = _known(column)
        if len(known) >= LEAST:
            out[name] = [round(float(q), 6) for q in np.quantile(known, LEVELS)]
    return out


def _known(values: Any) -> Floats:
    array = pd.to_numeric(pd.Series(np.asarray(values)), errors="coerce").to_numpy(float)
    return array[np.isfinite(array)]


def psi(values: npt.ArrayLike, quantiles: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the population stability index of values against a baseline's quantiles, in bins of equal mass.

    Bins that a quantity's most common value swallows whole (half of all sources have no neighbour) are one. Empty bins
    count for half a value. Expected where nothing drifted: (bins − 1) / n.
    """
    v, q = np.asarray(values, float), np.asarray(quantiles, float)
    edges = np.unique(np.interp(np.linspace(0, 1, bins + 1)[1:-1], LEVELS, q))
    # Mass of each bin in the baseline itself, which is not the same where values repeat.
    upto = np.array([LEVELS[np.searchsorted(q, edge, side="right") - 1] for edge in edges])
    expected = np.diff(np.r_[0.0, upto, 1.0])
    actual = np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) / len(v)
    keep = expected > 0
    e = np.maximum(expected[keep], 0.5 / len(v))
    a = np.maximum(actual[keep], 0.5 / len(v))
    return float(((a - e) * np.log(a / e)).sum())


def ks(values: npt.ArrayLike, quantiles: npt.ArrayLike) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance of values from a baseline, and the chance of one as large.

    The baseline's distribution is its quantiles joined by straight lines; at values that repeat it is given both ends
    of the step, so that a lump in both is no distance.
    """
    from scipy.stats import kstwo

    v, q = np.sort(np.asarray(values, float)), np.asarray(quantiles, float)
    n = len(v)
    at = np.unique(v)
    seen_below, seen_upto = np.searchsorted(v, at, "left") / n, np.searchsorted(v, at, "right") / n
    low, high = _distribution(at, q)
    distance = max(float((seen_upto - high).max()), float((low - seen_below).max()), 0.0)
    return distance, float(kstwo.sf(distance, n))


def _distribution(at: Floats, q: Floats) -> tuple[Floats, Floats]:
    """Return the baseline's share below, and below or at, each of these values."""
    unique, first = np.unique(q, return_index=True)
    last = np.r_[first[1:] - 1, len(q) - 1]
    low = np.interp(at, unique, LEVELS[first], left=0.0, right=1.0)
    high = np.interp(at, unique, LEVELS[last], left=0.0, right=1.0)
    # Between two quantiles the distribution rises from the lower one's last level to the upper one's first.
    between = ~np.isin(at, unique)
    right = np.clip(np.searchsorted(unique, at), 0, len(unique) - 1)
    left = np.clip(right - 1, 0, len(unique) - 1)
    span = np.maximum(unique[right] - unique[left], 1e-300)
    share = np.clip((at - unique[left]) / span, 0, 1)
    line = LEVELS[last[left]] + share * (LEVELS[first[right]] - LEVELS[last[left]])
    inside = between & (at > unique[0]) & (at < unique[-1])
    return np.where(inside, line, low), np.where(inside, line, high)


def compare(values: Mapping[str, npt.ArrayLike], baseline: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Return how far each watched quantity of a night is from the training: one row a quantity.

    Parameters
    ----------
    values:
        By name as in `baseline_of`; what is not in the baseline, or has fewer than `LEAST` values (of
        `IMAGE_QUANTITIES` one is enough), is left out.

    Returns
    -------
    DataFrame
        quantity, n, median, low, high (the training's middle 90 %), psi, ks, chance, drifted. A distribution drifted
        where the index is over `PSI_LIMIT` and what its own noise adds, and the distance is less probable than
        `FALSE_CHANCE` over all quantities; a night's images where their median lies outside all but `IMAGE_TAIL` of the
        training's.
    """
    rows = []
    for name, quantiles in baseline.items():
        if name not in values:
            continue
        known, q = _known(values[name]), np.asarray(quantiles, float)
        row: dict[str, Any] = {"quantity": name, "n": len(known)}
        if name in IMAGE_QUANTITIES:
            if not len(known):
                continue
            median = float(np.median(known))
            low, high = np.interp([IMAGE_TAIL, 1 - IMAGE_TAIL], LEVELS, q)
            row |= {"psi": np.nan, "ks": np.nan, "chance": np.nan, "drifted": not low <= median <= high}
        else:
            if len(known) < LEAST:
                continue
            index, (distance, chance) = psi(known, q), ks(known, q)
            over = index > PSI_LIMIT + (BINS - 1) / len(known)
            sure = chance < FALSE_CHANCE / max(len(baseline), 1)
            row |= {"psi": index, "ks": distance, "chance": chance, "drifted": bool(over and sure)}
        low, high = np.interp([0.05, 0.95], LEVELS, q)
        rows.append({**row, "median": float(np.median(known)), "low": float(low), "high": float(high)})
    columns = ["quantity", "n", "median", "low", "high", "psi", "ks", "chance", "drifted"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Canary:
    """What a detector finds in the canary's skies.

    Attributes
    ----------
    scores:
        Of each true change of S/N ≥ 6 on usable pixels, the surest detection's there; 0 where there is none.
    false:
        Detections where nothing changed.
    """

    scores: tuple[float, ...]
    false: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a model's facts."""
        return {"scores": [round(score, 4) for score in self.scores], "false": self.false}


def canary(detector: Detector, *, device: str | None = None) -> Canary:
    """Return what a detector finds in two skies that are the same for ever (some seconds)."""
    from astrid_pipeline.learning.data import SURVEY_CHANGES, image_seed, simulate_difference
    from astrid_pipeline.learning.infer import detect
    from astrid_pipeline.learning.matching import FALSE, RIGHT, match

    scores: list[float] = []
    false = 0
    for number in range(_CANARY_IMAGES):
        sky = simulate_difference(
            image_seed(_CANARY_SEED, "canary", number), _CANARY_SHAPE, changes=6 * SURVEY_CHANGES
        )
        found = detect(sky.difference, sky.candidates, detector, device, passes=0)
        verdict, which = match(found, sky.truth, min_snr=6.0)
        asked = sky.truth[
            (sky.truth["label"] != "artefact") & sky.truth["usable"] & (sky.truth["snr"] >= 6.0)
        ]
        best = {
            int(w): float(s) for w, v, s in zip(which, verdict, found["score"], strict=True) if v == RIGHT
        }
        scores += [best.get(int(row), 0.0) for row in asked.index]
        false += int(((verdict == FALSE) & (found["score"] >= detector.threshold)).sum())
    return Canary(tuple(scores), false)


def canary_differs(seen: Canary, noted: Mapping[str, Any]) -> str | None:
    """Return in words how an answer differs from what was noted when the model was made; None where it does not.

    Scores may differ by `CANARY_TOLERANCE`; one of ten by more, since a peak near the edge of being one may fall either
    way.
    """
    before = np.asarray(noted.get("scores", ()), float)
    now = np.asarray(seen.scores, float)
    if before.shape != now.shape:
        return f"the canary holds {len(now)} changes, not the {len(before)} of before: the simulation has changed"
    off = np.abs(now - before) > CANARY_TOLERANCE
    if off.sum() > max(1, len(now) // 10):
        worst = int(np.abs(now - before).argmax())
        return (
            f"{int(off.sum())} of {len(now)} scores differ by more than {CANARY_TOLERANCE}, "
            f"one was {before[worst]:.2f} and is {now[worst]:.2f}"
        )
    if abs(seen.false - int(noted.get("false", 0))) > 2:
        return f"{seen.false} false detections, {noted.get('false')} before"
    return None
