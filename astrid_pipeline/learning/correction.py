"""What people's labels teach a detector: a correction of its score, and whether it is one for the better.

A survey's labels are few (tens to thousands) beside what a detector has learned from, so nothing of it is thrown away:
shallow trees are boosted on from its own probability (Friedman 2001, with the detector as the first term), and how many
is found by cross-validation over pieces of sky; none, if none helps. The judgement is cross-validated in the same way:
every label is judged by a correction that was fitted without its piece of sky.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.calibration import logit, sigmoid
from astrid_pipeline.learning.matching import average_precision
from astrid_pipeline.learning.metrics import RESAMPLES, Value
from astrid_pipeline.learning.real_bogus import columns_of
from astrid_pipeline.learning.trees import Forest, from_gradient_boosting
from astrid_pipeline.learning.weights import Tensors

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: The detector's own score, as a logit: the trees may also say that it is too sure.
BASE = "base_logit"
#: Stands for a missing value: below all others, so that in every tree what is missing goes left.
_MISSING = -1e9
#: Trees at most, their shrinkage, their depth and the least labels of a leaf: with some tens of labels a deeper tree
#: would learn them by heart.
_MOST_TREES, _RATE, _DEPTH, _LEAF = 120, 0.08, 3, 5
_FOLDS = 5
#: Fewer labels of one kind say nothing that holds elsewhere.
LEAST = 10


@dataclass(frozen=True)
class Correction:
    """Trees whose sum is added to the logit of a detector's score.

    Attributes
    ----------
    forest:
        Shallow trees.
    features:
        Columns in the forest's order; the last is `BASE`.
    facts:
        How many labels it was fitted to, and what they were.
    """

    forest: Forest
    features: tuple[str, ...]
    facts: Mapping[str, Any]

    def __call__(self, table: pd.DataFrame, score: npt.ArrayLike) -> Floats:
        """Return (rows,) corrected probabilities of peaks with features, whose own score is `score`."""
        base = logit(score)
        if not len(table):
            return np.zeros(0)
        rows = filled(columns_of(table.assign(**{BASE: base}), self.features))
        return sigmoid(base + self.forest.apply(rows).sum(axis=1))

    def parts(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what is written of it."""
        return self.forest.tensors("correction."), {"features": list(self.features), **self.facts}

    @classmethod
    def from_parts(cls, tensors: Tensors, facts: Mapping[str, Any], path: Path) -> Correction:
        """Return what `parts` wrote; `ModelError` if something is missing or does not fit."""
        try:
            forest, features = Forest.from_tensors(tensors, "correction."), tuple(facts["features"])
            if int(forest.feature.max(initial=-1)) >= len(features):
                raise ValueError("a tree asks for a column that is not named")
            return cls(forest, features, dict(facts))
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"the correction is damaged: {error}", where=path, remedy="train it again"
            ) from error


def filled(rows: Floats) -> Floats:
    """Return rows without missing values, as the trees of `boost` want them."""
    return np.where(np.isnan(rows), _MISSING, rows)


class _Detector:
    """The first term of the boosting, as scikit-learn asks for it: the logit stands in the last column."""

    def fit(self, x: Floats, y: Any, sample_weight: Any = None) -> _Detector:
        return self

    def predict_proba(self, x: Floats) -> Floats:
        p = sigmoid(x[:, -1])
        return np.column_stack([1 - p, p])


def boost(rows: Floats, real: Bools, weight: Floats, trees: int, seed: int, *, leaf: int = _LEAF) -> Any:
    """Return scikit-learn's trees, boosted on from the logit in the last column; rows miss nothing (`filled`)."""
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(
        init=_Detector(),
        n_estimators=trees,
        learning_rate=_RATE,
        max_depth=_DEPTH,
        min_samples_leaf=leaf,
        random_state=seed,
    )
    return model.fit(rows, real, sample_weight=weight)


def sky_folds(groups: npt.NDArray[Any], real: Bools, seed: int) -> list[tuple[Any, Any]]:
    """Return train and test rows of each fold; a piece of sky is in one test, and both kinds are in each training."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(_FOLDS, len(np.unique(groups)), int(real.sum()), int((~real).sum()))
    if count < 2:
        return []
    splits = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(groups, real, groups)
    return [(a, b) for a, b in splits if 0 < real[a].sum() < len(a)]


def _loss(logits: Floats, real: Bools, weight: Floats) -> float:
    return float(np.average(np.logaddexp(0.0, np.where(real, -logits, logits)), weights=weight))


def number_of_trees(
    rows: Floats, real: Bools, groups: npt.NDArray[np.int64], weight: Floats, seed: int, *, leaf: int = _LEAF
) -> int:
    """Return how many trees make the held-out log loss least; 0 where each makes it worse."""
    folds = sky_folds(groups, real, seed)
    if not folds:
        return 0
    total = np.zeros(_MOST_TREES + 1)
    for train, test in folds:
        model = boost(rows[train], real[train], weight[train], _MOST_TREES, seed, leaf=leaf)
        share = weight[test].sum()
        total[0] += share * _loss(rows[test, -1], real[test], weight[test])
        for k, p in enumerate(model.staged_predict_proba(rows[test])):
            total[k + 1] += share * _loss(logit(p[:, 1]), real[test], weight[test])
    return int(np.argmin(total))


def fit_correction(
    table: pd.DataFrame,
    real: npt.ArrayLike,
    score: npt.ArrayLike,
    features: tuple[str, ...],
    *,
    groups: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Correction | None:
    """Return the correction that labels ask for, or None where the detector is best left as it is.

    Parameters
    ----------
    table:
        Labelled peaks with `features` (`second_stage.real_bogus_features`).
    real:
        What people said.
    score:
        The detector's own probabilities.
    groups:
        Piece of sky of each; what is tried on one is never fitted to it.
    weight:
        How much each counts: where one kind was thinned out in collecting, more.

    Raises
    ------
    ModelError
        If there are fewer than `LEAST` of one kind.
    """
    y = np.asarray(real).astype(bool)
    if min(y.sum(), (~y).sum()) < LEAST:
        raise ModelError(
            f"{int(y.sum())} labels of real ones and {int((~y).sum())} of bogus ones are too few to learn from",
            where="labels",
            remedy=f"label more; at least {LEAST} of each are needed",
        )
    names = (*features, BASE)
    rows = filled(columns_of(table.assign(**{BASE: logit(score)}), names))
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    trees = number_of_trees(rows, y, pd.factorize(np.asarray(groups))[0], w, seed)
    if not trees:
        return None
    forest = from_gradient_boosting(boost(rows, y, w, trees, seed))
    return Correction(forest, names, {"trees": trees, "real": int(y.sum()), "bogus": int((~y).sum())})


@dataclass(frozen=True)
class Verdict:
    """A corrected detector beside the one before, on labels that each correction was fitted without.

    Attributes
    ----------
    before, after:
        Average precision of the detector's own score, and of the corrected one, 95 % interval.
    gain:
        Of their difference, over pieces of sky drawn with replacement.
    labels, pieces:
        How many were judged, and on how many pieces of sky.
    promoted, reason:
        Whether the gain holds beyond its interval, in words.
    """

    before: Value
    after: Value
    gain: Value
    labels: int
    pieces: int
    promoted: bool
    reason: str

    def flat(self) -> dict[str, float]:
        """Return the figures by name."""
        return {
            f"{name}{end}": float(getattr(getattr(self, name), part))
            for name in ("before", "after", "gain")
            for end, part in (("", "value"), (".low", "low"), (".high", "high"))
        }


def judge_correction(
    table: pd.DataFrame,
    real: npt.ArrayLike,
    score: npt.ArrayLike,
    features: tuple[str, ...],
    *,
    groups: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    champion: npt.ArrayLike | None = None,
    judged: npt.ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Verdict, Floats]:
    """Return whether correcting pays, and the (rows,) probabilities of corrections fitted without the row's sky.

    The number of trees is found anew in each fold, without the labels it is judged on. A gain that another draw of sky
    could turn into a loss is none.

    Parameters
    ----------
    table, real, score, features, groups, weight, seed:
        As in `fit_correction`.
    champion:
        Probabilities of the detector to be beaten; `score` by default.
    judged:
        Which labels are judged on; all by default. A champion that has learned from labels is to be judged on others.

    Raises
    ------
    ModelError
        If there are fewer than `LEAST` of one kind, or all labels are of one piece of sky.
    """
    y, base = np.asarray(real).astype(bool), np.asarray(score, float)
    pieces = pd.factorize(np.asarray(groups))[0]
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    if min(y.sum(), (~y).sum()) < LEAST:
        fit_correction(table, y, base, features, groups=groups)  # says what is missing
    folds = sky_folds(pieces, y, seed)
    if not folds:
        raise ModelError(
            "all labels are of one piece of sky: nothing can be tried on another",
            where="labels",
            remedy="label sources of other objects or fields",
        )
    after = base.copy()
    for train, test in folds:
        if min(y[train].sum(), (~y[train]).sum()) < LEAST:
            continue
        made = fit_correction(
            table.iloc[train],
            y[train],
            base[train],
            features,
            groups=pieces[train],
            weight=w[train],
            seed=seed,
        )
        if made is not None:
            after[test] = made(table.iloc[test], base[test])
    rival = base if champion is None else np.asarray(champion, float)
    use = np.ones(len(y), bool) if judged is None else np.asarray(judged, bool)
    count, areas = int(use.sum()), len(np.unique(pieces[use]))
    if not 0 < y[use].sum() < count:
        nothing = Value(float("nan"))
        reason = f"of {count} labels that the champion has not learned from, none are real, or none bogus"
        return Verdict(nothing, nothing, nothing, count, areas, False, reason), after
    before_, after_, gain = _compare(rival[use], after[use], y[use], pieces[use], seed, resamples)
    better = gain.low > 0
    text = (
        f"AP {after_.value:.3f} on {count} labels of {areas} pieces of sky against {before_.value:.3f} "
        f"before: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    )
    reason = f"{text}: better beyond the interval" if better else f"{text}: not better beyond the interval"
    return Verdict(before_, after_, gain, count, areas, better, reason), after


def _compare(
    before: Floats, after: Floats, real: Bools, pieces: npt.NDArray[np.int64], seed: int, resamples: int
) -> tuple[Value, Value, Value]:
    """Return both average precisions and their difference, with intervals from drawing pieces of sky."""
    rows_of = [np.flatnonzero(pieces == piece) for piece in np.unique(pieces)]

    def pair(rows: npt.NDArray[np.int64]) -> tuple[float, float]:
        wanted = int(real[rows].sum())
        y = real[rows].astype(int)
        return average_precision(before[rows], y, wanted), average_precision(after[rows], y, wanted)

    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            pair(np.concatenate([rows_of[k] for k in rng.integers(len(rows_of), size=len(rows_of))]))
            for _ in range(resamples)
        ]
    )
    values = pair(np.arange(len(real)))
    columns = (drawn[:, 0], drawn[:, 1], drawn[:, 1] - drawn[:, 0])
    points = (values[0], values[1], values[1] - values[0])
    low_high = [np.nanpercentile(column, [2.5, 97.5]) for column in columns]
    a, b, c = (Value(p, float(i[0]), float(i[1])) for p, i in zip(points, low_high, strict=True))
    return a, b, c
