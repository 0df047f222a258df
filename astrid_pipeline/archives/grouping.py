"""Which exposures show the same field, and what each is called: for archives that say neither."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astrid_pipeline.archives import fits_reader
from astrid_pipeline.archives.base import ExposureRecord, Field, safe_name
from astrid_pipeline.imaging.raw import Kind

#: Pointings closer than this share of the field of view are one field: the larger part of the sky is common to both.
SAME_FIELD = 0.5

#: Half the field of view, degrees, where neither WCS nor optics tell it: that of a small telescope's camera.
UNKNOWN_RADIUS = 0.15


@dataclass(frozen=True)
class Entry:
    """One exposure of the folder: its record without a field, and what grouping and duplicates need."""

    record: ExposureRecord
    summary: fits_reader.Summary
    object_name: str | None
    radius: float | None
    longitude: float | None


def with_unique_ids(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Give exposures whose files share a name an id with their folders in it, then a number."""
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
        out.append(dataclasses.replace(entry, record=dataclasses.replace(entry.record, exposure_id=identity)))
    return out


def separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Return the angle between two positions in degrees, by the haversine formula."""
    a, b = math.radians(dec1), math.radians(dec2)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(ra2 - ra1) / 2) ** 2
    return math.degrees(2 * math.asin(math.sqrt(min(1.0, h))))


def group_into_fields(entries: Iterable[Entry], archive: str) -> list[tuple[Field, list[Entry]]]:
    """Return the fields that light frames fall into, each with its frames.

    A frame joins the first group whose centre is within `SAME_FIELD` of the smaller field of view, or which has its
    object's name and is not farther than two fields of view (a pointing is less exact than a WCS); frames without
    position join by their object's name alone, or else by instrument.
    """
    lights = [entry for entry in entries if entry.record.kind == Kind.LIGHT]
    placed = [entry for entry in lights if math.isfinite(entry.record.ra)]
    groups: list[list[Entry]] = []
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
    nameless: dict[str, list[Entry]] = {}
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


def _field(group: Sequence[Entry], archive: str, taken: set[str], name: str | None = None) -> Field:
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
