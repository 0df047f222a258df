"""FITS files of many kinds, made for the tests of reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

#: What an ordinary raw light frame says.
LIGHT = {
    "IMAGETYP": "Light Frame",
    "EXPTIME": 60.0,
    "DATE-OBS": "2024-03-02T04:00:00",
    "FILTER": "r",
    "INSTRUME": "Cam 1",
    "GAIN": 1.5,
    "RDNOISE": 6.0,
}

TAN = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRPIX1": 32.5,
    "CRPIX2": 24.5,
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CD1_1": -2e-4,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 2e-4,
}


def pixels(seed: int = 0, shape: tuple[int, int] = (48, 64), level: float = 1000.0) -> npt.NDArray[np.uint16]:
    """Return counts of an empty sky."""
    return np.random.default_rng(seed).poisson(level, shape).astype(np.uint16)


def header(*more: dict[str, Any], **cards: Any) -> fits.Header:
    """Return a header with the cards of all dictionaries; a value of None takes a card away."""
    out = fits.Header()
    for group in (*more, cards):
        for key, value in group.items():
            if value is None:
                out.remove(key, ignore_missing=True)
            else:
                out[key if len(key) <= 8 else f"HIERARCH {key}"] = value
    return out


def write(path: Path, data: npt.NDArray[Any] | None = None, *more: dict[str, Any], **cards: Any) -> Path:
    """Write a single-image file: an ordinary light frame with some cards changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(pixels() if data is None else data, header(LIGHT, *more, cards)).writeto(
        path, overwrite=True
    )
    return path


def write_four_amplifiers(path: Path, truth: npt.NDArray[np.uint16], gains: tuple[float, ...]) -> Path:
    """Write a detector read at its four corners, as LCO's cameras do: overscan columns, DETSEC reversed by flips."""
    height, width = truth.shape
    hy, hx = height // 2, width // 2
    hdus: list[Any] = [fits.PrimaryHDU(None, header(LIGHT, TAN, GAIN=0.0, TRIMSEC="[1:4,1:4]"))]
    rng = np.random.default_rng(1)
    for number, (top, right) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
        part = truth[top * hy : (top + 1) * hy, right * hx : (right + 1) * hx]
        part = part[:: -1 if top else 1, :: -1 if right else 1]
        overscan = np.round(rng.normal(200, 2, (hy, 10))).astype(np.uint16)
        # Binned 2 × 2: DETSEC counts unbinned pixels.
        xs = (2 * hx * right + 1, 2 * hx * (right + 1))
        ys = (2 * hy * top + 1, 2 * hy * (top + 1))
        xs, ys = (xs[::-1] if right else xs), (ys[::-1] if top else ys)
        cards = {
            "GAIN": gains[number],
            "DATASEC": f"[1:{hx},1:{hy}]",
            "BIASSEC": f"[{hx + 1}:{hx + 10},1:{hy}]",
            "DETSEC": f"[{xs[0]}:{xs[1]},{ys[0]}:{ys[1]}]",
            "CCDSUM": "2 2",
        }
        hdus.append(fits.ImageHDU(np.hstack([part, overscan]), header(cards), name="SCI", ver=number + 1))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path
