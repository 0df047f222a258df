"""What other difference images of the same place say of a peak, and what they make of its score.

One pair of frames shows a bright star that subtracts badly much like a star that brightened, and a cosmic ray much like
a sharp new source. The night's other exposures and earlier nights part them: what lies in the sky is there again, with
the sign it had; what hit the detector once is not. An asteroid is not there again either, and a supernova was not there
before, so that nothing is thrown away by rule. Shallow trees are boosted on from the detector's own probability, as
people's labels are (`correction`), on series of exposures in which all of these have their shares.

Only significance is compared, so that no exposure needs a zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.photometry import interpolate, sky_to_pixels
from astrid_pipeline.learning import calibration
from astrid_pipeline.learning.calibration import Calibrator, logit
from astrid_pipeline.learning.correction import BASE, boost, filled, number_of_trees
from astrid_pipeline.learning.object_types import SEEN_SNR, object_features
from astrid_pipeline.learning.real_bogus import columns_of
from astrid_pipeline.learning.trees import Forest, from_gradient_boosting
from astrid_pipeline.learning.weights import Tensors

if TYPE_CHECKING:
    from astropy.wcs import WCS

Floats = npt.NDArray[np.float64]

#: Nights farther back than this count for nothing, days: a supernova has risen since, a reference may have changed.
WINDOW = 30.0
#: A peak below this score is not judged anew: of 529 of them (24 real) on 47 megapixels of series none was raised to
#: the threshold; and of what is, dropout has to be sampled before it is known whether it will be.
FLOOR = 0.2
#: Peaks of a leaf, trees' and calibration's least number of each kind.
_LEAF, _LEAST = 40, 50

#: Known of a peak from its own exposure; the detector's own score, as a logit, comes first of all.
OWN: tuple[str, ...] = ("own_snr", "p_variable", "p_moving")
#: By what is looked at: the same night and filter, earlier nights of the filter, the night's other filters, and the
#: light curve of all of them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "night": ("night_count", "night_mean", "night_strongest", "night_weakest", "night_stacked"),
    "past": ("past_nights", "past_mean", "past_largest", "past_opposite", "past_share"),
    "filters": ("filter_count", "filter_mean", "filter_strongest", "filter_weakest"),
    "curve": (
        "curve_epochs",
        "curve_seen_share",
        "curve_positive_share",
        "curve_log_chi2",
        "curve_smoothness",
        "curve_seen_days",
        "curve_gap_share",
        "curve_before",
        "curve_rise",
    ),
}
#: How many other exposures, or nights, each group rests on.
COUNTS: Mapping[str, str] = {
    "night": "night_count",
    "past": "past_nights",
    "filters": "filter_count",
    "curve": "curve_epochs",
}


@dataclass(frozen=True)
class When:
    """When a difference image was taken: its exposure's name, night (any name of it), MJD and filter."""

    exposure_id: str
    night: str
    mjd: float
    filter: str


def significance_at(
    score: npt.NDArray[np.floating],
    bad: npt.NDArray[np.bool_],
    x: npt.ArrayLike,
    y: npt.ArrayLike,
) -> Floats:
    """Return (N,) significance, σ, at places of a score image, between its pixels; NaN off it or on a `bad` pixel.

    Parameters
    ----------
    score, bad:
        (height, width) S_corr, and where it cannot be used.
    x, y:
        (N,) zero-based pixels; NaN where the frame has no such place.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    height, width = score.shape
    out = np.full(len(xs), np.nan)
    with np.errstate(invalid="ignore"):
        inside = (xs >= -0.5) & (xs < width - 0.5) & (ys >= -0.5) & (ys < height - 0.5)
    rows = np.rint(np.where(inside, ys, 0)).astype(int)
    columns = np.rint(np.where(inside, xs, 0)).astype(int)
    inside &= ~bad[rows, columns]
    if inside.any():
        # Unusable pixels count as nothing, in a neighbourhood as in the network's planes.
        values = np.where(bad | ~np.isfinite(score), 0, score)
        out[inside] = interpolate(values, xs[inside], ys[inside])
    return out


def places_in(wcs: WCS | None, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return (x, y) of sky positions (ICRS degrees) in another frame; NaN without a WCS or out of its reach."""
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    if wcs is None:
        return np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    return sky_to_pixels(wcs, ra, dec)


def epoch_features(
    own: When,
    significance: npt.ArrayLike,
    others: Sequence[tuple[When, npt.ArrayLike]],
    *,
    window: float = WINDOW,
    curves: bool = False,
) -> pd.DataFrame:
    """Return ``own_snr`` and the columns of `GROUPS` for each peak of one exposure.

    Parameters
    ----------
    own:
        The exposure of the peaks.
    significance:
        (N,) S_corr at the peaks in it, σ; its sign is the peak's direction.
    others:
        Any other exposures, in any order, each with (N,) S_corr at the same places of the sky, NaN where it does not
        cover them. Those of later nights, or from before the window, are not looked at: what a night says must not
        depend on when it is made.
    window:
        Days that are looked back.
    curves:
        Whether to work out the light curve's features too: milliseconds a peak.

    Returns
    -------
    DataFrame
        ``night_count``: other exposures of the night and filter at the place; ``night_mean``, ``night_strongest``,
        ``night_weakest``: of their significance in the peak's direction; ``night_stacked``: of the peak and them
        together, the sum over the root of their number. ``past_nights``, ``past_mean`` of the nights' means,
        ``past_largest`` |S|, ``past_opposite``: the largest against the peak's direction, ``past_share`` of |S| from
        `object_types.SEEN_SNR` on. ``filter_*``: as ``night_*``, of the night's other filters. ``curve_*``: those of
        `object_types.object_features`, of all these and the peak itself. NaN where there is none; counts are 0 then.
    """
    peak = np.asarray(significance, float)
    n, sign = len(peak), np.where(np.asarray(significance, float) < 0, -1.0, 1.0)
    ordered = sorted(others, key=lambda pair: (pair[0].mjd, pair[0].exposure_id))
    groups: dict[str, list[tuple[When, Floats]]] = {"night": [], "past": [], "filters": []}
    for when, values in ordered:
        if when.exposure_id == own.exposure_id:
            continue
        pair = (when, sign * np.asarray(values, float))
        if when.night == own.night:
            groups["night" if when.filter == own.filter else "filters"].append(pair)
        elif when.filter == own.filter and own.mjd - window <= when.mjd < own.mjd:
            groups["past"].append(pair)
    out: dict[str, Floats] = {"own_snr": np.abs(peak)}
    for name, prefix in (("night", "night"), ("filters", "filter")):
        values = _stack(groups[name], n)
        count = np.isfinite(values).sum(axis=0)
        out[f"{prefix}_count"] = count.astype(float)
        out[f"{prefix}_mean"] = _over(np.nansum(values, axis=0), count)
        out[f"{prefix}_strongest"] = _over(
            np.nanmax(np.nan_to_num(values, nan=-np.inf), axis=0, initial=-np.inf), count > 0
        )
        out[f"{prefix}_weakest"] = _over(
            np.nanmin(np.nan_to_num(values, nan=np.inf), axis=0, initial=np.inf), count > 0
        )
        if name == "night":
            stacked = (np.abs(peak) + np.nansum(values, axis=0)) / np.sqrt(1 + count)
            out["night_stacked"] = np.where(count > 0, stacked, np.nan)
    out |= _past(groups["past"], n)
    table = pd.DataFrame(out)
    if curves:
        every = [(own, np.abs(peak)), *groups["night"], *groups["past"], *groups["filters"]]
        table = pd.concat([table, _curves(every, n)], axis=1)
    return table


def _stack(pairs: Sequence[tuple[When, Floats]], n: int) -> Floats:
    return np.stack([values for _, values in pairs]) if pairs else np.full((0, n), np.nan)


def _over(total: Floats, count: npt.NDArray[Any]) -> Floats:
    """Return total / count, NaN where the count is 0."""
    return np.where(count > 0, np.where(count > 0, total, 0.0) / np.maximum(count, 1), np.nan)


def _past(pairs: Sequence[tuple[When, Floats]], n: int) -> dict[str, Floats]:
    nights = sorted({when.night for when, _ in pairs})
    means = np.full((len(nights), n), np.nan)
    for i, night in enumerate(nights):
        values = _stack([pair for pair in pairs if pair[0].night == night], n)
        means[i] = _over(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))
    values = _stack(pairs, n)
    known, count = np.isfinite(means).sum(axis=0), np.isfinite(values).sum(axis=0)
    size = np.nan_to_num(np.abs(values), nan=0.0)
    against = np.nan_to_num(-values, nan=-np.inf)
    return {
        "past_nights": known.astype(float),
        "past_mean": _over(np.nansum(means, axis=0), known),
        "past_largest": _over(size.max(axis=0, initial=0.0), known > 0),
        "past_opposite": _over(against.max(axis=0, initial=-np.inf), known > 0),
        "past_share": _over((size >= SEEN_SNR).sum(axis=0).astype(float), count),
    }


def _curves(pairs: Sequence[tuple[When, Floats]], n: int) -> pd.DataFrame:
    """Return the light curve's features of each peak; its flux is the significance, of unit error."""
    names = GROUPS["curve"]
    if len({when.night for when, _ in pairs}) < 2:  # one night has no shape, whatever it shows
        return pd.DataFrame({name: np.full(n, 0.0 if name == COUNTS["curve"] else np.nan) for name in names})
    values = _stack(pairs, n)
    base = pd.DataFrame(
        {"mjd": [w.mjd for w, _ in pairs], "filter": [w.filter for w, _ in pairs], "flux_err": 1.0}
    )
    rows = []
    for k in range(n):
        found = object_features(base.assign(flux=values[:, k]), {})
        rows.append([found[name.removeprefix("curve_")] for name in names])
    return pd.DataFrame(rows, columns=list(names), dtype=float)


@dataclass(frozen=True)
class OtherEpochs:
    """Trees whose sum is added to the logit of a detector's score, and a calibration of the whole.

    Attributes
    ----------
    forest:
        Shallow trees.
    features:
        Columns in the forest's order; the last is `correction.BASE`.
    calibrator:
        From the sum to a probability.
    facts:
        What it was fitted to.
    """

    forest: Forest
    features: tuple[str, ...]
    calibrator: Calibrator
    facts: Mapping[str, Any]

    def covered(self, table: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Return which peaks have another epoch of a kind that the model looks at."""
        counts = [name for name in COUNTS.values() if name in self.features]
        if not counts:
            return np.ones(len(table), bool)
        return np.asarray((columns_of(table, tuple(counts)) > 0).any(axis=1))

    def __call__(self, table: pd.DataFrame, score: npt.ArrayLike) -> Floats:
        """Return (rows,) probabilities of peaks with features whose own score is `score`; untouched without epochs."""
        out = np.array(score, float)
        if not len(table):
            return out
        seen = self.covered(table)
        if seen.any():
            out[seen] = self.calibrator(_raw(self.forest, self.features, table[seen], out[seen]))
        return out

    def parts(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what is written of it."""
        tensors = {**self.forest.tensors("epochs."), **self.calibrator.tensors("epochs.calibrator.")}
        return tensors, {"features": list(self.features), **self.facts}

    @classmethod
    def from_parts(cls, tensors: Tensors, facts: Mapping[str, Any], path: Path) -> OtherEpochs:
        """Return what `parts` wrote; `ModelError` if something is missing or does not fit."""
        try:
            forest, features = Forest.from_tensors(tensors, "epochs."), tuple(facts["features"])
            unknown = set(features) - {BASE, *OWN, *(name for group in GROUPS.values() for name in group)}
            if unknown or int(forest.feature.max(initial=-1)) >= len(features):
                raise ValueError("a tree asks for a column that is not known")
            calibrator = Calibrator.from_tensors(tensors, "epochs.calibrator.")
            return cls(forest, features, calibrator, dict(facts))
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"the model of other epochs is damaged: {error}", where=path, remedy="train it again"
            ) from error


def _raw(forest: Forest, features: tuple[str, ...], table: pd.DataFrame, score: npt.ArrayLike) -> Floats:
    base = logit(score)
    rows = filled(columns_of(table.assign(**{BASE: base}), features))
    return base + forest.apply(rows).sum(axis=1)


def without(table: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Return peaks as if nothing were known from some of the `GROUPS`."""
    names = [name for group in groups for name in GROUPS[group] if name in table]
    counts = set(COUNTS.values())
    return table.assign(**{name: 0.0 if name in counts else np.nan for name in names})


def fit_epochs(
    peaks: pd.DataFrame,
    real: npt.ArrayLike,
    held_out: pd.DataFrame,
    held_out_real: npt.ArrayLike,
    *,
    groups: Sequence[str] = ("night", "filters"),
    real_weight: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
) -> OtherEpochs:
    """Return the model fitted to labelled peaks of series of exposures, calibrated on those of other skies.

    Parameters
    ----------
    peaks, held_out:
        ``score`` (the detector's), ``sky``, `OWN` and the columns of the groups.
    real, held_out_real:
        Whether each is a true change.
    groups:
        Which of `GROUPS` are looked at.
    real_weight:
        What a true change counts for in each of the two, so that its share is the survey's.

    Raises
    ------
    ModelError
        If there are too few of one kind with other epochs.
    """
    features = (*OWN, *(name for group in groups for name in GROUPS[group]), BASE)
    counts = [COUNTS[group] for group in groups]
    tables, truths = [], []
    for table, y in ((peaks, real), (held_out, held_out_real)):
        seen = (table[counts] > 0).any(axis=1).to_numpy() if counts else np.ones(len(table), bool)
        tables.append(table[seen].reset_index(drop=True))
        truths.append(np.asarray(y).astype(bool)[seen])
        if min(truths[-1].sum(), (~truths[-1]).sum()) < _LEAST:
            raise ModelError(
                f"{int(truths[-1].sum())} real and {int((~truths[-1]).sum())} false peaks with other epochs are too "
                "few to learn from",
                where="other epochs",
                remedy=f"simulate more skies; at least {_LEAST} of each are needed",
            )
    (first, second), (y, z) = tables, truths
    base = logit(first["score"])
    rows = filled(columns_of(first.assign(**{BASE: base}), features))
    weight = np.where(y, real_weight[0], 1.0)
    skies = pd.factorize(first["sky"])[0]
    trees = number_of_trees(rows, y, skies, weight, seed, leaf=_LEAF)
    forest = from_gradient_boosting(boost(rows, y, weight, max(trees, 1), seed, leaf=_LEAF))
    raw = _raw(forest, features, second, second["score"])
    calibrator = calibration.choose(raw, z, seed=seed, real_weight=real_weight[1])
    facts = {
        "trees": len(forest.roots),
        "groups": list(groups),
        "real": int(y.sum()),
        "bogus": int((~y).sum()),
        "skies": int(skies.max()) + 1,
        "calibration": calibrator.kind,
    }
    return OtherEpochs(forest, features, calibrator, facts)
