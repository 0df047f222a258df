"""A folder of FITS files as an archive: any instrument, searched recursively, grouped into fields by itself."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astrid_pipeline.archives import fits_reader
from astrid_pipeline.archives.base import ExposureRecord, Field, copy_checked, night_of, safe_name
from astrid_pipeline.archives.fits_files import REMEDY
from astrid_pipeline.archives.headers import load_keywords
from astrid_pipeline.errors import AstridError, DuplicateExposureError, HeaderError, PixelError, ReadError
from astrid_pipeline.imaging.raw import Kind

if TYPE_CHECKING:
    import pandas as pd

#: Pointings closer than this share of the field of view are one field: the larger part of the sky is common to both.
SAME_FIELD = 0.5

#: Half the field of view, degrees, where neither WCS nor optics tell it: that of a small telescope's camera.
UNKNOWN_RADIUS = 0.15

#: Days within which calibration frames serve a night, as for `MasterCalibration`.
CALIBRATION_DAYS = 30

#: How many nights' frames of a kind are handed out: those of the nearest night, or of more while they are too few.
ENOUGH_FRAMES = 5


@dataclass(frozen=True)
class _Entry:
    """One exposure of the folder: its record without a field, and what grouping and duplicates need."""

    record: ExposureRecord
    summary: fits_reader.Summary
    object_name: str | None
    radius: float | None
    longitude: float | None


class FolderArchive:
    """The FITS files under a folder.

    Files are looked at once, when first asked for, and again after `refresh`; only their headers are read then. A
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
        self._entries: list[_Entry] | None = None
        self._groups: list[tuple[Field, list[_Entry]]] = []
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
                    belongs = separation(record.ra, record.dec, field.ra, field.dec) <= field.radius
                    belongs = belongs or group.name == field.name
                else:
                    belongs = group.name == field.name
                wanted = not field.filters or record.filter in field.filters
                if belongs and wanted and (since is None or record.mjd > since):
                    night = night_of(record.mjd, _longitude(field.site_longitude, entry))
                    out.append(_replace(record, field=field.name, night=night))
        return sorted(out, key=lambda r: (r.mjd, r.exposure_id))

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return the instrument's bias, dark and flat frames of the nights nearest to one, at most 30 days away.

        Of each kind (flats: and filter; darks: and exposure time) those of the nearest night are taken, and of the
        next nearest ones as long as there are fewer than `ENOUGH_FRAMES`.
        """
        groups: dict[tuple[Any, ...], list[tuple[float, ExposureRecord]]] = {}
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

    def _scanned(self) -> list[_Entry]:
        self._scan()
        return self._entries or []

    def _scanned_groups(self) -> list[tuple[Field, list[_Entry]]]:
        self._scan()
        return self._groups

    def _scan(self) -> None:
        if self._entries is not None:
            return
        self._problems = []
        keywords = load_keywords(self.aliases)
        found: list[tuple[Path, fits_reader.Summary]] = []
        for file in self._files():
            try:
                found.extend((file, summary) for summary in fits_reader.summarise(file, keywords))
            except AstridError as error:
                self._problems.append(error)
        entries = []
        for file, summary in found:
            try:
                entries.append(self._entry(file, summary))
            except AstridError as error:
                self._problems.append(error)
        entries = _with_unique_ids(self._without_duplicates(entries), self.path)
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

    def _entry(self, file: Path, summary: fits_reader.Summary) -> _Entry:
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
        return _Entry(record, summary, meta.get("object"), summary.radius, longitude)

    def _without_duplicates(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Drop exposures that are there twice, the second by its path, and say so.

        Headers alone do not prove it (stamps of one mosaic, or of one resampling, share them): pixels decide.
        """
        same: dict[tuple[Any, ...], list[_Entry]] = collections.defaultdict(list)
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
            kept: list[_Entry] = []
            for entry in group:
                twin = next((k for k in kept if self._same_pixels(k, entry)), None) if kept else None
                if twin is None:
                    kept.append(entry)
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

    def _same_pixels(self, a: _Entry, b: _Entry) -> bool:
        """Whether two files hold one image, be it compressed differently: within a tenth of the noise throughout."""
        try:
            first, second = (
                fits_reader.read_exposure(entry.record.url, aliases=self.aliases).amplifiers[0].data
                for entry in (a, b)
            )
        except AstridError:
            # One of them is unreadable; that is reported when it is read, and is no duplicate.
            return False
        if first.shape != second.shape:
            return False
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.any():
            return False
        noise = float(np.std(np.diff(first, axis=1)[finite[:, 1:] & finite[:, :-1]])) / math.sqrt(2)
        return bool(
            np.abs(first - second)[finite].max()
            <= max(0.1 * noise, 1e-6 * float(np.abs(first[finite]).max()))
        )


def _own_kind(file: Path) -> str | None:
    from astropy.io import fits

    from astrid_pipeline.imaging.io import is_astrid_file

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


def _replace(record: ExposureRecord, **changes: Any) -> ExposureRecord:
    import dataclasses

    return dataclasses.replace(record, **changes)


def _days(night: str) -> int:
    import datetime

    return datetime.date.fromisoformat(night).toordinal()


def _longitude(of_field: float | None, entry: _Entry) -> float | None:
    return of_field if of_field is not None else entry.longitude


def _with_unique_ids(entries: Sequence[_Entry], root: Path) -> list[_Entry]:
    """Give exposures whose files share a name an id with their folders in it, then a number."""
    import dataclasses

    counts = collections.Counter(entry.record.exposure_id for entry in entries)
    used: set[str] = set()
    out = []
    for entry in entries:
        identity = entry.record.exposure_id
        if counts[identity] > 1:
            folder = Path(fits_reader.split_url(entry.record.url)[0]).parent
            parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
            identity = safe_name("_".join((*parts, identity)))
        number, base = 2, identity
        while identity in used:
            identity, number = f"{base}-{number}", number + 1
        used.add(identity)
        out.append(dataclasses.replace(entry, record=_replace(entry.record, exposure_id=identity)))
    return out


def separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Return the angle between two positions in degrees, by the haversine formula."""
    a, b = math.radians(dec1), math.radians(dec2)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(ra2 - ra1) / 2) ** 2
    return math.degrees(2 * math.asin(math.sqrt(min(1.0, h))))


def group_into_fields(entries: Iterable[Any], archive: str) -> list[tuple[Field, list[Any]]]:
    """Return the fields that light frames fall into, each with its frames.

    A frame joins the first group whose centre is within `SAME_FIELD` of the smaller field of view, or which has its
    object's name and is not farther than two fields of view (a pointing is less exact than a WCS); frames without
    position join by their object's name alone, or else by instrument.
    """
    lights = [entry for entry in entries if entry.record.kind == Kind.LIGHT]
    placed = [entry for entry in lights if math.isfinite(entry.record.ra)]
    groups: list[list[Any]] = []
    # Frames with the best-known positions found the groups.
    for entry in sorted(placed, key=lambda e: (e.radius is None, e.record.mjd, e.record.exposure_id)):
        for group in groups:
            first = group[0]
            distance = separation(entry.record.ra, entry.record.dec, first.record.ra, first.record.dec)
            size = min(entry.radius or UNKNOWN_RADIUS, first.radius or UNKNOWN_RADIUS)
            named = entry.object_name is not None and entry.object_name == first.object_name
            reach = 4 * max(entry.radius or 0.0, first.radius or 0.0) if named else 2 * SAME_FIELD * size
            if distance <= reach:
                group.append(entry)
                break
        else:
            groups.append([entry])
    by_name = {group[0].object_name: group for group in groups if group[0].object_name}
    nameless: dict[str, list[Any]] = {}
    for entry in lights:
        if math.isfinite(entry.record.ra):
            continue
        if entry.object_name in by_name:
            by_name[entry.object_name].append(entry)
        else:
            nameless.setdefault(entry.object_name or f"{entry.record.instrument}", []).append(entry)
    taken: set[str] = set()
    named_groups = [(_field(group, archive, taken), group) for group in groups]
    named_groups += [(_field(group, archive, taken, name), group) for name, group in sorted(nameless.items())]
    return sorted(named_groups, key=lambda pair: pair[0].name)


def _field(group: Sequence[Any], archive: str, taken: set[str], name: str | None = None) -> Field:
    first = group[0]
    ra, dec = first.record.ra, first.record.dec
    names = collections.Counter(e.object_name for e in group if e.object_name)
    if name is None:
        name = names.most_common(1)[0][0] if names else _position_name(ra, dec)
    name = base = safe_name(name)
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    reach = [separation(ra, dec, e.record.ra, e.record.dec) for e in group if math.isfinite(e.record.ra)]
    half = max((e.radius for e in group if e.radius), default=UNKNOWN_RADIUS)
    # A tenth beyond the farthest pointing, and never less than half of the field of view's half diagonal.
    radius = max(1.1 * max(reach, default=0.0), SAME_FIELD * half)
    longitudes = [e.longitude for e in group if e.longitude is not None]
    longitude = float(np.median(longitudes)) if longitudes else None
    filters = tuple(sorted({e.record.filter for e in group}))
    return Field(name, ra, dec, radius, filters, archive, longitude)


def _position_name(ra: float, dec: float) -> str:
    """Return a name such as J0227-0511 from a position in degrees."""
    minutes = round(ra / 15 * 60) % (24 * 60)
    arcminutes = round(abs(dec) * 60)
    sign = "-" if dec < 0 else "+"
    return f"J{minutes // 60:02d}{minutes % 60:02d}{sign.replace('+', 'p')}{arcminutes // 60:02d}{arcminutes % 60:02d}"
