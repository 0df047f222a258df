"""Frames of Gaussian stars, integrated over pixels exactly, so that the truth about them is known to any digit."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy.special import erf

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.psf_model import PSF

GAUSS = 2.354820045


def draw(
    shape: tuple[int, int], x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float | np.ndarray
) -> np.ndarray:
    """Return an image of Gaussian stars, each pixel the exact integral over its area."""
    image = np.zeros(shape)
    widths = np.broadcast_to(fwhm, np.shape(x))
    for x0, y0, f, w in zip(x, y, flux, widths, strict=True):
        reach = int(np.ceil(3.2 * w)) + 2
        columns = np.arange(max(0, int(x0) - reach), min(shape[1], int(x0) + reach + 1))
        rows = np.arange(max(0, int(y0) - reach), min(shape[0], int(y0) + reach + 1))
        if len(columns) and len(rows):
            image[np.ix_(rows, columns)] += f * np.outer(_profile(rows - y0, w), _profile(columns - x0, w))
    return image


def _profile(offset: np.ndarray, fwhm: float) -> np.ndarray:
    scale = np.sqrt(2) * fwhm / GAUSS
    return 0.5 * (erf((offset + 0.5) / scale) - erf((offset - 0.5) / scale))


def gaussian_psf(fwhm: float, shape: tuple[int, int], size: int = 25) -> PSF:
    """Return the PSF that belongs to `draw`."""
    middle = size // 2
    return PSF.from_stamp(
        draw((size, size), np.array([middle]), np.array([middle]), np.ones(1), fwhm), shape=shape
    )


def positions(
    rng: np.random.Generator, number: int, shape: tuple[int, int], margin: float = 60.0
) -> np.ndarray:
    """Return (number, 2) positions over the frame and `margin` pixels around it, no two closer than 12 px."""
    height, width = shape
    kept: list[np.ndarray] = []
    for place in rng.uniform((-margin, -margin), (width + margin, height + margin), (number, 2)):
        if all(np.hypot(*(place - other)) > 12 for other in kept):
            kept.append(place)
    return np.array(kept)


def fluxes(
    rng: np.random.Generator, number: int, faintest: float = 2e3, brightest: float = 2e5
) -> np.ndarray:
    """Return fluxes whose numbers rise towards the faint end, as the sky's do."""
    u = rng.random(number)
    slope = -0.7
    return (faintest**slope + u * (brightest**slope - faintest**slope)) ** (1 / slope)


def frame(
    rng: np.random.Generator,
    shape: tuple[int, int],
    places: np.ndarray,
    flux: np.ndarray,
    *,
    fwhm: float = 2.6,
    sigma: float = 8.0,
    wcs: WCS | None = None,
    **meta: Any,
) -> Frame:
    """Return a prepared frame in electrons (sky removed) of stars at `places`, with photon noise and known PSF."""
    image = draw(shape, places[:, 0], places[:, 1], flux, fwhm)
    variance = image + sigma**2
    data = image + rng.normal(0, 1, shape) * np.sqrt(variance)
    known = {
        "sky_subtracted": True, "sky": 0.0, "sky_sigma": sigma, "seeing": fwhm, "noise_correlation": 1.0,
        "gain": 1.0, "unit": "electron", "exposure_id": "frame",
    }  # fmt: skip
    return Frame(data, variance, None, gaussian_psf(fwhm, shape), wcs, {**known, **meta})


def tan_wcs(shape: tuple[int, int], *, scale: float = 0.5, angle: float = 0.0, ra: float = 150.0) -> WCS:
    """Return a TAN WCS of `scale` arcsec a pixel, centred on the frame, turned by `angle` degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, 2.0]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    wcs.wcs.set()
    return wcs
