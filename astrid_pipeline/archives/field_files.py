"""Fields as data: a YAML file of them, read with every mistake named, and written.

fields:
  - name: m31
    centre: M31                # a name, or {ra: 00:42:44.3, dec: +41:16:09}, or [10.68, 41.27]
    radius: 0.3                # degrees
    filters: [F110W, F160W]    # default: all
    surveys: [HST, JWST]       # of MAST; or archive: folder:/data/m31
    poll_minutes: 60
    reference: auto+ps1
    site: space                # or site_longitude: -70.8
  - name: bulge
    centre: [270.0, -30.0]
    radius: 5
    tiles: 50                  # cut into at most so many fields
    archive: folder:/data/bulge
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from astrid_pipeline.archives.base import Field
from astrid_pipeline.archives.coordinates import parse_position, resolve_name
from astrid_pipeline.errors import ConfigError, ReadError

_KEYS = frozenset(
    {"name", "centre", "ra", "dec", "radius", "filters", "surveys", "archive", "poll_minutes", "reference"}
    | {"site", "site_longitude", "tiles", "cell"}
)


@cache
def sites() -> Mapping[str, Mapping[str, Any]]:
    """Return the observatories of `sites.yaml` by name."""
    loaded: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
        (Path(__file__).parent / "sites.yaml").read_text(encoding="utf-8")
    )
    return loaded


def longitude_of(site: str) -> float | None:
    """Return a site's east longitude in degrees; None for space.

    Raises
    ------
    ConfigError
        If the site is not known.
    """
    if site not in sites():
        raise ConfigError(
            f"no site is called {site!r}",
            where="site",
            remedy=f"use one of {', '.join(sorted(sites()))}, or give its east longitude",
        )
    value = sites()[site]["longitude"]
    return None if value is None else float(value)


def read_fields(
    path: str | Path,
    *,
    archive: str = "simulated",
    resolve: Callable[[str], tuple[float, float]] = resolve_name,
) -> list[Field]:
    """Return the fields of a YAML file.

    Parameters
    ----------
    path:
        The file; its form is in this module's description.
    archive:
        Archive of fields that name none.
    resolve:
        Finds the position of a named object.

    Raises
    ------
    ReadError
        If the file cannot be read or is not YAML.
    ConfigError
        Naming the field and the key that is wrong.
    """
    try:
        # Everything as text: YAML 1.1 takes the filter y for "yes", and 00:02:03 for the number 123.
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}", where=path, remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReadError(f"is not YAML: {error}", where=path, remedy="mend the line") from error
    entries = content.get("fields") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            "has no list of fields", where=path, remedy="begin it with `fields:` and `- name: …`"
        )
    out: dict[str, Field] = {}
    for number, entry in enumerate(entries, 1):
        for field in _fields_of(entry, f"{path}, field {number}", archive, resolve):
            if field.name in out:
                raise ConfigError(
                    f"the field {field.name} is there twice", where=path, remedy="rename one of them"
                )
            out[field.name] = field
    return list(out.values())


def _fields_of(
    entry: Any, where: str, archive: str, resolve: Callable[[str], tuple[float, float]]
) -> list[Field]:
    if not isinstance(entry, Mapping) or not entry.get("name"):
        raise ConfigError("a field has no name", where=where, remedy="write `- name: …`")
    where = f"{where} ({entry['name']})"
    entry = {key: value for key, value in entry.items() if value not in ("", "null", "~")}
    if unknown := set(entry) - _KEYS:
        raise ConfigError(
            f"unknown key {', '.join(sorted(map(str, unknown)))}",
            where=where,
            remedy=f"use {', '.join(sorted(_KEYS))}",
        )
    if "surveys" in entry and "archive" in entry:
        raise ConfigError(
            "has both surveys and archive", where=where, remedy="surveys: [HST] is archive: mast:HST"
        )
    ra, dec = _centre(entry, where, resolve)
    text = str(entry.get("archive", archive))
    if entry.get("surveys"):
        text = "mast:" + ",".join(str(name) for name in _list(entry["surveys"]))
    longitude = entry.get("site_longitude")
    if "site" in entry:
        longitude = longitude_of(str(entry["site"]))
    field = Field(
        name=str(entry["name"]),
        ra=ra,
        dec=dec,
        radius=_number(entry.get("radius", 0.5), "radius", where),
        filters=tuple(str(name) for name in _list(entry.get("filters", []))),
        archive=text,
        site_longitude=None if longitude is None else _number(longitude, "site_longitude", where),
        reference=str(entry.get("reference", "auto")),
        poll_minutes=None
        if entry.get("poll_minutes") is None
        else _number(entry["poll_minutes"], "poll_minutes", where),
        cell=str(entry.get("cell", "")),
    )
    if "tiles" in entry:
        from astrid_pipeline.archives.tiling import tile_circle

        return tile_circle(field, int(_number(entry["tiles"], "tiles", where)))
    return [field]


def _centre(
    entry: Mapping[str, Any], where: str, resolve: Callable[[str], tuple[float, float]]
) -> tuple[float, float]:
    centre = entry.get("centre")
    if isinstance(centre, Mapping):
        return parse_position(str(centre.get("ra")), str(centre.get("dec")), where)
    if isinstance(centre, list) and len(centre) == 2:
        return parse_position(str(centre[0]), str(centre[1]), where)
    if "ra" in entry and "dec" in entry:
        return parse_position(str(entry["ra"]), str(entry["dec"]), where)
    if isinstance(centre, str):
        return resolve(centre)
    if centre is None:
        return math.nan, math.nan
    raise ConfigError(f"centre {centre!r} is no position", where=where, remedy="write [RA, DEC], or a name")


def _number(value: Any, name: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} {value!r} is no number", where=where, remedy="write a number") from error


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def write_fields(fields: Iterable[Field]) -> str:
    """Return the YAML text that `read_fields` reads the same fields from."""
    entries = []
    for field in fields:
        entry: dict[str, Any] = {"name": field.name}
        if math.isfinite(field.ra):
            entry["centre"] = [field.ra, field.dec]
        entry |= {"radius": field.radius, "filters": list(field.filters), "archive": field.archive}
        entry |= {"reference": field.reference, "site_longitude": field.site_longitude}
        entry |= {"poll_minutes": field.poll_minutes, "cell": field.cell or None}
        entries.append({key: value for key, value in entry.items() if value not in (None, [])})
    return yaml.safe_dump({"fields": entries}, sort_keys=False, allow_unicode=True)
