"""A folder of FITS files as an archive: any instrument, searched recursively, grouped into fields by itself."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astrid_pipeline.archives import fits_reader
from astrid_pipeline.archives.base import ExposureRecord, Field, copy_checked, night_of
from astrid_pipeline.archives.fits_files import REMEDY
from astrid_pipeline.archives.grouping import Entry, group_into_fields, with_unique_ids
from astrid_pipeline.archives.header_cache import HeaderCache
from astrid_pipeline.archives.keywords import load_keywords
from astrid_pipeline.errors import AstridError, DuplicateExposureError, HeaderError, PixelError, ReadError
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.io import is_astrid_file, sky_noise
from astrid_pipeline.imaging.raw import Kind

if TYPE_CHECKING:
    import pandas as pd

#: Days within which calibration frames serve a night, as for `MasterCalibration`.
CALIBRATION_DAYS = 30

#: How many nights' frames of a kind are handed out: those of the nearest night, or of more while they are too few.
ENOUGH_FRAMES = 5


class FolderArchive:
    """The FITS files under a folder.

    Files are looked at once, when first asked for, and again after `refresh`; only headers of new files are read. A
    file that cannot be used is kept in `problems` as the error it caused, and the others are served.

    Parameters
    ----------
    path:
        The folder.
    aliases:
        A table of keyword aliases (YAML file or mapping) to use before AstrID's own.

    Raises
    ------
    ReadError
        If the folder is absent, is no folder, or may not be listed.
    """

    def __init__(self, path: str | Path, *, aliases: str | Path | Mapping[str, Any] | None = None) -> None:
        self.path = Path(path).expanduser().resolve()
        self.name = f"folder:{self.path}"
        self.aliases = aliases
        _check_folder(self.path)
        self._entries: list[Entry] | None = None
        self._groups: list[tuple[Field, list[Entry]]] = []
        self._problems: list[AstridError] = []

    @property
    def problems(self) -> list[AstridError]:
        """What could not be used, and why: one error a file (or folder)."""
        self._scan()
        return list(self._problems)

    def refresh(self) -> None:
        """Forget what was found, so that the folder is read anew."""
        self._entries = None

    def fields(self) -> list[Field]:
        """Return the fields that the light frames fall into, by position, else by their object's name."""
        self._scan()
        return [field for field, _ in self._groups]

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the light frames within the field's radius, or (without position) grouped under its name."""
        out = []
        for group, entries in self._scanned_groups():
            for entry in entries:
                record = entry.record
                if math.isfinite(record.ra) and math.isfinite(field.ra):
                    belongs = field.holds(record.ra, record.dec)
                    belongs = belongs or (group.name == field.name and not field.cell)
                else:
                    belongs = group.name == field.name
                wanted = not field.filters or record.filter in field.filters
                if belongs and wanted and (since is None or record.mjd > since):
                    night = night_of(record.mjd, _longitude(field.site_longitude, entry))
                    out.append(dataclasses.replace(record, field=field.name, night=night))
        return sorted(out, key=lambda r: (r.mjd, r.exposure_id))

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return the instrument's bias, dark and flat frames of the nights nearest to one, at most 30 days away.

        Of each kind (flats: and filter; darks: and exposure time) those of the nearest night are taken, and of the
        next nearest ones as long as there are fewer than `ENOUGH_FRAMES`.
        """
        groups: dict[tuple[Any, ...], list[tuple[int, ExposureRecord]]] = {}
        for entry in self._scanned():
            record = entry.record
            if record.kind == Kind.LIGHT or record.instrument != instrument:
                continue
            away = abs(_days(record.night) - _days(night))
            if away > CALIBRATION_DAYS:
                continue
            key = (
                record.kind,
                record.filter if record.kind == Kind.FLAT else "",
                entry.summary.meta.get("binning"),
            )
            groups.setdefault(key, []).append((away, record))
        out: list[ExposureRecord] = []
        for group in groups.values():
            chosen: list[ExposureRecord] = []
            for away in sorted({distance for distance, _ in group}):
                if len(chosen) >= ENOUGH_FRAMES:
                    break
                chosen.extend(record for distance, record in group if distance == away)
            out.extend(chosen)
        return sorted(out, key=lambda r: (r.kind, r.filter, r.mjd, r.exposure_id))

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Copy the exposure's file into `folder`, whole or not at all, and return what to read it by.

        One detector of a file of several comes back as ``file.fits[3]``, for `read_exposure`.

        Raises
        ------
        ReadError
            If the file has gone, has another length than when it was listed, or may not be read.
        """
        file, key = fits_reader.split_url(record.url)
        ending = fits_reader.SUFFIX.search(file.name)
        stem = record.exposure_id if key is None else record.exposure_id.rsplit(".", 1)[0]
        target = Path(folder) / f"{stem}{ending.group(0).lower() if ending else '.fits'}"
        path = copy_checked(file, target, size=record.size, sha256=record.sha256)
        return path if key is None else Path(f"{path}[{key}]")

    def catalogue(self, field: Field) -> pd.DataFrame | None:
        """Return None: a folder has no star catalogue."""
        return None

    def truth(self, field: Field, night: str) -> pd.DataFrame | None:
        """Return None: nobody planted anything in real frames."""
        return None

    def _scanned(self) -> list[Entry]:
        self._scan()
        return self._entries or []

    def _scanned_groups(self) -> list[tuple[Field, list[Entry]]]:
        self._scan()
        return self._groups

    def _scan(self) -> None:
        if self._entries is not None:
            return
        self._problems = []
        keywords = load_keywords(self.aliases)
        cache = HeaderCache(self.path, keywords)
        found: list[tuple[Path, fits_reader.Summary]] = []
        for file in self._files():
            try:
                summaries = cache.summaries(file, lambda path: fits_reader.summarise(path, keywords))
                found.extend((file, summary) for summary in summaries)
            except AstridError as error:
                self._problems.append(error)
        cache.save()
        entries = []
        for file, summary in found:
            try:
                entries.append(self._entry(file, summary))
            except AstridError as error:
                self._problems.append(error)
        entries = with_unique_ids(self._without_duplicates(entries), self.path)
        self._entries = entries
        self._groups = group_into_fields(entries, self.name)

    def _files(self) -> list[Path]:
        """Return the FITS files in order; folders that may not be listed become problems."""
        out: list[Path] = []

        def refused(error: OSError) -> None:
            self._problems.append(_folder_error(Path(error.filename or self.path), error))

        for folder, names, files in os.walk(self.path, onerror=refused, followlinks=False):
            names[:] = sorted(name for name in names if not name.startswith("."))
            out.extend(
                Path(folder, name)
                for name in sorted(files)
                if fits_reader.SUFFIX.search(name) and not name.startswith(".")
            )
        return out

    def _entry(self, file: Path, summary: fits_reader.Summary) -> Entry:
        meta = summary.meta
        mjd = meta.get("mjd")
        if mjd is None:
            raise HeaderError(
                "says nothing about when it was taken",
                where=summary.url,
                remedy="add DATE-OBS or MJD-OBS, or name the keyword in keywords.yaml",
            )
        if meta.get("calibrated") and meta["kind"] == Kind.LIGHT and _own_kind(file) == "difference":
            raise PixelError(
                "is a difference image", where=file, remedy="move it out of the archive's folder"
            )
        longitude = meta.get("site_longitude")
        ra, dec = summary.centre or (math.nan, math.nan)
        record = ExposureRecord(
            exposure_id=fits_reader.exposure_id_of(summary.url),
            field="",
            kind=meta["kind"],
            mjd=float(mjd),
            night=night_of(float(mjd), longitude),
            filter=str(meta.get("filter", "none")),
            instrument=str(meta.get("instrument", "unknown")),
            exposure=float(meta.get("exposure") or math.nan),
            url=summary.url,
            size=file.stat().st_size,
            ra=ra,
            dec=dec,
        )
        return Entry(record, summary, meta.get("object"), summary.radius, longitude)

    def _without_duplicates(self, entries: Sequence[Entry]) -> list[Entry]:
        """Drop exposures that are there twice, the second by its path, and say so.

        Headers alone do not prove it (stamps of one mosaic, or of one resampling, share them): pixels decide.
        """
        same: dict[tuple[Any, ...], list[Entry]] = collections.defaultdict(list)
        for entry in entries:
            meta, record = entry.summary.meta, entry.record
            key = (
                record.kind,
                record.mjd,
                record.instrument,
                record.filter,
                meta.get("detector"),
                record.exposure,
            )
            same[(*key, entry.summary.shape)].append(entry)
        dropped: set[str] = set()
        for group in same.values():
            if len(group) < 2:
                continue
            kept: list[tuple[Entry, Image]] = []
            for entry in group:
                try:
                    pixels = fits_reader.read_pixels(entry.record.url)
                except AstridError:
                    continue  # it is reported when it is calibrated; nobody can say that it is a duplicate
                twin = next((first for first, image in kept if same_pixels(image, pixels)), None)
                if twin is None:
                    kept.append((entry, pixels))
                    continue
                dropped.add(entry.record.url)
                self._problems.append(
                    DuplicateExposureError(
                        f"is the same exposure as {Path(twin.record.url).name}",
                        where=entry.record.url,
                        remedy="remove one of the two files",
                    )
                )
        return [entry for entry in entries if entry.record.url not in dropped]


def same_pixels(first: Image, second: Image) -> bool:
    """Return whether two arrays hold one image, be it compressed differently: within a quarter of the noise."""
    if first.shape != second.shape:
        return False
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.any():
        return False
    deviation = float(np.abs(first - second)[finite].max())
    # Lossy compression keeps within a quarter of the noise, and single precision within 10⁻⁶ of the value.
    return deviation <= max(0.25 * sky_noise(first), 1e-6 * float(np.abs(first[finite]).max()))


def _own_kind(file: Path) -> str | None:
    from astropy.io import fits

    try:
        return is_astrid_file(fits.getheader(file, 0))
    except OSError as error:
        raise ReadError(f"is damaged: {error}", where=file, remedy=REMEDY) from error


def _check_folder(path: Path) -> None:
    try:
        if not path.is_dir():
            what = "is a file, not a folder" if path.exists() else "is not there"
            raise ReadError(what, where=path, remedy="name a folder of FITS files")
        with os.scandir(path) as entries:
            next(entries, None)
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(path))
    except OSError as error:
        raise _folder_error(path, error) from error


def _folder_error(path: Path, error: OSError) -> ReadError:
    if isinstance(error, PermissionError):
        return ReadError("the folder may not be read", where=path, remedy="give read permission (chmod +rx)")
    return ReadError(f"cannot be listed: {error.strerror or error}", where=path, remedy="check the folder")


def _days(night: str) -> int:
    import datetime

    return datetime.date.fromisoformat(night).toordinal()


def _longitude(of_field: float | None, entry: Entry) -> float | None:
    return of_field if of_field is not None else entry.longitude
