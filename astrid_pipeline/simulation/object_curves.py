"""Light curves of single objects as forced photometry gives them: fluxes of differences, with gaps and noise.

Only numbers, no pixels. Brightness in time is `transients`' own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.simulation.transients import periodic_magnitude, supernova_flux, wandering_magnitude

Floats = npt.NDArray[np.float64]

TYPES: tuple[str, ...] = ("supernova", "variable", "moving")
#: S/N of an object at its brightest, log-uniform: what is found at all, to what nobody can overlook.
PEAK_SNR = (5.0, 80.0)
EPOCHS = (3, 25)
_BANDS = ("g", "r", "i")
#: Where candidates see no reference source they say this, px.
NOTHING_NEAR = 50.0


def draw_object(rng: np.random.Generator, kind: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return an object's points (mjd, filter, flux, flux_err) and what is known of its place.

    Points are on `EPOCHS` nights with gaps of some days, in one or two filters, of a depth that varies from night to
    night; at least one has |S/N| ≥ 5, else nobody would have found it. The place says ref_distance (px), ref_ratio and
    trail (px), as the detection's candidate would.

    Parameters
    ----------
    kind:
        ``supernova`` (in a galaxy or alone, new or faded since the reference was taken), ``variable`` (periodic stars
        and wandering nuclei), ``moving`` (seen on one night, or missing from it, and gone).
    """
    if kind not in TYPES:
        raise ValueError(f"no such object: {kind!r}")
    while True:
        nights, bands, errors = _epochs(rng)
        shape, place = {"supernova": _supernova, "variable": _variable, "moving": _moving}[kind](
            rng, nights, bands
        )
        # The brightest of its points, against the noise there, gets the S/N that was drawn.
        wanted = math.exp(rng.uniform(*np.log(PEAK_SNR)))
        top = float(np.abs(shape / errors).max())
        if top <= 0:
            continue
        flux = shape * wanted / top + rng.normal(0, errors)
        if (np.abs(flux / errors) >= 5).any():
            break
    points = pd.DataFrame({"mjd": nights, "filter": bands, "flux": flux, "flux_err": errors})
    return points, place


def _epochs(rng: np.random.Generator) -> tuple[Floats, npt.NDArray[Any], Floats]:
    count = int(rng.integers(EPOCHS[0], EPOCHS[1] + 1))
    gaps = np.maximum(1, np.round(rng.exponential(rng.uniform(1, 6), count)))
    nights = 60_000.3 + np.cumsum(gaps) + rng.uniform(-0.1, 0.1, count)
    bands = rng.permutation(_BANDS)[: 1 + int(rng.random() < 0.5)]
    table = [
        (night + 0.01 * k, band)
        for night in nights
        for k, band in enumerate(bands)
        if k == 0 or rng.random() < 0.8
    ]
    mjd = np.array([night for night, _ in table])
    band = np.array([name for _, name in table], object)
    depth = {name: float(rng.lognormal(0, 0.2)) for name in bands}
    errors = np.array([depth[name] for name in band]) * rng.lognormal(0, 0.25, len(mjd))
    return mjd, band, errors


def _supernova(
    rng: np.random.Generator, mjd: Floats, bands: npt.NDArray[Any]
) -> tuple[Floats, dict[str, float]]:
    template = mjd.min() - rng.uniform(3, 60)
    # One in seven shines in the reference, and is missing now.
    new = rng.random() > 1 / 7
    peak = rng.uniform(mjd.min() - 12, mjd.max() + 8) if new else template + rng.uniform(-8, 5)
    stretch = rng.uniform(0.8, 1.25)
    flux = np.zeros(len(mjd))
    for band in set(bands):
        mine = bands == band
        colour = 10 ** (0.4 * rng.normal(0, 0.2))
        then = supernova_flux(np.array([template - peak]), band, stretch=stretch)[0]
        flux[mine] = colour * (supernova_flux(mjd[mine] - peak, band, stretch=stretch) - then)
    if rng.random() < 0.7:
        # In its host, whose centre is what the reference shows.
        distance = float(min(abs(rng.normal(0, 3.5)), NOTHING_NEAR))
        ratio = float(rng.lognormal(0.0, 1.2))
    else:
        distance, ratio = _alone(rng)
    return flux, _place(rng, distance, ratio)


def _variable(
    rng: np.random.Generator, mjd: Floats, bands: npt.NDArray[Any]
) -> tuple[Floats, dict[str, float]]:
    template = mjd.min() - rng.uniform(3, 200)
    days = np.r_[mjd, template]
    if rng.random() < 0.75:
        shape = str(rng.choice(["sine", "sawtooth", "eclipse"]))
        period = math.exp(rng.uniform(math.log(0.15), math.log(60)))
        amplitude = math.exp(rng.uniform(math.log(0.08), math.log(1.2)))
        change = periodic_magnitude(days, shape, period, amplitude, rng.random())
        distance = float(np.hypot(*rng.normal(0, 0.35, 2)))
    else:
        amplitude = rng.uniform(0.08, 0.5)
        change = wandering_magnitude(days, amplitude, int(rng.integers(2**31)))
        distance = float(np.hypot(*rng.normal(0, 0.5, 2)))
    light = 10 ** (-0.4 * change)
    flux = light[:-1] - light[-1]
    for band in set(bands):
        flux[bands == band] *= 10 ** (0.4 * rng.normal(0, 0.3))
    # The reference holds the star itself: what changed of it, over it.
    ratio = float(np.abs(flux).max() * rng.lognormal(0, 0.2))
    return flux, _place(rng, distance, max(ratio, 1e-3))


def _moving(
    rng: np.random.Generator, mjd: Floats, bands: npt.NDArray[Any]
) -> tuple[Floats, dict[str, float]]:
    nights = np.floor(mjd)
    there = nights == rng.choice(np.unique(nights))
    flux = np.where(there, 1.0, 0.0)
    if there.sum() > 1 and rng.random() < 0.7:
        # The next filter's exposure finds it gone already.
        flux[np.flatnonzero(there)[1:]] = 0.0
    if rng.random() < 0.1:
        flux = np.full(len(mjd), -1.0)  # it stood in the reference's way
    distance, ratio = _alone(rng)
    trail = float(rng.exponential(3.0)) if rng.random() < 0.5 else 0.0
    return flux, _place(rng, distance, ratio, trail)


def _alone(rng: np.random.Generator) -> tuple[float, float]:
    """Nothing at its place in the reference: the nearest source is wherever it is (2500 a square of 1000 px)."""
    distance = math.sqrt(
        rng.exponential(1.0) / (math.pi * math.exp(rng.uniform(math.log(5e-4), math.log(6e-3))))
    )
    return min(distance, NOTHING_NEAR), float(rng.lognormal(1.8, 0.7))


def _place(
    rng: np.random.Generator, distance: float, ratio: float, trail: float | None = None
) -> dict[str, float]:
    beyond = (
        max(float(rng.normal(0, 0.7)), 0.0) if trail is None else max(trail + float(rng.normal(0, 0.7)), 0.0)
    )
    return {"ref_distance": distance, "ref_ratio": ratio, "trail": beyond}
