"""True changes planted into a pair: transients on galaxies and in empty sky, variable stars, moving objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.simulation.psf import SkyPSF
from astrid_pipeline.simulation.sky import sersic_radius
from astrid_pipeline.simulation.truth import ideal_flux_error

if TYPE_CHECKING:
    from astrid_pipeline.simulation.pair_options import PairOptions

#: True changes keep this far from each other and from the border, px: two in one detection would not be two truths.
SEPARATION = 12.0


@dataclass(frozen=True, eq=False)
class Scene:
    """What decides how bright a change of a given S/N is: noise and PSFs of both frames before anything changed."""

    rng: np.random.Generator
    variance: npt.NDArray[np.float32]
    reference_variance: npt.NDArray[np.float32]
    psf: PSF
    reference_psf: PSF
    scale: float
    reference_depth: int
    sky_psf: SkyPSF
    full_well: float

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.variance.shape[0], self.variance.shape[1]

    def flux_error(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the error of a point's flux without its own photons, science electrons."""
        reference = (self.reference_psf, self.reference_variance, 1 / self.scale)
        return ideal_flux_error(x, y, self.psf, self.variance, reference)

    def flux_for(
        self, snr: npt.NDArray[np.float64], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return the flux of points that reach `snr`, their own photons' noise counted.

        A source of flux f adds f P to the variance, so that σ² = σ_0² + f Σ P³ / (Σ P²)²; f = snr · σ is then a
        quadratic equation.
        """
        sigma = self.flux_error(x, y)
        stamp = self.psf.stamp()
        own = (stamp**3).sum() / (stamp**2).sum() ** 2
        half = snr**2 * own / 2
        return half + np.sqrt(half**2 + (snr * sigma) ** 2)

    def inside(self, x: npt.ArrayLike, y: npt.ArrayLike, border: float = SEPARATION) -> npt.NDArray[np.bool_]:
        """Return which positions are in the frame and not at its border."""
        xs, ys = np.asarray(x), np.asarray(y)
        return (xs >= border) & (xs < self.shape[1] - border) & (ys >= border) & (ys < self.shape[0] - border)

    def overexposed(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which positions are within 4 px of a pixel that comes near the full well in either frame."""
        offset = np.arange(-4, 5, 2)
        rows = np.clip(np.rint(y).astype(int)[:, None] + offset, 0, self.shape[0] - 1)[:, :, None]
        columns = np.clip(np.rint(x).astype(int)[:, None] + offset, 0, self.shape[1] - 1)[:, None, :]
        then = self.reference_variance[rows, columns] * np.float32(self.reference_depth)
        return (np.maximum(self.variance[rows, columns], then) > 0.5 * self.full_well).any(axis=(1, 2))


class _Places:
    """Positions taken so far."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float]] = []

    def free(self, x: float, y: float) -> bool:
        return all((x - a) ** 2 + (y - b) ** 2 >= SEPARATION**2 for a, b in self.taken)

    def choose(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], n: int
    ) -> list[int]:
        """Return up to n indices, in order, of allowed places that are free, and take them."""
        chosen: list[int] = []
        for i in np.flatnonzero(allowed):
            if len(chosen) == n:
                break
            if self.free(x[i], y[i]):
                self.taken.append((float(x[i]), float(y[i])))
                chosen.append(int(i))
        return chosen


def plant(
    scene: Scene,
    stars: pd.DataFrame,
    galaxies: pd.DataFrame,
    options: PairOptions,
    count: Callable[[float], int],
) -> pd.DataFrame:
    """Choose what changes. Columns: those of the truth, and flux_science, flux_reference (electrons in each frame),
    dx, dy (trail)."""
    places = _Places()
    n = count(options.transients)
    n_hosted = int(scene.rng.binomial(n, options.on_galaxy)) if n else 0
    tables = [
        _on_galaxies(scene, places, galaxies, n_hosted, options),
        _variables(scene, places, stars, galaxies, count(options.variables), options),
        _movers(scene, places, count(options.movers), options),
    ]
    # What found no free galaxy goes to the empty sky, so that the number asked for is kept.
    tables.append(_hostless(scene, places, n - len(tables[0]), options))
    columns = ["x", "y", "flux", "flux_science", "flux_reference", "dx", "dy", "kind", "class"]
    filled = [t for t in tables if len(t)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns, dtype=float)


def _snr(scene: Scene, options: PairOptions, n: int) -> npt.NDArray[np.float64]:
    low, high = np.log(options.snr)
    return np.exp(scene.rng.uniform(low, high, n))


def _points(
    scene: Scene, options: PairOptions, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> pd.DataFrame:
    n = len(x)
    flux = scene.flux_for(_snr(scene, options, n), x, y)
    fading = scene.rng.random(n) < options.fading
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "flux": np.where(fading, -flux, flux),
            "flux_science": np.where(fading, 0.0, flux),
            "flux_reference": np.where(fading, flux / scene.scale, 0.0),
            "dx": 0.0,
            "dy": 0.0,
            "kind": "point",
            "class": np.where(fading, "fading", "supernova"),
        }
    )


def _on_galaxies(
    scene: Scene, places: _Places, galaxies: pd.DataFrame, n: int, options: PairOptions
) -> pd.DataFrame:
    # Brighter galaxies have more stars to explode.
    weight = np.where(scene.inside(galaxies["x"], galaxies["y"]), galaxies["flux"] ** 0.5, 0.0)
    if not n or not weight.any():
        return pd.DataFrame()
    tries = min(8 * n, int((weight > 0).sum()))
    host = galaxies.iloc[scene.rng.choice(len(galaxies), size=tries, replace=False, p=weight / weight.sum())]
    x, y, distance = offset_in(scene.rng, host)
    inside = scene.inside(x, y)
    allowed = inside.copy()
    allowed[inside] = ~scene.overexposed(x[inside], y[inside])
    chosen = places.choose(x, y, allowed, n)
    if not chosen:
        return pd.DataFrame()
    hosts = host.iloc[chosen].reset_index(drop=True)
    return _points(scene, options, x[chosen], y[chosen]).assign(
        on_galaxy=True,
        host_flux=hosts["flux"] * scene.scale,
        host_re=hosts["re"],
        host_distance=distance[chosen],
    )


def offset_in(
    rng: np.random.Generator, galaxies: pd.DataFrame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Draw one position in each galaxy from its light, at most three effective radii out: (x, y, distance), px."""
    radius = np.minimum(sersic_radius(rng, galaxies["index"].to_numpy()), 3.0) * galaxies["re"].to_numpy()
    phase = rng.uniform(0, 2 * np.pi, len(galaxies))
    a, b = radius * np.cos(phase), radius * np.sin(phase) * galaxies["axis_ratio"].to_numpy()
    cos, sin = np.cos(galaxies["angle"].to_numpy()), np.sin(galaxies["angle"].to_numpy())
    dx, dy = a * cos - b * sin, a * sin + b * cos
    return galaxies["x"].to_numpy() + dx, galaxies["y"].to_numpy() + dy, np.hypot(dx, dy)


def _hostless(scene: Scene, places: _Places, n: int, options: PairOptions) -> pd.DataFrame:
    if n <= 0:
        return pd.DataFrame()
    x, y = _anywhere(scene, 20 * n)
    chosen = places.choose(x, y, ~scene.overexposed(x, y), n)
    if not chosen:
        return pd.DataFrame()
    points = _points(scene, options, x[chosen], y[chosen])
    points["class"] = points["class"].replace("supernova", "hostless")
    return points.assign(on_galaxy=False)


def _anywhere(scene: Scene, n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    height, width = scene.shape
    border = min(SEPARATION, (min(height, width) - 1) / 2)
    return scene.rng.uniform(border, width - border, n), scene.rng.uniform(border, height - border, n)


def _variables(
    scene: Scene, places: _Places, stars: pd.DataFrame, galaxies: pd.DataFrame, n: int, options: PairOptions
) -> pd.DataFrame:
    """Stars, and one in five active galactic nuclei, whose flux differs between the epochs, either way."""
    if not n:
        return pd.DataFrame()
    n_agn = int(scene.rng.binomial(n, 0.2))
    agn = _vary(scene, places, galaxies, n_agn, options, limit=3.0)
    varied = _vary(scene, places, stars, n - len(agn), options, limit=0.6)
    if len(agn):
        # A nucleus of its own stands on the galaxy in both epochs, or a fading one would dig a hole.
        base = agn["flux"].abs()
        agn = agn.assign(
            flux_science=base + agn["flux"] / 2,
            flux_reference=(base - agn["flux"] / 2) / scene.scale,
            on_galaxy=True,
            host_flux=agn["star_flux"],
            host_re=agn["re"],
            host_distance=0.0,
            star_flux=base,
        )
        agn["class"] = "agn"
    filled = [t.drop(columns="re") for t in (varied, agn) if len(t)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _vary(
    scene: Scene, places: _Places, sources: pd.DataFrame, n: int, options: PairOptions, limit: float
) -> pd.DataFrame:
    inside = sources[scene.inside(sources["x"], sources["y"])]
    x, y = inside["x"].to_numpy(), inside["y"].to_numpy()
    usable = np.flatnonzero(~scene.overexposed(x, y)) if len(inside) else np.zeros(0, int)
    if not n or not len(usable):
        return pd.DataFrame()
    tries = scene.rng.permutation(usable)[: 15 * n]
    x, y, mean = x[tries], y[tries], inside["flux"].to_numpy()[tries] * scene.scale
    flux = scene.flux_for(_snr(scene, options, len(tries)), x, y)
    # Few stars vary by more than 60 % of their mean, so that the faint cannot reach a high S/N; a nucleus can
    # outshine its galaxy.
    chosen = places.choose(x, y, flux < limit * mean, n)
    if not chosen:
        return pd.DataFrame()
    change = scene.rng.choice([-1.0, 1.0], len(chosen)) * flux[chosen]
    # The mean is drawn already; half of the change goes into each epoch.
    return pd.DataFrame(
        {
            "x": x[chosen],
            "y": y[chosen],
            "flux": change,
            "flux_science": change / 2,
            "flux_reference": -change / 2 / scene.scale,
            "dx": 0.0,
            "dy": 0.0,
            "kind": "variable",
            "class": "variable_star",
            "on_galaxy": False,
            "star_flux": mean[chosen],
            "re": inside["re"].to_numpy()[tries][chosen] if "re" in inside else np.nan,
        }
    )


def _movers(scene: Scene, places: _Places, n: int, options: PairOptions) -> pd.DataFrame:
    """Asteroids: trails of the length they moved during the exposure. Their S/N is that of a matched trail."""
    if not n:
        return pd.DataFrame()
    x, y = _anywhere(scene, 20 * n)
    chosen = places.choose(x, y, ~scene.overexposed(x, y), n)
    x, y = x[chosen], y[chosen]
    shortest, longest = np.log(options.trail_length)
    length = np.exp(scene.rng.uniform(shortest, longest, len(x)))
    angle = scene.rng.uniform(0, np.pi, len(x))
    dx, dy = length * np.cos(angle), length * np.sin(angle)
    flux = scene.flux_for(_snr(scene, options, len(x)), x, y) / scene.sky_psf.trail_loss(dx, dy)
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "flux": flux,
            "flux_science": flux,
            "flux_reference": 0.0,
            "dx": dx,
            "dy": dy,
            "kind": "moving",
            "class": np.where(length > 3 * options.science_fwhm, "trail", "asteroid"),
            "on_galaxy": False,
            "length": length,
            "angle": angle,
        }
    )


def displace_some(
    rng: np.random.Generator, stars: pd.DataFrame, n: int, shape: tuple[int, int]
) -> pd.DataFrame:
    """Return `stars` as they stood at the reference's time: `n` of the brighter, unsaturated ones have moved by 0.3
    to 1.2 px (column `moved`, px), as stars of high proper motion or refracted blue ones do."""
    moved = np.zeros(len(stars))
    usable = (
        stars["mag"].between(13.5, 18.0)
        & stars["x"].between(8, shape[1] - 9)
        & stars["y"].between(8, shape[0] - 9)
    )
    chosen = rng.permutation(np.flatnonzero(usable))[:n]
    moved[chosen] = rng.uniform(0.3, 1.2, len(chosen))
    angle = rng.uniform(0, 2 * np.pi, len(stars))
    return stars.assign(
        x=stars["x"] + moved * np.cos(angle),
        y=stars["y"] + moved * np.sin(angle),
        moved=moved,
        moved_angle=angle,
    )


def rows(planted: pd.DataFrame) -> list[dict[str, object]]:
    """Return the truth rows of what `plant` chose."""
    return planted.drop(columns=["flux_science", "flux_reference", "dx", "dy"]).to_dict("records")  # type: ignore[return-value]
