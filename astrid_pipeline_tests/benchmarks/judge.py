"""What a significance image and its tables are worth, by the truth of the pair that they were made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from astrid_pipeline_tests.benchmarks.ideal import DISC, ideal
from astrid_pipeline_tests.benchmarks.known import Floats, KnownPair

THRESHOLD = 5.0
#: A peak belongs to a change within this many pixels of it.
RADIUS = 2.0
#: Changes reach this far: peaks within are neither false nor true of anything else.
NEIGHBOURHOOD = 10.0
#: Peaks within this distance of a planted artefact are its own.
ARTEFACT_RADIUS = 6.0
#: Changes this close to unusable or spoiled pixels are not judged: what could be measured of them is no question of
#: the subtraction.
SPOILED_RADIUS = 3

Bools = npt.NDArray[np.bool_]


@dataclass
class Outcome:
    """What one method made of one pair.

    Attributes
    ----------
    score:
        (height, width), of unit variance if the method says so; None if it gives only a table.
    masked:
        Where the method says nothing.
    seconds:
        Processor time of the subtraction itself.
    photometry:
        (x, y) → (flux, its error) at given places; None if the method measures none.
    candidates:
        The method's own table: x, y, flux, flux_err, sign, flags; None if it has none.
    solved:
        What the method says of itself, for the record.
    """

    score: npt.NDArray[np.floating] | None
    masked: Bools
    seconds: float
    photometry: Callable[[Floats, Floats], tuple[Floats, Floats]] | None = None
    candidates: pd.DataFrame | None = None
    solved: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Grounds:
    """What is true of a pair, worked out once for all methods."""

    known: KnownPair
    changes: pd.DataFrame
    near_change: Bools
    near_artefact: Bools
    spoiled: Bools

    @classmethod
    def of(cls, known: KnownPair) -> Grounds:
        """Work them out."""
        pair = known.pair
        shape = pair.science.shape
        changes = pair.changes
        inside = changes.x.between(8, shape[1] - 9) & changes.y.between(8, shape[0] - 9)
        near = np.ones(shape, bool)
        at = _pixels(changes[inside])
        near[at] = False
        near = ndimage.distance_transform_edt(near) < NEIGHBOURHOOD
        # What saturates is masked for every method, and no artefact that calibration would have to find.
        handed = (pair.science.mask != 0) | (pair.reference.mask != 0)
        planted = (pair.artefacts != 0) & ~handed
        beside = (
            ndimage.distance_transform_edt(~planted) < ARTEFACT_RADIUS
            if planted.any()
            else np.zeros(shape, bool)
        )
        spoiled = ndimage.binary_dilation(planted | handed, iterations=SPOILED_RADIUS)
        changes = changes[inside].reset_index(drop=True)
        changes["spoiled"] = spoiled[_pixels(changes)]
        changes = pd.concat([changes, _ideal(known, changes)], axis=1)
        return cls(known, changes, near, beside, spoiled)


def _ideal(known: KnownPair, changes: pd.DataFrame) -> pd.DataFrame:
    """Return the ideal statistic's columns; NaN where the truth of a pixel is not known, since others were mixed in."""
    if known.correlated:
        return pd.DataFrame(np.nan, index=changes.index, columns=["ideal_peak", "ideal_flux", "bound"])
    found = ideal(known, changes)
    return pd.DataFrame({"ideal_peak": found["peak"], "ideal_flux": found["flux"], "bound": found["bound"]})


def _pixels(table: pd.DataFrame) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.rint(table.y).to_numpy(int), np.rint(table.x).to_numpy(int)


@dataclass
class Verdict:
    """What one method made of one pair, in numbers that can be added up."""

    pixels: int
    masked: int
    clean: int
    moments: Floats  # n, Σs, Σs², Σs³, Σs⁴ where nothing changed
    false: pd.DataFrame  # x, y, value, sign, artefact: peaks that are no change
    table_false: pd.DataFrame  # the same of the method's own table, with flags
    rows: pd.DataFrame  # a row a change
    seconds: float
    solved: dict[str, Any]


def judge(grounds: Grounds, outcome: Outcome) -> Verdict:
    """Judge one method's outcome of one pair."""
    masked = outcome.masked
    clean = ~masked & ~grounds.near_change & ~grounds.near_artefact
    moments = np.zeros(5)
    false = _NO_PEAKS
    rows = grounds.changes.drop(columns=["ra", "dec"], errors="ignore")
    rows = rows[["x", "y", "snr", "flux", "on_galaxy", "spoiled", "ideal_peak", "ideal_flux", "bound"]].copy()
    rows["masked"] = masked[_pixels(rows)]
    rows["width"] = _gaussian_width(grounds)
    if outcome.score is not None:
        values = outcome.score[clean].astype(np.float64)
        moments = np.array([len(values), *((values**k).sum() for k in (1, 2, 3, 4))])
        false = pd.concat([_false(sign * outcome.score, sign, masked, grounds) for sign in (1, -1)])
        sign = np.sign(rows.flux.to_numpy())
        up, down = (ndimage.maximum_filter(s * outcome.score, footprint=DISC)[_pixels(rows)] for s in (1, -1))
        rows["peak"] = np.where(sign > 0, up, down)
    if outcome.photometry is not None:
        flux, error = outcome.photometry(rows.x.to_numpy(), rows.y.to_numpy())
        rows["measured"], rows["error"] = flux, error
    table_false = _NO_PEAKS.assign(flags=np.zeros(0, int))
    if outcome.candidates is not None:
        table_false = _match(rows, outcome.candidates, grounds)
        if outcome.score is None:
            rows["peak"] = np.where(rows["found"], np.inf, -np.inf)
            false = table_false
    return Verdict(
        masked.size,
        int(masked.sum()),
        int(clean.sum()),
        moments,
        false,
        table_false,
        rows,
        outcome.seconds,
        outcome.solved,
    )


_NO_PEAKS = pd.DataFrame(
    {name: np.zeros(0) for name in ("x", "y", "value", "sign")} | {"artefact": np.zeros(0, bool)}
)


def _gaussian_width(grounds: Grounds) -> Floats:
    """Return the Gaussian width of the true science PSF at each change, px."""
    psf, changes = grounds.known.pair.science_psf, grounds.changes
    if psf.is_constant:
        return np.full(len(changes), psf.fwhm() / 2.3548)
    at = zip(changes.x, changes.y, strict=True)
    return np.array([psf.fwhm(float(x), float(y)) / 2.3548 for x, y in at])


def _false(image: npt.NDArray[np.floating], sign: int, masked: Bools, grounds: Grounds) -> pd.DataFrame:
    """Return the pixels that are the largest of their 7 × 7 neighbourhood, over the threshold, and no change."""
    high = (image > THRESHOLD) & ~masked & ~grounds.near_change
    y, x = np.nonzero(high & (ndimage.maximum_filter(image, 7) == image))
    return pd.DataFrame(
        {
            "x": x.astype(float),
            "y": y.astype(float),
            "value": image[y, x].astype(float),
            "sign": float(sign),
            "artefact": grounds.near_artefact[y, x],
        }
    )


def _match(rows: pd.DataFrame, candidates: pd.DataFrame, grounds: Grounds) -> pd.DataFrame:
    """Give each change the table's brightest row of its sign within `RADIUS`; return the rows of no change."""
    for name in ("t_x", "t_y", "t_flux", "t_err"):
        rows[name] = np.nan
    rows["found"], rows["t_flags"] = False, 0
    if len(candidates):
        tree = cKDTree(candidates[["x", "y"]].to_numpy(float))
        values = candidates[["x", "y", "flux", "flux_err", "sign", "flags"]].to_numpy(float)
        for i, near in enumerate(tree.query_ball_point(rows[["x", "y"]].to_numpy(float), RADIUS)):
            same = [j for j in near if values[j, 4] == np.sign(rows.flux.iat[i])]
            if same:
                best = max(same, key=lambda j: abs(values[j, 2]))
                rows.loc[rows.index[i], ["t_x", "t_y", "t_flux", "t_err"]] = values[best, :4]
                rows.loc[rows.index[i], ["found", "t_flags"]] = [True, int(values[best, 5])]
    shape = grounds.near_change.shape
    row = np.clip(np.rint(candidates.y).to_numpy(int), 0, shape[0] - 1)
    column = np.clip(np.rint(candidates.x).to_numpy(int), 0, shape[1] - 1)
    value = candidates["snr"] if "snr" in candidates else candidates.flux / candidates.flux_err
    out = pd.DataFrame(
        {
            "x": candidates.x.to_numpy(float),
            "y": candidates.y.to_numpy(float),
            "value": np.abs(value.to_numpy(float)),
            "sign": candidates["sign"].to_numpy(float),
            "flags": candidates["flags"].to_numpy(int),
            "artefact": grounds.near_artefact[row, column],
        }
    )
    return out[~grounds.near_change[row, column]].reset_index(drop=True)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns and the processor time it took, s."""
    started = time.process_time()
    result = run()
    return result, time.process_time() - started
