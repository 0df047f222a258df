"""From a product's table to the catalogue's rows."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from astrid_pipeline.catalog import sky
from astrid_pipeline.catalog.review_models import ModelRun, ModelVersion

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

#: Product columns whose name in the catalogue differs.
_RENAMED = {"score": "confidence_score"}


def write_rows(
    connection: Connection, model: type[Any], table: pd.DataFrame, shared: Mapping[str, Any]
) -> None:
    """Insert a product's rows; what has no column goes to `features`, positions get their HEALPix index."""
    if not len(table):
        return
    table = table.rename(columns={old: new for old, new in _RENAMED.items() if new in model.__table__.c})
    known = set(model.__table__.c.keys()) - {"id"} - set(shared)
    frame = table[[name for name in table.columns if name in known]].copy()
    if "hpx29" in known and "hpx29" not in frame:
        frame["hpx29"] = sky.hpx29(table["ra"].to_numpy(float), table["dec"].to_numpy(float))
    if "hpx29" in known:
        frame["hpx29"] = frame["hpx29"].astype(object).where(frame["hpx29"] >= 0, None)
    rows = [plain(row) for row in frame.to_dict(orient="records")]
    if "features" in known:
        # The partition's own columns are in the row already.
        others = [
            name for name in table.columns if name not in known and name not in ("field", "night", *shared)
        ]
        for row, extra in zip(rows, table[others].to_dict(orient="records"), strict=True):
            row["features"] = plain(extra)
    connection.execute(insert(model.__table__), [{**row, **shared} for row in rows])


def keep_model_runs(
    connection: Connection, detections: pd.DataFrame, shared: Mapping[str, Any], run_id: str
) -> None:
    """Note which versions of which models judged a field and night, as far as their detections tell."""
    if not len(detections) or "model_version" not in detections:
        return
    for (name, version), mine in detections.groupby(["model_name", "model_version"]):
        model = {"name": str(name), "version": str(version)}
        connection.execute(upsert(ModelVersion).values(**model).on_conflict_do_nothing())
        identity = connection.scalar(
            select(ModelVersion.id).where(
                ModelVersion.name == model["name"], ModelVersion.version == model["version"]
            )
        )
        connection.execute(
            insert(ModelRun).values(
                **shared, model_id=identity, dagster_run_id=run_id, status="success", detections=len(mine)
            )
        )


def plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row for the database: numpy numbers as Python's, not-a-number and missing as NULL."""
    return {str(name): _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain_value(entry) for entry in value]
    if isinstance(value, bytes):
        return None  # pictures stay in the store
    if isinstance(value, (bool, int, str, dt.date)):
        return value
    return str(value)


def finite(value: Any) -> float | None:
    """Return a number for a nullable column: not-a-number and infinity become NULL."""
    return None if value is None or not math.isfinite(float(value)) else float(value)
