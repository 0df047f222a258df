"""The night in one row: what was taken, how good it was, what was found, and what was missed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.night.injected_objects import in_words
from astrid_pipeline.night.injections import completeness, flux_statistics, match
from astrid_pipeline.tables import Column, TableSchema

#: A change below this true S/N is not counted as missed: half of such are below any 5 σ threshold.
TRUTH_MIN_SNR = 5.0

NIGHT_SUMMARY = TableSchema(
    "night_summary",
    "One row a filter: what a field's night holds, how good it was, what was found in it",
    (
        Column("field", "string", "sky field"),
        Column("night", "string", "night, YYYY-MM-DD"),
        Column("filter", "string", "filter name"),
        Column("exposures", "int64", "light frames the archive gave"),
        Column("differenced", "int64", "exposures that became a difference image"),
        Column("problems", "int64", "exposures that some stage could not treat"),
        Column("seeing", "float64", "median FWHM", "px"),
        Column("depth", "float64", "median magnitude of a point source of S/N 5", "mag"),
        Column("zero_point", "float64", "median zero point", "mag"),
        Column("score_sigma", "float64", "median standard deviation of the score where nothing changed"),
        Column("registration", "float64", "largest registration residual, per axis", "px"),
        Column("candidates", "int64", "candidates of either sign"),
        Column("detections", "int64", "detections"),
        Column("megapixels", "float64", "usable pixels searched", "Mpix"),
        Column("injected", "int64", "transients injected into copies"),
        Column("recovered", "int64", "of these, detected"),
        Column("completeness", "string", "JSON list: injected and found a bin of S/N, with 68 % interval"),
        Column(
            "objects",
            "string",
            "JSON list: what lives over the nights and was put in: object_id, kind, snr, phase, detected",
        ),
        Column("flux_bias", "float64", "median relative flux error of injections of S/N ≥ 10"),
        Column("pull_width", "float64", "width of (measured − true) / error of the same"),
        Column("true_changes", "float64", "true changes of S/N ≥ 5, null where the truth is not known"),
        Column("true_found", "float64", "of these, detected; null where the truth is not known"),
        Column(
            "false_alarms", "float64", "detections where nothing changed; null where the truth is not known"
        ),
    ),
    sort_by=("field", "night", "filter"),
)


def summarise(
    field: str,
    night: str,
    observations: pd.DataFrame,
    notes: Mapping[str, Mapping[str, Any]],
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
    injections: pd.DataFrame,
    truth: pd.DataFrame | None,
) -> pd.DataFrame:
    """Return the night's summary, schema `NIGHT_SUMMARY`, one row a filter.

    Parameters
    ----------
    observations, candidates, detections, injections:
        The night's tables.
    notes:
        The meta of its difference images, by exposure id.
    truth:
        What changed in the sky (exposure_id, x, y, snr), where it is known; else None.
    """
    lights = observations[observations.kind == "light"]
    filter_of = dict(zip(lights.exposure_id, lights["filter"], strict=True))
    rows = []
    for name in sorted(set(filter_of.values())):
        ids = {k for k, f in filter_of.items() if f == name}
        made = [notes[k] for k in sorted(ids) if k in notes]
        mine = {
            label: table[table.exposure_id.isin(ids)]
            for label, table in (
                ("candidates", candidates),
                ("detections", detections),
                ("injections", injections),
            )
        }
        rows.append(
            {
                "field": field,
                "night": night,
                "filter": name,
                "exposures": len(ids),
                "differenced": len(made),
                "problems": len(ids) - len(made),
                "seeing": _median(made, "seeing"),
                "depth": _median(made, "depth"),
                "zero_point": _median(made, "zero_point"),
                "score_sigma": _median(made, "score_sigma"),
                "registration": max(
                    (max(_number(m, "dx_rms"), _number(m, "dy_rms")) for m in made), default=np.nan
                ),
                "candidates": len(mine["candidates"]),
                "detections": len(mine["detections"]),
                "megapixels": sum(int(m["good_pixels"]) for m in made) / 1e6,
                "injected": len(mine["injections"]),
                "recovered": int(mine["injections"].detected.sum()),
                "completeness": json.dumps(completeness(mine["injections"])),
                "objects": in_words(mine["injections"]),
                **flux_statistics(mine["injections"]),
                **_against_truth(truth, mine["detections"], {k: notes[k] for k in ids & set(notes)}),
            }
        )
    return NIGHT_SUMMARY.conform(pd.DataFrame(rows))


def _against_truth(
    truth: pd.DataFrame | None, detections: pd.DataFrame, notes: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    if truth is None:
        return {}
    changes = found = false = 0
    for key, note in notes.items():
        # Artefacts are in the truth too; to find one is a false alarm.
        there = truth[(truth.exposure_id == key) & (truth.kind != "artefact")]
        finds = detections[detections.exposure_id == key]
        radius = max(2.0, float(note["fwhm"]))
        bright = there[there.snr.abs() >= TRUTH_MIN_SNR]
        index, _ = match(bright, finds, radius)
        changes += len(bright)
        found += int((index >= 0).sum())
        # A detection near any true change, however faint, is no false alarm; several may lie along a trail.
        near = _near(finds, there, radius)
        false += int((~near).sum())
    return {"true_changes": changes, "true_found": found, "false_alarms": false}


def _near(finds: pd.DataFrame, truth: pd.DataFrame, radius: float) -> np.ndarray:
    if not len(finds) or not len(truth):
        return np.zeros(len(finds), bool)
    from scipy.spatial import cKDTree

    reach = radius + (
        truth["length"].fillna(0).to_numpy(float) / 2 if "length" in truth else np.zeros(len(truth))
    )
    tree = cKDTree(finds[["x", "y"]].to_numpy(float))
    near = np.zeros(len(finds), bool)
    for position, distance in zip(truth[["x", "y"]].to_numpy(float), reach, strict=True):
        near[tree.query_ball_point(position, distance)] = True
    return near


def _number(meta: Mapping[str, Any], key: str) -> float:
    value = meta.get(key)
    return float("nan") if value is None else float(value)


def _median(metas: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [_number(m, key) for m in metas]
    good = [v for v in values if np.isfinite(v)]
    return float(np.median(good)) if good else float("nan")
