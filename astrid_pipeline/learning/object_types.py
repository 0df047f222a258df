"""What an object is, from all its epochs: a supernova, a variable, or something that moved through.

One pair of frames cannot tell a faint star's flare from a supernova, nor a slow asteroid from either; three epochs
mostly can. Forced photometry at the object's place, seen or not, and what the reference shows there become a dozen
numbers, on which boosted trees decide. They are fitted to simulated light curves (`simulation.object_curves`), whose
cadence, depth and noise vary; no band is assumed, so that any survey's points can be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.calibration import sigmoid
from astrid_pipeline.learning.trees import Forest, from_boosting

Floats = npt.NDArray[np.float64]

TYPES: tuple[str, ...] = ("supernova", "variable", "moving")
PACKAGED = weights.PACKAGED.with_name("objects-v1.safetensors")
#: Fewer epochs cannot show a shape.
LEAST_EPOCHS = 3
#: From this S/N on a point counts as seen; two thirds of a detection's, since the place is known.
SEEN_SNR = 3.5
#: Days without a point that part two nights.
_DAYLIGHT = 0.3
#: A type is told from this probability on; below, it is "don't know".
SURE = 0.6

FEATURES: tuple[str, ...] = (
    "epochs",
    "seen",
    "seen_share",
    "positive_share",
    "largest_snr",
    "opposite_snr",
    "log_chi2",
    "smoothness",
    "seen_days",
    "gap_share",
    "before",
    "after",
    "rise",
    "decline",
    "ref_distance",
    "log_ref_ratio",
    "trail",
)


def object_features(points: pd.DataFrame, place: Mapping[str, Any]) -> dict[str, float]:
    """Return the `FEATURES` of one object.

    Parameters
    ----------
    points:
        mjd (d), flux, flux_err (one unit a filter), filter: forced photometry on every epoch that its place was
        observed. Epochs of one night and filter are averaged.
    place:
        Of the surest detection: ref_distance (px to the nearest reference source), ref_ratio (|flux| over the
        reference's light there), trail (px beyond the PSF); what is not known is NaN.

    Returns
    -------
    All NaN but ``epochs`` where there are fewer than `LEAST_EPOCHS`.
    """
    nights = _nights(points)
    out = dict.fromkeys(FEATURES, float("nan"))
    out["epochs"] = float(nights["night"].nunique())
    if out["epochs"] < LEAST_EPOCHS:
        return out
    day, flux, error = (nights[name].to_numpy(float) for name in ("mjd", "flux", "flux_err"))
    snr = flux / error
    # The filter in which most was seen has the say where order in time matters.
    strongest = nights.groupby("filter")["snr"].apply(lambda s: float((s**2).sum())).idxmax()
    main = (nights["filter"] == strongest).to_numpy()
    seen = np.abs(snr) >= SEEN_SNR
    largest = int(np.abs(snr).argmax())
    sign = float(np.sign(snr[largest]))
    out["seen"] = float(seen.sum())
    out["seen_share"] = float(seen.mean())
    out["positive_share"] = float((snr[seen] > 0).mean()) if seen.any() else float("nan")
    out["largest_snr"] = float(np.abs(snr[largest]))
    out["opposite_snr"] = float(max((-sign * snr).max(), 0.0))
    mean = np.average(flux[main], weights=1 / error[main] ** 2)
    chi2 = (((flux[main] - mean) / error[main]) ** 2).sum() / max(main.sum() - 1, 1)
    out["log_chi2"] = float(np.log10(max(chi2, 1e-3)))
    out["smoothness"] = _smoothness(flux[main], error[main])
    when = day[seen]
    out["seen_days"] = float(np.ptp(when)) if len(when) else 0.0
    inside = (day >= when.min()) & (day <= when.max()) if len(when) else np.zeros(len(day), bool)
    out["gap_share"] = float((~seen[inside]).mean()) if inside.sum() > 1 else 0.0
    early = snr[day < when.min()] if len(when) else snr[:0]
    late = snr[day > when.max()] if len(when) else snr[:0]
    out["before"], out["after"] = float(len(early)), float(len(late))
    top = int(np.argmax(sign * np.where(main, flux / error.clip(1e-30), -np.inf)))
    out["rise"] = _trend(day[main & (day <= day[top])], sign * flux[main & (day <= day[top])])
    out["decline"] = _trend(day[main & (day >= day[top])], sign * flux[main & (day >= day[top])])
    for name in ("ref_distance", "trail"):
        out[name] = _number(place.get(name))
    ratio = _number(place.get("ref_ratio"))
    out["log_ref_ratio"] = float(np.log10(ratio)) if ratio > 0 else float("nan")
    return out


def classify_objects(
    points: pd.DataFrame, places: pd.DataFrame, model: ObjectTypes | None = None
) -> pd.DataFrame:
    """Return what objects are: object_id, epochs, type (None for "don't know"), probability.

    Parameters
    ----------
    points:
        object_id and the columns of `object_features`' points.
    places:
        A row an object: object_id, ref_distance, ref_ratio, trail.
    """
    known = {int(row["object_id"]): {str(k): v for k, v in row.items()} for row in places.to_dict("records")}
    ids = sorted(points["object_id"].astype(int).unique().tolist())
    rows = [object_features(points[points["object_id"] == number], known.get(number, {})) for number in ids]
    features = pd.DataFrame(rows, columns=list(FEATURES), dtype=float)
    if not ids:
        return pd.DataFrame(columns=["object_id", "epochs", "type", "probability"])
    told = (model or load_object_types()).types(features)
    return pd.DataFrame({"object_id": ids, "epochs": features["epochs"].astype(int), **told})


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _nights(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row a filter and night: mjd, flux, flux_err (inverse variance), snr, in order of time."""
    table = points[["mjd", "flux", "flux_err"]].astype(float)
    table["filter"] = points["filter"].fillna("").astype(str)
    numbers = table[["mjd", "flux", "flux_err"]].to_numpy(float)
    table = table[np.isfinite(numbers).all(axis=1) & (numbers[:, 2] > 0)].sort_values("mjd")
    weight = 1 / table["flux_err"] ** 2
    # A night ends where nothing follows for longer than a day is short, whatever the telescope's longitude.
    table = table.assign(
        night=(np.diff(table["mjd"], prepend=-np.inf) > _DAYLIGHT).cumsum(),
        weight=weight,
        wf=weight * table["flux"],
        wt=weight * table["mjd"],
    )
    sums = table.groupby(["filter", "night"], as_index=False)[["weight", "wf", "wt"]].sum()
    out = sums.assign(
        mjd=sums["wt"] / sums["weight"],
        flux=sums["wf"] / sums["weight"],
        flux_err=1 / np.sqrt(sums["weight"]),
    )
    return out.assign(snr=out["flux"] / out["flux_err"]).sort_values("mjd", ignore_index=True)


def _smoothness(flux: Floats, error: Floats) -> float:
    """Return von Neumann's ratio of neighbours' differences to the scatter, less what noise makes of it: 0 for a smooth
    curve, about 2 for one that jumps from point to point."""
    if len(flux) < 3:
        return float("nan")
    noise = float(np.mean(error**2))
    scatter = float(np.var(flux, ddof=1)) - noise
    jumps = float(np.mean(np.diff(flux) ** 2)) - 2 * noise
    return float(np.clip(jumps / scatter, -1, 5)) if scatter > noise else float("nan")


def _trend(day: Floats, flux: Floats) -> float:
    """Return the rank correlation of flux with time; NaN of fewer than three points."""
    if len(day) < 3:
        return float("nan")
    ranks = np.argsort(np.argsort(flux)).astype(float)
    order = np.argsort(np.argsort(day)).astype(float)
    return float(np.corrcoef(ranks, order)[0, 1])


@dataclass(frozen=True)
class ObjectTypes:
    """Forests, one a type, whose logits make probabilities.

    Attributes
    ----------
    forests, baselines:
        By type.
    facts:
        How it was fitted and what it reached.
    """

    forests: Mapping[str, Forest]
    baselines: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, features: pd.DataFrame) -> pd.DataFrame:
        """Return a column a type, rows summing to 1; NaN where there are fewer than `LEAST_EPOCHS`.

        `features` has the columns `FEATURES`.
        """
        rows = features[list(FEATURES)].to_numpy(float)
        rows = np.where(np.isfinite(rows), rows, np.nan)
        each = np.column_stack(
            [sigmoid(self.baselines[name] + self.forests[name].apply(rows).sum(axis=1)) for name in TYPES]
        )
        share = each / np.maximum(each.sum(axis=1, keepdims=True), 1e-12)
        share[~(features["epochs"].to_numpy(float) >= LEAST_EPOCHS)] = np.nan
        return pd.DataFrame(share, columns=list(TYPES), index=features.index)

    def types(self, features: pd.DataFrame) -> pd.DataFrame:
        """Return ``type`` (one of `TYPES`, None for "don't know") and its ``probability``."""
        share = self.probabilities(features)
        values = np.nan_to_num(share.to_numpy(float), nan=-1.0)
        best = values.argmax(axis=1)
        top = values[np.arange(len(values)), best]
        names = [TYPES[b] if p >= SURE else None for b, p in zip(best, top, strict=True)]
        return pd.DataFrame(
            {
                "type": pd.Series(names, index=features.index, dtype=object),
                "probability": np.where(top < 0, np.nan, top),
            },
            index=features.index,
        )

    def save(self, path: Path) -> str:
        """Write it and return its digest."""
        tensors: weights.Tensors = {}
        for name in TYPES:
            tensors |= self.forests[name].tensors(f"{name}.")
            tensors[f"{name}.baseline"] = np.array([self.baselines[name]])
        return weights.save(path, "objects", tensors, {"features": list(FEATURES), "about": dict(self.facts)})


def load_object_types(path: Path | None = None) -> ObjectTypes:
    """Return the model in a file; without one, that which comes with AstrID.

    Raises
    ------
    ModelError
        If the file is absent, damaged, or made for other features.
    """
    path = PACKAGED if path is None else Path(path)
    tensors, facts, _ = weights.load(path, "objects")
    try:
        if list(facts["features"]) != list(FEATURES):
            raise ValueError(f"it looks at {facts['features']}")
        forests = {name: Forest.from_tensors(tensors, f"{name}.") for name in TYPES}
        if any(int(f.feature.max(initial=-1)) >= len(FEATURES) for f in forests.values()):
            raise ValueError("a tree asks for a column that is not named")
        baselines = {name: float(tensors[f"{name}.baseline"][0]) for name in TYPES}
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"the model of object types is damaged: {error}",
            where=path,
            remedy="install AstrID anew, or fit it again",
        ) from error
    return ObjectTypes(forests, baselines, dict(facts.get("about", {})))


def fit_object_types(features: pd.DataFrame, types: npt.ArrayLike, *, seed: int = 0) -> ObjectTypes:
    """Return trees fitted to objects of known type (`FEATURES`; one of `TYPES` each)."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, known = features[list(FEATURES)].to_numpy(float), np.asarray(types)
    forests, baselines = {}, {}
    for name in TYPES:
        model = HistGradientBoostingClassifier(
            max_iter=150,
            learning_rate=0.08,
            max_leaf_nodes=15,
            min_samples_leaf=20,
            l2_regularization=1.0,
            random_state=seed,
            early_stopping=False,
        ).fit(rows, known == name)
        forests[name], baselines[name] = from_boosting(model)
    counts = {name: int((known == name).sum()) for name in TYPES}
    return ObjectTypes(forests, baselines, {"objects": counts, "seed": seed})
