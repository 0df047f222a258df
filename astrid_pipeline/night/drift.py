"""Whether a field's nights still look like what the champion learned from, and like its nights before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from astrid_pipeline.archives.base import Field
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.learning.drift import IMAGE_QUANTITIES, LEVELS, compare, look

#: Nights in a row that have to differ before it counts as lasting: clouds and moonlight last two.
LASTING = 3
#: Nights of its own that a field is compared with, and the fewest that tell what is usual there: the seeing of ten
#: nights spans 1.5 σ on either side of their mean.
OWN_NIGHTS, LEAST_NIGHTS = 30, 10


class Tables(Protocol):
    """What must be known of the store."""

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field that an asset has been made for."""

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return a table asset's partition."""

    def metas(self, asset: str, owner: str, night: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the meta of a frame asset's exposures by exposure."""


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
    return compare(look(candidates, detections, _conditions(notes), "exposure_id"), baseline)


def _conditions(notes: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row an image: exposure_id, usable_mpix, and those of `IMAGE_QUANTITIES` that its meta says."""
    rows = [
        {
            "exposure_id": str(meta.get("exposure_id")),
            "usable_mpix": float(meta.get("good_pixels") or np.nan) * 1e-6,
            **{name: meta.get(name) for name in IMAGE_QUANTITIES if name in meta},
        }
        for meta in notes
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame({"exposure_id": []})


def said(table: pd.DataFrame, others: str = "training's images") -> str:
    """Return what drifted as one line; empty where nothing did. `others` is what was compared with."""
    parts = []
    for row in table[table["drifted"]].to_dict("records"):
        index = "" if row["psi"] != row["psi"] else f", PSI {row['psi']:.2f}"
        parts.append(
            f"{row['quantity']} {row['value']:.3g} ({others} {row['least']:.3g} to {row['most']:.3g}{index})"
        )
    return "; ".join(parts)


def lasting_drift(
    fields: Sequence[Field], products: Tables, baseline: Mapping[str, Any], lasting: int = LASTING
) -> dict[str, str]:
    """Return the fields whose last `lasting` nights all differ in one and the same quantity, and from what.

    From the champion's training; or, in what there is one of in an image (seeing, noise, match), from the field's own
    nights before, of which there must be `LEAST_NIGHTS`: a camera may go out of focus and yet be no worse than another
    survey's.
    """
    out = {}
    for field in fields:
        made = products.nights("detections", field.name)
        nights = made[-lasting:]
        if len(nights) < lasting:
            continue
        against_training, against_own = [], []
        metas = {night: _metas(products, field.name, night) for night in nights}
        own = _own_nights(products, field.name, made[:-lasting][-OWN_NIGHTS:])
        for night in nights:
            key = f"{field.name}|{night}"
            candidates, detections = products.table("candidates", key), products.table("detections", key)
            against_training.append(compare_night(candidates, detections, metas[night], baseline))
            against_own.append(compare_night(pd.DataFrame(), pd.DataFrame(), metas[night], own))
        texts = [_lasting(against_training, "training's images"), _lasting(against_own, "its nights before")]
        if any(texts):
            out[field.name] = f"for {lasting} nights: {'; '.join(text for text in texts if text)}"
    return out


def _lasting(tables: Sequence[pd.DataFrame], others: str) -> str:
    shared = set.intersection(*(set(table.loc[table["drifted"], "quantity"]) for table in tables))
    return said(tables[-1][tables[-1]["quantity"].isin(shared)], others)


def _metas(products: Tables, field: str, night: str) -> list[Mapping[str, Any]]:
    try:
        return list(products.metas("difference_images", field, night).values())
    except MissingProductError:
        return []  # its pixels were removed since


def _own_nights(products: Tables, field: str, nights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a baseline of a field's own nights: quantiles of what is in the meta, a night one value."""
    rows = []
    for night in nights:
        images = _conditions(_metas(products, field, night))
        # Without candidates, so that their number is not asked.
        rows.append(look(pd.DataFrame(), pd.DataFrame(), images, "exposure_id").images.median())
    out = {}
    for name, column in pd.DataFrame(rows).items() if rows else ():
        known = column.dropna().to_numpy(float)
        if len(known) >= LEAST_NIGHTS:
            out[str(name)] = {"images": np.quantile(known, LEVELS)}
    return out
