"""How well a reference is registered, by the truth of simulated frames that lie apart, turned and distorted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.errors import AstridError
from astrid_pipeline.imaging.registration import register
from astrid_pipeline.simulation import CASES, PairOptions
from astrid_pipeline_tests.benchmarks.figures import Figure
from astrid_pipeline_tests.benchmarks.known import Floats, Keeper


@dataclass(frozen=True)
class Turned:
    """Where a source of the science frame stands in a reference that was pointed otherwise: x' = R (x − c) + c + d + w.

    Attributes
    ----------
    middle:
        c, px.
    shift:
        d, px.
    angle:
        Of the rotation R, degrees.
    waves:
        The builder's own smooth distortion w.
    """

    middle: Floats
    shift: tuple[float, float]
    angle: float
    waves: Any

    def turn(self) -> Floats:
        """Return R."""
        a = math.radians(self.angle)
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    def table(self, sources: pd.DataFrame) -> pd.DataFrame:
        """Return the sources where the reference has them."""
        at = sources[["x", "y"]].to_numpy(float)
        there = (at - self.middle) @ self.turn().T + self.middle + self.shift
        moved = self.waves.table(sources)
        wave = moved[["x", "y"]].to_numpy(float) - at
        return sources.assign(x=there[:, 0] + wave[:, 0], y=there[:, 1] + wave[:, 1])


#: name: (case, shift px, angle deg, error of the reference's WCS px, whether it has one).
SETTINGS = {
    "shifted": ("clean", (3.27, -5.71), 0.0, (1.6, -0.9), True),
    "turned": ("varpsf", (3.27, -5.71), 0.4, (1.6, -0.9), True),
    "distorted": ("real", (3.27, -5.71), 0.4, (1.6, -0.9), True),
    "no WCS": ("clean", (3.27, -5.71), 0.4, (0.0, 0.0), False),
}


def apart(name: str, seed: int, side: int, **changes: Any) -> tuple[Any, Turned]:
    """Return a pair whose reference lies as `SETTINGS` says, on its own grid, and the true displacement."""
    case, shift, angle, error, has_wcs = SETTINGS[name]
    options = {**CASES[case], "variance": "data", "psf": "none", **changes}
    keeper = Keeper(np.random.default_rng([seed, 77]), (side, side), PairOptions(**options))
    warp = Turned(np.full(2, (side - 1) / 2), shift, angle, keeper.warp)
    keeper.warp = warp  # type: ignore[assignment]
    pair = keeper.build()
    wcs: WCS | None = None
    if has_wcs:
        assert pair.reference.wcs is not None
        wcs = pair.reference.wcs.deepcopy()
        wcs.wcs.cd = np.diag(wcs.wcs.cdelt) @ warp.turn().T
        wcs.wcs.crpix = np.asarray(wcs.wcs.crpix) + np.asarray(shift) + np.asarray(error)
        # Beside a CD matrix the old scales must not stand.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            wcs.wcs.cdelt = [1.0, 1.0]
        wcs.wcs.set()
    return (pair.science, pair.reference.replace(wcs=wcs)), warp


def measure(seed: int, side: int) -> Figure:
    """Return the rms of the registration's error per axis, px, over the whole frame, and what it says of itself."""
    out: Figure = {}
    for name in SETTINGS:
        (science, reference), warp = apart(name, seed, side)
        x, y = (g.ravel() for g in np.meshgrid(*[np.linspace(12, side - 13, 40)] * 2))
        true = warp.table(pd.DataFrame({"x": x, "y": y}))
        try:
            found = register(reference, science)
        except AstridError as error:
            out[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        u, v = found.function(x, y)
        off = np.array([u - true["x"].to_numpy(), v - true["y"].to_numpy()])
        inside = true["x"].between(0, side - 1).to_numpy() & true["y"].between(0, side - 1).to_numpy()
        out[name] = {
            "rms": np.sqrt((off[:, inside] ** 2).mean(1)).tolist(),
            "largest": float(np.hypot(*off[:, inside]).max()),
            "says": [found.dx_rms, found.dy_rms],
            "n_matched": found.n_matched,
            "degree": found.degree,
            "source": found.source,
        }
    return out


def lines(figures: Figure) -> Iterator[str]:
    """Yield a line a setting."""
    for name, f in figures.items():
        if "error" in f:
            yield f"registration {name:12s} {f['error']}"
            continue
        yield (
            f"registration {name:12s} rms {f['rms'][0]:.3f} {f['rms'][1]:.3f} px, largest {f['largest']:.3f}; says "
            f"{f['says'][0]:.3f} {f['says'][1]:.3f}; {f['n_matched']} stars, {f['source']}, degree {f['degree']}"
        )
