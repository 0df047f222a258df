"""From many pairs' verdicts to the figures of the table, each with its interval, and the figures to reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_ndtr, ndtr

from astrid_pipeline_tests.benchmarks.judge import THRESHOLD, Verdict

#: Bins of true S/N in which completeness is told.
BINS = ((5.0, 7.0), (7.0, 10.0), (10.0, 40.0))
#: Fluxes are compared above this S/N.
BRIGHT = 15.0
#: Positions are compared above this S/N, where their errors are Gaussian.
PLACED = 10.0

Figure = dict[str, Any]


def figures(verdicts: list[Verdict]) -> Figure:
    """Return the numbers of the table. Intervals are 68 %; shares' are Wilson's, counts' Poisson's."""
    pixels, clean = (sum(getattr(v, name) for v in verdicts) for name in ("pixels", "clean"))
    mega = clean / 1e6
    rows = pd.concat([v.rows for v in verdicts], ignore_index=True)
    out: Figure = {
        "pairs": len(verdicts),
        "megapixels": pixels / 1e6,
        "masked_fraction": sum(v.masked for v in verdicts) / pixels,
        "core_seconds_per_megapixel": sum(v.seconds for v in verdicts) / (pixels / 1e6),
        "changes": len(rows),
        "changes_masked": float((rows.masked & ~rows.spoiled).mean()),
    }
    out |= noise(sum(v.moments for v in verdicts))  # type: ignore[arg-type]
    false = pd.concat([v.false for v in verdicts], ignore_index=True)
    lone = false[~false.artefact.astype(bool)]
    for name, sign in (("positive", 1), ("negative", -1)):
        out[f"false_{name}"] = rate(int((lone["sign"] == sign).sum()), mega)
    out["on_artefacts"] = rate(int(false.artefact.sum()), pixels / 1e6)
    table = pd.concat([v.table_false for v in verdicts], ignore_index=True)
    if "found" in rows:
        bare = table[table["flags"] == 0]
        out["table_false_unflagged"] = rate(int((~bare.artefact.astype(bool)).sum()), mega)
        out["table_on_artefacts"] = rate(int(table.artefact.sum()), pixels / 1e6)
        out["on_artefacts_unflagged"] = rate(int(bare.artefact.sum()), pixels / 1e6)
        seen = rows[rows.found & ~rows.spoiled & (rows.snr > 7)]
        out["changes_flagged"] = share(int((seen.t_flags != 0).sum()), len(seen))
    # What a method masks it says nothing of; how much that may be has a limit of its own.
    fair = rows[~rows.spoiled & ~rows.masked]
    if "peak" in fair:
        out |= completeness(fair)
    out |= fluxes(fair)
    out |= positions(fair)
    return out


def noise(moments: npt.NDArray[np.float64]) -> Figure:
    """Return standard deviation and excess kurtosis of the score, unclipped; None without a score."""
    n, s1, s2, s3, s4 = moments
    if not n:
        return {"score_sigma": None, "score_kurtosis": None, "score_mean": None}
    mean = s1 / n
    variance = s2 / n - mean**2
    if not variance > 0:  # an image of nothing has no shape
        return {"score_sigma": 0.0, "score_kurtosis": None, "score_mean": mean}
    fourth = s4 / n - 4 * mean * s3 / n + 6 * mean**2 * s2 / n - 3 * mean**4
    kurtosis = fourth / variance**2 - 3
    return {"score_sigma": math.sqrt(variance), "score_kurtosis": kurtosis, "score_mean": mean}


def completeness(rows: pd.DataFrame) -> Figure:
    """Return shares found in bins of S/N, and the S/N at which half are, with those of the ideal statistic."""
    found = rows.peak > THRESHOLD
    best = rows.ideal_peak > THRESHOLD
    out: Figure = {}
    for low, high in BINS:
        inside = (rows.snr >= low) & (rows.snr < high)
        key = f"{low:g}_{high:g}"
        out[f"completeness_{key}"] = share(int(found[inside].sum()), int(inside.sum()))
        asked = inside & rows.ideal_peak.notna()
        out[f"ideal_{key}"] = share(int(best[asked].sum()), int(asked.sum()))
        # The same changes, so that chance cancels: found by the method less found by the ideal.
        if asked.any():
            less = found[asked].astype(float) - best[asked].astype(float)
            out[f"less_{key}"] = {
                "value": float(less.mean()),
                "error": float(less.std() / math.sqrt(asked.sum())),
            }
        if "found" in rows:
            out[f"table_{key}"] = share(int(rows.found[inside].sum()), int(inside.sum()))
    for name, part in (("sky", ~rows.on_galaxy), ("galaxies", rows.on_galaxy)):
        out[f"half_{name}"] = half_point(rows.snr[part], found[part])
        known = part & rows.ideal_peak.notna()
        out[f"half_{name}_ideal"] = half_point(rows.snr[known], best[known])
    return out


def fluxes(rows: pd.DataFrame) -> Figure:
    """Return bias and pulls of forced fluxes at the true places, and of the method's own table."""
    out: Figure = {}
    if "measured" in rows:
        bright = rows[(rows.snr > BRIGHT) & rows.measured.notna()]
        for name, part in (
            ("", bright),
            ("_sky", bright[~bright.on_galaxy]),
            ("_galaxies", bright[bright.on_galaxy]),
        ):
            out[f"flux_bias{name}"] = ratio(part.measured, part.flux, part.error)
            # The ideal statistic, without bias, has met the same noise: without it a tenth of a percent shows.
            same = part[part.ideal_flux.notna()]
            out[f"flux_bias_paired{name}"] = ratio(
                same.measured - same.ideal_flux + same.flux, same.flux, same.error
            )
        out["flux_bias_median"] = median(bright.measured / bright.flux - 1)
        fair = rows[(rows.snr > 5) & rows.measured.notna()]
        pull = (fair.measured - fair.flux) / fair.error
        for name, part in (("", pull), ("_sky", pull[~fair.on_galaxy]), ("_galaxies", pull[fair.on_galaxy])):
            out[f"pull{name}"] = width(part)
        out["pull_outliers"] = float((pull.abs() > 5).mean()) if len(pull) else None
    if "found" in rows:
        seen = rows[rows.found]
        bright = seen[seen.snr > BRIGHT]
        same = bright[bright.ideal_flux.notna()]
        out["table_flux_bias_paired"] = ratio(
            same.t_flux - same.ideal_flux + same.flux, same.flux, same.t_err
        )
        out["table_flux_bias"] = ratio(bright.t_flux, bright.flux, bright.t_err)
        # Fainter than twice the threshold, being found is itself a matter of the noise.
        sure = seen[seen.snr > 2 * THRESHOLD]
        pull = (sure.t_flux - sure.flux) / sure.t_err
        out["table_pull"] = width(pull)
        out["table_pull_galaxies"] = width(pull[sure.on_galaxy])
    return out


def positions(rows: pd.DataFrame) -> Figure:
    """Return the scatter of positions per axis over √2 s / (S/N), over the ideal statistic's, and their mean errors."""
    # Mixed pixels have no one place: a drizzled pixel holds the light of pixels beside it.
    if "found" not in rows or not rows.bound.notna().any():
        return {}
    seen = rows[rows.found & (rows.snr > PLACED)]
    bound = math.sqrt(2) * seen.width / seen.snr
    off = {axis: (seen[f"t_{axis}"] - seen[axis]) for axis in "xy"}
    both = pd.concat([off["x"] / bound, off["y"] / bound])
    out: Figure = {"position_scatter": width(both), "position_scatter_std": spread(both)}
    out["position_outliers"] = float((both.abs() > 5).mean()) if len(both) else None
    for axis in "xy":
        # A blunder is no bias: those are counted by themselves.
        near = (off[axis] / bound).abs() < 5
        weight = 1 / bound[near] ** 2
        out[f"position_bias_{axis}"] = (
            {
                "value": float((off[axis][near] * weight).sum() / weight.sum()),
                "error": float(out["position_scatter"]["value"] / math.sqrt(weight.sum())),
                "n": int(near.sum()),
            }
            if near.sum() > 10
            else {"value": None, "error": None, "n": int(near.sum())}
        )
    out["position_bound"] = float((seen.bound / (math.sqrt(2) * seen.width)).median())
    return out


def share(k: int, n: int) -> Figure:
    """Return a share with its 68 % Wilson interval."""
    from astropy.stats import binom_conf_interval

    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = binom_conf_interval(k, n, interval="wilson")
    return {"value": k / n, "low": float(low), "high": float(high), "n": n}


def rate(count: int, megapixels: float) -> Figure:
    """Return a count a megapixel with its 68 % Poisson interval (frequentist-confidence)."""
    from astropy.stats import poisson_conf_interval

    low, high = poisson_conf_interval(count, interval="frequentist-confidence")
    return {
        "value": count / megapixels,
        "low": float(low) / megapixels,
        "high": float(high) / megapixels,
        "count": count,
    }


def half_point(snr: pd.Series, found: pd.Series) -> Figure:
    """Return the S/N at which half of the changes are found, by a Gaussian's integral through all of them."""
    from scipy.optimize import minimize

    use = ((snr > 3) & (snr < 12)).to_numpy()
    if use.sum() < 30:
        return {"value": None, "error": None, "n": int(use.sum())}
    s, hit = snr.to_numpy(float)[use], found.to_numpy(bool)[use]

    def loss(p: npt.NDArray[np.float64]) -> float:
        t = (s - p[0]) * np.exp(p[1])
        return float(-np.where(hit, log_ndtr(t), log_ndtr(-t)).sum())

    best = minimize(loss, [5.0, 0.0], method="Nelder-Mead").x
    # Fisher's information of the middle, at the slope that was found.
    t = (s - best[0]) * np.exp(best[1])
    p = np.clip(ndtr(t), 1e-9, 1 - 1e-9)
    slope = np.exp(best[1]) * np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    information = (slope**2 / (p * (1 - p))).sum()
    return {
        "value": float(best[0]),
        "error": float(1 / math.sqrt(information)) if information else None,
        "n": int(use.sum()),
    }


def ratio(measured: pd.Series, true: pd.Series, error: pd.Series) -> Figure:
    """Return the weighted mean of measured / true − 1, weights (true / error)², and its error by the scatter.

    Errors enter as their smooth dependence on the true flux, lest a fluctuation upwards, whose error is larger too, be
    weighted down.
    """
    if len(measured) < 10:
        return {"value": None, "error": None, "n": len(measured)}
    smooth = np.polyval(np.polyfit(np.log(true.abs()), np.log(error), 1), np.log(true.abs()))
    weight = (true / np.exp(smooth)) ** 2
    off = measured / true - 1
    # One blunder is not a bias: what lies 5 σ and more from the others is left to the pulls' outliers.
    keep = ((off - off.median()).abs() * np.sqrt(weight)) < 5 * max(1.0, _spread(off * np.sqrt(weight)))
    weight, off = weight[keep], off[keep]
    mean = float((weight * off).sum() / weight.sum())
    scatter = float((weight**2 * (off - mean) ** 2).sum()) ** 0.5 / float(weight.sum())
    return {"value": mean, "error": scatter, "n": int(keep.sum())}


def _spread(values: pd.Series) -> float:
    low, high = np.percentile(values, [15.87, 84.13])
    return float(high - low) / 2


def median(values: pd.Series) -> Figure:
    """Return the median and its standard error."""
    if len(values) < 5:
        return {"value": None, "error": None, "n": len(values)}
    error = 1.253 * _spread(values) / math.sqrt(len(values))
    return {"value": float(np.median(values)), "error": float(error), "n": len(values)}


def width(values: pd.Series) -> Figure:
    """Return half the distance of the 16th and 84th percentile, and its standard error for a Gaussian."""
    if len(values) < 10:
        return {"value": None, "error": None, "n": len(values)}
    half = _spread(values)
    return {"value": half, "error": half / math.sqrt(1.33 * len(values)), "n": len(values)}


def spread(values: pd.Series) -> Figure:
    """Return the plain standard deviation about 0, and its standard error for a Gaussian."""
    if len(values) < 10:
        return {"value": None, "error": None, "n": len(values)}
    value = float(np.sqrt(np.mean(np.square(values))))
    return {"value": value, "error": value / math.sqrt(2 * len(values)), "n": len(values)}
