"""A light curve as SVG: forced fluxes with errors, upper limits, filters by colour; every point leads to its stamps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 12, 26
#: Filters get these colours in the order of their wavelengths; others, in the order of their names, the rest.
_ORDER = "ugrizyJHK"
_COLOURS = ("#9a7bff", "#4fb3ff", "#ff8a5c", "#ffc94d", "#e66fd2", "#7fe0c3", "#c9d1d9", "#ff6b6b", "#8fd14f")
#: AB zero point of nanojansky.
_NJY_ZERO = 31.4
_MEASURED = 3.0


def microjansky(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """Return what to multiply each point's flux by for µJy, if all points have a zero point, else 1; and the unit."""
    zeros = [point["zero_point"] for point in points]
    if any(zero is None or zero != zero for zero in zeros):
        return [1.0] * len(points), "counts"
    return [1e-3 * 10 ** (-0.4 * (zero - _NJY_ZERO)) for zero in zeros], "µJy"


def colours(filters: list[str]) -> dict[str, str]:
    """Return a colour for each filter."""
    order = sorted(set(filters), key=lambda name: (_ORDER.find(name[:1]) % 99, name))
    return {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(order)}


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers between two others, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(k for k in (1, 2, 5, 10) if k * power >= raw)
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def light_curve_svg(points: Sequence[Mapping[str, Any]], now: float | None = None) -> str:
    """Return the SVG, empty without points.

    Parameters
    ----------
    points:
        Rows with exposure_id, source_id, filter, mjd, flux, flux_err, snr, upper_limit, zero_point, in order of time.
    now:
        MJD to mark: that of the source on the page.
    """
    if not points:
        return ""
    factors, unit = microjansky(points)
    placed = [_placed(point, factor) for point, factor in zip(points, factors, strict=True)]
    low = min(0.0, *(p.flux - p.flux_err if p.seen else 0.0 for p in placed))
    high = max(0.0, *(p.flux + p.flux_err if p.seen else p.upper_limit for p in placed))
    pad = 0.06 * (high - low or 1.0)
    low, high = low - pad, high + pad
    first, last = min(p.mjd for p in placed), max(p.mjd for p in placed)
    pad = max(0.03 * (last - first), 0.02)
    first, last = first - pad, last + pad

    def x(value: float) -> float:
        return round(_LEFT + (value - first) / (last - first) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="light curve, {len(points)} points">'
    ]
    for value in ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value + 0.0:g}</text>'
        )
    for value in ticks(first, last, 5):
        parts.append(f'<text x="{x(value)}" y="{HEIGHT - 8}" text-anchor="middle">{value:.10g}</text>')
    parts.append(f'<line class="zero" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(0)}" y2="{y(0)}"/>')
    parts.append(f'<text x="4" y="{_TOP}">Δ {unit}</text>')
    if now is not None:
        parts.append(f'<line class="now" x1="{x(now)}" x2="{x(now)}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    palette = colours([p.filter for p in placed])
    parts += [_point(p, palette[p.filter], unit, x, y) for p in placed]
    for k, (name, colour) in enumerate(palette.items()):
        at = WIDTH - _RIGHT - 14 - 34 * (len(palette) - 1 - k)
        parts.append(f'<text x="{at}" y="{_TOP}" fill="{colour}" class="filter">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Point:
    exposure_id: str
    source_id: int | None
    filter: str
    mjd: float
    flux: float
    flux_err: float
    upper_limit: float
    seen: bool


def _placed(row: Mapping[str, Any], factor: float) -> _Point:
    source, name = row["source_id"], row["filter"]
    return _Point(
        exposure_id=str(row["exposure_id"]),
        source_id=None if source is None or source != source else int(source),
        filter="?" if name is None or name != name else str(name),
        mjd=float(row["mjd"]),
        flux=float(row["flux"]) * factor,
        flux_err=float(row["flux_err"]) * factor,
        upper_limit=float(row["upper_limit"]) * factor,
        seen=abs(row["snr"]) >= _MEASURED,
    )


def _point(
    row: _Point, colour: str, unit: str, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    at = x(row.mjd)
    link = "" if row.source_id is None else f' data-source="{row.source_id}" class="to-source"'
    exposure = escape(row.exposure_id)
    if row.seen:
        told = f"{exposure}: {row.flux:.3g} ± {row.flux_err:.2g} {unit}"
        high, low = y(row.flux + row.flux_err), y(row.flux - row.flux_err)
        shape = (
            f'<line x1="{at}" x2="{at}" y1="{low}" y2="{high}" stroke="{colour}"/>'
            f'<circle cx="{at}" cy="{y(row.flux)}" r="{4 if link else 3}" fill="{colour}"/>'
        )
    else:
        told = f"{exposure}: below {row.upper_limit:.3g} {unit} (3σ)"
        shape = f'<path d="M{at - 4},{y(row.upper_limit)} h8 l-4,6 z" fill="none" stroke="{colour}"/>'
    return f"<g{link}><title>{told}</title>{shape}</g>"
