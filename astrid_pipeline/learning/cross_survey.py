"""Trained here, tested there: how far what one survey's labels teach the alert model holds on another survey.

The packaged model has learned from simulated stamps alone; what a survey teaches are shallow trees on top of it
(`correction`), as labels do in a running survey. No example is judged by trees that have seen its object.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from astrid_pipeline.learning.alert_model import FEATURES, AlertModel
from astrid_pipeline.learning.alert_training import by_survey, curated_material
from astrid_pipeline.learning.correction import LEAST, fit_correction
from astrid_pipeline.learning.curated import CuratedSet
from astrid_pipeline.learning.detector import Detector

#: What stands for no survey at all, and for all but the one that is tested on.
SIMULATED, OTHERS = "simulated stamps", "all other surveys"

_FOLDS = 5


def cross_survey(
    curated: CuratedSet,
    model: AlertModel,
    detector: Detector,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Return the ROC AUC of the model, corrected by each survey's labels, on each survey's.

    Parameters
    ----------
    curated:
        Examples of one survey or several, all splits; those of the test split are judged only, and taught by none.
    model:
        What is corrected; it has seen none of the examples.

    Returns
    -------
    DataFrame
        trained_on (`SIMULATED`: the model as it is), tested_on, labels (examples that taught), real, bogus, auc, low,
        high (95 %, from drawing objects), and ``why`` there is no AUC where there is none.
    """
    table = curated.table.reset_index(drop=True)
    material = curated_material(curated, detector, device=device)
    base = model.score(material.features)["real_probability"].to_numpy(float)
    survey, real = table["survey"].to_numpy(object), material.real
    teaches = (table["split"] != "test").to_numpy(bool)
    names = sorted(set(survey))
    rows: list[dict[str, Any]] = []
    for tested in names:
        mine = survey == tested
        for trained in (SIMULATED, *names, *([OTHERS] if len(names) > 2 else [])):
            labels = np.zeros(len(table), bool)
            if trained != SIMULATED:
                labels = teaches & ((survey != tested) if trained == OTHERS else (survey == trained))
            row = {"trained_on": trained, "tested_on": tested, "labels": int(labels.sum()), "why": ""}
            good, bad = int(real[labels].sum()), int((~real[labels]).sum())
            if trained != SIMULATED and min(good, bad) < LEAST:
                row["why"] = f"{good} real and {bad} bogus labels teach nothing"
                rows.append(row)
                continue
            score = base.copy()
            for train, test in _parts(labels, mine, material.groups, real, seed) if labels.any() else []:
                made = fit_correction(
                    material.features.iloc[train],
                    real[train],
                    base[train],
                    FEATURES,
                    groups=material.groups[train],
                    weight=material.weight[train],
                    seed=seed,
                )
                if made is not None:
                    score[test] = made(material.features.iloc[test], base[test])
            auc, n_real, n_bogus = by_survey(table[mine], score[mine])[tested]
            row |= {"real": n_real, "bogus": n_bogus, "auc": auc.value, "low": auc.low, "high": auc.high}
            if auc.value != auc.value:
                row["why"] = f"{n_real} real and {n_bogus} bogus cannot be ranked"
            rows.append(row)
    columns = ["trained_on", "tested_on", "labels", "real", "bogus", "auc", "low", "high", "why"]
    return pd.DataFrame(rows, columns=columns)


def _parts(
    labels: npt.NDArray[np.bool_],
    tested: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    real: npt.NDArray[np.bool_],
    seed: int,
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return rows to teach and rows to judge such that no object is among both; each tested row is judged once."""
    shared = np.isin(groups, groups[labels]) & tested
    # What no label tells about is judged by all of them.
    parts = [(np.flatnonzero(labels), np.flatnonzero(tested & ~shared))]
    if shared.any():
        from sklearn.model_selection import StratifiedGroupKFold

        rows = np.flatnonzero(shared | labels)
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        for train, test in folds.split(rows, real[rows], groups[rows]):
            taught, judged = rows[train], rows[test]
            taught, judged = taught[labels[taught]], judged[tested[judged]]
            if min(real[taught].sum(), (~real[taught]).sum()) >= LEAST:
                parts.append((taught, judged))
    return [(train, test) for train, test in parts if len(test)]


def as_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a row for what was trained on and a column for what was tested on, as text."""
    from astrid_pipeline.learning.metrics import Value

    def text(row: Any) -> str:
        if row.auc != row.auc:
            return "–"
        return f"{Value(row.auc, row.low, row.high)} ({int(row.real)}/{int(row.bogus)})"

    cells = table.assign(cell=[text(row) for row in table.itertuples()])
    order = list(dict.fromkeys(table["trained_on"]))
    wide = cells.pivot(index="trained_on", columns="tested_on", values="cell").loc[order]
    # A survey that taught nothing and was ranked nowhere has no row or column.
    wide = wide.loc[(wide != "–").any(axis=1), (wide != "–").any(axis=0)]
    return wide.rename_axis(None, axis=1).rename_axis("trained on").reset_index()
