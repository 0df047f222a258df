"""Anybody's FITS header in one normal form.

`normalise` applies the alias tables to a header and returns what `Frame.meta` may say. Nothing downstream reads a raw
header.
"""

from __future__ import annotations

import math
import re
from typing import Any

from astropy.io import fits

from astrid_pipeline.archives.keywords import NOTHING, Keywords, flag, given
from astrid_pipeline.archives.times import middle_of_exposure
from astrid_pipeline.errors import HeaderError
from astrid_pipeline.imaging.raw import Kind

#: Colour filter arrays by their first two rows.
_BAYER = ("RGGB", "BGGR", "GRBG", "GBRG")

#: Counts per unit for what is a multiple of another unit.
_JANSKY = {"jy": 1e9, "mjy": 1e6, "ujy": 1e3, "µjy": 1e3, "microjy": 1e3, "njy": 1.0, "nanojy": 1.0}


class Reader:
    """Looks things up in one header through the alias tables."""

    def __init__(self, header: fits.Header, keywords: Keywords) -> None:
        self.header = header
        self.keywords = keywords
        self.keys, self.fixed = keywords.for_header(header)

    def all(self, name: str) -> list[Any]:
        """Return what the header says of `name` under each of its keywords, in the order of trust."""
        fixed = [self.fixed[name]] if name in self.fixed else []
        found = (given(self.header, key) for key in self.keys.get(name, ()))
        return fixed + [value for value in found if value is not None]

    def first(self, name: str) -> Any:
        """Return the first thing that the header says of `name`, or None."""
        return next(iter(self.all(name)), None)

    def number(self, name: str, *, positive: bool = False) -> float | None:
        """Return the first number that the header gives for `name`, above zero if `positive`, or None."""
        for value in self.all(name):
            number = as_number(value)
            if number is not None and (number > 0 or not positive):
                return number
        return None


def as_number(value: Any) -> float | None:
    """Return a number from a number or from text that begins with one ("13 C"), else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    match = re.match(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?)(?![\d:])", str(value))
    return float(match[1].replace("d", "e").replace("D", "E")) if match else None


def as_angle(value: Any, *, hours: bool) -> float | None:
    """Return degrees from a number, or from sexagesimal text, which counts hours if `hours`; else None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip()
    parts = re.split(r"[\s:hdms°'\"]+", text.strip("\"' "), flags=re.IGNORECASE)
    parts = [part for part in parts if part]
    try:
        numbers = [abs(float(part)) for part in parts[:3]]
    except ValueError:
        return None
    if not numbers:
        return None
    if len(numbers) == 1:
        return as_number(text)
    angle = sum(number / 60**power for power, number in enumerate(numbers))
    angle = -angle if text.startswith("-") else angle
    return angle * 15 if hours else angle


def kind_of(reader: Reader) -> Kind:
    """Return what the exposure is of; a header that does not say is a light frame's."""
    for value in reader.all("kind"):
        text = re.sub(r"[^a-z]", "", str(value).lower())
        for kind, words in reader.keywords.kinds.items():
            if any(word in text for word in words):
                return Kind(kind)
    return Kind.LIGHT


def normal_unit(
    text: Any, keywords: Keywords, *, pixel_area_sr: float | None = None, where: str | None = None
) -> tuple[str, float]:
    """Return the normal unit of a BUNIT, and the factor from the file's numbers to that unit.

    Raises
    ------
    HeaderError
        If the unit is not known, or is a surface brightness and the pixel's area is not known.
    """
    flat = re.sub(r"\s+", "", str(text or "")).lower()
    if flat in NOTHING:
        return "adu", 1.0
    rate = bool(re.search(r"(/s(ec|econds?)?|\*?\*?s\*\*-1|s\^?-1|\.s-1)$", flat)) or flat in ("cps", "eps")
    base = re.sub(r"(/s(ec|econds?)?|\*?\*?s\*\*-1|s\^?-1|\.s-1)$", "", flat)
    base = {"cps": "electron", "eps": "electron"}.get(base, base)
    base = re.sub(r"(/pix(el)?|pix-1)$", "", base)
    if base in _JANSKY and not rate:
        # Upper and lower case tell mega from milli; only the file's own spelling can say which.
        mega = re.match(r"\s*MJy", str(text)) is not None
        return "nJy", 1e15 if mega else _JANSKY[base]
    if base == "mjy/sr" and re.match(r"\s*MJy", str(text)):
        if not pixel_area_sr:
            raise HeaderError(
                "the unit is MJy/sr, and the area of a pixel is not known", where=where, remedy="set PIXAR_SR"
            )
        return "nJy", 1e15 * pixel_area_sr
    for unit, words in keywords.units.items():
        if base in words:
            return (f"{unit}/s" if rate else unit), 1.0
    raise HeaderError(
        f"the unit BUNIT = {text!r} is not known",
        where=where,
        remedy="correct BUNIT (adu, electron, adu/s, electron/s, Jy …) or add the word to `units` in keywords.yaml",
    )


def bayer_pattern(reader: Reader) -> str | None:
    """Return the colour filter array as its first two rows from the image's first pixel, or None."""
    for value in [*reader.all("bayer"), *reader.all("filter")]:
        text = str(value).upper().strip()
        if text in _BAYER:
            x = int(reader.number("bayer_x") or 0) % 2
            y = int(reader.number("bayer_y") or 0) % 2
            rows = [text[:2], text[2:]]
            rows = [row[x:] + row[:x] for row in rows]
            return "".join(rows[y:] + rows[:y])
    return None


def filter_name(reader: Reader) -> str:
    """Return the filter's short name; "none" if the header does not say."""
    value = next((v for v in reader.all("filter") if str(v).lower() not in ("air", "open", "clear_")), None)
    if value is None:
        value = reader.first("filter")
    text = "none" if value is None else str(value)
    for pattern, replacement in reader.keywords.filters:
        if re.match(pattern, text, re.IGNORECASE):
            text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
            break
    return re.sub(r"[^A-Za-z0-9._'+-]+", "_", text).strip("_") or "none"


def _binning(reader: Reader) -> str:
    both = reader.first("binning")
    if both is not None and (numbers := re.findall(r"\d+", str(both))):
        return f"{int(numbers[0])}x{int(numbers[-1])}"
    x, y = reader.number("binning_x"), reader.number("binning_y")
    return f"{int(x or y or 1)}x{int(y or x or 1)}"


def _temperature(reader: Reader) -> float | None:
    value = reader.number("temperature")
    # No working detector is warmer than 60 °C: such a number is in kelvin.
    return value - 273.15 if value is not None and value > 60 else value


def _zero_point(reader: Reader) -> tuple[float, str] | None:
    if (value := reader.number("zero_point", positive=True)) is not None:
        return value, "header"
    flam, pivot = as_number(reader.header.get("PHOTFLAM")), as_number(reader.header.get("PHOTPLAM"))
    if flam and pivot and flam > 0 and pivot > 0:
        # HST: m_AB = −2.5 lg PHOTFLAM − 5 lg PHOTPLAM − 2.408 (WFC3 Data Handbook, sect. 9.1).
        return -2.5 * math.log10(flam) - 5 * math.log10(pivot) - 2.408, "header (PHOTFLAM)"
    return None


def position(reader: Reader) -> tuple[float, float] | None:
    """Return (ra, dec) in degrees from the pointing keywords, or None; texts of right ascension count hours."""
    for ra_text, dec_text in zip(reader.all("ra"), reader.all("dec"), strict=False):
        ra, dec = as_angle(ra_text, hours=True), as_angle(dec_text, hours=False)
        if ra is not None and dec is not None and 0 <= ra <= 360 and -90 <= dec <= 90:
            return ra % 360, dec
    return None


def normalise(header: fits.Header, keywords: Keywords, *, where: str | None = None) -> dict[str, Any]:
    """Return what a header says, in the terms of `Frame.meta` and `RawExposure.meta`.

    `header` is that of the image with the primary's beneath it. Besides the keys of `META_KEYS` there may be:
    `kind`, `temperature` (°C), `binning`, `bayer`, `object`, `ra`, `dec`, `site_longitude`, `telescope`, `detector`,
    `pedestal` (counts to add for a true zero), `calibrated`, `sky_subtracted`, `resampled`, `n_combined`, `date_obs`.

    Raises
    ------
    HeaderError
        If a light frame has an exposure time of zero or less.
    """
    reader = Reader(header, keywords)
    kind = kind_of(reader)
    meta: dict[str, Any] = {"kind": str(kind), "instrument": str(reader.first("instrument") or "unknown")}
    exposures = [n for value in reader.all("exposure") if (n := as_number(value)) is not None]
    exposure = next((n for n in exposures if n > 0), exposures[0] if exposures else None)
    if kind is Kind.LIGHT and exposure is not None and exposure <= 0:
        raise HeaderError(
            f"a light frame with an exposure time of {exposure:g} s",
            where=where,
            remedy="correct EXPTIME, or IMAGETYP if it is a bias frame",
        )
    meta["exposure"] = exposure
    mjd, date_obs = middle_of_exposure(reader.all, exposure or 0.0)
    meta.update(mjd=mjd, date_obs=date_obs, filter=filter_name(reader), binning=_binning(reader))
    for name in ("telescope", "object", "detector"):
        value = reader.first(name)
        meta[name] = None if value is None else str(value)
    for name in ("gain", "read_noise", "saturation", "n_combined"):
        meta[name] = reader.number(name, positive=True)
    for name in ("pedestal", "sky", "zero_point_err"):
        meta[name] = reader.number(name)
    meta["temperature"] = _temperature(reader)
    meta["bayer"] = bayer_pattern(reader)
    for name in ("calibrated", "sky_subtracted", "resampled"):
        meta[name] = flag(header, getattr(keywords, name)) or None
    if (zero := _zero_point(reader)) is not None:
        meta["zero_point"], meta["zero_point_source"] = zero
    if (centre := position(reader)) is not None:
        meta["ra"], meta["dec"] = centre
    longitude = (as_angle(value, hours=False) for value in reader.all("site_longitude"))
    meta["site_longitude"] = next((v for v in longitude if v is not None), None)
    meta["pixel_scale"] = _pixel_scale(reader)
    return {key: value for key, value in meta.items() if value is not None}


def _pixel_scale(reader: Reader) -> float | None:
    if (scale := reader.number("pixel_scale", positive=True)) is not None:
        return scale
    size = reader.number("pixel_size_um", positive=True)
    focal = reader.number("focal_length_mm", positive=True)
    # 1 rad = 206 264.8″, and µm / mm = 10⁻³. MaxIm writes the size after binning.
    return 206.2648 * size / focal if size and focal else None


def merged_header(primary: fits.Header, extension: fits.Header) -> fits.Header:
    """Return an extension's header with the primary's beneath it.

    A value that says nothing ("UNKNOWN", "N/A") does not overrule one that does.
    """
    out = extension.copy()
    if primary is extension:
        return out
    own = set(extension)
    for card in primary.cards:
        keyword = card.keyword
        if keyword in ("", "COMMENT", "HISTORY", "CONTINUE"):
            continue
        if keyword not in own:
            out.append(card, end=True)
        elif given(extension, keyword) is None and given(primary, keyword) is not None:
            out[keyword] = card.value
    return out
