"""Forced photometry: the flux of a point source at a given place of a difference, whether anything is seen or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import InputError
from astrid_pipeline.imaging.frame import Difference, Image
from astrid_pipeline.tables import Column, TableSchema

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from astrid_pipeline.imaging.flux_planes import FluxPlanes

#: An upper limit is this many standard errors: a source of that flux is missed once in a thousand times.
LIMIT = 3.0
#: Side of the neighbourhood that a flux is interpolated from; sinc-like kernels of 8 px are good to 1e-3 for FWHM ≥ 2.
TAPS = 8
#: No pixel farther than this from a position, px an axis, has a part in its flux, error or flags.
REACH = TAPS // 2 + 1

FORCED = TableSchema(
    "forced_photometry",
    "PSF flux of the difference at given positions",
    (
        Column("x", "float64", "column, zero-based", "px"),
        Column("y", "float64", "row, zero-based", "px"),
        Column("ra", "float64", "right ascension, ICRS; null without a WCS", "deg"),
        Column("dec", "float64", "declination, ICRS; null without a WCS", "deg"),
        Column("flux", "float64", "PSF flux of the change; null off the frame", "units of the science frame"),
        Column("flux_err", "float64", "its standard error", "units of the science frame"),
        Column("snr", "float64", "flux / flux_err"),
        Column(
            "upper_limit",
            "float64",
            "3 sigma above the flux, or above 0 if that is negative",
            "units of the science frame",
        ),
        Column(
            "flags",
            "int32",
            "mask bits of the pixel (`Mask`; the reference's shifted), 0 if clean; NO_DATA off the frame",
        ),
    ),
)


def forced_photometry(
    difference: Difference | FluxPlanes,
    ra: npt.ArrayLike | None = None,
    dec: npt.ArrayLike | None = None,
    *,
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Measure the PSF flux at given positions, α of eqs 41-43 of Zackay, Ofek & Gal-Yam (2016) between the pixels.

    Parameters
    ----------
    difference:
        What `subtract` returned, or what `read_flux_planes` read for these positions.
    ra, dec:
        ICRS degrees; or
    x, y:
        zero-based pixels.

    Returns
    -------
    A row a position, in the order given, columns as in `FORCED`; flux in units of the science frame. Positions off
    the frame have a null flux and the flag NO_DATA.

    Raises
    ------
    InputError
        If positions are given neither or both ways, differ in number, or the sky is asked of a difference without WCS.
    """
    from astrid_pipeline.imaging.mask import Mask

    where = str(difference.meta.get("exposure_id", "difference"))
    if (ra is None) != (dec is None) or (x is None) != (y is None) or (ra is None) == (x is None):
        raise InputError(
            "positions are needed as ra and dec, or as x and y", where=where, remedy="give one complete pair"
        )
    if ra is not None and dec is not None:
        ras, decs = _pair(ra, dec, where)
        if difference.wcs is None:
            raise InputError(
                "the difference has no WCS, so that sky positions mean nothing",
                where=where,
                remedy="give pixel positions x and y",
            )
        xs, ys = sky_to_pixels(difference.wcs, ras, decs)
    else:
        assert x is not None
        assert y is not None
        xs, ys = _pair(x, y, where)
        ras = decs = np.full(len(xs), np.nan)
        if difference.wcs is not None and len(xs):
            ras, decs = (np.asarray(v, float) for v in difference.wcs.all_pix2world(xs, ys, 0))
    height, width = difference.shape
    inside = (xs > -0.5) & (xs < width - 0.5) & (ys > -0.5) & (ys < height - 0.5)
    flux, error = np.full(len(xs), np.nan), np.full(len(xs), np.nan)
    flags = np.full(len(xs), int(Mask.NO_DATA), np.int32)
    if inside.any():
        column, row = np.rint(xs[inside]).astype(int), np.rint(ys[inside]).astype(int)
        flux[inside] = interpolate(difference.flux, xs[inside], ys[inside])
        error[inside] = difference.flux_err[row, column]
        flags[inside] = difference.mask[row, column]
    with np.errstate(invalid="ignore"):
        return FORCED.conform(
            pd.DataFrame(
                {
                    "x": xs,
                    "y": ys,
                    "ra": ras,
                    "dec": decs,
                    "flux": flux,
                    "flux_err": error,
                    "snr": flux / error,
                    "upper_limit": np.maximum(flux, 0) + LIMIT * error,
                    "flags": flags,
                }
            )
        )


def _pair(
    a: npt.ArrayLike, b: npt.ArrayLike, where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = np.atleast_1d(np.asarray(a, float)), np.atleast_1d(np.asarray(b, float))
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            f"positions of shapes {first.shape} and {second.shape} do not make pairs",
            where=where,
            remedy="give two lists of one length",
        )
    return first, second


def sky_to_pixels(
    wcs: WCS, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the pixel positions (zero-based) of ICRS degrees; NaN where the WCS does not reach."""
    from astropy.wcs import NoConvergence

    xs, ys = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    good = np.isfinite(ra) & np.isfinite(dec)
    if not good.any():
        return xs, ys
    try:
        xs[good], ys[good] = wcs.all_world2pix(ra[good], dec[good], 0)
    except NoConvergence as error:
        # Positions far outside a distorted frame do not converge; those that did are kept.
        best = np.array(error.best_solution, float)
        failed = np.zeros(len(best), bool)
        for index in (error.divergent, error.slow_conv):
            if index is not None:
                failed[index] = True
        best[failed] = np.nan
        xs[good], ys[good] = best[:, 0], best[:, 1]
    return xs, ys


def interpolate(
    image: Image, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the image between its pixels, by a Kaiser-windowed sinc of 8 × 8 taps; the border pixel repeats outside.

    The flux image is a frame twice convolved with its PSF, so there is next to nothing at the Nyquist frequency that
    a sinc could not follow.
    """
    height, width = image.shape
    weights, indices = [], []
    for position, size in ((y, height), (x, width)):
        base = np.floor(position).astype(int)
        taps = base[:, None] + np.arange(1 - TAPS // 2, TAPS // 2 + 1)
        offset = position[:, None] - taps
        window = np.i0(6.0 * np.sqrt(np.clip(1 - (offset / (TAPS / 2)) ** 2, 0, 1)))
        weight = np.sinc(offset) * window
        weights.append(weight / weight.sum(1, keepdims=True))
        indices.append(np.clip(taps, 0, size - 1))
    block = image[indices[0][:, :, None], indices[1][:, None, :]].astype(np.float64)
    return np.asarray(np.einsum("nij,ni,nj->n", block, weights[0], weights[1]))
