"""The report of one difference: a single HTML file that opens by double click, with nothing fetched from anywhere."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline import __version__
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import is_set
from astrid_pipeline.report.pictures import quad_png, stamps_png
from astrid_pipeline.report.remarks import number, remarks
from astrid_pipeline.report.tables import write_whole

#: Cut-outs for so many rows (some 5 kB each), and this many rows in all: the page stays near 3 MB.
_STAMPS, _ROWS = 120, 1000
_NUMBERED = 40


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from.

    Attributes
    ----------
    rows:
        One row a candidate, best first: `x`, `y`, `ra`, `dec`, `flux`, `flux_err`, `snr`, and where known `score`,
        `class`, `is_detection`, `mag`, `mag_err`, `flag_names`.
    science, reference:
        `meta` of the two frames as they were measured, before alignment.
    settings:
        What was asked for, to be shown as it was given.
    files:
        File name → what it holds, written beside the report.
    """

    difference: Difference
    rows: pd.DataFrame
    science: Mapping[str, Any]
    reference: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def write_report(source: ReportInput, path: Path) -> Path:
    """Write the report as one self-contained HTML file."""
    html = render(source)
    return write_whole(path, lambda name: name.write_text(html, encoding="utf-8"))


def render(source: ReportInput) -> str:
    """Return the report as HTML."""
    difference, rows = source.difference, source.rows
    detected = rows["is_detection"].to_numpy(bool) if "is_detection" in rows else np.zeros(len(rows), bool)
    shown = rows.head(_ROWS)
    marks = rows[detected] if detected.any() else rows
    return _template().render(
        title=f"{difference.meta.get('exposure_id', 'science')} − {difference.meta.get('reference_id', 'reference')}",
        version=__version__,
        n_detections=int(detected.sum()),
        n_candidates=int((rows["origin"] == "candidate").sum()) if "origin" in rows else len(rows),
        n_deeper=int((detected & (rows["origin"] == "network")).sum()) if "origin" in rows else 0,
        n_rows=len(rows),
        n_shown=len(shown),
        threshold=source.settings.get("threshold"),
        tiles=_tiles(source),
        remarks=remarks(
            difference.meta, source.science, source.reference, has_wcs=difference.wcs is not None
        ),
        quad=_uri(quad_png(difference, marks, " ", max_px=2400, numbered=_NUMBERED, colours=64)),
        rows=[_row(k, row, difference) for k, row in enumerate(shown.to_dict("records"), 1)],
        noise=_noise_plot(difference),
        frames=_frames(source),
        settings={k: v for k, v in source.settings.items() if v is not None},
        files=source.files,
    )


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    note: str = ""
    bad: bool = False


def _tiles(source: ReportInput) -> list[_Tile]:
    meta, science, reference = source.difference.meta, source.science, source.reference
    warned = {r.about for r in remarks(meta, science, reference) if r.level == "warning"}
    sigma = number(meta, "score_sigma")
    shifts = [v for key in ("dx_rms", "dy_rms") if (v := number(meta, key)) is not None]
    matched = number(meta, "n_matched")
    zero_point, depth = number(science, "zero_point"), number(science, "depth")
    return [
        _Tile("seeing", _seeing(science), f"reference {_seeing(reference)}"),
        _Tile(
            "registration",
            f"{max(shifts):.3f} px" if shifts else "—",
            f"{matched:.0f} stars matched" if matched is not None else "",
            "registration" in warned,
        ),
        _Tile("score noise", _fixed(sigma, 3), "1 where nothing changed", "score noise" in warned),
        _Tile(
            "zero point",
            _fixed(zero_point, 2, " mag"),
            str(science.get("zero_point_source") or "")
            if zero_point is not None
            else "fluxes without magnitudes",
        ),
        _Tile("depth", _fixed(depth, 2, " mag"), "point source, S/N 5"),
        _Tile(
            "flux ratio",
            _fixed(number(meta, "flux_ratio"), 4),
            "science ÷ reference, before scaling",
        ),
        _Tile(
            "common sky",
            _percent(_coverage(source.difference)),
            "of the frame was searched",
            "coverage" in warned,
        ),
    ]


def _coverage(difference: Difference) -> float:
    return float(1 - is_set(difference.mask, reference=True).mean())


def _seeing(meta: Mapping[str, Any]) -> str:
    arcsec, pixels = number(meta, "seeing_arcsec"), number(meta, "seeing")
    if arcsec is not None:
        return f"{arcsec:.2f}″"
    return "—" if pixels is None else f"{pixels:.2f} px"


def _fixed(value: float | None, digits: int, unit: str = "") -> str:
    return "—" if value is None or not np.isfinite(value) else f"{value:.{digits}f}{unit}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _row(position: int, row: Mapping[Any, Any], difference: Difference) -> dict[str, Any]:
    """Return one row of the table: what is shown, and beside it the numbers that it sorts by."""
    ra, dec = (float(row.get(key, np.nan)) for key in ("ra", "dec"))
    score, mag = float(row.get("score", np.nan)), float(row.get("mag", np.nan))
    flux, error = float(row["flux"]), float(row["flux_err"])
    stamps = _uri(stamps_png(difference, row["x"], row["y"], size=66)) if position <= _STAMPS else None
    flags = row.get("flag_names")
    return {
        "number": position,
        "stamps": stamps,
        "detected": bool(row.get("is_detection", False)),
        "ra": ra,
        "dec": dec,
        "sexagesimal": _sexagesimal(ra, dec),
        "x": float(row["x"]),
        "y": float(row["y"]),
        "flux": flux,
        "flux_text": f"{_significant(flux)} ± {_significant(error, 2)}",
        "snr": float(row["snr"]),
        "mag": mag,
        "mag_text": "—" if not np.isfinite(mag) else f"{mag:.2f}" + _error(row.get("mag_err")),
        "score": score,
        "class": str(row.get("class") or "") if not _is_nan(row.get("class")) else "",
        "flags": str(flags) if isinstance(flags, str) and flags else "",
    }


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _error(value: Any) -> str:
    return f" ± {float(value):.2f}" if value is not None and np.isfinite(float(value)) else ""


def _significant(value: float, digits: int = 4) -> str:
    """Return `value` with `digits` significant digits, without an exponent where it can be read without one."""
    if not np.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    power = int(np.floor(np.log10(abs(value))))
    if not -4 <= power <= 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - power, 0)}f}".replace("-", "−")


def _sexagesimal(ra: float, dec: float) -> str:
    if not (np.isfinite(ra) and np.isfinite(dec)):
        return ""
    # Counted in hundredths of a second of time and tenths of an arcsecond, so that 59.999 carries over.
    hours, rest = divmod(round((ra % 360) * 24_000) % 8_640_000, 360_000)
    minutes, seconds = divmod(rest, 6_000)
    degrees, rest = divmod(round(abs(dec) * 36_000), 36_000)
    arcmin, arcsec = divmod(rest, 600)
    sign = "−" if dec < 0 else "+"
    return f"{hours:02d}:{minutes:02d}:{seconds / 100:05.2f} {sign}{degrees:02d}:{arcmin:02d}:{arcsec / 10:04.1f}"


_SHOWN_META = (
    ("exposure_id", "exposure", ""),
    ("instrument", "instrument", ""),
    ("filter", "filter", ""),
    ("mjd", "middle, MJD (UTC)", ".6f"),
    ("exposure", "exposure time, s", "g"),
    ("unit", "unit", ""),
    ("gain", "gain, e⁻ per unit", ".4g"),
    ("gain_source", "gain from", ""),
    ("read_noise", "read noise, e⁻", ".3g"),
    ("saturation", "saturation level", ".6g"),
    ("sky", "sky level", ".6g"),
    ("sky_sigma", "sky noise, per px", ".4g"),
    ("seeing", "seeing, px", ".2f"),
    ("ellipticity", "ellipticity of the PSF", ".3f"),
    ("n_stars", "stars in the PSF", ".0f"),
    ("pixel_scale", "pixel, arcsec", ".4g"),
    ("zero_point", "zero point, mag (AB)", ".3f"),
    ("zero_point_source", "zero point from", ""),
    ("depth", "depth (S/N 5), mag", ".2f"),
    ("saturated_fraction", "saturated", ".2%"),
    ("masked_fraction", "unusable", ".2%"),
)


def _frames(source: ReportInput) -> list[tuple[str, str, str]]:
    """Return (label, science, reference) of everything known about either frame."""
    out = []
    for key, label, form in _SHOWN_META:
        pair = [_shown(meta.get(key), form) for meta in (source.science, source.reference)]
        if any(pair):
            out.append((label, pair[0] or "—", pair[1] or "—"))
    return out


def _shown(value: Any, form: str) -> str:
    if value is None or value == "" or _is_nan(value):
        return ""
    if not form:
        return str(value)
    try:
        return format(float(value), form)
    except (TypeError, ValueError):
        return str(value)


def _noise_plot(difference: Difference) -> dict[str, Any] | None:
    """Return polylines of the score's histogram and of the unit Gaussian, log scale, for an SVG of 320 × 150."""
    good = ~is_set(difference.mask, reference=True)
    score: npt.NDArray[np.float32] = difference.score[good]
    if score.size < 1000:
        return None
    edges = np.linspace(-8, 8, 65)
    counts, _ = np.histogram(np.clip(score, -8, 8), edges)
    centres = (edges[1:] + edges[:-1]) / 2
    gauss = score.size * (edges[1] - edges[0]) * np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi)
    top = np.log10(max(counts.max(), gauss.max())) + 0.1

    def line(values: npt.NDArray[Any], floor: float) -> str:
        points = [
            f"{20 * (c + 8):.1f},{150 * (1 - max(np.log10(max(v, floor)), 0) / top):.1f}"
            for c, v in zip(centres, values, strict=True)
            if v >= floor
        ]
        return " ".join(points)

    return {
        "counts": line(counts, 1),
        "gauss": line(gauss, 1),
        "pixels": int(score.size),
        "top": int(counts.max()),
    }
