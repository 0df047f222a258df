"""Alerts: detections sure enough to be told, as a table and as Avro packets with cut-outs."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.tables import Column, TableSchema

#: A detection is told to others from this probability on: more likely real than not.
MIN_SCORE = 0.5
#: Side of the cut-outs, as in ZTF's packets, so that tools made for those show them at the size they expect.
CUTOUT_SIZE = 63
#: 1.1: objectId and prv_candidates, both with defaults: a reader of 1.0 reads it still.
SCHEMA_VERSION = "1.1"
#: Days that a packet looks back: the season before, so that what comes each year is seen to.
HISTORY_DAYS = 365.0

ALERTS = TableSchema(
    "alerts",
    "Detections that are told to others; the packets lie beside as one Avro file a night",
    (
        Column("alert_id", "string", "the detection's id"),
        Column("exposure_id", "string", "exposure it was found in"),
        Column("mjd", "float64", "middle of the exposure, UTC", "d"),
        Column("filter", "string", "filter name"),
        Column("ra", "float64", "right ascension, ICRS", "deg"),
        Column("dec", "float64", "declination, ICRS", "deg"),
        Column("x", "float64", "column, zero-based", "px"),
        Column("y", "float64", "row, zero-based", "px"),
        Column("flux", "float64", "change of flux, units of the science image"),
        Column("flux_err", "float64", "its error"),
        Column("mag", "float64", "AB magnitude of the absolute change", "mag"),
        Column("mag_err", "float64", "its error", "mag"),
        Column("snr", "float64", "signal-to-noise ratio"),
        Column("score", "float64", "calibrated probability that the change is real"),
        Column("class", "string", "what it looks like"),
        Column("model_name", "string", "model that judged it"),
        Column("model_version", "string", "and its version"),
        Column("flag_names", "string", "mask bits near it"),
    ),
    sort_by=("alert_id",),
)


def select_alerts(detections: pd.DataFrame, min_score: float = MIN_SCORE) -> pd.DataFrame:
    """Return the detections with at least `min_score`, schema `ALERTS`."""
    chosen = detections[detections.score >= min_score]
    return ALERTS.conform(chosen.rename(columns={"detection_id": "alert_id"}))


@cache
def avro_schema() -> dict[str, Any]:
    """Return the parsed Avro schema of a packet."""
    from fastavro import parse_schema

    parsed = parse_schema(json.loads((Path(__file__).parent / "alert.avsc").read_text()))
    assert isinstance(parsed, dict)
    return parsed


@dataclass(frozen=True)
class History:
    """What is known of an alert's object: its name, and its points before the alert (`catalog.alerts.histories`)."""

    object_name: str
    points: pd.DataFrame


def packets(
    alerts: pd.DataFrame,
    differences: Mapping[str, Difference],
    field: str,
    night: str,
    histories: Mapping[str, History] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one Avro record an alert; each exposure is read once.

    Parameters
    ----------
    histories:
        By alert id; an alert without one has null there.
    """
    known = histories or {}
    for exposure_id, mine in alerts.groupby("exposure_id", sort=True):
        difference = differences[str(exposure_id)]
        for row in mine.to_dict("records"):
            yield {
                "schemavsn": SCHEMA_VERSION,
                "publisher": "AstrID",
                "alertId": row["alert_id"],
                "objectId": known[row["alert_id"]].object_name if row["alert_id"] in known else None,
                "field": field,
                "night": night,
                "candidate": {
                    "exposureId": row["exposure_id"],
                    "mjd": _maybe(row["mjd"]),
                    "filter": row["filter"],
                    "ra": _maybe(row["ra"]),
                    "dec": _maybe(row["dec"]),
                    "xpos": row["x"],
                    "ypos": row["y"],
                    "flux": row["flux"],
                    "fluxErr": row["flux_err"],
                    "magpsf": _maybe(row["mag"]),
                    "sigmapsf": _maybe(row["mag_err"]),
                    "snr": row["snr"],
                    "isdiffpos": row["flux"] > 0,
                    "score": row["score"],
                    "class": row["class"],
                    "modelName": row["model_name"] or "",
                    "modelVersion": row["model_version"] or "",
                    "flags": row["flag_names"] or "",
                },
                "prv_candidates": [
                    _earlier(point) for point in known[row["alert_id"]].points.to_dict("records")
                ]
                if row["alert_id"] in known
                else None,
                "cutoutScience": cutout(difference.science, row["x"], row["y"]),
                "cutoutTemplate": cutout(difference.reference, row["x"], row["y"]),
                "cutoutDifference": cutout(difference.data, row["x"], row["y"]),
            }


def _earlier(point: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "exposureId": point["exposure_id"],
        "mjd": float(point["mjd"]),
        "filter": point["filter"],
        "flux": float(point["flux"]),
        "fluxErr": float(point["flux_err"]),
        "snr": float(point["snr"]),
        "isdiffpos": bool(point["flux"] > 0),
        "zeroPoint": _maybe(point["zero_point"]),
        "magpsf": _maybe(point["mag"]),
        "sigmapsf": _maybe(point["mag_err"]),
        "diffmaglim": _maybe(point["mag_limit"]),
        "alertId": point["detection_id"],
        "score": _maybe(point["score"]),
    }


def write_packets(
    alerts: pd.DataFrame,
    differences: Mapping[str, Difference],
    field: str,
    night: str,
    histories: Mapping[str, History] | None = None,
) -> bytes:
    """Return an Avro container of the alerts' packets; readable with the schema it carries alone."""
    from fastavro import writer

    buffer = io.BytesIO()
    # A fixed sync marker: the same alerts give the same bytes.
    writer(
        buffer,
        avro_schema(),
        packets(alerts, differences, field, night, histories),
        codec="deflate",
        sync_marker=b"astrid-alerts-01",
    )
    return buffer.getvalue()


def cutout(image: np.ndarray, x: float, y: float, size: int = CUTOUT_SIZE) -> bytes:
    """Return `size`² pixels around (x, y) as gzipped FITS; pixels outside the image are NaN."""
    from astropy.io import fits
    from astropy.nddata import Cutout2D

    stamp = Cutout2D(image, (x, y), size, mode="partial", fill_value=np.nan)
    buffer = io.BytesIO()
    fits.PrimaryHDU(np.ascontiguousarray(stamp.data, np.float32)).writeto(buffer)
    return gzip.compress(buffer.getvalue(), mtime=0)


def _maybe(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
