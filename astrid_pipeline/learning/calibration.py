"""From a classifier's logits to probabilities that mean what they say, and how far they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

KINDS: tuple[str, ...] = ("platt", "temperature", "isotonic")
#: Strictly rising ones: what ranked above another still does. An isotonic map makes the surest third of all equal.
RISING: tuple[str, ...] = ("temperature", "platt", "beta")

#: Train and test rows of each fold.
Splits = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def logit(probability: npt.ArrayLike, floor: float = 1e-6) -> Floats:
    """Return log(p / (1 - p)), p held within [floor, 1 - floor]."""
    p = np.clip(np.asarray(probability, dtype=np.float64), floor, 1 - floor)
    return np.log(p) - np.log1p(-p)


def sigmoid(value: npt.ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-value)) without overflow."""
    from scipy.special import expit

    return expit(np.asarray(value, dtype=np.float64))


@dataclass(frozen=True)
class Calibrator:
    """A monotonic map from logits to probabilities.

    Attributes
    ----------
    kind:
        ``platt`` (sigmoid(a z + b)), ``temperature`` (sigmoid(z / T), stored as a = 1 / T), ``isotonic``, or ``beta``
        (sigmoid(a ln p − b ln(1 − p) + c), p = sigmoid(z); Kull, Silva Filho & Flach 2017): slopes of their own at both
        ends, for scores that are too sure on one side only.
    parameters:
        (2,) a and b, (3,) a, b and c; for isotonic (2, knots): logits and their probabilities.
    """

    kind: str
    parameters: Floats

    def __call__(self, logits: npt.ArrayLike) -> Floats:
        """Return probabilities of `logits`."""
        z = np.asarray(logits, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(z, self.parameters[0], self.parameters[1])
        if self.kind == "beta":
            return sigmoid(_ends(z) @ self.parameters)
        return sigmoid(self.parameters[0] * z + self.parameters[1])

    def tensors(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to be written, their names beginning with `prefix`."""
        return {f"{prefix}{self.kind}": np.ascontiguousarray(self.parameters)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], prefix: str) -> Calibrator:
        """Return the calibrator written under `prefix`."""
        for kind in {*KINDS, *RISING}:
            if f"{prefix}{kind}" in tensors:
                return cls(kind, tensors[f"{prefix}{kind}"].astype(np.float64))
        raise KeyError(f"{prefix}{{{','.join(KINDS)}}}")


def _ends(logits: Floats) -> Floats:
    """Return (n, 3): ln p, −ln(1 − p) and 1 of logits."""
    return np.column_stack([-np.logaddexp(0, -logits), np.logaddexp(0, logits), np.ones(len(logits))])


def _check(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    z = np.asarray(logits, dtype=np.float64).ravel()
    y = np.asarray(labels).astype(bool).ravel().astype(np.float64)
    if len(z) != len(y):
        raise ValueError(f"{len(z)} logits but {len(y)} labels")
    if not 0 < y.sum() < len(y):
        raise ValueError("calibration needs examples of both kinds")
    return z, y


def shift_prior(probability: npt.ArrayLike, ratio: float) -> Floats:
    """Return probabilities for skies where real examples are `ratio` times as frequent, false ones as before.

    Bayes: the odds are multiplied by the ratio (Saerens, Latinne & Decaestecker 2002, eq. 4, with the false ones' rate
    unchanged).
    """
    p = np.asarray(probability, dtype=np.float64)
    return ratio * p / (ratio * p + (1 - p))


def fit(kind: str, logits: npt.ArrayLike, labels: npt.ArrayLike, *, real_weight: float = 1.0) -> Calibrator:
    """Return the calibrator of a `kind` that makes `labels` most likely.

    Platt's targets are drawn in from 0 and 1 as in Platt (1999), so that separable data do not give an infinite
    slope.

    Parameters
    ----------
    real_weight:
        What one real example counts for: the rate of real ones where the probabilities are to hold, over their rate
        among the examples.

    Raises
    ------
    ValueError
        If all labels are the same, or there is no such kind.
    """
    z, y = _check(logits, labels)
    weight = np.where(y > 0, real_weight, 1.0)
    weight /= weight.sum()
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        # Nothing seen makes a probability of exactly 0 or 1: one miss among n + 2 is always possible.
        edge = 1.0 / (len(y) + 2)
        model = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(z, y, weight)
        return Calibrator(kind, np.stack([model.X_thresholds_, model.y_thresholds_]).astype(np.float64))
    if kind not in (*KINDS, *RISING):
        raise ValueError(f"no calibration is called {kind!r}; there are {', '.join((*KINDS, 'beta'))}")
    if kind == "beta":
        return _fit_beta(z, y, weight)
    from scipy.optimize import minimize

    positive, negative = y.sum(), len(y) - y.sum()
    target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    free = 2 if kind == "platt" else 1

    def loss(p: Floats) -> tuple[float, Floats]:
        slope, shift = p[0], p[1] if free == 2 else 0.0
        value = slope * z + shift
        residual = (sigmoid(value) - target) * weight
        nll = float(np.sum((np.logaddexp(0, value) - target * value) * weight))
        return nll, np.array([residual @ z, residual.sum()])[:free]

    best = minimize(loss, np.array([1.0, 0.0])[:free], jac=True, method="BFGS")
    slope, shift = best.x[0], best.x[1] if free == 2 else 0.0
    if (
        slope <= 0
    ):  # the classifier ranks no better than chance; keep the order it gave, and say the base rate
        slope, shift = 1e-6, float(np.log((real_weight * positive + 1) / (negative + 1)))
    return Calibrator(kind, np.array([slope, shift]))


def _fit_beta(z: Floats, y: Floats, weight: Floats) -> Calibrator:
    """Return the most likely beta calibration with slopes above 0."""
    from scipy.optimize import minimize

    ends = _ends(z)

    def loss(p: Floats) -> tuple[float, Floats]:
        value = ends @ p
        return float(np.sum((np.logaddexp(0, value) - y * value) * weight)), ends.T @ (
            (sigmoid(value) - y) * weight
        )

    bounds = [(1e-3, None), (1e-3, None), (None, None)]
    best = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return Calibrator("beta", np.asarray(best.x, np.float64))


def log_loss(probability: npt.ArrayLike, labels: npt.ArrayLike, *, real_weight: float = 1.0) -> float:
    """Return the mean negative log likelihood, in nats; `real_weight` as in `fit`."""
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-9, 1 - 1e-9)
    y = np.asarray(labels).astype(bool)
    loss = np.where(y, np.log(p), np.log1p(-p))
    return float(-np.average(loss, weights=np.where(y, real_weight, 1.0)))


def choose(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    real_weight: float = 1.0,
    kinds: Sequence[str] = KINDS,
    splits: Splits | None = None,
) -> Calibrator:
    """Return the kind of calibrator with the least log loss in cross-validation, fitted to all of the data.

    Isotonic has as many parameters as the data allow; it is not considered below 1000 examples, where it copies
    their noise (Niculescu-Mizil & Caruana 2005).

    Parameters
    ----------
    folds, seed:
        Of the cross-validation, by chance; or `splits`, where rows belong together.
    """
    z, y = _check(logits, labels)
    tried = [kind for kind in kinds if kind != "isotonic" or len(z) >= 1000]
    if splits is None:
        fold = np.empty(len(z), int)
        fold[np.random.default_rng(seed).permutation(len(z))] = np.arange(len(z)) % folds
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]
    if not splits or any(not 0 < y[train].sum() < len(train) for train, _ in splits):
        return fit("platt", z, y, real_weight=real_weight)  # too few of one kind to compare
    judged = np.concatenate([test for _, test in splits])
    losses = {}
    for kind in tried:
        guess = np.empty(len(z))
        for train, test in splits:
            guess[test] = fit(kind, z[train], y[train], real_weight=real_weight)(z[test])
        losses[kind] = log_loss(guess[judged], y[judged], real_weight=real_weight)
    return fit(min(losses, key=lambda kind: losses[kind]), z, y, real_weight=real_weight)


def reliability(
    probability: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    bins: int = 15,
    weights: npt.ArrayLike | None = None,
) -> Floats:
    """Return (bins, 3): mean probability, share that is real, and weight, in bins of equal count.

    `weights` is what each row counts for; without it each counts once, and the third column is the count.
    """
    p = np.asarray(probability, dtype=np.float64).ravel()
    y = np.asarray(labels).astype(np.float64).ravel()
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    rows = [[np.average(p[i], weights=w[i]), np.average(y[i], weights=w[i]), w[i].sum()] for i in parts]
    return np.array(rows).reshape(-1, 3)


def expected_calibration_error(
    probability: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    bins: int = 15,
    weights: npt.ArrayLike | None = None,
) -> float:
    """Return Σ n_b |p̄_b - share_b| / n over bins of equal count; NaN without data (Naeini et al. 2015)."""
    table = reliability(probability, labels, bins=bins, weights=weights)
    if not len(table):
        return float("nan")
    return float(np.average(np.abs(table[:, 0] - table[:, 1]), weights=table[:, 2]))
