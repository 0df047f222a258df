"""Some planes of a stored difference, read only around the places that one is asked about.

A new object gets its flux from every earlier night of its field. Reading nine planes of each exposure whole for a
handful of pixels is what a year of nights would mostly be spent on; the planes are stored in tiles of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from astrid_pipeline.imaging.frame import Image, MaskArray
from astrid_pipeline.imaging.io import opened
from astrid_pipeline.imaging.photometry import REACH, sky_to_pixels


@dataclass(frozen=True, eq=False)
class FluxPlanes:
    """The planes of a `Difference` that `forced_photometry` looks at, filled near some places only and 0 elsewhere."""

    flux: Image
    flux_err: Image
    mask: MaskArray
    wcs: WCS | None
    meta: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.flux.shape[0], self.flux.shape[1]


@dataclass(frozen=True, eq=False)
class ScorePlanes:
    """The significance of a `Difference`, filled near some places only and 0 elsewhere."""

    score: Image
    mask: MaskArray
    wcs: WCS | None
    meta: Mapping[str, Any]


def read_flux_planes(
    path: str | Path, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> FluxPlanes:
    """Read of a difference that `write_difference` wrote the tiles around sky positions (ICRS degrees).

    Raises
    ------
    ReadError
        If the file is absent, damaged, or not such a file.
    """
    (mask, flux, error), wcs, meta = _read_near(path, ra, dec, ("DQ", "FLUX", "FLUX_ERR"))
    return FluxPlanes(flux, error, mask, wcs, meta)


def read_score_planes(
    path: str | Path, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> ScorePlanes:
    """Read the same tiles of a difference's significance and mask; raises as `read_flux_planes` does."""
    (mask, score), wcs, meta = _read_near(path, ra, dec, ("DQ", "SCORE"))
    return ScorePlanes(score, mask, wcs, meta)


def _read_near(
    path: str | Path,
    ra: npt.NDArray[np.float64],
    dec: npt.NDArray[np.float64],
    names: tuple[str, ...],
) -> tuple[list[npt.NDArray[Any]], WCS | None, Mapping[str, Any]]:
    with opened(path, "difference") as hdus:
        meta = json.loads(hdus[0].header["META"])
        first = hdus["SCI"].header
        wcs = WCS(first) if "CTYPE1" in first else None
        x, y = sky_to_pixels(wcs, ra, dec) if wcs is not None else (np.zeros(0), np.zeros(0))
        return [_near(hdus[name], x, y) for name in names], wcs, meta


def _near(hdu: Any, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Return an image filled with the tiles that hold what photometry at x, y reads."""
    height, width = hdu.shape
    rows, columns = hdu.tile_shape
    wanted: set[tuple[int, int]] = set()
    for column, row in zip(x, y, strict=True):
        if not (-REACH < column < width + REACH and -REACH < row < height + REACH):
            continue
        low, high = (np.clip(row + d, 0, height - 1) // rows for d in (-REACH, REACH))
        left, right = (np.clip(column + d, 0, width - 1) // columns for d in (-REACH, REACH))
        wanted |= {(i, j) for i in range(int(low), int(high) + 1) for j in range(int(left), int(right) + 1)}
    # Memory that nobody touches is not taken.
    out = np.zeros((height, width), np.int32 if hdu.header["BITPIX"] > 0 else np.float32)
    if 2 * len(wanted) > (-(-height // rows)) * (-(-width // columns)):
        out[:] = hdu.data
        return out
    for i, j in wanted:
        part = np.s_[i * rows : min((i + 1) * rows, height), j * columns : min((j + 1) * columns, width)]
        out[part] = hdu.section[part]
    return out
