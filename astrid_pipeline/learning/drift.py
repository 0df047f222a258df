"""Whether a night looks like what the detector learned from.

A night is one draw of a sky. Of a hundred candidates that a field shows in all of its exposures, half may lie beside
one bright galaxy; against the candidates of all training images together that is never chance, and means nothing. So
two things are asked of each quantity. Do the night's candidates differ from the training's by more than their number
allows (the population stability index over ten bins of equal mass, Σ (a − e) ln(a / e), and the Kolmogorov-Smirnov
distance, every training image counting alike)? And does the night lie outside of what single images of the training
show? Where only one side is worse, only that side is a drift: a night of fewer artefacts than the training's is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.shards import ShardSet

Floats = npt.NDArray[np.float64]
#: Of each watched quantity quantiles of all ``values`` and of the ``images``' own statistic.
Baseline = Mapping[str, Mapping[str, npt.ArrayLike]]

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
#: How far beyond the training's most extreme image a night must lie, as a share of that image's distance from their
#: median. With 140 images in the baseline, one in a hundred other images of the same simulator does (420 tried; without
#: it 9 %, and more than 0.2 gains nothing).
MARGIN = 0.1


@dataclass(frozen=True)
class Watched:
    """How a quantity is watched.

    Attributes
    ----------
    sides:
        Which are a drift: ``high``, ``low`` or ``both``.
    share:
        The quantile that stands for an image. Where what is bad sits in the upper tail (the artefacts among the
        candidates), it is the upper quartile.
    log:
        Whether distances are ratios.
    least:
        Margin, at least, in units of the quantity.
    count:
        Values an image must have for a statistic of its own: fewer are single sources.
    """

    sides: str = "both"
    share: float = 0.5
    log: bool = False
    least: float = 0.0
    count: int = 5


#: Columns of the candidates.
CANDIDATE_QUANTITIES: Mapping[str, Watched] = {
    "snr": Watched(log=True),
    "peak_score": Watched(log=True),
    "fwhm_ratio": Watched(),
    "elongation": Watched("high", 0.75, log=True),
    "dipole": Watched("high", 0.75),
    "sharpness": Watched(),
    # Below the training's is another noise: correlated pixels of resampled stacks, or variances that are too large.
    "chi2": Watched("both", 0.75, log=True),
    "neg_fraction": Watched("high", 0.75),
    "trail": Watched("high", 0.75, log=True),
    "npix": Watched("high", 0.75, log=True),
    "n_near": Watched("high", 0.75),
    "ref_distance": Watched(),
    "ref_ratio": Watched("both", 0.75, log=True),
    "mask_distance": Watched("low"),
    "masked_fraction": Watched("high", 0.75),
}
#: What there is one of in an image: of its difference's meta, but for ``candidates_per_mpix``.
IMAGE_QUANTITIES: Mapping[str, Watched] = {
    "seeing": Watched(log=True),
    # The night's own check of the noise lets 5 % pass; the scale is mended before anything looks at the pixels.
    "score_sigma_raw": Watched(least=0.05),
    "score_sigma": Watched(least=0.01),
    # Dipoles of ordinary stars begin at some hundredths of a pixel, as rings do at some hundredths of their light.
    "psf_ratio_error": Watched("high", least=0.02),
    "astrometric_sigma_x": Watched("high", least=0.05),
    "astrometric_sigma_y": Watched("high", least=0.05),
    "candidates_per_mpix": Watched("high", log=True),
}
#: Errors of the match that were too small to be measured are not in the meta.
_NOT_MEASURED = ("psf_ratio_error", "astrometric_sigma_x", "astrometric_sigma_y")
SCORE_QUANTITIES: Mapping[str, Watched] = {"score": Watched("low", count=3)}
WATCHED: Mapping[str, Watched] = {**CANDIDATE_QUANTITIES, **IMAGE_QUANTITIES, **SCORE_QUANTITIES}

_NO_DETECTIONS = pd.DataFrame({"image_id": [], "score": []})


@dataclass(frozen=True)
class Seen:
    """What is watched in some images.

    Attributes
    ----------
    values:
        By quantity, of every candidate or detection, with the image it is of: columns image and value.
    images:
        A row an image (its index), a column a quantity: its own statistic, NaN where there is none.
    """

    values: Mapping[str, pd.DataFrame]
    images: pd.DataFrame


def look(candidates: pd.DataFrame, detections: pd.DataFrame, images: pd.DataFrame, key: str) -> Seen:
    """Return what is watched in some images.

    Parameters
    ----------
    candidates, detections:
        Of all of them; detections with ``score``. `key` names the column that says of which image.
    images:
        A row an image: `key`, those of `IMAGE_QUANTITIES` that are known, and ``usable_mpix`` where it is known.
    """
    names = images[key].astype(str).to_numpy()
    table = pd.DataFrame(index=pd.Index(names, name="image"))
    values: dict[str, pd.DataFrame] = {}
    for source, wanted in ((candidates, CANDIDATE_QUANTITIES), (detections, SCORE_QUANTITIES)):
        if key not in source:
            continue
        of = source[key].astype(str).to_numpy()
        for name, watched in wanted.items():
            if name not in source:
                continue
            # How strong, not which way: the sign is a feature of the sky.
            value = (
                np.abs(_numbers(source[name])) if name in ("snr", "peak_score") else _numbers(source[name])
            )
            column = pd.DataFrame({"image": of, "value": value})
            column = column[np.isfinite(value) & np.isin(of, names)]
            values[name] = column
            groups = column.groupby("image")["value"]
            enough = groups.size() >= watched.count
            table[name] = groups.quantile(watched.share)[enough].reindex(names)
    for name in IMAGE_QUANTITIES:
        if name in images:
            known = _numbers(images[name])
            table[name] = np.nan_to_num(known) if name in _NOT_MEASURED else known
    if "usable_mpix" in images and key in candidates:
        count = candidates[key].astype(str).value_counts().reindex(names).fillna(0.0).to_numpy(float)
        area = _numbers(images["usable_mpix"])
        with np.errstate(divide="ignore", invalid="ignore"):
            table["candidates_per_mpix"] = np.where(area > 0.01, count / area, np.nan)
    return Seen(values, table)


def _numbers(column: Any) -> Floats:
    return pd.to_numeric(pd.Series(np.asarray(column)), errors="coerce").to_numpy(float)


def baseline_of(shards: ShardSet) -> dict[str, dict[str, list[float]]]:
    """Return what nights are compared with: quantiles of what is watched in images, and among their candidates.

    Parameters
    ----------
    shards:
        Images that stand for the training, such as the held-out ones.
    """
    area = shards.images["usable_fraction"].to_numpy(float) * shards.shape[0] * shards.shape[1] * 1e-6
    images = shards.images.assign(usable_mpix=area)
    return _described(look(shards.candidates, _NO_DETECTIONS, images, "image_id"))


def scores_of(detections: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Return the baseline's row of detections' scores, columns image_id and score; nothing of too few."""
    images = pd.DataFrame({"image_id": detections["image_id"].astype(str).unique()})
    return _described(look(pd.DataFrame(), detections, images, "image_id"))


def _described(seen: Seen) -> dict[str, dict[str, list[float]]]:
    out: dict[str, dict[str, list[float]]] = {}
    for name in map(str, seen.images):
        own = _numbers(seen.images[name])
        own = own[np.isfinite(own)]
        if len(own) < LEAST:
            continue
        out[name] = {"images": _rounded(np.quantile(own, LEVELS))}
        if name in seen.values:
            column = seen.values[name]
            # Every image counts alike: else a few, full of artefacts, would be what nights are compared with.
            weight = 1.0 / column.groupby("image")["value"].transform("size").to_numpy(float)
            out[name]["values"] = _rounded(_quantiles(column["value"].to_numpy(float), weight))
    return out


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]


def _quantiles(values: Floats, weight: Floats) -> Floats:
    """Return the weighted quantiles at `LEVELS`."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    place = np.searchsorted(total, LEVELS * total[-1], side="left")
    return values[order][np.minimum(place, len(values) - 1)]


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


def limits(name: str, images: npt.ArrayLike) -> tuple[float, float]:
    """Return between which values a night's statistic is like the training's, whose images' quantiles are given.

    The most extreme image and `MARGIN` more on the sides that are a drift; infinite on the others.
    """
    watched = WATCHED[name]
    q = np.asarray(images, float)
    if watched.log:
        q = np.log(np.maximum(q, 1e-9))
    middle = float(np.median(q))
    low, high = q[0] - MARGIN * (middle - q[0]), q[-1] + MARGIN * (q[-1] - middle)
    low, high = min(low, q[0] - watched.least), max(high, q[-1] + watched.least)
    if watched.log:
        low, high = float(np.exp(low)), float(np.exp(high))
    return (
        float(low) if watched.sides != "high" else -np.inf,
        float(high) if watched.sides != "low" else np.inf,
    )


def compare(seen: Seen, baseline: Baseline) -> pd.DataFrame:
    """Return how far each watched quantity of a night is from the training: one row a quantity.

    Parameters
    ----------
    seen:
        What `look` saw in the night's images. What is not in the baseline, or known of none of them, is left out.

    Returns
    -------
    DataFrame
        quantity, n (values), value (median of the images' own statistics), least, most (of the training's images), low,
        high (between which a night is like them), psi, ks, chance, drifted. A night drifted where its value lies beyond
        these limits; of candidates and scores, of which there are `LEAST` or more, only if besides the index is over
        `PSI_LIMIT` and what its own noise adds, and the distance is less probable than `FALSE_CHANCE` over all
        quantities.
    """
    rows = []
    for name, known in baseline.items():
        if name not in seen.images or name not in WATCHED or not isinstance(known, Mapping):
            continue
        own = _numbers(seen.images[name])
        own = own[np.isfinite(own)]
        if not len(own):
            continue
        value, (low, high) = float(np.median(own)), limits(name, known["images"])
        index = distance = chance = float("nan")
        drifted, n = not low <= value <= high, len(own)
        if "values" in known:
            values, n = seen.values[name]["value"].to_numpy(float), len(seen.values[name])
            if n < LEAST:
                continue
            index, (distance, chance) = psi(values, known["values"]), ks(values, known["values"])
            drifted &= index > PSI_LIMIT + (BINS - 1) / n and chance < FALSE_CHANCE / len(baseline)
        least, most = (float(np.asarray(known["images"], float)[end]) for end in (0, -1))
        rows.append((name, n, value, least, most, low, high, index, distance, chance, bool(drifted)))
    columns = ["quantity", "n", "value", "least", "most", "low", "high", "psi", "ks", "chance", "drifted"]
    return pd.DataFrame(rows, columns=columns)
