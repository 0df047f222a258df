"""What a significance image is worth, by the truth of the pair that it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.special import ndtr

from astrid_pipeline.imaging.photometry import interpolate
from astrid_pipeline.simulation import SimulatedPair

THRESHOLD = 5.0
#: Bins of true S/N in which completeness is told.
BINS = ((5.0, 7.0), (7.0, 10.0), (10.0, 50.0))
#: A peak belongs to a change within this many pixels of it.
RADIUS = 2.0
#: Changes reach this far: peaks within are neither false nor true of anything else.
NEIGHBOURHOOD = 10.0
#: Peaks within this distance of a planted artefact are its own.
ARTEFACT_RADIUS = 6.0


@dataclass
class Outcome:
    """What one method made of one pair.

    `score` has unit variance if the method says so; `masked` is where it says nothing; `flux` and `flux_err` are None
    if the method measures none.
    """

    score: np.ndarray
    masked: np.ndarray
    seconds: float
    flux: np.ndarray | None = None
    flux_err: np.ndarray | None = None


@dataclass
class Tally:
    """Sums over pairs."""

    pixels: int = 0
    masked: int = 0
    clean: int = 0
    moments: np.ndarray = field(default_factory=lambda: np.zeros(5))  # n, Σs, Σs², Σs³, Σs⁴
    false_positive: int = 0
    false_negative: int = 0
    on_artefacts: int = 0
    seconds: float = 0.0
    rows: list[pd.DataFrame] = field(default_factory=list)

    def add(self, pair: SimulatedPair, outcome: Outcome) -> None:
        """Judge one pair."""
        changes = pair.changes
        score, masked = outcome.score, outcome.masked
        shape = score.shape
        near = np.ones(shape, bool)
        column = np.clip(np.rint(changes.x).astype(int), 0, shape[1] - 1)
        row = np.clip(np.rint(changes.y).astype(int), 0, shape[0] - 1)
        near[row, column] = False
        near = ndimage.distance_transform_edt(near) < NEIGHBOURHOOD
        artefacts = pair.artefacts != 0
        art = ndimage.distance_transform_edt(~artefacts) < ARTEFACT_RADIUS if artefacts.any() else artefacts
        clean = ~masked & ~near & ~art
        values = score[clean].astype(np.float64)
        self.moments += [len(values), *((values**k).sum() for k in (1, 2, 3, 4))]
        self.pixels += score.size
        self.masked += int(masked.sum())
        self.clean += int(clean.sum())
        self.seconds += outcome.seconds
        for sign in (1, -1):
            image = sign * score
            peak = (ndimage.maximum_filter(image, 7) == image) & (image > THRESHOLD) & ~masked & ~near
            count = int((peak & ~art).sum())
            if sign > 0:
                self.false_positive += count
                self.on_artefacts += int((peak & art).sum())
            else:
                self.false_negative += count
        self.rows.append(self._measure(changes, column, row, masked, artefacts, outcome))

    def _measure(
        self,
        changes: pd.DataFrame,
        column: np.ndarray,
        row: np.ndarray,
        masked: np.ndarray,
        artefacts: np.ndarray,
        outcome: Outcome,
    ) -> pd.DataFrame:
        peak = ndimage.maximum_filter(outcome.score, footprint=_disc(RADIUS))
        usable = ~masked[row, column] & ~ndimage.binary_dilation(artefacts, iterations=2)[row, column]
        table = pd.DataFrame(
            {
                "snr": changes.snr.to_numpy(),
                "flux": changes.flux.to_numpy(),
                "on_galaxy": changes.on_galaxy.to_numpy(bool),
                "peak": peak[row, column],
            }
        )
        if outcome.flux is not None and outcome.flux_err is not None:
            table["measured"] = interpolate(outcome.flux, changes.x.to_numpy(), changes.y.to_numpy())
            table["error"] = outcome.flux_err[row, column]
        return table[usable]

    def figures(self) -> dict[str, Any]:
        """Return the numbers of the table, with 68 % intervals where they are shares."""
        n, s1, s2, s3, s4 = self.moments
        mean = s1 / n
        variance = s2 / n - mean**2
        fourth = s4 / n - 4 * mean * s3 / n + 6 * mean**2 * s2 / n - 3 * mean**4
        mega = self.clean / 1e6
        rows = pd.concat(self.rows, ignore_index=True)
        out: dict[str, Any] = {
            "score_sigma": math.sqrt(variance),
            "score_kurtosis": fourth / variance**2 - 3,
            "masked_fraction": self.masked / self.pixels,
            "false_positives_per_megapixel": self.false_positive / mega,
            "false_positives": self.false_positive,
            "false_negatives_per_megapixel": self.false_negative / mega,
            "on_artefacts_per_megapixel": self.on_artefacts / (self.pixels / 1e6),
            "core_seconds_per_megapixel": self.seconds / (self.pixels / 2**20),
            "megapixels": self.pixels / 2**20,
        }
        for low, high in BINS:
            inside = rows[(rows.snr >= low) & (rows.snr < high)]
            out[f"completeness_{low:g}_{high:g}"] = share(int((inside.peak > THRESHOLD).sum()), len(inside))
            # What Gaussian noise at the exact position would give: the ideal statistic of the same pixels.
            out[f"ideal_{low:g}_{high:g}"] = (
                float(ndtr(inside.snr - THRESHOLD).mean()) if len(inside) else None
            )
        for name, part in (("sky", rows[~rows.on_galaxy]), ("galaxies", rows[rows.on_galaxy])):
            out[f"half_snr_{name}"] = half_point(part)
        if "measured" in rows:
            bright, fair = rows[rows.snr > 15], rows[rows.snr > 5]
            out["flux_bias"] = median_and_error(bright.measured / bright.flux - 1)
            out["pull"] = width_and_error((fair.measured - fair.flux) / fair.error)
            on = fair[fair.on_galaxy]
            out["pull_galaxies"] = width_and_error((on.measured - on.flux) / on.error)
        return out


def _disc(radius: float) -> np.ndarray:
    r = int(radius)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    return np.asarray(np.hypot(y, x) <= radius)


def share(k: int, n: int) -> dict[str, float | int | None]:
    """Return a share with its 68 % Wilson interval."""
    from astropy.stats import binom_conf_interval

    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = binom_conf_interval(k, n, interval="wilson")
    return {"value": k / n, "low": float(low), "high": float(high), "n": n}


def half_point(rows: pd.DataFrame) -> float | None:
    """Return the S/N at which half of the changes are found, by a logistic curve through all of them."""
    from scipy.optimize import minimize

    rows = rows[(rows.snr > 3) & (rows.snr < 12)]
    if len(rows) < 30:
        return None
    snr, found = rows.snr.to_numpy(float), (rows.peak > THRESHOLD).to_numpy(float)

    def loss(p: np.ndarray) -> float:
        t = (snr - p[0]) * np.exp(p[1])
        return float(np.logaddexp(0, t).sum() - (found * t).sum())

    return float(minimize(loss, [5.0, 1.0], method="Nelder-Mead").x[0])


def median_and_error(values: pd.Series) -> dict[str, float | int | None]:
    """Return the median and its standard error."""
    if len(values) < 5:
        return {"value": None, "error": None, "n": len(values)}
    low, high = np.percentile(values, [15.87, 84.13])
    return {
        "value": float(np.median(values)),
        "error": float(1.253 * (high - low) / 2 / math.sqrt(len(values))),
        "n": len(values),
    }


def width_and_error(values: pd.Series) -> dict[str, float | int | None]:
    """Return the width of pulls (half the distance of the 16th and 84th percentile) and its standard error."""
    if len(values) < 10:
        return {"value": None, "error": None, "n": len(values)}
    low, high = np.percentile(values, [15.87, 84.13])
    width = float(high - low) / 2
    return {"value": width, "error": width / math.sqrt(1.3 * len(values)), "n": len(values)}
