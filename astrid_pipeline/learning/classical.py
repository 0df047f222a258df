"""Classical anomaly detectors on candidate features: Isolation Forest and One-Class SVM, fitted to real changes.

Fitted to all candidates they find the wrong thing, since artefacts are the common case (AUC .25); fitted to known
real ones they say how unlike a real change a candidate is.
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
from astrid_pipeline.learning import weights as files
from astrid_pipeline.learning.real_bogus import columns_of
from astrid_pipeline.learning.trees import Forest, average_path, from_isolation
from astrid_pipeline.learning.weights import Tensors

Floats = npt.NDArray[np.float64]

# 128 trees of 128 rows: Liu et al. 2008 find both enough, and the file stays small.
_TREES, _ROWS = 128, 128

# Share of the real examples that the One-Class SVM may leave outside; its support vectors are at least as many.
_NU = 0.05

#: The SVM's kernel sums over its support vectors; beyond this many examples it gains nothing but size.
_SVM_ROWS = 2000


@dataclass(frozen=True)
class Classical:
    """Both detectors. Attributes are what they compute with; see the methods.

    Attributes
    ----------
    features:
        Columns used.
    median, spread:
        (features,) the real examples' median and half their 16-84 % range: values are centred and scaled by them,
        and held within ± 10. A missing value becomes the median.
    forest, rows:
        Isolation trees, and the rows each was grown from.
    vectors, weights, intercept, gamma:
        (n, features) support vectors, (n,) their weights, and the constants of the SVM.
    facts:
        How it was trained.
    """

    features: tuple[str, ...]
    median: Floats
    spread: Floats
    forest: Forest
    rows: int
    vectors: Floats
    weights: Floats
    intercept: float
    gamma: float
    facts: Mapping[str, Any]

    def scale(self, table: pd.DataFrame) -> Floats:
        """Return (rows, features) scaled values."""
        values = columns_of(table, self.features)
        values = np.where(np.isnan(values), self.median, values)
        return np.clip((values - self.median) / self.spread, -10, 10)

    def isolation(self, table: pd.DataFrame) -> Floats:
        """Return 2^(-E[h] / c(rows)) in 0-1: the nearer 1, the less like a real change (Liu et al. 2008, eq. 2)."""
        if not len(table):
            return np.zeros(0)
        # Trees were grown on float32 values; compared in float64, a value on a threshold could go the other way.
        values = self.scale(table).astype(np.float32).astype(np.float64)
        depth = self.forest.apply(values).mean(axis=1)
        return 2.0 ** (-depth / average_path(self.rows))

    def one_class(self, table: pd.DataFrame) -> Floats:
        """Return minus the SVM's decision function: above 0 it is outside the real ones (Schölkopf et al. 2001)."""
        if not len(table):
            return np.zeros(0)
        out = []
        for part in np.array_split(self.scale(table), max(1, len(table) // 2000)):
            squared = (part**2).sum(1)[:, None] + (self.vectors**2).sum(1) - 2 * part @ self.vectors.T
            out.append(np.exp(-self.gamma * np.maximum(squared, 0)) @ self.weights + self.intercept)
        return -np.concatenate(out)

    def parts(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what is written of it."""
        tensors = self.forest.tensors("classical.forest.")
        tensors |= {
            "classical.median": self.median,
            "classical.spread": self.spread,
            "classical.vectors": self.vectors.astype(np.float32),
            "classical.weights": self.weights,
            "classical.constants": np.array([self.intercept, self.gamma, float(self.rows)]),
        }
        return tensors, {"features": list(self.features), **self.facts}

    @classmethod
    def from_parts(cls, tensors: Tensors, facts: Mapping[str, Any], path: Path) -> Classical:
        """Return what `parts` wrote; `ModelError` if something is missing or does not fit."""
        try:
            features = tuple(facts["features"])
            forest = Forest.from_tensors(tensors, "classical.forest.")
            intercept, gamma, rows = (float(v) for v in tensors["classical.constants"])
            vectors = tensors["classical.vectors"].astype(np.float64)
            median, spread = tensors["classical.median"], tensors["classical.spread"]
            shapes = {vectors.shape[1], len(median), len(spread), len(features)}
            if len(shapes) != 1 or len(vectors) != len(tensors["classical.weights"]):
                raise ValueError("its parts do not fit together")
            if int(forest.feature.max(initial=-1)) >= len(features):
                raise ValueError("a tree asks for a column that is not named")
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"the classical model is damaged: {error}", where=path, remedy="train it again"
            ) from error
        return cls(
            features=features,
            median=median.astype(np.float64),
            spread=spread.astype(np.float64),
            forest=forest,
            rows=int(rows),
            vectors=vectors,
            weights=tensors["classical.weights"].astype(np.float64),
            intercept=intercept,
            gamma=gamma,
            facts=dict(facts),
        )

    def save(self, path: Path) -> str:
        """Write it alone and return its digest."""
        tensors, facts = self.parts()
        return files.save(path, "classical", tensors, facts)

    @classmethod
    def load(cls, path: Path) -> Classical:
        """Return the model written by `save`; `ModelError` if it cannot be used."""
        tensors, facts, _ = files.load(path, "classical")
        return cls.from_parts(tensors, facts, path)


def fit_classical(real: pd.DataFrame, features: tuple[str, ...], *, seed: int = 0) -> Classical:
    """Return both detectors fitted to candidates known to be real (injected, simulated or confirmed).

    Raises
    ------
    ModelError
        If there are fewer than 20.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.svm import OneClassSVM

    if len(real) < 20:
        remedy = "use more labelled images; at least 20 are needed"
        raise ModelError(
            f"{len(real)} real candidates are too few to learn from", where="classical", remedy=remedy
        )
    values = columns_of(real, features)
    known = np.isfinite(values).any(axis=0)
    low, median, high = np.zeros((3, len(features)))
    low[known], median[known], high[known] = np.nanpercentile(values[:, known], [16, 50, 84], axis=0)
    spread = (high - low) / 2
    spread[~(spread > 0)] = 1.0
    scaled = np.clip((np.where(np.isnan(values), median, values) - median) / spread, -10, 10)
    scaled = scaled.astype(np.float32).astype(np.float64)
    rows = min(_ROWS, len(scaled))
    isolation = IsolationForest(n_estimators=_TREES, max_samples=rows, random_state=seed).fit(scaled)
    chosen = np.random.default_rng(seed).permutation(len(scaled))[:_SVM_ROWS]
    # Scaled values have about unit spread, so that squared distances grow with the number of features.
    svm = OneClassSVM(nu=_NU, gamma=1.0 / len(features)).fit(scaled[chosen])
    return Classical(
        features=features,
        median=median,
        spread=spread,
        forest=from_isolation(isolation),
        rows=rows,
        # What is kept is float32: computing with it from the start gives the same answers after loading.
        vectors=svm.support_vectors_.astype(np.float32).astype(np.float64),
        weights=svm.dual_coef_.ravel().astype(np.float64),
        intercept=float(svm.intercept_[0]),
        gamma=1.0 / len(features),
        facts={"real": len(real), "seed": seed},
    )
