"""A night's sources: what of it people may be asked about, kept the same when the night is made again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from sqlalchemy import delete, insert, select, text, update

from astrid_pipeline.catalog import sky
from astrid_pipeline.catalog.models import Detection
from astrid_pipeline.catalog.review_models import Source, ValidationEvent
from astrid_pipeline.catalog.rows import plain

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

#: A source of one exposure within this many pixels of where one was before is the same: a new model or threshold
#: moves a centroid by a fraction of a pixel, and two sources this near are blended anyway.
SAME_SOURCE_PX = 2.0

#: Sources of one exposure and pixel at most: as many fields as may overlap at one place.
MOST_OF_ONE_KEY = 100

#: Columns of the products that have one of their own in `sources`.
_OWN = (
    "exposure_id",
    "candidate_id",
    "detection_id",
    "mjd",
    "filter",
    "x",
    "y",
    "ra",
    "dec",
    "flux",
    "flux_err",
    "snr",
    "mag",
    "mag_err",
    "flags",
    "score",
    "class",
    "uncertainty",
    "model_name",
    "model_version",
    "truth",
)
#: What people's labels have made of a source; it goes over to the source's next making.
_CARRIED = ("state", "label_class", "labels", "agreement", "labelled_at", "object_id", "worth")


def reviewable(candidates: pd.DataFrame, detections: pd.DataFrame) -> pd.DataFrame:
    """Return what a person may be asked about: all detections, and the candidates that became none."""
    parts = []
    if len(detections):
        parts.append(detections)
    if len(candidates):
        taken = set(detections["candidate_id"]) if "candidate_id" in detections else set()
        parts.append(candidates[~candidates["candidate_id"].isin(taken)])
    parts = [part.astype(object) for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def keep_sources(
    connection: Connection,
    field_id: int,
    field: str,
    night: dt.date,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    injected: bool = False,
) -> list[dict[str, Any]]:
    """Replace the sources of a field and night, inside the caller's transaction; return the new rows.

    A source that was there before keeps its id, key, object and what people said of it. One that has labels and is
    not found any more stays, marked as not present. Labels of a source that the catalogue had forgotten (its field was
    removed meanwhile) are found again by exposure and place.

    With `injected`, those that were put in are replaced, and no others; the tables have a column `truth` then.
    """
    mine = (Source.field_id == field_id, Source.night == night, Source.injected.is_(injected))
    before = [dict(row) for row in connection.execute(select(*Source.__table__.c).where(*mine)).mappings()]
    table = reviewable(candidates, detections)
    old_of = _same(before, table)
    connection.execute(delete(Source).where(*mine))
    rows = _rows(table, field_id, night, injected)
    new = [row for row, old in zip(rows, old_of, strict=True) if old < 0]
    for row, identity in zip(new, _next_ids(connection, len(new)), strict=True):
        row["id"] = identity
    _remember(connection, field, night, new, injected)
    for row, old in zip(rows, old_of, strict=True):
        if old >= 0:
            row |= {name: before[old][name] for name in ("id", "key", *_CARRIED)}
    found = {int(old) for old in old_of}
    lost = [{**row, "present": False} for i, row in enumerate(before) if i not in found and row["labels"] > 0]
    _distinct_keys(rows, {row["key"] for row in lost} | _keys_of_others(connection, rows))
    if rows or lost:
        table_of: Any = Source.__table__
        connection.execute(insert(table_of), rows + [_by_column(row) for row in lost])
    _validate_detections(connection, field_id, night)
    return rows


def _keys_of_others(connection: Connection, rows: list[dict[str, Any]]) -> set[str]:
    """Return the keys that are taken: by what was put in on the pixel of what was found, or by another field.

    An exposure (or an alert) may lie in several fields that overlap.
    """
    taken = set(connection.scalars(select(Source.key).where(Source.key.in_([row["key"] for row in rows]))))
    if taken:
        numbered = [f"{key}:{number}" for key in taken for number in range(2, MOST_OF_ONE_KEY)]
        taken |= set(connection.scalars(select(Source.key).where(Source.key.in_(numbered))))
    return taken


def _rows(table: pd.DataFrame, field_id: int, night: dt.date, injected: bool = False) -> list[dict[str, Any]]:
    if not len(table):
        return []
    index = sky.hpx29(table["ra"].to_numpy(float), table["dec"].to_numpy(float))
    others = [name for name in table.columns if name not in _OWN and name not in ("hpx29", "field", "night")]
    own = table.reindex(columns=list(_OWN)).to_dict(orient="records")
    extra: list[dict[Any, Any]] = table[others].to_dict(orient="records") if others else [{}] * len(table)
    rows = []
    for values, features, hpx in zip(own, extra, index, strict=True):
        row = plain(values)
        row["flags"] = int(row["flags"] or 0)
        # A detection that the network made without a candidate has the empty text.
        row["candidate_id"] = row["candidate_id"] or None
        rows.append(
            {
                **row,
                "field_id": field_id,
                "night": night,
                "key": f"{row['exposure_id']}:{row['x']:.0f}:{row['y']:.0f}",
                "hpx29": int(hpx) if hpx >= 0 else None,
                "features": {name: value for name, value in plain(features).items() if value is not None},
                "present": True,
                "injected": injected,
                "truth": row.get("truth"),
                "state": "unseen",
                "label_class": None,
                "labels": 0,
                "agreement": None,
                "labelled_at": None,
                "object_id": None,
                "worth": None,
            }
        )
    return rows


def _by_column(row: Mapping[str, Any]) -> dict[str, Any]:
    return {column.name: row[column.name] for column in Source.__table__.c}


def _same(before: list[dict[str, Any]], table: pd.DataFrame) -> np.ndarray:
    """Return for each new row the number of the old one that it is, or -1; nearest pairs first, each used once."""
    result = np.full(len(table), -1, np.int64)
    if not len(table) or not before:
        return result
    old = pd.DataFrame([{"exposure_id": r["exposure_id"], "x": r["x"], "y": r["y"]} for r in before])
    for exposure, there in old.groupby("exposure_id"):
        here = np.flatnonzero((table["exposure_id"] == exposure).to_numpy(bool))
        if not len(here):
            continue
        tree = cKDTree(there[["x", "y"]].to_numpy(float))
        places = table[["x", "y"]].to_numpy(float)[here]
        near = tree.query_ball_point(places, SAME_SOURCE_PX)
        pairs = sorted(
            (float(np.hypot(*(places[i] - tree.data[j]))), i, j) for i, js in enumerate(near) for j in js
        )
        used: set[int] = set()
        for _, i, j in pairs:
            if result[here[i]] < 0 and j not in used:
                result[here[i]] = there.index[j]
                used.add(j)
    return result


def _next_ids(connection: Connection, count: int) -> list[int]:
    if not count:
        return []
    query = text(
        "SELECT nextval(pg_get_serial_sequence('sources', 'id')) FROM generate_series(1, :count)"
    ).bindparams(count=count)
    return [int(value) for value in connection.scalars(query)]


def _distinct_keys(rows: list[dict[str, Any]], used: Iterable[str]) -> None:
    """Two sources may round to one pixel: the later one's key gets a number."""
    seen = set(used)
    # Keys that were given out before stay.
    for row in sorted(rows, key=lambda r: (r["labels"] == 0, r["id"])):
        key, number = row["key"], 2
        while row["key"] in seen:
            row["key"] = f"{key}:{number}"
            number += 1
        seen.add(row["key"])


def _remember(
    connection: Connection, field: str, night: dt.date, rows: list[dict[str, Any]], injected: bool
) -> None:
    """Give new sources the labels that lie at their place, with the key under which they were given."""
    if not rows:
        return
    from astrid_pipeline.catalog.labels import consensus_of, standing

    events = [
        dict(event)
        for event in connection.execute(
            select(*ValidationEvent.__table__.c)
            .where(
                ValidationEvent.field == field,
                ValidationEvent.night == night,
                ValidationEvent.injected.is_(injected),
                ~select(Source.id).where(Source.key == ValidationEvent.source_key).exists(),
            )
            .order_by(ValidationEvent.id)
        ).mappings()
    ]
    if not events:
        return
    places = {event["source_key"]: event for event in events}
    table = pd.DataFrame(rows)[["exposure_id", "x", "y"]]
    keys = list(places)
    for row, old in zip(rows, _same([places[key] for key in keys], table), strict=True):
        if old >= 0:
            row["key"] = keys[old]
            row |= consensus_of(standing([e for e in events if e["source_key"] == keys[old]]))


def _validate_detections(connection: Connection, field_id: int, night: dt.date) -> None:
    # Asked for first, and few: of rows written in this very transaction PostgreSQL believes that there is one, and
    # joins them row by row, minutes for 30,000.
    settled = connection.scalars(
        select(Source.detection_id).where(
            Source.field_id == field_id,
            Source.night == night,
            Source.state.in_(("real", "bogus")),
            Source.injected.is_(False),
            Source.detection_id.is_not(None),
        )
    ).all()
    if settled:
        connection.execute(
            update(Detection)
            .where(
                Detection.field_id == field_id,
                Detection.night == night,
                Detection.detection_id.in_(settled),
            )
            .values(is_validated=True)
        )
