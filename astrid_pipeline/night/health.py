"""How the survey stands: its nights in one table, and what a person on call has to know about the data."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from astrid_pipeline.archives.base import Field, open_archive
from astrid_pipeline.errors import AstridError, MissingProductError
from astrid_pipeline.night.injected_objects import followed
from astrid_pipeline.night.plan import Listing, made_nights
from astrid_pipeline.tables import Column, TableSchema

#: Days after which a night with exposures should have been made.
LATE_DAYS = 3
#: Share of the disk that must be free, and GB that are enough whatever the share: a night of raw frames.
FREE_SHARE, FREE_GB = 0.05, 20.0
#: Raw files whose digest is computed anew each time: a year of daily looks goes through 7000 files.
SAMPLE = 20

#: Nights of detection from which on an object's type is told (`learning.object_types`).
FOLLOWED = 3

SURVEY_SUMMARY = TableSchema(
    "survey_summary",
    "One row a field: its nights, and what was found in them",
    (
        Column("field", "string", "sky field"),
        Column("nights", "int64", "nights that are made"),
        Column("first", "string", "first of them, YYYY-MM-DD"),
        Column("last", "string", "last of them, YYYY-MM-DD"),
        Column("exposures", "int64", "light frames in them"),
        Column("problems", "int64", "exposures that some stage could not treat"),
        Column("detections", "int64", "detections"),
        Column("injected", "int64", "transients injected into copies"),
        Column("recovered", "int64", "of these, detected"),
        Column("objects", "int64", "objects of several nights among them: supernovae, periodic stars"),
        Column("objects_found", "int64", "of these, detected in a night or more"),
        Column("objects_followed", "int64", "of these, detected in `FOLLOWED` nights or more"),
        Column("depth", "float64", "median depth", "mag"),
        Column("score_sigma", "float64", "median standard deviation of the score where nothing changed"),
    ),
    sort_by=("field",),
)


class Summaries(Protocol):
    """What must be known of the store."""

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field that an asset has been made for."""

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return a table asset's partition."""


def survey_summary(fields: Sequence[Field], products: Summaries) -> pd.DataFrame:
    """Return how each field stands, schema `SURVEY_SUMMARY`; a field without nights has a row of zeros."""
    rows = []
    for field in fields:
        tables = [
            products.table("night_summary", f"{field.name}|{night}")
            for night in products.nights("night_summary", field.name)
        ]
        tables = [table for table in tables if len(table)]
        if not tables:
            rows.append({"field": field.name, **dict.fromkeys((*_SUMS, *_OBJECTS), 0), "nights": 0})
            continue
        whole = pd.concat(tables, ignore_index=True)
        # Nights of an earlier version say nothing of them.
        told = whole["objects"].fillna("[]") if "objects" in whole else ["[]"] * len(whole)
        lasting = followed(zip(whole.night, told, strict=True))
        rows.append(
            {
                "field": field.name,
                "nights": int(whole.night.nunique()),
                "first": str(whole.night.min()),
                "last": str(whole.night.max()),
                **{name: int(whole[name].sum()) for name in _SUMS},
                "objects": len(lasting),
                "objects_found": int((lasting["found"] > 0).sum()),
                "objects_followed": int((lasting["found"] >= FOLLOWED).sum()),
                "depth": float(whole.depth.median()),
                "score_sigma": float(whole.score_sigma.median()),
            }
        )
    return SURVEY_SUMMARY.conform(pd.DataFrame(rows))


_OBJECTS = ("objects", "objects_found", "objects_followed")
_SUMS = ("exposures", "problems", "detections", "injected", "recovered")


def silent_archives(fields: Sequence[Field]) -> dict[str, str]:
    """Return the fields whose archive does not answer now, with what it said; each archive is asked for one field."""
    out: dict[str, str] = {}
    asked: dict[str, str] = {}
    for field in fields:
        if field.archive not in asked:
            try:
                archive = open_archive(field.archive, in_tick=True)
                refresh = getattr(archive, "refresh", None)
                if refresh is not None and field.archive.startswith(("mast:", "tesscut:")):
                    refresh(field)
                else:
                    archive.exposures(field)
                asked[field.archive] = ""
            except AstridError as error:
                asked[field.archive] = str(error)
        if asked[field.archive]:
            out[field.name] = asked[field.archive]
    return out


def late_nights(fields: Sequence[Field], products: Summaries, today: dt.date) -> dict[str, str]:
    """Return the nights older than `LATE_DAYS` that have exposures and were not made, by field."""
    out: dict[str, str] = {}
    before = (today - dt.timedelta(days=LATE_DAYS)).isoformat()
    for field in fields:
        try:
            listing = Listing.of(open_archive(field.archive, in_tick=True), field)
        except AstridError:
            continue  # told by `silent_archives`
        made = made_nights(products, field.name) | set(products.nights("calibrated_frames", field.name))
        late = [night for night in listing.nights if night <= before and night not in made]
        if late:
            out[field.name] = f"{len(late)} of {len(listing.nights)} nights, {late[0]} to {late[-1]}"
    return out


def damaged_files(
    fields: Sequence[Field], products: Any, seed: int, sample: int = SAMPLE
) -> tuple[dict[str, str], int]:
    """Return raw files in the store that are gone or not what was fetched, of a random sample; and how many were read.

    Parameters
    ----------
    products:
        `resources.products.Products`: tables and the store itself.
    seed:
        Which sample; another each day goes through all of them.
    """
    known: list[tuple[str, str]] = []
    for field in fields:
        for night in products.nights("observations", field.name):
            try:
                table = products.table("observations", f"{field.name}|{night}")
            except MissingProductError:
                continue  # removed since it was listed
            good = table[table.problem.isna() & table.sha256.notna()]
            known += list(zip(good["path"], good["sha256"], strict=True))
    chosen = random.Random(seed).sample(sorted(known), min(sample, len(known)))
    out: dict[str, str] = {}
    for key, digest in chosen:
        try:
            with products.store.open_local(key) as path, path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    out[key] = "its bytes are not those that were fetched"
        except AstridError as error:
            out[key] = str(error)
    return out, len(chosen)


def full_disks(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the folders whose disk is nearly full, with what is free."""
    out = {}
    for name, folder in folders.items():
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        usage = shutil.disk_usage(place)
        if usage.free < FREE_SHARE * usage.total and usage.free < FREE_GB * 1e9:
            out[name] = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free"
    return out
