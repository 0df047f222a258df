"""The archive's rows as tables of fixed columns and types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from astropy.table import Table

#: What is kept of an observation; what a row lacks is null.
COLUMNS = (
    "obsid",
    "obs_id",
    "obs_collection",
    "instrument_name",
    "filters",
    "target_name",
    "s_ra",
    "s_dec",
    "s_region",
    "t_min",
    "t_max",
    "t_exptime",
    "t_obs_release",
    "calib_level",
    "dataproduct_type",
    "intentType",
    "dataRights",
    "dataURL",
)
_NUMBERS = ("s_ra", "s_dec", "t_min", "t_max", "t_exptime", "t_obs_release")


def each(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield a frame's rows as named tuples."""
    yield from frame.itertuples(index=False)


def as_frame(table: Table | None) -> pd.DataFrame:
    """Return a masked table as a frame whose missing values are null, its texts as text."""
    out: dict[str, Any] = {}
    if table is None:
        return pd.DataFrame()
    for name in table.colnames:
        column = table[name]
        values = np.ma.getdata(column)
        mask = np.broadcast_to(np.ma.getmaskarray(column), values.shape)
        if values.dtype.kind in "US":
            out[name] = pd.Series(
                [None if m or not str(v) else str(v) for v, m in zip(values, mask, strict=True)], dtype=object
            )
        elif values.dtype.kind == "f":
            out[name] = pd.Series(np.where(mask, np.nan, values))
        else:
            objects = values.astype(object)
            objects[mask] = None
            out[name] = objects
    return pd.DataFrame(out)


def as_rows(table: Table | None) -> pd.DataFrame:
    """Return observations with exactly `COLUMNS`, of fixed types."""
    frame = as_frame(table)
    for name in COLUMNS:
        if name not in frame:
            frame[name] = None
    frame = frame[list(COLUMNS)].copy()
    for name in _NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    # The service marks what it does not know by -999.
    frame["calib_level"] = pd.to_numeric(frame["calib_level"], errors="coerce").fillna(-999).astype("int64")
    for name in set(COLUMNS) - set(_NUMBERS) - {"calib_level"}:
        frame[name] = (
            frame[name].map(lambda v: None if v is None or v != v or v == "None" else str(v)).astype(object)
        )
    return frame[frame.obsid.notna()].reset_index(drop=True)
