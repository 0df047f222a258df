"""Truth kept beside the night: transients put into copies of its frames, and what became of them.

What a night could have found is only known from sources that were surely there. They go into the science
frame before alignment and subtraction, so everything that can lose them is in the measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.stars import extract_plain
from astrid_pipeline.night.injected_changes import (
    STAR_SHARE,
    plan_changes,
    science_part,
    stars_of,
    with_faded,
)
from astrid_pipeline.night.injected_objects import plan_objects
from astrid_pipeline.tables import Column, TableSchema

#: Signal-to-noise of injections, log-uniform: from lost in the noise to certain.
SNR_RANGE = (3.0, 50.0)
#: Bins in which completeness is told.
SNR_BINS = (3.0, 5.0, 7.0, 10.0, 20.0, 50.0)
#: At most this share of the host galaxies gets an injection. How well two frames match is measured on just those
#: sources: with a transient on every second one, the frame that is looked at is worse than the night's (a mismatch of
#: the PSFs of 1.9 % was seen instead of 0.1 %, and every fifth transient of S/N > 8 on a galaxy was lost).
HOST_SHARE = 0.05
#: A find belongs to an injection within this many pixels, or its own FWHM if that is more.
MATCH_RADIUS = 2.0

INJECTIONS = TableSchema(
    "injections",
    "Transients injected into copies of the night's frames, and whether they were found again",
    (
        Column("exposure_id", "string", "exposure they were put into"),
        Column("x", "float64", "true column, zero-based", "px"),
        Column("y", "float64", "true row, zero-based", "px"),
        Column("ra", "float64", "true right ascension, ICRS", "deg"),
        Column("dec", "float64", "true declination, ICRS", "deg"),
        Column("flux", "float64", "true flux, units of the science frame"),
        Column("snr", "float64", "true flux over the PSF-flux error of the untouched difference there"),
        Column("on_galaxy", "bool", "whether it was put next to a source of the reference"),
        Column("kind", "string", "point, variable, fading, moving or supernova"),
        Column("length", "float64", "length of a moving object's trail", "px"),
        Column("angle", "float64", "its direction, from the x axis towards y", "rad"),
        Column("found", "bool", "whether a candidate lies there"),
        Column("detected", "bool", "whether a detection lies there"),
        Column("score", "float64", "the detection's score, null where there is none"),
        Column("measured_flux", "float64", "the candidate's flux, null where there is none"),
        Column("measured_flux_err", "float64", "and its error"),
        Column("offset", "float64", "distance between candidate and truth", "px"),
        Column("object_id", "string", "of what lives over the nights: its name in all of them; else null"),
        Column("phase", "float64", "days since the supernova's peak, or the share of the star's period"),
    ),
    sort_by=("exposure_id", "y", "x"),
)


@dataclass(frozen=True)
class Injected:
    """One exposure with injections: the difference, the truth table, the finds in it."""

    difference: Difference
    truth: pd.DataFrame
    candidates: pd.DataFrame
    detections: pd.DataFrame


def plan_injections(
    difference: Difference,
    rng: np.random.Generator,
    per_megapixel: float = 40.0,
    on_galaxies: float = 0.5,
    *,
    taken: pd.DataFrame | None = None,
    hosts: np.ndarray | None = None,
) -> pd.DataFrame:
    """Choose where and how bright: columns x, y, flux, snr, on_galaxy.

    Parameters
    ----------
    difference:
        The untouched difference; its PSF-flux error sets the flux of a given S/N, its reference says where
        galaxies and stars are.
    rng:
        Source of randomness.
    per_megapixel:
        How many; 40 keeps neighbours some 150 px apart, so that they do not disturb one another.
    on_galaxies:
        Share put within 1.5 FWHM of a reference source, where transients happen and subtraction is hardest; fewer
        where that would be more than `HOST_SHARE` of the sources.
    taken:
        What is put in besides (x, y, on_galaxy): places to keep away from, and hosts that count among that share.
    hosts:
        `host_positions` of the difference, where they are known already.
    """
    height, width = difference.shape
    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    number = max(1, round(per_megapixel * bad.size / 1e6))
    fwhm = difference.psf.fwhm()
    hosts = host_positions(difference, bad, fwhm) if hosts is None else hosts
    places = most_hosts(len(hosts))
    chosen: list[tuple[float, float, bool]] = []
    others: list[tuple[float, float]] = []
    if taken is not None and len(taken):
        places -= int(taken["on_galaxy"].sum())
        others = [(float(a), float(b)) for a, b in taken[["x", "y"]].to_numpy(float)]
    # Masked places are refused, not moved, so that what is measured is the completeness of the usable sky.
    for _ in range(60 * number):
        if len(chosen) == number:
            break
        near = places > 0 and rng.random() < on_galaxies
        if near:
            hx, hy = hosts[rng.integers(len(hosts))]
            radius, angle = 1.5 * fwhm * np.sqrt(rng.random()), 2 * np.pi * rng.random()
            x, y = hx + radius * np.cos(angle), hy + radius * np.sin(angle)
        else:
            x, y = rng.uniform(12, width - 13), rng.uniform(12, height - 13)
        column, row = round(x), round(y)
        if not (12 <= column < width - 12 and 12 <= row < height - 12):
            continue
        if bad[row - 3 : row + 4, column - 3 : column + 4].any():
            continue
        if any((x - a) ** 2 + (y - b) ** 2 < (6 * fwhm) ** 2 for a, b in others):
            continue
        chosen.append((x, y, near))
        others.append((x, y))
        places -= near
    snr = np.exp(rng.uniform(np.log(SNR_RANGE[0]), np.log(SNR_RANGE[1]), len(chosen)))
    table = pd.DataFrame(chosen, columns=["x", "y", "on_galaxy"]).assign(kind="point", length=0.0, angle=0.0)
    error = (
        difference.flux_err[table.y.round().astype(int), table.x.round().astype(int)]
        if len(table)
        else np.empty(0)
    )
    return table.assign(snr=snr, flux=snr * error)


def most_hosts(hosts: int) -> int:
    """Return how many of so many hosts may get an injection: `HOST_SHARE` of them, rounded up."""
    return math.ceil(HOST_SHARE * hosts)


def host_positions(difference: Difference, bad: np.ndarray, fwhm: float) -> np.ndarray:
    """Return (n, 2) x, y of reference sources that are extended, or of all where none is."""
    sigma = float(difference.meta["reference_sky_sigma"])
    sources = extract_plain(difference.reference, sigma, bad, 5.0)
    if not len(sources):
        return np.empty((0, 2))
    size = 2.355 * np.sqrt(np.maximum(sources["a"] * sources["b"], 0))
    extended = size > 1.3 * fwhm  # clearly wider than a star
    pool = sources[extended] if extended.any() else sources
    return np.column_stack([pool["x"], pool["y"]])


def inject_exposure(
    science: Frame,
    reference: Frame,
    difference: Difference,
    rng: np.random.Generator,
    model: Any,
    *,
    threshold: float = 5.0,
    per_megapixel: float = 40.0,
    others_per_megapixel: float = 20.0,
    objects: pd.DataFrame | None = None,
    method: str = "zogy",
    device: str | None = None,
) -> Injected:
    """Inject into a copy of `science`, difference it anew, look for what was put in.

    Parameters
    ----------
    science, reference:
        The calibrated frame and the reference that judges it (not aligned).
    difference:
        The untouched difference of the two.
    model:
        What `learning.load_model` returned.
    threshold:
        |S/N| from which something is a candidate, and from which a detection is told.
    per_megapixel, others_per_megapixel:
        New points; and variable stars, faded sources and moving objects (`injected_changes`).
    objects:
        What lives over the nights (`injected_objects.draw_objects` of the reference); none by default.

    Returns
    -------
    Injected
        `truth` has schema `INJECTIONS`.
    """
    from astrid_pipeline.imaging import find_candidates, inject
    from astrid_pipeline.night.differences import detect_one, difference_one

    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    fwhm = difference.psf.fwhm()
    # Looked for once: three plans are made of them.
    hosts, stars = host_positions(difference, bad, fwhm), stars_of(difference, bad, fwhm)
    lasting = _plan_lasting(difference, objects, hosts=len(hosts), stars=len(stars))
    points = plan_injections(difference, rng, per_megapixel, taken=lasting, hosts=hosts)
    planned = [part for part in (lasting, points) if len(part)] or [points]
    others = plan_changes(
        difference, rng, pd.concat(planned, ignore_index=True), others_per_megapixel, SNR_RANGE, stars=stars
    )
    plan = pd.concat([*planned, *([others] if len(others) else [])], ignore_index=True)
    ratio = float(difference.meta.get("flux_ratio") or 1.0)
    injected, _ = difference_one(
        inject(science, science_part(plan), rng),
        reference,
        method,
        change=lambda aligned: with_faded(aligned, plan, ratio, rng),
    )
    candidates = find_candidates(injected, threshold=threshold)
    # How doubtful each is, nobody asks here: that takes a third of the whole.
    detections = detect_one(injected, candidates, model, device, threshold, uncertainty=False)
    return Injected(injected, judge(plan, injected, candidates, detections), candidates, detections)


def _plan_lasting(
    difference: Difference, objects: pd.DataFrame | None, *, hosts: int, stars: int
) -> pd.DataFrame:
    """Return what of the long-lived objects goes in: on no more galaxies and stars than may be changed."""
    if objects is None or not len(objects):
        return plan_objects(pd.DataFrame(), difference, hosts=0, stars=0)
    # About half of the supernovae shine at a time, and leave the other galaxies to changes of one night; stars all do.
    half = math.ceil(math.ceil(STAR_SHARE * stars) / 2)
    return plan_objects(objects, difference, hosts=most_hosts(hosts), stars=half)


def judge(
    plan: pd.DataFrame, difference: Difference, candidates: pd.DataFrame, detections: pd.DataFrame
) -> pd.DataFrame:
    """Return the truth table with what was found of each injection; each find serves one injection only."""
    radius = max(MATCH_RADIUS, difference.psf.fwhm())
    truth = plan.assign(exposure_id=str(difference.meta.get("exposure_id")))
    if difference.wcs is not None and len(plan):
        sky = difference.wcs.pixel_to_world_values(plan.x, plan.y)
        truth = truth.assign(ra=sky[0], dec=sky[1])
    by_candidate, distance = _match_signs(truth, candidates, radius)
    by_detection, _ = _match_signs(truth, detections, radius)
    hit = by_candidate >= 0
    truth["found"] = hit
    truth["detected"] = by_detection >= 0
    truth["offset"] = np.where(hit, distance, np.nan)
    for column, source, index in (
        ("measured_flux", candidates["flux"], by_candidate),
        ("measured_flux_err", candidates["flux_err"], by_candidate),
        ("score", detections["score"], by_detection),
    ):
        values = np.full(len(truth), np.nan)
        values[index >= 0] = source.to_numpy(float)[index[index >= 0]]
        truth[column] = values
    return INJECTIONS.conform(truth)


def _match_signs(truth: pd.DataFrame, finds: pd.DataFrame, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return as `match` the row numbers of finds and their distances; what faded is found where light is missing."""
    which, away = np.full(len(truth), -1), np.full(len(truth), np.inf)
    for sign in (1, -1):
        mine = np.flatnonzero(np.sign(truth["flux"].to_numpy(float)) == sign)
        theirs = np.flatnonzero(finds["sign"].to_numpy(int) == sign)
        index, distance = match(truth.iloc[mine], finds.iloc[theirs], radius)
        hit = index >= 0
        which[mine[hit]] = theirs[index[hit]]
        away[mine] = distance
    return which, away


def match(truth: pd.DataFrame, finds: pd.DataFrame, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pair each truth with at most one find, nearest pairs first; both need columns x and y.

    Returns
    -------
    index, distance:
        For each truth the row number of its find or -1, and their distance in pixels (inf where none).
    """
    index, distance = np.full(len(truth), -1), np.full(len(truth), np.inf)
    if not len(truth) or not len(finds):
        return index, distance
    tree = cKDTree(finds[["x", "y"]].to_numpy(float))
    near = tree.query_ball_point(truth[["x", "y"]].to_numpy(float), radius)
    pairs = sorted(
        (float(np.hypot(truth.x.iloc[i] - finds.x.iloc[j], truth.y.iloc[i] - finds.y.iloc[j])), i, j)
        for i, js in enumerate(near)
        for j in js
    )
    taken: set[int] = set()
    for d, i, j in pairs:
        if index[i] < 0 and j not in taken:
            index[i], distance[i] = j, d
            taken.add(j)
    return index, distance


def _points(truth: pd.DataFrame) -> pd.DataFrame:
    """Return the new points of a truth table: what completeness and photometry are judged by."""
    return truth[truth["kind"] == "point"] if "kind" in truth else truth


def completeness(truth: pd.DataFrame, column: str = "detected") -> list[dict[str, Any]]:
    """Return per bin of S/N how many points were put in and found, with the 68 % Wilson interval of the share."""
    from astropy.stats import binom_conf_interval

    truth = _points(truth)
    rows: list[dict[str, Any]] = []
    for low, high in pairwise(SNR_BINS):
        inside = truth[(truth.snr >= low) & (truth.snr < high)]
        n, k = len(inside), int(inside[column].sum())
        interval = binom_conf_interval(k, n, interval="wilson") if n else (np.nan, np.nan)
        rows.append(
            {
                "snr_low": low,
                "snr_high": high,
                "injected": n,
                "found": k,
                "low": float(interval[0]),
                "high": float(interval[1]),
            }
        )
    return rows


def flux_statistics(truth: pd.DataFrame, min_snr: float = 10.0) -> Mapping[str, float]:
    """Return the median relative flux bias of bright injections and the width of their pulls.

    The width is half the distance between the 16th and 84th percentile of (measured − true) / error.
    """
    truth = _points(truth)
    found = truth[truth.found & (truth.snr >= min_snr)]
    if len(found) < 3:  # the spread of two numbers says nothing
        return {"flux_bias": float("nan"), "pull_width": float("nan")}
    pull = (found.measured_flux - found.flux) / found.measured_flux_err
    low, high = np.percentile(pull, [15.87, 84.13])
    return {
        "flux_bias": float(np.median(found.measured_flux / found.flux - 1)),
        "pull_width": float((high - low) / 2),
    }
