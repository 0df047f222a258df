"""Things in the sky that change: supernovae, variable stars and nuclei, asteroids. Their brightness and place at any
time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.simulation.changes import offset_in

#: Days of rise and decline of a supernova's light in each filter: blue light fades first.
_TIMES = {"u": (3.0, 12.0), "g": (4.0, 16.0), "r": (4.5, 23.0), "i": (5.0, 28.0), "z": (5.0, 30.0)}

#: Filters between which a supernova's colour at peak, and a star's, are interpolated: effective wavelength, nm.
WAVELENGTHS = {"u": 355.0, "g": 475.0, "r": 622.0, "i": 763.0, "z": 905.0}

Array = npt.NDArray[np.float64]


def supernova_flux(phase: npt.ArrayLike, band: str, *, stretch: float = 1.0) -> Array:
    """Return a supernova's flux relative to its peak, `phase` days after it.

    The form is that of Bazin et al. 2009 (A&A 499, 653, eq. 1) with no constant: exp(-t/τ_fall) / (1 + exp(-t/τ_rise)),
    peak at t = τ_rise ln(τ_fall/τ_rise - 1); `stretch` scales the times. Before 25 days (times stretch) ahead of the
    peak there is no light.
    """
    rise, fall = (t * stretch for t in _TIMES[band])
    peak = rise * math.log(fall / rise - 1)

    def bazin(t: Array) -> Array:
        return np.exp(-t / fall) / (1 + np.exp(-np.clip(t / rise, -60, 60)))

    days = np.asarray(phase, float)
    t = np.clip(days + peak, -60 * rise, None)
    return np.where(days < -25 * stretch, 0.0, bazin(t) / bazin(np.asarray(peak)))


def periodic_magnitude(
    mjd: npt.ArrayLike, shape: str, period: float, amplitude: float, phase: float
) -> Array:
    """Return how many magnitudes fainter than its mean a periodic star is; `amplitude` is from top to bottom.

    `shape`: "sine"; "sawtooth", the quick rise and slow fall of RR Lyrae stars; "eclipse", two dips a period.
    """
    turn = (np.asarray(mjd, float) / period + phase) % 1.0
    if shape == "sine":
        return amplitude / 2 * np.sin(2 * np.pi * turn)
    if shape == "sawtooth":
        rise = 0.2
        return amplitude * (np.where(turn < rise, 0.5 - turn / rise, (turn - rise) / (1 - rise) - 0.5))
    if shape == "eclipse":
        width = 0.06
        distance = np.minimum(turn, 1 - turn), np.abs(turn - 0.5)
        dips = amplitude * np.exp(-0.5 * (distance[0] / width) ** 2)
        dips = dips + 0.6 * amplitude * np.exp(-0.5 * (distance[1] / width) ** 2)
        return dips - 1.6 * amplitude * width * math.sqrt(2 * math.pi)
    raise ValueError(f"no such light curve: {shape!r}")


def wandering_magnitude(mjd: npt.ArrayLike, amplitude: float, seed: int) -> Array:
    """Return the magnitudes by which an active nucleus departs from its mean: rms `amplitude`, slower is stronger.

    A sum of sines with periods from 5 to 200 days whose power falls as the frequency squared, as a damped random
    walk's does.
    """
    rng = np.random.default_rng(seed)
    periods = np.geomspace(5, 200, 12)
    weights = periods / math.sqrt(float((periods**2).sum()) / 2)
    phases = rng.uniform(0, 2 * np.pi, 12)
    angle = 2 * np.pi * np.asarray(mjd, float)[..., None] / periods + phases
    return amplitude * (weights * np.sin(angle)).sum(-1)


def colour_magnitude(mag_r: npt.ArrayLike, g_r: npt.ArrayLike, band: str) -> Array:
    """Return magnitudes in `band` from r and g - r: linear in 1/wavelength, as a smooth spectrum's are roughly."""
    inverse = {name: 1 / w for name, w in WAVELENGTHS.items()}
    share = (inverse[band] - inverse["r"]) / (inverse["g"] - inverse["r"])
    return np.asarray(mag_r, float) + share * np.asarray(g_r, float)


def draw_supernovae(
    rng: np.random.Generator,
    galaxies: pd.DataFrame,
    n: int,
    *,
    peaks: tuple[float, float],
    template_mjd: float | None,
    names: str,
) -> pd.DataFrame:
    """Draw n supernovae: 6 in 10 in `galaxies` with their peak in the range `peaks` (MJD), 2 in 10 likewise in empty
    sky, 2 in 10 in galaxies with their peak around `template_mjd`, so that they have faded since (none if None).

    Parameters
    ----------
    galaxies:
        Columns x, y (the survey's plane, px), flux, re, index, axis_ratio, angle.
    names:
        Prefix of their `object_id`.

    Returns
    -------
    object_id, class, x, y, peak_mjd, peak_mag (r), g_r, stretch, host (row of `galaxies`, -1 without), host_re,
    host_distance.
    """
    weight = np.sqrt(galaxies["flux"].to_numpy())
    chosen = rng.choice(len(galaxies), size=min(n, len(galaxies)), replace=False, p=weight / weight.sum())
    hosts = galaxies.iloc[chosen]
    x, y, distance = offset_in(rng, hosts)
    n = len(chosen)
    number = np.arange(n)
    hostless = number % 5 == 2
    faded = (number % 5 == 4) & (template_mjd is not None)
    low, high = galaxies[["x", "y"]].min().to_numpy(), galaxies[["x", "y"]].max().to_numpy()
    anywhere = rng.uniform(low, high, (n, 2))
    peak = np.where(faded, (template_mjd or 0.0) + rng.uniform(-8, 3, n), rng.uniform(*peaks, n))
    return pd.DataFrame(
        {
            "object_id": [f"{names}sn{i:02d}" for i in range(n)],
            "class": np.where(hostless, "hostless", np.where(faded, "fading", "supernova")),
            "x": np.where(hostless, anywhere[:, 0], x),
            "y": np.where(hostless, anywhere[:, 1], y),
            "peak_mjd": peak,
            "peak_mag": rng.uniform(16.8, 20.0, n),
            "g_r": rng.normal(0.0, 0.15, n),
            "stretch": rng.uniform(0.8, 1.25, n),
            "host": np.where(hostless, -1, chosen),
            "host_re": np.where(hostless, np.nan, hosts["re"].to_numpy()),
            "host_distance": np.where(hostless, np.nan, distance),
        }
    )


def draw_variables(rng: np.random.Generator, stars: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose n variable stars: star (index), shape, period (d), amplitude (mag, in r; 1.25 times that in g), phase."""
    bright = np.flatnonzero(stars["mag_r"].between(13.5, 19.3).to_numpy())
    chosen = rng.permutation(bright)[:n]
    n = len(chosen)
    return pd.DataFrame(
        {
            "star": chosen,
            "shape": rng.choice(["sine", "sawtooth", "eclipse"], n),
            "period": np.exp(rng.uniform(math.log(0.3), math.log(20), n)),
            "amplitude": np.exp(rng.uniform(math.log(0.08), math.log(1.0), n)),
            "phase": rng.random(n),
        }
    )


def draw_asteroids(rng: np.random.Generator, n: int, extent: tuple[float, float], names: str) -> pd.DataFrame:
    """Draw n asteroids of one night in a frame of `extent` (width, height), px.

    Main-belt asteroids move by 25 to 45 arcsec an hour; one in eight passes near the Earth at ten times that, and
    leaves a trail.

    Returns
    -------
    object_id, x, y (px, in the middle of the night), rate (arcsec an hour), angle (rad from the x axis), mag_r, g_r.
    """
    near = rng.random(n) < 1 / 8
    return pd.DataFrame(
        {
            "object_id": [f"{names}ast{i:02d}" for i in range(n)],
            "x": rng.uniform(0.15, 0.85, n) * extent[0],
            "y": rng.uniform(0.15, 0.85, n) * extent[1],
            "rate": rng.uniform(25, 45, n) * np.where(near, rng.uniform(6, 14, n), 1.0),
            "angle": rng.normal(0.35, 0.35, n) + np.where(rng.random(n) < 0.5, np.pi, 0.0),
            "mag_r": rng.uniform(16.5, 20.3, n) - np.where(near, 1.5, 0.0),
            "g_r": rng.normal(0.55, 0.1, n),
        }
    )
