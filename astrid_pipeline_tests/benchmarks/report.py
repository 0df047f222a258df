"""The table that is printed, and which of the figures to reach are reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]

HEADER = (
    "case           method                σ   kurt mask%   FP+   FP-   art bare  c5-7 ideal c7-10 ideal  50% ideal"
    "  gal ideal        bias%        pull    gal   tab pos   s/Mpx"
)


def lines(case: str, methods: Figure) -> Iterator[str]:
    """Yield a line a method of one case."""
    for name, f in methods.items():
        if "megapixels" not in f:
            yield f"{case:14s} {name:19s} {'; '.join(f.get('errors', ['nothing']))[:110]}"
            continue
        yield " ".join(
            [
                f"{case:14s} {name:19s}{_n(f.get('score_sigma'), 3, 6)} {_n(f.get('score_kurtosis'), 2, 6)}",
                f"{_n(100 * f['masked_fraction'], 1, 5)}",
                f"{_n(_value(f, 'false_positive'), 1, 5)} {_n(_value(f, 'false_negative'), 1, 5)}",
                f"{_n(_value(f, 'on_artefacts'), 0, 5)} {_n(_value(f, 'on_artefacts_unflagged'), 0, 4)}",
                f"{_n(_value(f, 'completeness_5_7'), 3, 5)} {_n(_value(f, 'ideal_5_7'), 3, 5)}",
                f"{_n(_value(f, 'completeness_7_10'), 3, 5)} {_n(_value(f, 'ideal_7_10'), 3, 5)}",
                f"{_n(_value(f, 'half_sky'), 2, 4)} {_n(_value(f, 'half_sky_ideal'), 2, 5)}",
                f"{_n(_value(f, 'half_galaxies'), 2, 4)} {_n(_value(f, 'half_galaxies_ideal'), 2, 5)}",
                f"{_pm(_paired(f), 100)} {_pm(f.get('pull'), 1)} {_n(_value(f, 'pull_galaxies'), 2, 6)}",
                f"{_n(_value(f, 'table_pull'), 2, 5)} {_n(_value(f, 'position_scatter'), 2, 4)}",
                f"{_n(f['core_seconds_per_megapixel'], 2, 6)}",
            ]
        )


@dataclass(frozen=True)
class Check:
    """One figure to reach: what it is, what was measured, and whether that is it."""

    what: str
    measured: str
    wanted: str
    met: bool


def checks(results: Figure, method: str = "astrid zogy") -> list[Check]:
    """Return which figures to reach are reached, by the values measured (intervals stand in the JSON)."""
    out: list[Check] = []
    for case, methods in results.get("cases", {}).items():
        f = methods.get(method, {})
        if "megapixels" in f:
            out += list(_noise(case, f))
            if "+" not in case:
                out += list(_accuracy(case, f))
    for name, figure in results.get("registration", {}).items():
        if "rms" in figure:
            worst = max(figure["rms"])
            out.append(Check(f"{name}: registration, px", f"{worst:.3f}", "≤ 0.05", worst <= 0.05))
    for figure in results.get("speed", []):
        out += list(_speed(figure))
    return out


def _noise(case: str, f: Figure) -> Iterator[Check]:
    sigma, kurtosis, masked = f["score_sigma"], f["score_kurtosis"], f["masked_fraction"]
    within = 0.05 if "+" in case else 0.02
    yield Check(f"{case}: σ of the score", f"{sigma:.3f}", f"1 ± {within}", abs(sigma - 1) <= within)
    if "+" not in case and kurtosis is not None:
        yield Check(f"{case}: kurtosis", f"{kurtosis:.2f}", "0 ± 0.1", abs(kurtosis) <= 0.1)
    yield Check(f"{case}: masked", f"{masked:.1%}", "≤ 5 %", masked <= 0.05)


def _accuracy(case: str, f: Figure) -> Iterator[Check]:
    for key in ("false_positive", "false_negative"):
        rate = f[key]
        words = f"{rate['value']:.2f} ({rate['low']:.2f}–{rate['high']:.2f})"
        yield Check(f"{case}: {key.replace('_', ' ')}s a Mpix", words, "≤ 1", rate["value"] <= 1)
    bare = _value(f, "on_artefacts_unflagged")
    if bare is not None:
        yield Check(f"{case}: unflagged on artefacts a Mpix", f"{bare:.1f}", "≤ 10", bare <= 10)
    for key, least, within in (("5_7", 0.70, 0.03), ("7_10", 0.98, 0.02)):
        got, best = _value(f, f"completeness_{key}"), _value(f, f"ideal_{key}")
        if got is not None and best is not None:
            words = f"{got:.3f} (ideal {best:.3f}, n {f[f'completeness_{key}']['n']})"
            wanted = f"≥ {least} or ideal − {within}"
            yield Check(
                f"{case}: completeness at S/N {key.replace('_', '–')}",
                words,
                wanted,
                got >= least or got >= best - within,
            )
    sky, galaxies = _value(f, "half_sky"), _value(f, "half_galaxies")
    if sky is not None and galaxies is not None:
        yield Check(f"{case}: half found in empty sky at S/N", f"{sky:.2f}", "≤ 5.3", sky <= 5.3)
        gap = galaxies - sky
        yield Check(f"{case}: half found on galaxies, over that", f"{gap:+.2f}", "≤ +0.5", gap <= 0.5)
    for key in ("flux_bias_paired", "flux_bias_paired_galaxies", "table_flux_bias_paired"):
        if _value(f, key) is not None:
            words = f"{100 * f[key]['value']:+.2f} ± {100 * f[key]['error']:.2f} %"
            yield Check(f"{case}: {key.replace('_', ' ')}", words, "≤ 0.5 %", abs(f[key]["value"]) <= 0.005)
    for key in ("pull", "pull_galaxies", "table_pull", "table_pull_galaxies"):
        if _value(f, key) is not None:
            words = f"{f[key]['value']:.3f} ± {f[key]['error']:.3f}"
            yield Check(
                f"{case}: {key.replace('_', ' ')}", words, "1 ± 0.05", abs(f[key]["value"] - 1) <= 0.05
            )
    if _value(f, "position_scatter") is not None:
        scatter = f["position_scatter"]
        words = f"{scatter['value']:.3f} ± {scatter['error']:.3f} (least possible {f.get('position_bound') or 0:.3f})"
        yield Check(f"{case}: position scatter over √2 s / (S/N)", words, "≤ 1.15", scatter["value"] <= 1.15)
        for axis in "xy":
            bias = f[f"position_bias_{axis}"]
            words = f"{bias['value']:+.4f} ± {bias['error']:.4f} px"
            yield Check(
                f"{case}: position bias in {axis}",
                words,
                "0 within 3 errors",
                abs(bias["value"]) <= 3 * bias["error"],
            )


#: Core-seconds a megapixel, and bytes a pixel, at 3072².
LIMITS = {
    "filters": ("D, S_corr and flux with PSFs given, core-s/Mpix", 0.25),
    "subtract": ("subtract with all that it measures, core-s/Mpix", 0.5),
    "whole": ("unaligned frames to candidates, core-s/Mpix", 1.0),
    "calibrate": ("calibration, core-s/Mpix", 0.15),
    "cosmic_rays": ("cosmic rays, core-s/Mpix", 0.5),
    "filters_bytes_per_pixel": ("peak of the subtraction, bytes a pixel", 150.0),
}


def _speed(figure: Figure) -> Iterator[Check]:
    for key, (what, limit) in LIMITS.items():
        if figure.get(key) is not None:
            words = f"{figure[key]:.3g}"
            yield Check(f"{figure['side']}²: {what}", words, f"≤ {limit:g}", figure[key] <= limit)


def _paired(f: Figure) -> Figure | None:
    """Return the flux bias by the same noise as the ideal statistic's, where there is one."""
    return f.get("flux_bias_paired") if _value(f, "flux_bias_paired") is not None else f.get("flux_bias")


def _value(f: Figure, key: str) -> float | None:
    inner = f.get(key)
    return inner.get("value") if isinstance(inner, dict) else inner


def _n(value: float | None, digits: int, width: int) -> str:
    return "–".rjust(width) if value is None else f"{value:{width}.{digits}f}"


def _pm(value: Figure | None, scale: float) -> str:
    if not value or value.get("value") is None:
        return "          –"
    return f"{scale * value['value']:6.2f}±{scale * value['error']:.2f}"
