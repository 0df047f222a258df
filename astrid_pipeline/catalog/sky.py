"""Positions as HEALPix indices, and cones as ranges of them."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from astropy_healpix import HEALPix

#: The finest order whose nested index fits a signed 64-bit integer: pixels of 0.4 milliarcsec.
ORDER = 29


@cache
def _healpix(order: int) -> HEALPix:
    from astropy_healpix import HEALPix

    return HEALPix(nside=2**order, order="nested")


def hpx29(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the nested HEALPix index of order 29 of ICRS positions in degrees; -1 where they are not finite."""
    from astropy import units as u

    lon, lat = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    good = np.isfinite(lon) & np.isfinite(lat)
    index = np.full(lon.shape, -1, dtype=np.int64)
    if good.any():
        index[good] = _healpix(ORDER).lonlat_to_healpix(lon[good] * u.deg, lat[good] * u.deg)
    return index


def separation(
    ra1: npt.ArrayLike, dec1: npt.ArrayLike, ra2: npt.ArrayLike, dec2: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return the angle between positions, degrees in and out (Vincenty's formula: exact at all angles)."""
    lon1, lat1, lon2, lat2 = (np.radians(np.asarray(values, float)) for values in (ra1, dec1, ra2, dec2))
    step = lon2 - lon1
    across = np.hypot(
        np.cos(lat2) * np.sin(step),
        np.cos(lat1) * np.sin(lat2) - np.sin(lat1) * np.cos(lat2) * np.cos(step),
    )
    along = np.sin(lat1) * np.sin(lat2) + np.cos(lat1) * np.cos(lat2) * np.cos(step)
    return np.degrees(np.arctan2(across, along))


def cone_ranges(ra: float, dec: float, radius: float) -> list[tuple[int, int]]:
    """Return ranges [first, last] of `hpx29` that cover a cone (degrees); they hold somewhat more than the cone.

    The cone is covered by pixels about as wide as its radius: finer ones would make more ranges for the database
    to look up than they save in rows.
    """
    from astropy import units as u

    # A pixel of order k is about 58.6°/2^k wide.
    order = int(np.clip(math.floor(math.log2(58.6 / max(radius, 1e-7))), 0, ORDER))
    # The cone search tests pixels' corners and centres: a margin of a tenth of a pixel keeps it from missing one.
    margin = 0.1 * 58.6 / 2**order
    pixels = np.unique(
        _healpix(order).cone_search_lonlat(ra * u.deg, dec * u.deg, min(radius + margin, 180.0) * u.deg)
    ).astype(np.int64)
    shift = 2 * (ORDER - order)
    breaks = np.flatnonzero(np.diff(pixels) > 1)
    first = pixels[np.concatenate([[0], breaks + 1])]
    last = pixels[np.concatenate([breaks, [len(pixels) - 1]])]
    return [(int(a) << shift, ((int(b) + 1) << shift) - 1) for a, b in zip(first, last, strict=True)]


def many_cone_ranges(
    ra: npt.ArrayLike, dec: npt.ArrayLike, radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ranges of `hpx29` that cover small cones of one radius (degrees) about many finite positions.

    Each cone is covered by the pixel of its centre and its eight neighbours, of an order whose pixels are at least
    twice as wide as the radius: the narrowest pixel of an order has 0.5 of the mean width.

    Returns
    -------
    index, first, last:
        Number of the position, and the bounds of its ranges, both included.
    """
    from astropy import units as u

    order = _wide_order(radius)
    lon, lat = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    centre = np.asarray(_healpix(order).lonlat_to_healpix(lon * u.deg, lat * u.deg), np.int64)
    return _blocks(centre, order)


def ranges_around(index: int, radius: float) -> tuple[list[int], list[int]]:
    """Return the first and last of the ranges of `hpx29` that cover a small cone (degrees) about an index's place."""
    order = _wide_order(radius)
    _, first, last = _blocks(np.array([index >> 2 * (ORDER - order)], np.int64), order)
    return first.tolist(), last.tolist()


def _wide_order(radius: float) -> int:
    """Return the finest order whose narrowest pixel is as wide as the radius."""
    return int(np.clip(math.floor(math.log2(58.6 / max(2.0 * radius, 1e-7))), 0, ORDER))


def _blocks(
    centre: npt.NDArray[np.int64], order: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return number of the centre, first and last `hpx29` of the ranges that pixels and their neighbours are."""
    around = np.vstack([centre[None], np.asarray(_healpix(order).neighbours(centre), np.int64)])
    number = np.broadcast_to(np.arange(len(centre)), around.shape)
    # Where eight base pixels meet in seven, a neighbour is missing (-1).
    pixels, number = around[around >= 0], number[around >= 0]
    by = np.lexsort((pixels, number))
    pixels, number = pixels[by], number[by]
    fresh = np.ones(len(pixels), bool)
    fresh[1:] = (number[1:] != number[:-1]) | (pixels[1:] > pixels[:-1] + 1)
    start = np.flatnonzero(fresh)
    stop = np.append(start[1:], len(pixels)) - 1
    shift = 2 * (ORDER - order)
    return number[start].astype(np.int64), pixels[start] << shift, ((pixels[stop] + 1) << shift) - 1
