"""The gold standard of a night: known transients and known artefacts in a copy of one frame, to measure people by.

Both go through alignment, subtraction, candidates and models like everything else, and are shown among the night's
own sources. The artefacts are what two things leave that happen every night: a star that the two images do not have at
one place (a dipole, `imaging.inject`), and a hit that is sharper than the sky's light can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import PSFError
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.stars import extract_plain
from astrid_pipeline.night.injections import HOST_SHARE, MATCH_RADIUS, match, plan_injections
from astrid_pipeline.night.stamps import write_stamps
from astrid_pipeline.tables import Column, TableSchema

#: S/N of what is put in, log-uniform: what is fainter is no detection, what is brighter no question.
SNR_RANGE = (7.0, 40.0)
#: S/N of a dipole's lobes. The subtraction's own astrometric and source noise takes weaker ones away (of 68 with an S/N
#: of 15 to 200 on four simulated pairs all were candidates).
DIPOLE_SNR = (15.0, 200.0)
#: How far a star is moved, in FWHM of the difference: a registration that fails more is seen by its check.
MOVED = (0.3, 1.0)
#: Width of hits over that of stars. On the same pairs none of 87 below 0.6 became a candidate (they are masked), and of
#: 77 up to 0.8 the model took 36 for real: those are what a person is needed for.
SHARPNESS = (0.6, 0.8)
#: Of the artefacts, the share that are hits: dipoles are at most `HOST_SHARE` of the stars, of which the match is made.
HITS = 0.6
#: Nothing is put within this many FWHM of what the night has found itself: its truth is not known.
CLEAR = 3.0
#: As many are tried as are wanted times this: some are not found, and artefacts that the model takes for real first.
_TRIES = 4

GOLD = TableSchema(
    "gold",
    "What was put into a copy of one of the night's frames to measure people by, and how it was found",
    (
        Column("exposure_id", "string", "exposure of the copy"),
        Column("x", "float64", "column of what was found there", "px"),
        Column("y", "float64", "row", "px"),
        Column("truth", "string", "real: a transient; bogus: an artefact"),
        Column("kind", "string", "point, dipole or hit"),
        Column("snr", "float64", "S/N that it was meant to have"),
        Column("score", "float64", "by the model; null where it was passed over"),
    ),
    sort_by=("exposure_id", "y", "x"),
)


@dataclass(frozen=True)
class Gold:
    """The difference image of the copy; its candidates and detections that were put in, with `truth` and `kind`."""

    difference: Difference
    candidates: pd.DataFrame
    detections: pd.DataFrame
    table: pd.DataFrame

    def write(self, folder: Path) -> None:
        """Write stamps as `night.stamps` does, and the table as `gold.parquet`."""
        places = self.table[["exposure_id", "x", "y"]]
        write_stamps(folder, {str(self.difference.meta["exposure_id"]): self.difference}, places)
        self.table.to_parquet(folder / "gold.parquet", index=False)


def number_of_gold(detections: int, most: int) -> int:
    """Return how many transients (and as many artefacts) to mix in: one in ten of the night's detections, 2 to `most`.

    One in five of what a scanner sees is then known: few enough to cost little time, and a month's nights of a hundred
    detections measure a person to 3 %.
    """
    return min(most, max(2, round(detections / 10)))


def make_gold(
    science: Frame,
    reference: Frame,
    difference: Difference,
    found: pd.DataFrame,
    rng: np.random.Generator,
    model: Any,
    *,
    transients: int,
    artefacts: int,
    threshold: float = 5.0,
    method: str = "zogy",
    device: str | None = None,
) -> Gold:
    """Put transients and artefacts into a copy of `science`, difference it anew, return what was found of them.

    Parameters
    ----------
    science, reference, difference:
        The calibrated frame, the reference that judges it (not aligned), their untouched difference.
    found:
        x, y of everything that the untouched difference shows: nothing is put near it.
    model:
        What `learning.load_model` returned.
    transients, artefacts:
        At most how many; of those that show, the first are taken.

    Raises
    ------
    RegistrationError, SubtractionError, PSFError
        As `night.differences.difference_one`.
    """
    from astrid_pipeline.imaging import find_candidates, inject
    from astrid_pipeline.night.differences import detect_one, difference_one

    plan = plan_gold(difference, found, rng, _TRIES * transients, _TRIES * artefacts)
    copy = inject(science, plan[plan.kind != "hit"], rng)
    copy = _with_hits(copy, plan[plan.kind == "hit"])
    changed, _ = difference_one(copy, reference, method)
    candidates = find_candidates(changed, threshold=threshold)
    detections = detect_one(changed, candidates, model, device, threshold)
    return judge_gold(plan, changed, candidates, detections, transients, artefacts)


def plan_gold(
    difference: Difference, found: pd.DataFrame, rng: np.random.Generator, transients: int, artefacts: int
) -> pd.DataFrame:
    """Choose what to put where: columns x, y, flux, snr, kind (point, dipole, hit), truth, length, angle."""
    megapixels = difference.score.size / 1e6
    points = plan_injections(difference, rng, max(transients, 1) / megapixels).head(transients)
    points = points.assign(snr=_log_uniform(rng, SNR_RANGE, len(points)), kind="point", truth="real")
    points["flux"] = points.snr * _flux_error(difference, points)
    hits = round(artefacts * HITS)
    sharp = plan_injections(difference, rng, max(hits, 1) / megapixels, on_galaxies=0.0).head(hits)
    sharp = sharp.assign(
        snr=_log_uniform(rng, SNR_RANGE, len(sharp)),
        kind="hit",
        truth="bogus",
        length=rng.uniform(*SHARPNESS, len(sharp)),
    )
    sharp["flux"] = sharp.snr * _flux_error(difference, sharp)
    whole = pd.concat([points, _dipoles(difference, rng, artefacts - hits), sharp], ignore_index=True)
    whole[["length", "angle"]] = whole.reindex(columns=["length", "angle"]).fillna(0.0)
    return _apart(whole, found, CLEAR * difference.psf.fwhm())


def judge_gold(
    plan: pd.DataFrame,
    difference: Difference,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
    transients: int,
    artefacts: int,
) -> Gold:
    """Return what was found of the plan, detections first, as many as are wanted of each truth."""
    radius = max(MATCH_RADIUS, difference.psf.fwhm())
    candidates, detections = candidates.reset_index(drop=True), detections.reset_index(drop=True)
    by_candidate, _ = match(plan, candidates, radius)
    by_detection, _ = match(plan, detections, radius)
    chosen: list[int] = []
    for truth, most in (("real", transients), ("bogus", artefacts)):
        mine = np.flatnonzero((plan.truth == truth).to_numpy(bool))
        shown = [int(i) for i in mine if by_detection[i] >= 0]
        # An artefact that the model passed over is asked about among those. A transient that it passed over is a
        # matter of the model's completeness, which `injections` measures.
        shown += [int(i) for i in mine if by_detection[i] < 0 <= by_candidate[i] and truth == "bogus"]
        chosen += shown[:most]
    told = [i for i in chosen if by_detection[i] >= 0]
    passed = [i for i in chosen if by_detection[i] < 0]
    about = plan[["truth", "kind"]]
    finds = detections.iloc[by_detection[told]].reset_index(drop=True)
    finds = finds.assign(truth=about.truth.to_numpy()[told])
    rest = candidates.iloc[by_candidate[passed]].reset_index(drop=True)
    rest = rest.assign(truth=about.truth.to_numpy()[passed])
    rows = pd.concat([finds.reindex(columns=["x", "y", "score"]), rest.reindex(columns=["x", "y", "score"])])
    table = rows.astype(float).assign(
        exposure_id=str(difference.meta.get("exposure_id")),
        truth=plan.truth.to_numpy()[told + passed],
        kind=plan.kind.to_numpy()[told + passed],
        snr=plan.snr.to_numpy()[told + passed],
    )
    return Gold(difference, rest, finds, GOLD.conform(table))


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], n: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]), n))


def _flux_error(difference: Difference, places: pd.DataFrame) -> np.ndarray:
    rows, columns = places.y.round().astype(int), places.x.round().astype(int)
    return difference.flux_err[rows, columns] if len(places) else np.empty(0)


def _dipoles(difference: Difference, rng: np.random.Generator, number: int) -> pd.DataFrame:
    """Move stars of the reference, each by as much as gives its dipole's lobes an S/N of `DIPOLE_SNR`.

    A star of flux F and Gaussian width s that moves by d leaves, matched by the PSF, lobes of
    F d e^(-1/2) / (sqrt(2) s) (the steepest slope of the PSF's autocorrelation, d small): with s = FWHM / 2.355, an
    S/N of 1.01 (F / σ) (d / FWHM).
    """
    columns = ["x", "y", "flux", "snr", "length", "angle"]
    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    sigma = float(difference.meta["reference_sky_sigma"])
    stars = extract_plain(difference.reference, sigma, bad, 5.0)
    height, width = difference.score.shape
    fwhm = difference.psf.fwhm()
    number = min(number, max(2, int(HOST_SHARE * len(stars))))
    rows: list[tuple[float, ...]] = []
    for star in stars[rng.permutation(len(stars))]:
        x, y, flux = float(star["x"]), float(star["y"]), float(star["flux"])
        column, row = round(x), round(y)
        if len(rows) == number:
            break
        if not (12 <= column < width - 12 and 12 <= row < height - 12):
            continue
        if bad[row - 3 : row + 4, column - 3 : column + 4].any():
            continue
        moved = float(rng.uniform(*MOVED))
        snr = 1.01 * flux / float(difference.flux_err[row, column]) * moved
        if not DIPOLE_SNR[0] <= snr <= DIPOLE_SNR[1]:
            continue
        rows.append((x, y, flux, snr, moved * fwhm, float(rng.uniform(0, 2 * np.pi))))
    return pd.DataFrame(rows, columns=columns, dtype=float).assign(kind="dipole", truth="bogus")


def _with_hits(frame: Frame, hits: pd.DataFrame) -> Frame:
    """Add charge in Gaussians of `length` times the PSF's width, without the photon noise that light would have."""
    if not len(hits):
        return frame
    data = frame.data.copy()
    if frame.psf is None:
        raise PSFError("the frame has no PSF", where=frame.name, remedy="measure it first: prepare(frame)")
    axis, width = np.arange(-4, 5), frame.psf.fwhm()
    for x, y, flux, length in hits[["x", "y", "flux", "length"]].to_numpy(float):
        sigma = length * width / 2.355
        kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * sigma**2))
        kernel /= kernel.sum()
        data[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5] += (flux * kernel).astype(data.dtype)
    return frame.replace(data=data)


def _apart(plan: pd.DataFrame, found: pd.DataFrame, radius: float) -> pd.DataFrame:
    """Keep what lies further than `radius` from what was found, and twice that from what is kept before it."""
    from scipy.spatial import cKDTree

    places = plan[["x", "y"]].to_numpy(float)
    kept: list[int] = []
    tree = cKDTree(found[["x", "y"]].to_numpy(float)) if len(found) else None
    for i, place in enumerate(places):
        if tree is not None and tree.query(place)[0] < radius:
            continue
        if all(np.hypot(*(place - places[j])) > 2 * radius for j in kept):
            kept.append(i)
    return plan.iloc[kept].reset_index(drop=True)
