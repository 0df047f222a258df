"""What is known of a field's observations at MAST, kept on disk and brought up to date by what is new.

A listing is asked for whole once, by the time of the exposures, and again every week; in between by release date
from a cursor on, three days of overlap included, since rows appear late. An observation that was processed again,
extended or made public has other `STAMPS`: it counts as new, and its exposure gets another name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fasteners
import pandas as pd

from astrid_pipeline.archives.mast_query import FIRST_MJD, MastClient
from astrid_pipeline.archives.mast_rows import COLUMNS, each

#: Days that a poll goes back behind the cursor.
OVERLAP_DAYS = 3.0
#: Days after which the whole listing is asked for again: what was changed without a new release date is found then.
FULL_DAYS = 7.0
#: What tells that an observation is not what it was.
STAMPS = ("t_obs_release", "t_max", "calib_level", "dataRights")
#: What is known besides of each observation: its chosen product.
EXTRA = ("uri", "size", "kind")

_TEXTS = (
    "obs_id",
    "filters",
    "dataRights",
    "s_region",
    "intentType",
    "dataURL",
    "target_name",
    "instrument_name",
)

_MJD_OF_EPOCH = 40_587.0


def mjd_now() -> float:
    """Return the present as MJD."""
    return _MJD_OF_EPOCH + time.time() / 86400


@dataclass
class State:
    """How far the listing is: MJD of the newest release seen, of the last poll and of the last whole listing."""

    cursor: float = 0.0
    polled: float = 0.0
    full: float = 0.0
    problems: list[str] = field(default_factory=list)


class KeptListing:
    """A field's observations on disk.

    Parameters
    ----------
    folder:
        Where listings are kept.
    name:
        What to call this one; `key` tells apart what was asked for.
    """

    def __init__(self, folder: Path, name: str, key: str) -> None:
        stem = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        self.table = folder / f"{stem}.parquet"
        self.state_file = folder / f"{stem}.json"
        self._lock_file = folder / f".{stem}.lock"

    def state(self) -> State:
        """Return how far the listing is; a fresh state where there is none."""
        try:
            return State(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return State()

    def rows(self) -> pd.DataFrame:
        """Return what is known; empty where nothing is."""
        try:
            return pd.read_parquet(self.table)
        except (OSError, ValueError):
            return pd.DataFrame(columns=[*COLUMNS, *EXTRA])

    def lock(self) -> Any:
        """Return a lock between processes: two runs must not both bring the listing up to date."""
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        return fasteners.InterProcessLock(self._lock_file)

    def save(self, rows: pd.DataFrame, state: State) -> None:
        """Keep rows and state. The table goes first: a crash between the two only asks again for what is there."""
        _replace(self.table, lambda path: rows.to_parquet(path, index=False))
        text = json.dumps(asdict(state))
        _replace(self.state_file, lambda path: path.write_text(text, encoding="utf-8"))

    def update(self, client: MastClient, criteria: dict[str, Any], patience_full: bool = False) -> list[str]:
        """Ask the archive for what is new or changed; return the ids of those observations.

        Parameters
        ----------
        patience_full:
            Ask for the whole listing, whenever that was last done.

        Raises
        ------
        ServiceError
            If the archive does not answer; what is known stays as it is.
        """
        before, state, now = self.rows(), self.state(), mjd_now()
        if patience_full or now - state.full > FULL_DAYS or self.table.exists() is False:
            start, end = criteria.get("t_min", (FIRST_MJD, now + 1.0))
            fresh = client.observations(criteria, start, min(end, now + 1.0), "t_min")
            state.full = now
            # What the archive has withdrawn is gone from the whole listing.
            before = before[before.obsid.isin(fresh.obsid)]
        else:
            fresh = client.observations(criteria, state.cursor - OVERLAP_DAYS, now + 1.0, "t_obs_release")
        rows, changed = merge(before, fresh)
        released = rows.t_obs_release[rows.t_obs_release <= now]
        state.cursor = float(released.max()) if len(released) else now - OVERLAP_DAYS
        state.polled = now
        self.save(rows, state)
        return changed


def merge(before: pd.DataFrame, fresh: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return all observations, the fresh rows in place of older ones, and the ids of those new or changed.

    What was found out of an observation (its product) is kept where it did not change.
    """
    known = {str(row.obsid): row for row in each(before)}
    changed = []
    extra: dict[str, list[Any]] = {name: [] for name in EXTRA}
    for row in each(fresh):
        old = known.get(str(row.obsid))
        same = old is not None and stamp(old) == stamp(row)
        if not same:
            changed.append(str(row.obsid))
        for name in EXTRA:
            extra[name].append(getattr(old, name) if same else None)
    merged = fresh.assign(
        **{name: pd.Series(values, index=fresh.index, dtype=object) for name, values in extra.items()}
    )
    rest = before[~before.obsid.isin(fresh.obsid)]
    # By records: joining frames would guess types from columns in which nothing is known yet.
    rows = pd.DataFrame([*rest.to_dict("records"), *merged.to_dict("records")], columns=[*COLUMNS, *EXTRA])
    rows[[*_TEXTS, "uri", "kind"]] = rows[[*_TEXTS, "uri", "kind"]].astype(object)
    rows["size"] = pd.to_numeric(rows["size"], errors="coerce").astype(float)
    return rows.sort_values(["t_min", "obsid"], ignore_index=True), changed


def stamp(row: Any) -> tuple[Any, ...]:
    """Return what of an observation tells one version from another."""
    return tuple(_plain(getattr(row, name)) for name in STAMPS)


def version_of(row: Any) -> str:
    """Return six digits that stand for the version of an observation's file; any machine finds the same ones."""
    values = [_plain(getattr(row, name)) for name in ("t_obs_release", "t_max", "calib_level")]
    return hashlib.sha256(repr(values).encode()).hexdigest()[:6]


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return round(float(value), 6) if isinstance(value, int | float) else str(value)


def _replace(target: Path, write: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def usable_products(products: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """Return each observation's best FITS product: of the first wanted kind, else the first science image.

    Parameters
    ----------
    products:
        The archive's products.
    wanted:
        Kinds in the order of preference. Where none is there the observation has no usable product.
    """
    if not len(products):
        return products.assign(rank=[])
    name = products.productFilename.fillna("").str.lower()
    rows = products[name.str.match(r".*\.(fits?|fts)(\.(fz|gz|bz2))?$")].copy()
    kinds = rows.productSubGroupDescription.fillna("").str.upper()
    order = {kind: rank for rank, kind in enumerate(wanted)}
    rows["rank"] = kinds.map(order)
    if not wanted:
        science = rows.productType.isna() | (rows.productType == "SCIENCE")
        rows["rank"] = science.map({True: 0.0, False: math.nan})
    rows = rows[rows["rank"].notna()].sort_values(["obsID", "rank", "productFilename"])
    return rows.drop_duplicates("obsID")
