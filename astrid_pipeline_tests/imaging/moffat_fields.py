"""Frames of Moffat stars integrated over pixels by brute force, and differences of white noise: analytic truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.psf_model import PSF

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)


def moffat(
    half: int,
    fwhm: float,
    beta: float = 3.0,
    e1: float = 0.0,
    e2: float = 0.0,
    dx: float = 0.0,
    dy: float = 0.0,
) -> np.ndarray:
    """Return a (2 half + 1)² stamp of sum 1, each pixel integrated with 5 x 5 points."""
    axis = np.arange(-half, half + 1)
    samples = (axis[:, None] + _NODES / 2).ravel()
    x, y = np.meshgrid(samples - dx, samples - dy)
    alpha2 = fwhm**2 / 4 / (2 ** (1 / beta) - 1)
    q = ((1 - e1) * x**2 + (1 + e1) * y**2 - 2 * e2 * x * y) / math.sqrt(1 - e1**2 - e2**2) / alpha2
    fine = ((1 + q) ** -beta).reshape(2 * half + 1, 5, 2 * half + 1, 5)
    stamp = np.einsum("aibj,i,j->ab", fine, _WEIGHTS, _WEIGHTS)
    return stamp / stamp.sum()


@dataclass(frozen=True)
class StarField:
    """A frame's pixels, its true variance and sky, the stars in it, and the true PSF of a place."""

    data: np.ndarray
    variance: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    options: dict[str, Any]

    def psf(self, x: float, y: float, half: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
        return _psf_at(self.data.shape, self.options, x, y, half, dx, dy)


def _psf_at(
    shape: tuple[int, ...], options: dict[str, Any], x: float, y: float, half: int, dx: float, dy: float
) -> np.ndarray:
    u, v = 2 * x / (shape[1] - 1) - 1, 2 * y / (shape[0] - 1) - 1
    fwhm = options["fwhm"] * (1 + options["vary"] * (0.6 * u + 0.4 * (u * u + v * v - 0.7)))
    return moffat(half, fwhm, options["beta"], options["ellipticity"] * u, options["ellipticity"] * v, dx, dy)


@lru_cache(maxsize=16)
def star_field(
    side: int = 512,
    stars: int = 300,
    *,
    fwhm: float = 2.4,
    beta: float = 3.0,
    vary: float = 0.0,
    ellipticity: float = 0.0,
    sky: float = 200.0,
    gain: float = 1.0,
    read_noise: float = 5.0,
    faintest: float = 300.0,
    slope: float = 0.9,
    brightest: float = 3e5,
    seed: int = 0,
) -> StarField:
    """Return a field of stars whose numbers fall with flux as a power law, Poisson and read noise in it."""
    rng = np.random.default_rng(seed)
    options = {"fwhm": fwhm, "beta": beta, "vary": vary, "ellipticity": ellipticity}
    x, y = rng.uniform(0, side - 1, (2, stars))
    flux = np.minimum(faintest * (1 + rng.pareto(slope, stars)), brightest)
    ideal = np.full((side, side), sky)
    for x0, y0, f in zip(x, y, flux, strict=True):
        half = 20 if f < 2e4 else 40
        add(ideal, f * _psf_at((side, side), options, x0, y0, half, x0 - round(x0), y0 - round(y0)), x0, y0)
    electrons = rng.poisson(ideal * gain) + rng.normal(0, read_noise, ideal.shape)
    variance = ideal / gain + (read_noise / gain) ** 2
    return StarField((electrons / gain).astype(np.float32), variance.astype(np.float32), x, y, flux, options)


def add(image: np.ndarray, stamp: np.ndarray, x: float, y: float) -> None:
    """Add a stamp centred on the pixel nearest to (x, y), what sticks out cut off."""
    half = stamp.shape[0] // 2
    column, row = round(x), round(y)
    top, left = max(0, row - half), max(0, column - half)
    bottom, right = min(image.shape[0], row + half + 1), min(image.shape[1], column + half + 1)
    image[top:bottom, left:right] += stamp[
        top - row + half : bottom - row + half, left - column + half : right - column + half
    ]


def sersic(
    shape: tuple[int, int], x: float, y: float, radius: float, index: float, flux: float, ratio: float = 0.7
) -> np.ndarray:
    """Return a Sérsic galaxy of half-light radius `radius` (px), sampled at the pixels' centres."""
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    u = (xx - x) * math.cos(0.5) + (yy - y) * math.sin(0.5)
    v = -(xx - x) * math.sin(0.5) + (yy - y) * math.cos(0.5)
    r = np.sqrt(u**2 + (v / ratio) ** 2) + 0.3
    b = 2 * index - 1 / 3
    total = 2 * math.pi * radius**2 * ratio * index * math.exp(b) * b ** (-2 * index) * math.gamma(2 * index)
    return flux / total * np.exp(-b * ((r / radius) ** (1 / index) - 1))


def difference_of(
    image: np.ndarray,
    stamp: np.ndarray,
    sigma: float = 1.0,
    *,
    mask: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    **meta: Any,
) -> Difference:
    """Return the Difference that an image of white noise `sigma` and point sources of PSF `stamp` makes."""
    from scipy.signal import fftconvolve

    power = np.square(stamp).sum()
    flux = fftconvolve(image, stamp[::-1, ::-1], mode="same") / power
    error = sigma / np.sqrt(power)
    reference = np.zeros_like(image) if reference is None else reference
    return Difference(
        data=image,
        variance=np.full(image.shape, sigma**2),
        mask=mask,  # type: ignore[arg-type]
        psf=PSF.from_stamp(stamp, image.shape),
        score=flux / error,
        flux=flux,
        flux_err=np.full(image.shape, error),
        science=image + reference,
        reference=reference,
        meta={"exposure_id": "made-up", "reference_sky_sigma": sigma, **meta},
    )
