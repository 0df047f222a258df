"""Two small images of one sky as a stranger's files: stars with a Gaussian PSF, photon noise, a WCS, a new source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from astrid_pipeline_tests.report.example import tan_wcs

SHAPE = (320, 360)
#: Where the new source is in the science image, and its flux in electrons: S/N 40 or so.
NEW = (201.4, 143.7, 6000.0)
SKY, READ_NOISE = 200.0, 5.0


def stars(image: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float) -> None:
    """Add Gaussian stars to `image` in place; wide enough to be treated as sampled at pixel centres."""
    sigma = fwhm / 2.3548
    reach = int(np.ceil(6 * sigma))
    for x0, y0, total in zip(x, y, flux, strict=True):
        rows = slice(max(int(y0) - reach, 0), max(int(y0) + reach + 1, 0))
        columns = slice(max(int(x0) - reach, 0), max(int(x0) + reach + 1, 0))
        yy, xx = np.indices(image[rows, columns].shape)
        yy, xx = yy + rows.start, xx + columns.start
        value = np.exp(-((xx - x0) ** 2 + (yy - y0) ** 2) / (2 * sigma**2))
        image[rows, columns] += total / (2 * np.pi * sigma**2) * value


def header(shape: tuple[int, int], **changes: object) -> fits.Header:
    """Return the header of a calibrated frame; a change to None leaves the keyword out."""
    keys: dict[str, object] = {
        "BUNIT": "electron",
        "EXPTIME": 60.0,
        "FILTER": "r",
        "INSTRUME": "testcam",
        "DATE-OBS": "2026-02-03T04:05:06",
        "GAIN": 1.0,
        "RDNOISE": READ_NOISE,
        "SATURATE": 60000.0,
        "FLATCOR": "T",
        "IMAGETYP": "OBJECT",
        **changes,
    }
    out = fits.Header()
    for key, value in keys.items():
        if value is not None:
            out[key] = value
    return out


def write_image(
    path: Path,
    seed: int,
    *,
    fwhm: float = 3.0,
    shift: tuple[float, float] = (0.0, 0.0),
    new: bool = False,
    n_stars: int = 90,
    ra: float = 150.0,
    wcs: bool = True,
    sky_seed: int = 1,
    **keys: object,
) -> Path:
    """Write one image of the sky `sky_seed`, displaced by `shift` px, its WCS telling so."""
    sky = np.random.default_rng(sky_seed)
    x, y = sky.uniform(-20, SHAPE[1] + 20, n_stars), sky.uniform(-20, SHAPE[0] + 20, n_stars)
    flux = 10 ** sky.uniform(3.5, 5.3, n_stars)
    image = np.full(SHAPE, SKY)
    stars(image, x + shift[0], y + shift[1], flux, fwhm)
    if new:
        stars(image, np.array([NEW[0]]), np.array([NEW[1]]), np.array([NEW[2]]), fwhm)
    rng = np.random.default_rng(seed)
    data = rng.poisson(image) + rng.normal(0, READ_NOISE, SHAPE)
    head = header(SHAPE, **keys)
    if wcs:
        world = tan_wcs(SHAPE, ra=ra)
        world.wcs.crpix = [world.wcs.crpix[0] + shift[0], world.wcs.crpix[1] + shift[1]]
        head.update(world.to_header())
    fits.writeto(path, data.astype(np.float32), head, overwrite=True)
    return path
