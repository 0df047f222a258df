"""Whether a field's nights still look like what the champion learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from astrid_pipeline.archives.base import Field
from astrid_pipeline.imaging.candidates import FEATURES
from astrid_pipeline.learning.drift import IMAGE_QUANTITIES, compare

#: Nights in a row that have to differ before it counts as lasting: clouds and moonlight last two.
LASTING = 3


class Tables(Protocol):
    """What must be known of the store."""

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field that an asset has been made for."""

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return a table asset's partition."""


def compare_night(
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
    notes: Iterable[Mapping[str, Any]],
    baseline: Mapping[str, Any],
) -> pd.DataFrame:
    """Return how far a night is from a model's training, as `learning.drift.compare`.

    Parameters
    ----------
    candidates, detections:
        The night's tables.
    notes:
        The meta of its difference images.
    baseline:
        The model's, from its facts.
    """
    metas = list(notes)
    values: dict[str, Any] = {name: candidates[name] for name in FEATURES if name in candidates}
    values |= {name: [meta.get(name) for meta in metas] for name in IMAGE_QUANTITIES}
    values["score"] = detections["score"]
    return compare(values, baseline)


def said(table: pd.DataFrame) -> str:
    """Return what drifted as one line; empty where nothing did."""
    parts = []
    for row in table[table["drifted"]].to_dict("records"):
        index = "" if row["psi"] != row["psi"] else f", PSI {row['psi']:.2f}"
        parts.append(
            f"{row['quantity']} {row['median']:.3g} (training {row['low']:.3g} to {row['high']:.3g}{index})"
        )
    return "; ".join(parts)


def lasting_drift(
    fields: Sequence[Field], products: Tables, baseline: Mapping[str, Any], lasting: int = LASTING
) -> dict[str, str]:
    """Return the fields whose last `lasting` nights all differ from the training in one and the same quantity."""
    out = {}
    for field in fields:
        nights = products.nights("detections", field.name)[-lasting:]
        if len(nights) < lasting:
            continue
        drifted = []
        for night in nights:
            key = f"{field.name}|{night}"
            table = compare_night(
                products.table("candidates", key), products.table("detections", key), (), baseline
            )
            drifted.append(table[table["drifted"]])
        shared = set.intersection(*(set(table["quantity"]) for table in drifted))
        if shared:
            last = drifted[-1][drifted[-1]["quantity"].isin(shared)]
            out[field.name] = f"for {lasting} nights: {said(last)}"
    return out
