"""What every archive offers: which exposures there are, and how to fetch one.

An archive is anything that satisfies `Archive`. `open_archive` turns a field's `archive` text into one, so
that the rest of AstrID never asks what kind it has.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from astrid_pipeline.errors import ConfigError, ReadError
from astrid_pipeline.tables import Column, TableSchema

if TYPE_CHECKING:
    import pandas as pd

#: MJD 0 is 1858-11-17 00:00 UTC.
_MJD_ZERO = dt.date(1858, 11, 17)

#: What a key of a store, a partition or a file may be made of.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Field:
    """One patch of sky that is watched.

    Attributes
    ----------
    name:
        Of letters, digits, ``.``, ``_`` and ``-`` only (see `safe_name`), so that it can be a partition key.
    ra, dec:
        ICRS degrees of its centre; NaN for a field whose exposures have no known position.
    radius:
        Degrees; an exposure whose centre is within it belongs to the field.
    filters:
        The filters to use; empty means all.
    archive:
        Where its exposures are, for `open_archive`.
    site_longitude:
        East longitude of the observatory, degrees; None (space, unknown) makes nights UTC dates.
    reference:
        What its reference images are made of: ``auto`` (earlier frames), ``exposures:ID,ID,…``, or surveys; several
        joined by ``+`` (see `night.references.plan_references`).
    poll_minutes:
        How often its archive is asked for new exposures; None for the archive's own pace (`pace_of`).
    cell:
        A HEALPix cell ``order/index`` (nested): exposures centred in it belong to the field, and to no other of the
        same tiling. "" for a field that is a circle.
    """

    name: str
    ra: float
    dec: float
    radius: float
    filters: tuple[str, ...] = ()
    archive: str = "simulated"
    site_longitude: float | None = None
    reference: str = "auto"
    poll_minutes: float | None = None
    cell: str = ""

    def __post_init__(self) -> None:
        if self.name != safe_name(self.name):
            raise ConfigError(
                f"the field name {self.name!r} has characters that a key cannot hold",
                remedy=f"call it {safe_name(self.name)!r}",
            )
        if not (math.isnan(self.ra) or 0 <= self.ra < 360):
            raise ConfigError(f"right ascension {self.ra} is not in 0–360°", where=self.name)
        if not (math.isnan(self.dec) or -90 <= self.dec <= 90):
            raise ConfigError(f"declination {self.dec} is not in ±90°", where=self.name)
        if not self.radius > 0:
            raise ConfigError(f"the radius {self.radius}° is not above zero", where=self.name)
        if self.poll_minutes is not None and not self.poll_minutes > 0:
            raise ConfigError(f"{self.poll_minutes} minutes are no pace", where=self.name)
        object.__setattr__(self, "filters", tuple(self.filters))

    def holds(self, ra: float, dec: float) -> bool:
        """Return whether a frame centred at (ra, dec), ICRS degrees, belongs to the field."""
        if self.cell:
            from astrid_pipeline.archives.tiling import Cell

            return Cell.parse(self.cell).holds(ra, dec)
        from astrid_pipeline.archives.grouping import separation

        return separation(ra, dec, self.ra, self.dec) <= self.radius


@dataclass(frozen=True)
class ExposureRecord:
    """One exposure that an archive can give.

    Attributes
    ----------
    exposure_id:
        Unique in its archive; letters, digits, ``.``, ``_`` and ``-`` only.
    field:
        Name of the field it belongs to; "" for bias, dark and flat frames.
    kind:
        "light", "bias", "dark" or "flat"; "alert" for an alert packet, which has cut-outs and no frame.
    mjd:
        Middle of the exposure, UTC.
    night:
        YYYY-MM-DD of the evening, see `night_of`.
    filter, instrument, exposure:
        Filter name, instrument name, exposure time in seconds.
    url, size, sha256:
        Where the file is, its length in bytes, and its digest if the archive knows it.
    ra, dec:
        ICRS degrees of the frame's centre; NaN if not known.
    """

    exposure_id: str
    field: str
    kind: str
    mjd: float
    night: str
    filter: str
    instrument: str
    exposure: float
    url: str
    size: int
    sha256: str | None = None
    ra: float = math.nan
    dec: float = math.nan


#: The table of a field's exposures in one night.
OBSERVATIONS = TableSchema(
    "observations",
    "Exposures that were fetched for a field and night, the calibration frames of that night among them.",
    (
        Column("exposure_id", "string", "name of the exposure, unique in its archive"),
        Column("field", "string", "name of the sky field; empty for calibration frames"),
        Column("kind", "string", "light, bias, dark or flat"),
        Column("mjd", "float64", "middle of the exposure, UTC", "d"),
        Column("night", "string", "date of the evening, YYYY-MM-DD"),
        Column("filter", "string", "filter name"),
        Column("instrument", "string", "instrument name"),
        Column("exposure", "float64", "exposure time", "s"),
        Column("ra", "float64", "ICRS right ascension of the frame's centre", "deg"),
        Column("dec", "float64", "ICRS declination of the frame's centre", "deg"),
        Column("url", "string", "where the archive has the file"),
        Column("path", "string", "where the fetched file is, as a key of the store"),
        Column("size", "int64", "length of the file", "byte"),
        Column("sha256", "string", "digest of the file as fetched"),
        Column("problem", "string", "why the file cannot be used; null where it can"),
    ),
    sort_by=("kind", "mjd", "exposure_id"),
)


@runtime_checkable
class Archive(Protocol):
    """Where exposures come from.

    Archives behind a network may also have `refresh(field)`, which asks what is new and returns the ids of it, and
    `prefetch(records)`, which brings several files at a time for `fetch` to hand out.
    """

    name: str

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the field's light frames in order of time; with `since`, those with a later MJD."""
        ...

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return bias, dark and flat frames usable that night; none where frames come calibrated."""
        ...

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Bring the exposure's file into `folder` and return its path; a file of that name is never half."""
        ...

    def catalogue(self, field: Field) -> pd.DataFrame | None:
        """Return a star catalogue (ra, dec, mag_<filter>) of the field, or None if the archive has none."""
        ...

    def fields(self) -> list[Field]:
        """Return the fields that the archive knows of."""
        ...

    def truth(self, field: Field, night: str) -> pd.DataFrame | None:
        """Return what was planted that night; None for archives of real skies."""
        ...


def open_archive(spec: str, *, in_tick: bool = False) -> Archive:
    """Return the archive that `spec` names.

    Parameters
    ----------
    in_tick:
        Opened within a sensor's tick, which is cut off after a minute: the archive is asked only where `refresh` is
        called, and not waited for long.

    ``simulated``, ``simulated:FOLDER?seed=7``
        the simulated survey (its files, once made, are kept in FOLDER);
    ``folder:PATH``
        a folder of FITS files, read recursively;
    ``mast:HST,JWST?filter=F160W&product=FLT``
        observations of MAST (see `mast_query.MastQuery` for all options);
    ``tesscut:?size=60&every=48``
        epochs of TESS full-frame images around the field's centre;
    ``alerts:PATH``
        alert packets of a survey (Avro, Parquet) in a folder, instead of frames.

    Raises
    ------
    ConfigError
        If nothing of that kind is known.
    ReadError
        If a folder is absent or must not be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "folder" and rest:
        from astrid_pipeline.archives.folder import FolderArchive

        return FolderArchive(rest)
    if kind.partition("?")[0] == "tesscut":
        from astrid_pipeline.archives.tesscut import TesscutArchive

        return TesscutArchive(rest or spec.partition("?")[2], in_tick=in_tick)
    if kind == "alerts" and rest:
        from astrid_pipeline.archives.alert_archive import AlertArchive

        return AlertArchive(rest)
    if kind == "mast":
        from astrid_pipeline.archives.mast import MastArchive

        return MastArchive(rest, in_tick=in_tick)
    if kind.partition("?")[0] == "simulated":
        from astrid_pipeline.simulation.archive import open_simulated

        return open_simulated(spec)
    raise ConfigError(
        f"the archive {spec!r} is of no known kind",
        remedy="use simulated, simulated:FOLDER?seed=7, folder:PATH, mast:COLLECTION,…, tesscut: or alerts:PATH",
    )


def pace_of(field: Field) -> float:
    """Return the minutes between two polls of a field's archive: its own, else one that suits the archive.

    A folder costs nothing to look at; a public archive publishes by the day, and is asked by the hour.
    """
    if field.poll_minutes is not None:
        return field.poll_minutes
    return 60.0 if field.archive.startswith(("mast:", "tesscut:")) else 1.0


def night_of(mjd: float, site_longitude: float | None = None) -> str:
    """Return the night that an MJD belongs to, YYYY-MM-DD.

    A night runs from local mean noon to noon at the site's east longitude and bears the evening's date;
    without a site it is the UTC date.

    Raises
    ------
    ValueError
        If `mjd` is not finite.
    """
    if not math.isfinite(mjd):
        raise ValueError(f"{mjd} is no time")
    # Local mean solar time is UTC + longitude / 360 days; half a day less puts noon where midnight was.
    # Longitudes are first brought to ±180°, for 350° E is 10° W, not 350° ahead.
    local = mjd
    if site_longitude is not None:
        local += math.remainder(site_longitude, 360) / 360 - 0.5
    return (_MJD_ZERO + dt.timedelta(days=math.floor(local))).isoformat()


def safe_name(text: str) -> str:
    """Return `text` with everything that a key or file name cannot hold replaced by ``_``; never empty."""
    return _UNSAFE.sub("_", text.strip()).strip("._-") or "unnamed"


def sha256_of(path: str | Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_checked(source: Path, target: Path, *, size: int | None = None, sha256: str | None = None) -> Path:
    """Copy `source` to `target` so that `target` is either whole or not there; an equal one is left alone.

    Raises
    ------
    ReadError
        If the source cannot be read, or what arrived has another length or digest than expected.
    """
    if target.is_file() and (sha256 is not None or size is not None):
        same_size = size is None or target.stat().st_size == size
        if same_size and (sha256 is None or sha256_of(target) == sha256):
            return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        try:
            shutil.copyfile(source, partial)
        except OSError as error:
            raise ReadError(
                f"cannot be copied: {error.strerror or error}",
                where=source,
                remedy="check that it is still there and may be read",
            ) from error
        got = partial.stat().st_size
        if size is not None and got != size:
            raise ReadError(
                f"has {got} bytes where {size} were listed",
                where=source,
                remedy="list the archive again: the file has changed or is still being written",
            )
        if sha256 is not None and sha256_of(partial) != sha256:
            raise ReadError("its digest is not the listed one", where=source, remedy="list the archive again")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
