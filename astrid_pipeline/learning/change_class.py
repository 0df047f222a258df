"""New point, variable star or mover: boosted trees on the network's heats and on the candidate's shape against the PSF.

The network's heats alone take a point in wide seeing for a trail, and a trail hardly longer than the PSF is wide for a
point: it sees pixels, not the PSF. What is measured of a candidate is measured against the PSF.
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
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.calibration import logit
from astrid_pipeline.learning.real_bogus import columns_of
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.trees import Forest, from_classes_boosting, number_of_trees

Floats = npt.NDArray[np.float64]

#: What the trees look at, in their order.
FEATURES: tuple[str, ...] = (
    *(f"heat_{name}" for name in CLASSES),
    "moving_over_transient",
    "variable_over_transient",
    "elongation",
    "fwhm_ratio",
    "long_axis",
    "trail",
    "sharpness",
    "log_chi2",
    "neg_fraction",
    "log_snr",
    "ref_distance",
    "log_ref_ratio",
)

#: Fewer of one class teach what those few happen to be.
LEAST = 30

#: The trees learn from this many copies of each peak, its heats' logits shaken by so much (standard deviation): heats
#: move with the seeing and from camera to camera, what is measured against the PSF does not. Fitted to seeing over
#: 3.2 px and tried on 2.4 px and less, the share of points and trails told right is .930 without, .951 with .5 and
#: .961 with 1 (from 3.5 to 4.2 px and more .938, .938, .936); at the same seeing .968, .957 and .957.
SHAKEN, COPIES = 0.5, 3

_COLUMNS = (
    "fwhm",
    "fwhm_ratio",
    "elongation",
    "trail",
    "sharpness",
    "chi2",
    "neg_fraction",
    "snr",
    "ref_distance",
    "ref_ratio",
)


def class_features(peaks: pd.DataFrame, rng: np.random.Generator | None = None) -> pd.DataFrame:
    """Return the `FEATURES` of peaks with their candidates' columns (`infer.peak_table`); NaN without a candidate.

    Lengths and distances are in units of the PSF's FWHM. With `rng` the heats' logits are shaken by `SHAKEN`.
    """
    measured = dict(zip(_COLUMNS, columns_of(peaks, _COLUMNS).T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        seeing = measured["fwhm"] / measured["fwhm_ratio"]
    heat = {name: logit(peaks[f"raw_{name}"]) for name in CLASSES}
    if rng is not None:
        heat = {name: value + rng.normal(0, SHAKEN, len(value)) for name, value in heat.items()}
    out = {f"heat_{name}": value for name, value in heat.items()}
    out["moving_over_transient"] = heat["moving"] - heat["transient"]
    out["variable_over_transient"] = heat["variable"] - heat["transient"]
    for name in ("elongation", "fwhm_ratio", "sharpness", "neg_fraction"):
        out[name] = measured[name]
    out["long_axis"] = measured["fwhm_ratio"] * np.sqrt(measured["elongation"])
    out["trail"] = measured["trail"] / seeing
    out["log_chi2"] = np.log10(np.maximum(measured["chi2"], 1e-2))
    out["log_snr"] = np.log10(np.maximum(np.abs(measured["snr"]), 1.0))
    out["ref_distance"] = measured["ref_distance"] / seeing
    out["log_ref_ratio"] = np.log10(np.maximum(measured["ref_ratio"], 1e-3))
    table = pd.DataFrame(out, index=peaks.index)[list(FEATURES)]
    return table.where(np.isfinite(table))


@dataclass(frozen=True)
class ChangeClass:
    """One forest a class; the softmax of their sums are the classes' probabilities.

    Attributes
    ----------
    forests:
        In the order of `CLASSES`.
    baselines:
        (classes,) what is added to the sums.
    facts:
        How it was fitted.
    """

    forests: tuple[Forest, ...]
    baselines: Floats
    facts: Mapping[str, Any]

    def __call__(self, peaks: pd.DataFrame) -> Floats:
        """Return (rows, classes) probabilities that sum to 1, if the change is real."""
        if not len(peaks):
            return np.zeros((0, len(CLASSES)))
        rows = class_features(peaks).to_numpy(np.float64)
        sums = np.column_stack([forest.apply(rows).sum(axis=1) for forest in self.forests]) + self.baselines
        odds = np.exp(sums - sums.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def parts(self) -> tuple[weights.Tensors, dict[str, Any]]:
        """Return what is written of it."""
        tensors: weights.Tensors = {"classes.baselines": self.baselines}
        for name, forest in zip(CLASSES, self.forests, strict=True):
            tensors |= forest.tensors(f"classes.{name}.")
        return tensors, {"features": list(FEATURES), **self.facts}

    @classmethod
    def from_parts(cls, tensors: weights.Tensors, facts: Mapping[str, Any], path: Path) -> ChangeClass:
        """Return what `parts` wrote.

        Raises
        ------
        ModelError
            If something is missing or does not fit.
        """
        remedy = "train it again"
        try:
            forests = tuple(Forest.from_tensors(tensors, f"classes.{name}.") for name in CLASSES)
            baselines = np.asarray(tensors["classes.baselines"], np.float64)
            if list(facts["features"]) != list(FEATURES):
                raise ValueError("it was fitted to other measurements")
            if any(int(f.feature.max(initial=-1)) >= len(FEATURES) for f in forests):
                raise ValueError("a tree asks for a column that is not named")
            if baselines.shape != (len(CLASSES),):
                raise ValueError("not one baseline a class")
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(f"the classes' model is damaged: {error}", where=path, remedy=remedy) from error
        return cls(forests, baselines, dict(facts))


def fit_change_class(peaks: pd.DataFrame, label: npt.ArrayLike, *, seed: int = 0) -> ChangeClass:
    """Return trees fitted to real peaks of known class.

    Parameters
    ----------
    peaks:
        Columns of `infer.peak_table`, and image_id: the number of trees is chosen on a tenth of the images.
    label:
        (rows,) names of `CLASSES`.

    Raises
    ------
    ModelError
        If there are fewer than `LEAST` of a class.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    names = np.asarray(label, object)
    number = np.array([CLASSES.index(str(name)) for name in names], int)
    counts = np.bincount(number, minlength=len(CLASSES))
    if counts.min() < LEAST:
        told = ", ".join(f"{n} {name}" for n, name in zip(counts, CLASSES, strict=True))
        raise ModelError(
            f"too few real peaks to tell classes from: {told}",
            where="classes",
            remedy=f"use more labelled images; {LEAST} of each are needed",
        )
    rng = np.random.default_rng(seed)
    rows = pd.concat([class_features(peaks, rng) for _ in range(COPIES)]).to_numpy(np.float64)
    keys, number = np.tile(pd.factorize(peaks["image_id"])[0], COPIES), np.tile(number, COPIES)
    options: dict[str, Any] = {
        "learning_rate": 0.06,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 20 * COPIES,
        "l2_regularization": 1.0,
        "random_state": seed,
        "early_stopping": False,
    }
    trees = number_of_trees(rows, number, keys, options, most=250, otherwise=100, seed=seed)
    model = HistGradientBoostingClassifier(max_iter=trees, **options).fit(rows, number)
    forests, baselines = from_classes_boosting(model)
    facts = {"trees": trees, "seed": seed, "counts": dict(zip(CLASSES, counts.tolist(), strict=True))}
    return ChangeClass(forests, baselines, facts)
