"""One probability from several models: logistic stacking, its weights learned on images none of them was fitted to.

Wolpert 1992 (stacked generalization), with a logistic regression on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights as files
from astrid_pipeline.learning.calibration import Calibrator, choose
from astrid_pipeline.learning.weights import Tensors

Floats = npt.NDArray[np.float64]

#: What the ensemble weighs, in order: two logits and two anomaly scores.
INPUTS: tuple[str, ...] = ("unet", "real_bogus", "isolation", "one_class")


@dataclass(frozen=True)
class Ensemble:
    """A weighted sum of standardised inputs, then a calibration.

    Attributes
    ----------
    mean, spread, weights:
        (inputs,) each.
    bias:
        Added to the sum.
    calibrator:
        From the sum to a probability.
    facts:
        How it was trained.
    """

    mean: Floats
    spread: Floats
    weights: Floats
    bias: float
    calibrator: Calibrator
    facts: Mapping[str, Any]

    def logit(self, inputs: Floats) -> Floats:
        """Return (rows,) sums of (rows, `INPUTS`) inputs; a missing input (NaN) counts as its mean."""
        z = (inputs - self.mean) / self.spread
        return np.where(np.isnan(z), 0.0, z) @ self.weights + self.bias

    def probability(self, inputs: Floats) -> Floats:
        """Return (rows,) calibrated probabilities of being real."""
        return self.calibrator(self.logit(inputs)) if len(inputs) else np.zeros(0)

    def parts(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what is written of it."""
        tensors = self.calibrator.tensors("ensemble.calibrator.")
        tensors["ensemble.linear"] = np.stack([self.mean, self.spread, self.weights])
        tensors["ensemble.bias"] = np.array([self.bias])
        return tensors, {"inputs": list(INPUTS), **self.facts}

    @classmethod
    def from_parts(cls, tensors: Tensors, facts: Mapping[str, Any], path: Path) -> Ensemble:
        """Return what `parts` wrote; `ModelError` if something is missing or does not fit."""
        try:
            mean, spread, linear = tensors["ensemble.linear"].astype(np.float64)
            if tuple(facts["inputs"]) != INPUTS or len(mean) != len(INPUTS):
                raise ValueError(f"it weighs {facts['inputs']}")
            calibrator = Calibrator.from_tensors(tensors, "ensemble.calibrator.")
            return cls(mean, spread, linear, float(tensors["ensemble.bias"][0]), calibrator, dict(facts))
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"the ensemble is damaged: {error}", where=path, remedy="train it again"
            ) from error

    def save(self, path: Path) -> str:
        """Write it alone and return its digest."""
        tensors, facts = self.parts()
        return files.save(path, "ensemble", tensors, facts)

    @classmethod
    def load(cls, path: Path) -> Ensemble:
        """Return the model written by `save`; `ModelError` if it cannot be used."""
        tensors, facts, _ = files.load(path, "ensemble")
        return cls.from_parts(tensors, facts, path)


def fit_ensemble(inputs: Floats, real: npt.ArrayLike, *, seed: int = 0, real_weight: float = 1.0) -> Ensemble:
    """Return the stack fitted to (rows, `INPUTS`) of held-out peaks and whether each is real.

    `real_weight` is that of `calibration.fit`.

    Raises
    ------
    ModelError
        If there are fewer than 20 of one kind.
    """
    from sklearn.linear_model import LogisticRegression

    y = np.asarray(real).astype(bool)
    if min(y.sum(), (~y).sum()) < 20:
        raise ModelError(
            f"{int(y.sum())} real and {int((~y).sum())} false held-out peaks are too few to weigh models by",
            where="ensemble",
            remedy="hold out more images; at least 20 of each are needed",
        )
    known = np.isfinite(inputs).any(axis=0)
    mean, spread = np.zeros(len(INPUTS)), np.ones(len(INPUTS))
    mean[known] = np.nanmean(inputs[:, known], axis=0)
    spread[known] = np.nanstd(inputs[:, known], axis=0)
    spread[~(spread > 0)] = 1.0
    z = (inputs - mean) / spread
    z = np.where(np.isnan(z), 0.0, z)
    model = LogisticRegression(C=1.0).fit(z, y, np.where(y, real_weight, 1.0))
    linear, bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
    calibrator = choose(z @ linear + bias, y, seed=seed, real_weight=real_weight)
    facts = {"real": int(y.sum()), "bogus": int((~y).sum()), "calibration": calibrator.kind}
    return Ensemble(mean, spread, linear, bias, calibrator, facts)
