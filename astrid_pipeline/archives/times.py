"""The middle of an exposure, from whatever a header says about time."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

#: Dates outside of 1950 to 2100 are slips of the header, not dates.
_FIRST_MJD, _LAST_MJD = 33282.0, 88069.0

_SECONDS = 86400.0


def middle_of_exposure(
    values: Callable[[str], list[Any]], exposure: float
) -> tuple[float | None, str | None]:
    """Return the MJD (UTC) of the middle of the exposure, and the start as ISO text; None where nothing says.

    `values(name)` gives what the header says of `mjd_mid`, `date_mid`, `mjd_start`, `mjd_end`, `jd_start`,
    `date_start` and `clock`, best first. In this order: a middle; a start and an end; a start and half the
    exposure time (seconds). A day without time is completed from the clock where there is one.
    """
    start = _start(values)
    text = None if start is None else _iso(start)
    for value in values("mjd_mid"):
        if (mid := _mjd(value)) is not None:
            return mid, text
    for value in values("date_mid"):
        if (mid := parse_date(value)) is not None:
            return mid, text
    if start is None:
        return None, None
    for value in values("mjd_end"):
        end = _mjd(value)
        # An end before the exposure can have ended, or a year after it, belongs to something else.
        if end is not None and 0.9 * exposure / _SECONDS < end - start < 366:
            return (start + end) / 2, text
    return start + max(exposure, 0.0) / 2 / _SECONDS, text


def _start(values: Callable[[str], list[Any]]) -> float | None:
    """Return the start: a date with its time of day, else an MJD or JD, else a date and a clock.

    The date goes first because headers round MJD-OBS, and some write the whole day there; a date and a clock that
    stand apart go last because the one may be local and the other not.
    """
    dates = [mjd for value in values("date_start") if (mjd := parse_date(value)) is not None]
    clocks = [clock for value in values("clock") if (clock := parse_clock(value)) is not None]
    numbers = [mjd for value in values("mjd_start") if (mjd := _mjd(value)) is not None]
    julian = (float(v) - 2400000.5 for v in values("jd_start") if isinstance(v, int | float))
    numbers += [mjd for mjd in julian if _FIRST_MJD < mjd < _LAST_MJD]
    for mjd in (*dates, *numbers):
        if mjd != math.floor(mjd):
            return mjd
    whole = dates + numbers
    return _with_clock(whole[0], clocks) if whole else None


def _with_clock(mjd: float, clocks: list[float]) -> float:
    return mjd + clocks[0] if clocks and mjd == math.floor(mjd) else mjd


def _mjd(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if _FIRST_MJD < number < _LAST_MJD else None


def parse_clock(value: Any) -> float | None:
    """Return the fraction of a day from "hh:mm:ss.s", else None."""
    match = re.fullmatch(r"\s*(\d{1,2})[:\s](\d{1,2})(?:[:\s](\d{1,2}(?:\.\d*)?))?\s*", str(value))
    if match is None:
        return None
    hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3] or 0)
    if hours > 24 or minutes > 59 or seconds >= 61:
        return None
    return (hours * 3600 + minutes * 60 + seconds) / _SECONDS


def parse_date(value: Any) -> float | None:
    """Return the MJD of an ISO date (with or without time), or of the old DD/MM/YY form (19YY), else None."""
    from astropy.time import Time

    text = str(value).strip().rstrip("Zz").replace("/", "-")
    if old := re.fullmatch(r"(\d{1,2})-(\d{1,2})-(\d{2})", text):
        # The form of the years before 2000, by FITS' own rule always of the twentieth century.
        text = f"19{old[3]}-{int(old[2]):02d}-{int(old[1]):02d}"
    if not re.match(r"\d{4}-\d{1,2}-\d{1,2}", text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mjd = float(Time(text.replace("T", " "), scale="utc").mjd)
    except ValueError:
        return None
    return mjd if _FIRST_MJD < mjd < _LAST_MJD else None


def _iso(mjd: float) -> str:
    from astropy.time import Time

    return str(Time(mjd, format="mjd", scale="utc").isot)
