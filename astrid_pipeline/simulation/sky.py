"""What is on the sky: stars and galaxies with realistic numbers of bright and faint ones, and how they are drawn.

`render` draws any mixture of points, trails and Sérsic galaxies through a `SkyPSF` that may vary over the frame.
Each source is a stamp made exactly in Fourier space (see `psf`), large enough that nothing is seen of its border.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.simulation.psf import SkyPSF, frequencies, lookup

#: Stamp sizes in pixels; each divides the next, so that one spectrum serves all.
SIZES = (16, 32, 64, 128, 256)

#: Electrons per pixel that may be missing at a stamp's border: far below any detector's noise.
BORDER_LIGHT = 0.03

#: Sérsic indices of the galaxies: discs (1), lenses (2) and ellipticals (3.5).
SERSIC_INDICES = (1.0, 2.0, 3.5)

#: Samples of a Sérsic profile's transform per cycle per effective radius, and the last of them.
_K_STEPS, _K_LAST = 400, 60

#: Galaxies' light is cut here, in effective radii: an index of 3.5 has 94 % of its light within.
_CUT = 8.0


@lru_cache(maxsize=32)
def _sersic_transform(index: float) -> npt.NDArray[np.float64]:
    """Return the Fourier transform of a unit Sérsic profile of effective radius 1 at k = 0, 1/400 … 60."""
    from scipy.interpolate import CubicSpline
    from scipy.special import j0

    radius, light = _sersic_profile(index)
    # The Hankel sum at few frequencies, closer where it falls, and a spline between them.
    coarse = np.concatenate([[0.0], np.geomspace(1e-3, _K_LAST, 700)])
    sums = [j0(2 * np.pi * np.outer(k, radius)) @ light for k in np.array_split(coarse, 12)]
    return CubicSpline(coarse, np.concatenate(sums))(np.arange(_K_STEPS * _K_LAST + 1) / _K_STEPS)


@lru_cache(maxsize=32)
def _sersic_profile(index: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return radii (in effective radii) and the share of the light at each."""
    b = 2 * index - 1 / 3 + 0.009876 / index  # Prugniel & Simien 1997
    # Even steps in √r resolve the cusp; the Hankel sum stays good to k ~ 60 inside r ~ 3, where the light is.
    edges = np.linspace(0, math.sqrt(_CUT), 2501) ** 2
    radius = (edges[1:] + edges[:-1]) / 2
    light = np.exp(-b * (radius ** (1 / index) - 1)) * np.diff(edges**2)
    # Fade out over the last quarter, so that no edge is seen.
    light *= 0.5 * (1 + np.cos(np.pi * np.clip((radius / _CUT - 0.75) / 0.25, 0, 1)))
    return radius, light / light.sum()


def sersic_radius(rng: np.random.Generator, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Draw radii, in effective radii, from the light of Sérsic profiles of these indices."""
    indices = np.atleast_1d(np.asarray(index, float))
    share = rng.random(len(indices))
    out = np.empty(len(indices))
    for i, (n, s) in enumerate(zip(indices, share, strict=True)):
        radius, light = _sersic_profile(float(n))
        out[i] = np.interp(s, np.cumsum(light), radius)
    return out


def galaxy_spectra(galaxies: pd.DataFrame, size: int) -> npt.NDArray[np.float32]:
    """Return the spectra (n, 2 size, size + 1) of galaxies with columns re, index, axis_ratio, angle."""
    fy, fx = frequencies(size)
    out = np.empty((len(galaxies), fy.shape[0], fx.shape[1]), np.float32)
    columns = (galaxies[c].to_numpy() for c in ("re", "index", "axis_ratio", "angle"))
    for i, (re, index, q, angle) in enumerate(zip(*columns, strict=True)):
        along = fx * math.cos(angle) + fy * math.sin(angle)
        across = -fx * math.sin(angle) + fy * math.cos(angle)
        # re is the major axis' effective radius: the transform of a stretched profile is squeezed.
        k = re * np.hypot(along, q * across)
        out[i] = lookup(_sersic_transform(float(index)), _K_STEPS * k)
    return out


def _point_sizes(
    flux: npt.NDArray[np.float64], length: npt.NDArray[np.float64], psf: SkyPSF
) -> npt.NDArray[np.int64]:
    """Return the stamp size for each point or trail."""
    fwhm = float(psf.fwhm_at(*_corners(psf)).max())
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / psf.beta) - 1))
    peak = (psf.beta - 1) / (math.pi * alpha**2)
    reach = alpha * np.sqrt(np.maximum((np.abs(flux) * peak / BORDER_LIGHT) ** (1 / psf.beta) - 1, 0))
    wanted = 2 * np.maximum(reach, 3 * fwhm) + length
    return np.searchsorted(SIZES[:-1], wanted)


def _corners(psf: SkyPSF) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    height, width = psf.shape
    grid = np.meshgrid(np.linspace(0, width - 1, 5), np.linspace(0, height - 1, 5))
    return grid[0].ravel(), grid[1].ravel()


def render(image: npt.NDArray[np.float32], sources: pd.DataFrame, psf: SkyPSF) -> None:
    """Add `sources` to `image` in place.

    Parameters
    ----------
    image:
        (height, width) float32, electrons; may have another shape than `psf.shape` says only if the PSF is constant.
    sources:
        Columns x, y (zero-based pixels), flux (electrons, may be negative); optionally dx, dy (pixels moved while
        the shutter was open) and re, index, axis_ratio, angle (Sérsic galaxies; re in pixels, 0 or NaN for points).
    psf:
        The point spread function.
    """
    if not len(sources):
        return
    extended = (sources["re"] > 0).to_numpy() if "re" in sources else np.zeros(len(sources), bool)
    _render_points(image, sources[~extended], psf)
    _render_galaxies(image, sources[extended], psf)


def _render_points(image: npt.NDArray[np.float32], points: pd.DataFrame, psf: SkyPSF) -> None:
    x, y, flux = (points[c].to_numpy(float) for c in ("x", "y", "flux"))
    moving = "dx" in points
    dx, dy = (
        points[c].fillna(0.0).to_numpy(float) if moving else np.zeros(len(points)) for c in ("dx", "dy")
    )
    length = np.hypot(dx, dy)
    sizes = _point_sizes(flux, length, psf)
    for code in np.unique(sizes)[::-1]:
        for trailed in (False, True):
            chosen = np.flatnonzero((sizes == code) & ((length > 0) == trailed))
            trail = (dx[chosen], dy[chosen]) if trailed else None
            for part, stamps in psf.stamps(x[chosen], y[chosen], SIZES[code], trail=trail):
                which = chosen[part]
                _add(image, stamps, x[which], y[which], flux[which])


def _render_galaxies(image: npt.NDArray[np.float32], galaxies: pd.DataFrame, psf: SkyPSF) -> None:
    if not len(galaxies):
        return
    flux, re, index = (galaxies[c].to_numpy(float) for c in ("flux", "re", "index"))
    # Where the profile's surface brightness falls below the limit, but never more than the cut.
    b = 2 * index - 1 / 3
    centre = np.abs(flux) * np.exp(b) / (2 * np.pi * re**2 * index)
    reach = re * np.minimum((np.log(np.maximum(centre / BORDER_LIGHT, 1.1)) / b) ** index, _CUT)
    wanted = 2 * (reach + 3 * float(psf.fwhm_at(*_corners(psf)).max()))
    sizes = np.searchsorted(SIZES[:-1], wanted)
    x, y = galaxies["x"].to_numpy(float), galaxies["y"].to_numpy(float)
    for code in np.unique(sizes)[::-1]:
        for chosen in np.array_split(np.flatnonzero(sizes == code), max(1, int((sizes == code).sum()) // 32)):
            profile = galaxy_spectra(galaxies.iloc[chosen], SIZES[code])
            for part, stamps in psf.stamps(x[chosen], y[chosen], SIZES[code], profile=profile):
                which = chosen[part]
                _add(image, stamps, x[which], y[which], flux[which])


def _add(
    image: npt.NDArray[np.float32],
    stamps: npt.NDArray[np.float32],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    flux: npt.NDArray[np.float64],
) -> None:
    """Add stamps whose pixel size // 2 belongs on the pixel nearest to (x, y), cut at the image's border."""
    size = stamps.shape[-1]
    height, width = image.shape
    left = np.rint(x).astype(int) - size // 2
    bottom = np.rint(y).astype(int) - size // 2
    for stamp, x0, y0, f in zip(stamps, left, bottom, flux.astype(np.float32), strict=True):
        xa, xb, ya, yb = max(x0, 0), min(x0 + size, width), max(y0, 0), min(y0 + size, height)
        if xa < xb and ya < yb:
            image[ya:yb, xa:xb] += f * stamp[ya - y0 : yb - y0, xa - x0 : xb - x0]


def draw_magnitudes(
    rng: np.random.Generator, n: int, bright: float, faint: float, slope: float
) -> npt.NDArray[np.float64]:
    """Draw n magnitudes between `bright` and `faint` with counts growing as 10^(slope · m)."""
    low, high = 10 ** (slope * (bright - faint)), 1.0
    return faint + np.log10(low + (high - low) * rng.random(n)) / slope


def draw_galaxies(
    rng: np.random.Generator, n: int, bright: float, faint: float, *, pixel_scale: float = 1.0
) -> pd.DataFrame:
    """Draw n galaxies: mag, re (px), index, axis_ratio, angle.

    Counts grow as 10^(0.4 m). Sizes follow the mean of galaxies at these magnitudes, 10^(-0.13 (m - 18)) · 2.2" with
    a scatter of 0.2 dex, so that surface brightness falls slowly towards faint ones, as it does on the sky.
    """
    mag = draw_magnitudes(rng, n, bright, faint, 0.4)
    re = 2.2 / pixel_scale * 10 ** (-0.13 * (mag - 18) + rng.normal(0, 0.2, n))
    index = rng.choice(SERSIC_INDICES, n, p=(0.6, 0.2, 0.2))
    axis_ratio = np.where(index > 2.5, rng.uniform(0.55, 1.0, n), rng.uniform(0.25, 1.0, n))
    return pd.DataFrame(
        {
            "mag": mag,
            "re": np.clip(re, 0.5, 25),
            "index": index,
            "axis_ratio": axis_ratio,
            "angle": rng.uniform(0, np.pi, n),
        }
    )
