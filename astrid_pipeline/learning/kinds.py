"""What detections are taken for, and which artefacts pass for real: tables of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.matching import FALSE, MATCH_RADIUS, NEITHER, RIGHT
from astrid_pipeline.learning.metrics import Judged, wilson
from astrid_pipeline.learning.schema import CLASSES

#: What one epoch can tell of a change.
TYPES: tuple[str, ...] = ("point", "trail", "artefact")

#: A false detection this near to an artefact is its doing: an artefact is larger than a star.
ARTEFACT_RADIUS = 5.0

#: Artefacts that are lines, whose truth says how long and which way.
_LINES = ("bad_column", "bleed", "satellite_trail", "edge")

Floats = npt.NDArray[np.float64]


def classes(judged: Judged, threshold: float) -> pd.DataFrame:
    """Return the confusion of what was found: rows the true label, columns the class said."""
    good = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    true = judged.truth["label"].reindex(good["truth"]).to_numpy(object)
    table = pd.crosstab(
        pd.Series(true, name="truth"), pd.Series(good["class"].to_numpy(object), name="found")
    )
    return table.reindex(index=list(CLASSES), columns=list(CLASSES), fill_value=0)


def recall_by_class(judged: Judged, threshold: float) -> pd.DataFrame:
    """Return recall by true label, S/N ≥ `judged.min_snr`: label, truths, found, recall, low, high (Wilson, 95 %)."""
    good = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    asked = judged.truth[judged.truth["snr"] >= judged.min_snr]
    found = asked.index.isin(good["truth"])
    rows = []
    for label in CLASSES:
        mine = (asked["label"] == label).to_numpy()
        n, k = int(mine.sum()), int((mine & found).sum())
        rows.append((label, n, k, k / n if n else float("nan"), *wilson(k, n)))
    return pd.DataFrame(rows, columns=["label", "truths", "found", "recall", "low", "high"])


def types(judged: Judged, candidates: Judged, threshold: float) -> pd.DataFrame:
    """Return how often points, trails and artefacts are taken for which: rows the truth, columns what is said.

    True changes are those of S/N ≥ `judged.min_snr`; one that is not found is taken for an artefact. Artefacts are the
    candidates (|S_corr| over the limit) that are no true change of any S/N; one that no detection lies on is taken for
    an artefact, rightly.

    Parameters
    ----------
    judged:
        The detections, with their class.
    candidates:
        The candidates of the same images, judged with a `min_snr` of the faintest truth.
    """
    out = np.zeros((len(TYPES), len(TYPES)), np.int64)
    point, trail, artefact = range(len(TYPES))

    def type_of(name: str) -> int:
        return trail if name == "moving" else point

    found = judged.table[judged.table["score"] >= threshold]
    right = found[found["verdict"] == RIGHT].drop_duplicates("truth").set_index("truth")["class"]
    asked = judged.truth[judged.truth["snr"] >= judged.min_snr]
    said = right.reindex(asked.index)
    for label, answer in zip(asked["label"], said, strict=True):
        out[type_of(label), artefact if pd.isna(answer) else type_of(answer)] += 1
    bad = candidates.table[candidates.table["verdict"] == FALSE]
    places = {str(k): v for k, v in found[found["verdict"] != RIGHT].groupby("image_id")}
    for image, x, y in zip(bad["image_id"].astype(str), bad["x"], bad["y"], strict=True):
        here = places.get(image)
        if here is None:
            out[artefact, artefact] += 1
            continue
        far = np.hypot(here["x"].to_numpy(float) - x, here["y"].to_numpy(float) - y)
        nearest = int(far.argmin())
        on_it = far[nearest] <= MATCH_RADIUS
        out[artefact, type_of(str(here["class"].iat[nearest])) if on_it else artefact] += 1
    return pd.DataFrame(out, index=list(TYPES), columns=list(TYPES))


def share_right(confusion: pd.DataFrame) -> float:
    """Return the share of a confusion's diagonal; NaN where it is empty."""
    total = float(confusion.to_numpy().sum())
    return float(np.trace(confusion.to_numpy())) / total if total else float("nan")


def artefacts(judged: Judged, truth: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return, by kind of artefact on usable pixels, how many there were and how many passed for real.

    One passes where a false detection lies within `ARTEFACT_RADIUS` of it: of its centre, of any point of it where it
    is a line, of its rim or inside where it is a ghost. What lies on a true change, however faint, is not its doing.

    Returns
    -------
    DataFrame
        kind, count, passed, rejected, low, high (Wilson, 95 %, of the share rejected).
    """
    table = judged.table
    false = table[(table["verdict"] == FALSE) & (table["score"] >= threshold)]
    places = {str(k): v[["x", "y"]].to_numpy(float) for k, v in false.groupby("image_id")}
    rows = truth[(truth["label"] == "artefact") & truth["usable"]]
    passed = [
        row["image_id"] in places and bool((_distance(places[row["image_id"]], row) < ARTEFACT_RADIUS).any())
        for row in rows.to_dict("records")
    ]
    each = pd.DataFrame({"kind": rows["kind"].to_numpy(object), "passed": np.array(passed, bool)})
    out = each.groupby("kind")["passed"].agg(["size", "sum"]).reset_index()
    out.columns = pd.Index(["kind", "count", "passed"])
    limits = [wilson(int(n - k), int(n)) for n, k in zip(out["count"], out["passed"], strict=True)]
    return out.assign(
        rejected=1 - out["passed"] / out["count"],
        low=[low for low, _ in limits],
        high=[high for _, high in limits],
    )


def _distance(places: Floats, artefact: Mapping[Any, Any]) -> Floats:
    """Return (n,) distances in px of (n, 2) places from one row of the truth."""
    kind, x, y = (artefact[name] for name in ("kind", "x", "y"))
    length, angle = (float(np.nan_to_num(artefact[name])) for name in ("length", "angle"))
    dx, dy = places[:, 0] - x, places[:, 1] - y
    if kind == "ghost":
        return np.maximum(np.hypot(dx, dy) - length / 2, 0.0)
    if kind not in _LINES:
        return np.hypot(dx, dy)
    ux, uy = np.cos(angle), np.sin(angle)
    along = np.clip(dx * ux + dy * uy, -length / 2, length / 2)
    return np.hypot(dx - along * ux, dy - along * uy)


def looking_load(
    judged: Judged, candidates: Judged, *, lost: float = 0.01, real_weight: float = 1.0
) -> float:
    """Return which share of the candidates a person has to look at to lose at most `lost` of what was found at all.

    Detections are shown by falling score; true changes that are no detection at any score were lost before.

    Parameters
    ----------
    candidates:
        The candidates of the same images, judged with a `min_snr` of the faintest truth.
    real_weight:
        Where true changes are so many times as frequent. At 20 a megapixel they alone are a sixth of all candidates.
    """
    ranked = judged.table[judged.table["verdict"] != NEITHER].sort_values(
        "score", ascending=False, kind="stable"
    )
    right = (ranked["verdict"] == RIGHT).to_numpy()
    false = candidates.table["verdict"] == FALSE
    every = float(false.sum()) + real_weight * float((~false).sum())
    if not right.any() or not every:
        return float("nan")
    needed = int(np.ceil((1 - lost) * right.sum()))
    shown = int(np.flatnonzero(np.cumsum(right) >= needed)[0]) + 1
    return float((~right[:shown]).sum() + real_weight * right[:shown].sum()) / every


def recall_at_rank(judged: Judged, ranks: tuple[int, ...] = (1, 2, 5, 10, 20, 50)) -> pd.DataFrame:
    """Return, for an image's K surest detections, the share of its true changes that are among them: rank, recall."""
    table = judged.table[judged.table["verdict"] != NEITHER]
    order = table.sort_values("score", ascending=False, kind="stable").groupby("image").cumcount()
    right = order[(table["verdict"] == RIGHT).reindex(order.index)]
    wanted = int(judged.wanted.sum())
    rows = [(k, float((right < k).sum()) / wanted if wanted else float("nan")) for k in ranks]
    return pd.DataFrame(rows, columns=["rank", "recall"])
