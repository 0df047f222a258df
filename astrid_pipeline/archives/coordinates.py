"""Positions as people write them: degrees, sexagesimal, or a name."""

from __future__ import annotations

import math

import requests
from astropy import units
from astropy.coordinates import Angle

from astrid_pipeline.archives.web import Patience, open_session, persist
from astrid_pipeline.errors import ConfigError

#: The archive's own name service, which asks SIMBAD, NED and its catalogues.
RESOLVER = "https://mastresolver.stsci.edu/Santa-war/query"


def parse_angle(text: str | float, what: str, *, hours: bool) -> float:
    """Return degrees from a number of degrees, or from sexagesimal text (hours for a right ascension).

    Parameters
    ----------
    what:
        What it is, for messages.

    Raises
    ------
    ConfigError
        If it is no angle.
    """
    try:
        value = float(text)
    except ValueError:
        try:
            value = float(Angle(str(text), unit=units.hourangle if hours else units.deg).deg)
        except (ValueError, units.UnitsError) as error:
            raise ConfigError(
                f"{text!r} is not an angle",
                where=what,
                remedy="write degrees, or three numbers as 12:34:56.7",
            ) from error
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is not an angle", where=what, remedy="write degrees")
    return value


def parse_position(ra: str | float, dec: str | float, where: str = "position") -> tuple[float, float]:
    """Return ICRS degrees of a position, checked: right ascension in 0–360, declination within ±90.

    Raises
    ------
    ConfigError
        If one of them is no angle, or lies outside.
    """
    alpha = parse_angle(ra, f"{where}, right ascension", hours=True)
    delta = parse_angle(dec, f"{where}, declination", hours=False)
    if not 0 <= alpha <= 360:
        raise ConfigError(
            f"right ascension {alpha:g}° is not in 0–360°", where=where, remedy="add or take away 360°"
        )
    if not -90 <= delta <= 90:
        raise ConfigError(
            f"declination {delta:g}° is not in ±90°",
            where=where,
            remedy="check that the two are not exchanged",
        )
    return alpha % 360, delta


def resolve_name(
    name: str,
    *,
    resolver: str = RESOLVER,
    session: requests.Session | None = None,
    patience: Patience | None = None,
) -> tuple[float, float]:
    """Return the position of a named object, ICRS degrees.

    Raises
    ------
    ConfigError
        If nobody knows the name.
    ServiceError
        If the name service does not answer.
    """
    opened = session or open_session(patience)

    def ask() -> list[dict]:
        reply = opened.get(resolver, params={"name": name, "outputFormat": "json", "resolveAll": "false"})
        reply.raise_for_status()
        return reply.json().get("resolvedCoordinate") or []

    found = persist(
        ask, f"look up the name {name!r}", resolver, patience, remedy="give --ra and --dec instead"
    )
    if not found:
        raise ConfigError(
            f"no catalogue knows the name {name!r}", where=resolver, remedy="check it, or give --ra and --dec"
        )
    return parse_position(float(found[0]["ra"]), float(found[0]["decl"]), name)
