"""The model of `astrid score` from simulated skies and curated examples, and how far to trust it on each survey."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.alert_fitting import Material, fit_forests, forests_of, simulated_material
from astrid_pipeline.learning.alert_model import LEAST, AlertModel, stamp_features
from astrid_pipeline.learning.alert_scores import agreement
from astrid_pipeline.learning.curated import CuratedSet
from astrid_pipeline.learning.data import build_shards
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.metrics import Value
from astrid_pipeline.learning.shards import ShardSet

Floats = npt.NDArray[np.float64]

#: Skies that are simulated: as many as the packaged model learned from.
SKIES = 200

#: Pairs that are simulated and subtracted as surveys do it: as many as the packaged model learned from.
SURVEY_PAIRS = 300

#: Weight of curated examples among all. With some hundred of them a larger share was not better (see the model card).
SHARE = 0.3

#: Splits that are learned from; the test split is only looked at in the end.
LEARNED: tuple[str, ...] = ("train", "valid")

_FOLDS = 5

#: Called with the stage's name, steps done, steps in all, and figures to show.
Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class AlertTraining:
    """What `train_alerts` made.

    Attributes
    ----------
    model, path:
        The model and its file.
    figures:
        A row a survey (and ``all``) and part of the curated set: survey, part (``learned``: each example judged by
        forests that have not seen its object; ``test``), real, bogus, and the AUC of the model (auc, low, high) and of
        one of simulated stamps alone (simulated, simulated_low, simulated_high).
    seconds:
        By stage.
    """

    model: AlertModel
    path: Path
    figures: pd.DataFrame
    seconds: dict[str, float]


def curated_material(
    curated: CuratedSet, detector: Detector, *, device: str | torch.device | None = None
) -> Material:
    """Return a curated set as what forests learn from, in the order of its table."""
    table = curated.table
    return Material(
        stamp_features(curated.stamps(), detector, device=device),
        table["real"].to_numpy(bool),
        table["object"].to_numpy(object),
        table["weight"].to_numpy(float),
    )


def cross_fitted(
    simulated: Sequence[Material],
    curated: Material,
    detector: Detector,
    *,
    share: float,
    seed: int = 0,
    grown: Callable[[], None] | None = None,
) -> Floats:
    """Return the probability of each curated example by forests that have seen none of its object.

    `grown` is called after each forest.

    Raises
    ------
    ModelError
        If there are fewer than two objects of one kind.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = [pd.unique(curated.groups[curated.real == kind]) for kind in (True, False)]
    folds = min(_FOLDS, *map(len, kinds))
    if folds < 2:
        raise ModelError(
            f"{len(kinds[0])} real and {len(kinds[1])} bogus objects cannot be tried on one another",
            where="curated examples",
            remedy="curate more; two objects of each kind are the least",
        )
    out = np.full(len(curated), np.nan)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splits.split(curated.features, curated.real, curated.groups):
        model = fit_forests(simulated, detector, curated.take(train), share=share, seed=seed, grown=grown)
        out[test] = model.score(curated.features.iloc[test])["real_probability"]
    return out


def by_survey(table: pd.DataFrame, probability: npt.ArrayLike) -> dict[str, tuple[Value, int, int]]:
    """Return AUC (with the interval from drawing objects), real and bogus of each survey of a table, and of all."""
    judged = pd.DataFrame(
        {
            "label": table["real"].to_numpy(float),
            "real_probability": np.asarray(probability, float),
            "object_id": table["object"].to_numpy(object),
            "survey": table["survey"].to_numpy(object),
        }
    )
    parts = {str(name): mine for name, mine in judged.groupby("survey", sort=True)}
    if len(parts) > 1:
        parts["all"] = judged
    return {name: agreement(mine.reset_index(drop=True)) for name, mine in parts.items()}


def train_alerts(
    curated: CuratedSet,
    detector: Detector,
    out: Path,
    *,
    share: float = SHARE,
    skies: Sequence[Path] = (),
    n_images: int = SKIES,
    n_pairs: int | None = None,
    seed: int = 0,
    workers: int = 1,
    device: str | None = None,
    version: str | None = None,
    report: Report | None = None,
) -> AlertTraining:
    """Make a model of alert packets in `out`: ``alerts.safetensors`` and ``alerts.json``.

    It learns from simulated stamps and, with `share` of the weight, from the curated examples' splits `LEARNED`.

    Parameters
    ----------
    detector:
        One from a file; its network looks at the stamps.
    skies:
        Folders of labelled images that the network was not trained on; none: `n_images` of 512² are simulated.
    n_pairs:
        Pairs that are simulated and subtracted as surveys do it (`survey_stamps`). Default: none beside `skies`, else
        `SURVEY_PAIRS` for `SKIES` images, and as many fewer or more as there are of these.

    Raises
    ------
    ModelError
        If there are too few examples.
    """
    tell = report or (lambda *_: None)
    torch.set_num_threads(max(1, workers))
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    # First, since it takes seconds, and what may be missing would be told after minutes of simulating.
    every = curated_material(curated, detector, device=device)
    learned = np.flatnonzero(curated.table["split"].isin(LEARNED))
    test = np.flatnonzero(~curated.table["split"].isin(LEARNED))
    known = every.take(learned)
    good, bad = int(known.real.sum()), int((~known.real).sum())
    if min(good, bad) < LEAST:
        raise ModelError(
            f"{good} real and {bad} bogus curated examples are too few to learn from",
            where=curated.folder,
            remedy=f"curate more; at least {LEAST} of each are needed in the splits {' and '.join(LEARNED)}",
        )
    folders = list(skies)
    if not folders:
        folders = [out / "data" / f"alerts-{n_images}-{seed}"]
        build_shards(
            folders[0],
            n_images,
            seed,
            (512, 512),
            workers,
            lambda a, b: tell("data", a, b, {}),
            split="alerts",
        )
    shards = ShardSet(folders)
    if n_pairs is None:
        n_pairs = 0 if skies else max(1, round(SURVEY_PAIRS * n_images / SKIES))
    simulated = simulated_material(
        shards,
        detector,
        n_pairs=n_pairs,
        seed=seed,
        device=device,
        progress=lambda a, b: tell("survey stamps", a, b, {}),
    )
    seconds["data"] = time.perf_counter() - began
    began = time.perf_counter()
    # Forests without curated examples, with them, and once more for each part of them that is left out.
    total, done = forests_of(len(simulated)) * (2 + _FOLDS), itertools.count(1)

    def grown() -> None:
        tell("fit", next(done), total, {})

    alone = fit_forests(simulated, detector, seed=seed, grown=grown)
    model = fit_forests(
        simulated,
        detector,
        known,
        share=share,
        version=version or f"{curated.hash[:8]}-{seed}",
        seed=seed,
        grown=grown,
    )
    probability = np.full(len(every), np.nan)
    probability[learned] = cross_fitted(simulated, known, detector, share=share, seed=seed, grown=grown)
    probability[test] = model.score(every.features.iloc[test])["real_probability"]
    tell("fit", total, total, {})
    seconds["fit"] = time.perf_counter() - began
    before = alone.score(every.features)["real_probability"].to_numpy(float)
    rows = []
    for part, mine in (("learned", learned), ("test", test)):
        if len(mine):
            table = curated.table.iloc[mine]
            new, old = (by_survey(table, p[mine]) for p in (probability, before))
            rows += [_row(part, name, new[name], old[name][0]) for name in new]
    figures = pd.DataFrame(rows)
    facts: dict[str, Any] = {"data": shards.hash, "curated_data": curated.hash}
    model = replace(model, facts={**model.facts, **facts})
    path = out / "alerts.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    model.save(path)
    told = {
        "facts": dict(model.facts),
        "seconds": seconds,
        "figures": json.loads(figures.to_json(orient="records")),
    }
    (out / "alerts.json").write_text(json.dumps(told, indent=1))
    return AlertTraining(model, path, figures, seconds)


def _row(part: str, survey: str, new: tuple[Value, int, int], old: Value) -> dict[str, Any]:
    auc, real, bogus = new
    return {
        "survey": survey, "part": part, "real": real, "bogus": bogus, "auc": auc.value, "low": auc.low,
        "high": auc.high, "simulated": old.value, "simulated_low": old.low, "simulated_high": old.high,
    }  # fmt: skip
