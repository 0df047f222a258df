"""Bringing a night's exposures in: listed by the archive, fetched once, kept byte for byte with their digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from astrid_pipeline.archives.base import OBSERVATIONS, Archive, ExposureRecord, Field, safe_name
from astrid_pipeline.archives.fits_reader import read_exposure
from astrid_pipeline.errors import (
    CalibrationError,
    DamagedError,
    LostError,
    MissingProductError,
    ServiceError,
)
from astrid_pipeline.imaging.calibrate import MasterCalibration, build_masters
from astrid_pipeline.imaging.raw import RawExposure
from astrid_pipeline.night.outcome import Outcome, for_each
from astrid_pipeline.resources.store import Store, damaged, sha256_of

Progress = Callable[[str], Any] | None


def raw_key(record: ExposureRecord) -> str:
    """Return the store key of an exposure's file: `raw/<field, or instrument>/<night>/<exposure>--<file name>`."""
    owner = safe_name(record.field or record.instrument)
    return f"raw/{owner}/{record.night}/{record.exposure_id}--{safe_name(Path(record.url).name)}"


def ingest_night(
    archive: Archive,
    field: Field,
    night: str,
    store: Store,
    scratch: Path,
    progress: Progress = None,
    insist: bool = False,
) -> pd.DataFrame:
    """Fetch the light frames of a field and night that the store does not have; return schema `OBSERVATIONS`.

    Every file is opened once, so that what cannot be read is said here: such a row has its `problem`, and
    no later stage touches it.

    Parameters
    ----------
    archive, field, night:
        What to fetch, of whom; the night as YYYY-MM-DD.
    store:
        Keeps the files under `raw_key`.
    scratch:
        Folder for files on their way.
    insist:
        Raise if a file did not come that may come later, rather than make the night without it.

    Raises
    ------
    ServiceError, ReadError
        If the archive cannot be asked at all; with `insist`, if it did not give a file that it has.
    """
    records = [
        r
        for r in archive.exposures(field)
        if r.night == night and (not field.filters or r.filter in field.filters)
    ]
    return fetch(archive, _without_doubles(records), store, scratch, progress, insist)


def fetch(
    archive: Archive,
    records: Sequence[ExposureRecord],
    store: Store,
    scratch: Path,
    progress: Progress = None,
    insist: bool = False,
) -> pd.DataFrame:
    """Bring the records' files into the store, each opened once; return schema `OBSERVATIONS`."""

    def one(record: ExposureRecord) -> dict[str, Any]:
        key = raw_key(record)
        if store.exists(key) and (kept := store.stat(key)).sha256 and record.sha256 in (None, kept.sha256):
            stored = kept
        else:
            path = archive.fetch(record, scratch)
            read_exposure(path)
            stored = store.put_file(key, path)
            path.unlink(missing_ok=True)
        return {"path": key, "size": stored.size, "sha256": stored.sha256}

    by_id = {record.exposure_id: record for record in records}
    # An archive behind a network brings several files at a time; what fails there is told for its exposure below.
    if (prefetch := getattr(archive, "prefetch", None)) is not None:
        prefetch([record for record in by_id.values() if not store.exists(raw_key(record))])
    # What one file's server does not give, others' may; the store is one for all.
    outcome = for_each(by_id, one, stage="observations", progress=progress, tolerate=(ServiceError,))
    waiting = [problem for problem in outcome.problems if not problem.permanent]
    if insist and waiting:
        raise ServiceError(
            f"{len(waiting)} of {len(by_id)} files did not come: {waiting[0].what}",
            where=archive.name,
            remedy="run it again later: those that came are kept",
        )
    problems = {p.exposure_id: p.what for p in outcome.problems}
    rows = [
        {**vars(record), "size": record.size, **outcome.products.get(key, {}), "problem": problems.get(key)}
        for key, record in by_id.items()
    ]
    return OBSERVATIONS.conform(pd.DataFrame(rows))


def _without_doubles(records: Iterable[ExposureRecord]) -> list[ExposureRecord]:
    """Keep the first of records that say they are the same exposure; archives check pixels, this checks names."""
    seen: dict[str, ExposureRecord] = {}
    for record in records:
        seen.setdefault(record.exposure_id, record)
    return list(seen.values())


def usable(observations: pd.DataFrame, kind: str = "light") -> pd.DataFrame:
    """Return the rows of one kind without a problem."""
    return observations[observations.problem.isna() & (observations.kind == kind)]


#: Told of raw files that the store does not have any more: `observations` fetches what is missing.
FETCHED_ANEW = "run the night again: the file is then fetched from its archive anew"


def read_raw(store: Store, row: pd.Series) -> RawExposure:
    """Return the exposure of an `OBSERVATIONS` row, with its field, night and id in the meta.

    Raises
    ------
    LostError
        If the store has lost the file, or it is damaged and was taken away: it comes again with the night's
        observations. No exposure's own trouble, or the night would be kept as made without it.
    ReadError, HeaderError, PixelError
        As `read_exposure`.
    """
    import dataclasses

    key = str(row.path)
    try:
        with store.open_local(key) as path:
            if pd.notna(row.sha256) and sha256_of(path) != row.sha256:
                raise damaged(store.location(key), "these are not the bytes that the archive gave")
            raw = read_exposure(path)
    except DamagedError as error:
        # Out of the way, so that it is fetched again with the night's observations.
        store.delete([key])
        raise LostError(
            f"{error.what}: the damaged file was taken away", where=error.where, remedy=FETCHED_ANEW
        ) from error
    except MissingProductError as error:
        raise LostError(
            "the raw file is not in the store any more", where=error.where, remedy=FETCHED_ANEW
        ) from error
    # By the archive's names, filter and instrument too: it is they that references are planned by.
    names = ("exposure_id", "field", "night", "filter", "instrument")
    known = {name: row[name] for name in names if pd.notna(row[name])}
    # Where this machine keeps the file is no property of the exposure.
    meta = {key: value for key, value in raw.meta.items() if key != "path"}
    return dataclasses.replace(raw, meta={**meta, **{k: v for k, v in known.items() if v}})


def make_masters(
    archives: Iterable[Archive],
    instrument: str,
    night: str,
    store: Store,
    scratch: Path,
    progress: Progress = None,
) -> tuple[MasterCalibration | None, Outcome[RawExposure]]:
    """Build the master frames of an instrument from the calibration frames that archives have for a night.

    Returns
    -------
    masters, outcome:
        The masters, None where no archive has calibration frames of that instrument and night (archives of
        calibrated frames have none), and the frames used and refused.

    Raises
    ------
    CalibrationError
        If there are calibration frames but no master can be made of them.
    """
    for archive in archives:
        records = archive.calibrations(instrument, night)
        if not records:
            continue
        table = fetch(archive, records, store, scratch, progress)
        outcome = for_each(
            ((str(row.exposure_id), row) for _, row in table[table.problem.isna()].iterrows()),
            lambda row: read_raw(store, row),
            stage="master_calibrations",
        )
        if not outcome.products:
            raise CalibrationError(
                f"none of {len(records)} calibration frames can be read",
                where=f"{instrument} {night}",
                remedy="look at the problems of the first: "
                + (outcome.problems[0].what if outcome.problems else ""),
            )
        return build_masters(list(outcome.products.values())), outcome
    return None, Outcome()
