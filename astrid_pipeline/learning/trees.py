"""Forests of decision trees as plain arrays, evaluated with numpy.

scikit-learn fits them; what is kept and loaded is arrays only. A file of ours therefore runs no code when it is
loaded, does not depend on the version of scikit-learn that wrote it, and needs none to be applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Forest:
    """Trees laid end to end.

    Attributes
    ----------
    feature:
        (nodes,) int32 column compared at a node; -1 at a leaf.
    threshold:
        (nodes,) float64; a row goes left where its value is at most this.
    left, right:
        (nodes,) int32 positions of the children.
    missing_left:
        (nodes,) bool, whether a row without a value (NaN) goes left.
    value:
        (nodes,) float64, what a leaf says.
    roots:
        (trees,) int32.
    """

    feature: npt.NDArray[np.int32]
    threshold: Floats
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    missing_left: npt.NDArray[np.bool_]
    value: Floats
    roots: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        # A file may come from anybody: positions that point outside, or back, would never end.
        nodes = len(self.feature)
        inner = self.feature >= 0
        here = np.arange(nodes)
        sizes = {len(getattr(self, n)) for n in ("threshold", "left", "right", "missing_left", "value")}
        sound = sizes == {nodes} and len(self.roots) > 0
        sound = sound and bool(np.all((self.roots >= 0) & (self.roots < nodes)))
        for child in (self.left, self.right):
            sound = sound and bool(np.all((child[inner] > here[inner]) & (child[inner] < nodes)))
        if not sound:
            raise ValueError("the trees' positions do not fit together")

    def apply(self, rows: Floats) -> Floats:
        """Return (rows, trees): each tree's answer for each row."""
        out = np.empty((len(rows), len(self.roots)))
        index = np.arange(len(rows))
        for k, root in enumerate(self.roots):
            node = np.full(len(rows), root, np.int64)
            active = index[self.feature[node] >= 0]
            while len(active):
                at = node[active]
                x = rows[active, self.feature[at]]
                goes_left = np.where(np.isnan(x), self.missing_left[at], x <= self.threshold[at])
                node[active] = np.where(goes_left, self.left[at], self.right[at])
                active = active[self.feature[node[active]] >= 0]
            out[:, k] = self.value[node]
        return out

    def tensors(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to be written, their names beginning with `prefix`."""
        return {f"{prefix}{name}": np.ascontiguousarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], prefix: str) -> Forest:
        """Return the forest written under `prefix`."""
        return cls(
            feature=tensors[f"{prefix}feature"].astype(np.int32),
            threshold=tensors[f"{prefix}threshold"].astype(np.float64),
            left=tensors[f"{prefix}left"].astype(np.int32),
            right=tensors[f"{prefix}right"].astype(np.int32),
            missing_left=tensors[f"{prefix}missing_left"].astype(bool),
            value=tensors[f"{prefix}value"].astype(np.float64),
            roots=tensors[f"{prefix}roots"].astype(np.int32),
        )


def _join(parts: Sequence[dict[str, npt.NDArray[Any]]]) -> Forest:
    sizes = [len(part["feature"]) for part in parts]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    joined = {}
    for name in ("feature", "threshold", "left", "right", "missing_left", "value"):
        shift = starts if name in ("left", "right") else np.zeros(len(parts), np.int32)
        joined[name] = np.concatenate(
            [part[name] + s if s else part[name] for part, s in zip(parts, shift, strict=True)]
        )
    return Forest(
        feature=joined["feature"].astype(np.int32),
        threshold=joined["threshold"].astype(np.float64),
        left=joined["left"].astype(np.int32),
        right=joined["right"].astype(np.int32),
        missing_left=joined["missing_left"].astype(bool),
        value=joined["value"].astype(np.float64),
        roots=starts,
    )


def number_of_trees(
    rows: Floats,
    target: npt.NDArray[Any],
    groups: npt.ArrayLike,
    options: Mapping[str, Any],
    *,
    most: int,
    otherwise: int,
    weight: Floats | None = None,
    seed: int = 0,
) -> int:
    """Return how many boosted trees are best on a tenth of the groups, 10 at least, by the mean log loss.

    Parameters
    ----------
    rows, target, weight:
        (rows, features), (rows,) whole numbers from 0, one a class, and (rows,) how much each counts.
    groups:
        (rows,) images: trees are never judged on rows of an image that they were grown on.
    options:
        Of `HistGradientBoostingClassifier`.
    most, otherwise:
        Trees that are grown to choose from, and the answer where a class is on one side of the split only.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    w = np.ones(len(target)) if weight is None else weight
    keys = np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(keys.max() + 1)
    held = np.isin(keys, order[: max(1, (keys.max() + 1) // 10)])
    classes = len(np.unique(target))
    if not len(np.unique(target[held])) == len(np.unique(target[~held])) == classes:
        return otherwise
    trial = HistGradientBoostingClassifier(max_iter=most, **options).fit(rows[~held], target[~held], w[~held])
    at, right = np.arange(int(held.sum())), target[held].astype(int)
    losses = [
        -np.average(np.log(np.clip(p[at, right], 1e-9, 1)), weights=w[held])
        for p in trial.staged_predict_proba(rows[held])
    ]
    return max(int(np.argmin(losses)) + 1, 10)


def from_boosting(model: Any) -> tuple[Forest, float]:
    """Return the trees and the baseline of a fitted binary `HistGradientBoostingClassifier` on numbers.

    The classifier's logit is the baseline plus the sum of the trees' answers.
    """
    return _boosted([predictor for (predictor,) in model._predictors]), float(
        np.ravel(model._baseline_prediction)[0]
    )


def from_classes_boosting(model: Any) -> tuple[tuple[Forest, ...], Floats]:
    """Return one forest a class, and (classes,) baselines, of a fitted classifier of three classes or more on numbers.

    The probabilities are the softmax of the baselines plus the sums of the trees' answers.
    """
    baselines = np.ravel(model._baseline_prediction).astype(np.float64)
    return tuple(_boosted([step[c] for step in model._predictors]) for c in range(len(baselines))), baselines


def _boosted(predictors: Sequence[Any]) -> Forest:
    parts = []
    for predictor in predictors:
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            raise ValueError("trees with categories cannot be written")
        leaf = nodes["is_leaf"].astype(bool)
        parts.append(
            {
                "feature": np.where(leaf, -1, nodes["feature_idx"].astype(np.int64)),
                "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
                "left": nodes["left"].astype(np.int64),
                "right": nodes["right"].astype(np.int64),
                "missing_left": nodes["missing_go_to_left"].astype(bool),
                "value": nodes["value"].astype(np.float64),
            }
        )
    return _join(parts)


def from_gradient_boosting(model: Any) -> Forest:
    """Return the trees of a fitted binary `GradientBoostingClassifier`, shrunk by its rate; its first term is left out.

    Rows may have no missing values: whoever applies the trees gives them the number that stood for one in the fit.
    """
    parts = []
    for (one,) in model.estimators_:
        tree = one.tree_
        leaf = tree.children_left < 0
        parts.append(
            {
                "feature": np.where(leaf, -1, tree.feature),
                "threshold": np.where(leaf, 0.0, tree.threshold),
                "left": tree.children_left.astype(np.int64),
                "right": tree.children_right.astype(np.int64),
                "missing_left": np.ones(tree.node_count, bool),
                "value": np.where(leaf, model.learning_rate * tree.value[:, 0, 0], 0.0),
            }
        )
    return _join(parts)


def average_path(n: npt.ArrayLike) -> Floats:
    """Return c(n), the mean depth of an unsuccessful search in a tree of n (Liu, Ting & Zhou 2008, eq. 1)."""
    n = np.asarray(n, dtype=np.float64)
    many = np.maximum(n, 3)
    long = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    return np.where(n > 2, long, np.where(n == 2, 1.0, 0.0))


def from_isolation(model: Any) -> Forest:
    """Return the trees of a fitted `IsolationForest`; a leaf says its depth and what would follow below it."""
    parts = []
    for tree, columns in zip(model.estimators_, model.estimators_features_, strict=True):
        inner = tree.tree_
        depth = np.zeros(inner.node_count)
        for node in range(inner.node_count):  # children come after their parents
            if inner.children_left[node] >= 0:
                depth[[inner.children_left[node], inner.children_right[node]]] = depth[node] + 1
        leaf = inner.children_left < 0
        parts.append(
            {
                "feature": np.where(leaf, -1, columns[np.where(leaf, 0, inner.feature)]),
                "threshold": np.where(leaf, 0.0, inner.threshold),
                "left": inner.children_left.astype(np.int64),
                "right": inner.children_right.astype(np.int64),
                "missing_left": np.zeros(inner.node_count, bool),
                "value": np.where(leaf, depth + average_path(inner.n_node_samples), 0.0),
            }
        )
    return _join(parts)
