"""Real or bogus: boosted trees on what was measured of a candidate and what the U-Net says at its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.calibration import sigmoid
from astrid_pipeline.learning.trees import Forest, from_boosting, number_of_trees

Floats = npt.NDArray[np.float64]


def columns_of(table: pd.DataFrame, names: tuple[str, ...]) -> Floats:
    """Return (rows, names) float64 of a table; what is not a number becomes NaN.

    Raises
    ------
    ModelError
        If a column is missing: the model was trained with it.
    """
    missing = [name for name in names if name not in table.columns]
    if missing:
        remedy = "make the candidates with this version's find_candidates, or train the model again"
        raise ModelError(f"the candidates lack the columns {', '.join(missing)}", remedy=remedy)
    out = np.column_stack(
        [pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in names]
    )
    out[~np.isfinite(out)] = np.nan
    return out


@dataclass(frozen=True)
class RealBogus:
    """A forest whose summed answers are a logit.

    Attributes
    ----------
    forest, baseline:
        The logit is the baseline plus the sum of the trees.
    features:
        Columns in the order of the forest's.
    facts:
        How it was trained.
    """

    forest: Forest
    baseline: float
    features: tuple[str, ...]
    facts: Mapping[str, Any]

    def logit(self, table: pd.DataFrame) -> Floats:
        """Return (rows,) logits; a missing value is a value to the trees, a missing column an error."""
        if not len(table):
            return np.zeros(0)
        return self.baseline + self.forest.apply(columns_of(table, self.features)).sum(axis=1)

    def probability(self, table: pd.DataFrame) -> Floats:
        """Return (rows,) probabilities of being real."""
        return sigmoid(self.logit(table))

    def parts(self) -> tuple[weights.Tensors, dict[str, Any]]:
        """Return what is written of it."""
        tensors = self.forest.tensors("real_bogus.")
        tensors["real_bogus.baseline"] = np.array([self.baseline])
        return tensors, {"features": list(self.features), **self.facts}

    @classmethod
    def from_parts(cls, tensors: weights.Tensors, facts: Mapping[str, Any], path: Path) -> RealBogus:
        """Return what `parts` wrote.

        Raises
        ------
        ModelError
            If something is missing or does not fit.
        """
        try:
            forest = Forest.from_tensors(tensors, "real_bogus.")
            features = tuple(facts["features"])
            if int(forest.feature.max(initial=-1)) >= len(features):
                raise ValueError("a tree asks for a column that is not named")
            return cls(forest, float(tensors["real_bogus.baseline"][0]), features, dict(facts))
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"the real/bogus model is damaged: {error}", where=path, remedy="train it again"
            ) from error

    def save(self, path: Path) -> str:
        """Write it alone and return its digest."""
        tensors, facts = self.parts()
        return weights.save(path, "real_bogus", tensors, facts)

    @classmethod
    def load(cls, path: Path) -> RealBogus:
        """Return the model written by `save`; `ModelError` if it cannot be used."""
        tensors, facts, _ = weights.load(path, "real_bogus")
        return cls.from_parts(tensors, facts, path)


def fit_real_bogus(
    table: pd.DataFrame,
    real: npt.ArrayLike,
    features: tuple[str, ...],
    *,
    groups: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    seed: int = 0,
) -> RealBogus:
    """Return boosted trees fitted to labelled peaks.

    The number of trees is chosen on a tenth of the images (`groups`), never on peaks of images trained on. `weight` is
    how much each peak counts, 1 by default.

    Raises
    ------
    ModelError
        If there are fewer than 20 of one kind: nothing could be learned from them.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, y = columns_of(table, features), np.asarray(real).astype(bool)
    if min(y.sum(), (~y).sum()) < 20:
        raise ModelError(
            f"{int(y.sum())} real and {int((~y).sum())} false peaks are too few to learn from",
            where="real/bogus",
            remedy="use more labelled images; at least 20 of each are needed",
        )
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    keys = np.arange(len(y)) if groups is None else pd.factorize(np.asarray(groups))[0]
    options: dict[str, Any] = {
        "learning_rate": 0.08,
        "max_leaf_nodes": 15,  # shallow: some thousands of peaks, not millions
        "min_samples_leaf": 15,
        "l2_regularization": 1.0,
        "random_state": seed,
        "early_stopping": False,
    }
    trees = number_of_trees(rows, y, keys, options, most=300, otherwise=150, weight=w, seed=seed)
    model = HistGradientBoostingClassifier(max_iter=trees, **options).fit(rows, y, w)
    forest, baseline = from_boosting(model)
    facts = {"trees": len(forest.roots), "real": int(y.sum()), "bogus": int((~y).sum()), "seed": seed}
    return RealBogus(forest, baseline, features, facts)
