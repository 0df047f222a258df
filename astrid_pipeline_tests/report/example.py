"""A small difference with known sources, for pictures and pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, Mask
from astrid_pipeline.imaging.psf_model import PSF

SIGMA = 10.0


def tan_wcs(shape: tuple[int, int], *, ra: float = 150.0, dec: float = 2.0, scale: float = 0.4) -> WCS:
    """Return a gnomonic WCS, north up and east left, `scale` arcsec a pixel."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


def make_difference(
    shape: tuple[int, int] = (120, 160), sources: tuple[tuple[float, float, float], ...] = (), **meta: Any
) -> Difference:
    """Return noise of `SIGMA` with Gaussian sources (x, y, peak in σ of the score); column 3 is masked."""
    rng = np.random.default_rng(7)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    signal = np.zeros(shape)
    for x, y, peak in sources:
        signal += peak * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 4)
    mask = np.zeros(shape, np.int32)
    mask[:, 3] = Mask.BAD_COLUMN
    mask[:, 5] = int(Mask.SATURATED) << REFERENCE_SHIFT
    data = SIGMA * (rng.normal(size=shape) + signal)
    axis = np.arange(-4, 5)
    psf = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / 4.0)
    return Difference(
        data=data,
        variance=np.full(shape, SIGMA**2),
        mask=mask,
        psf=PSF.from_stamp(psf, shape),
        score=rng.normal(size=shape) + signal,
        flux=data,
        flux_err=np.full(shape, SIGMA),
        science=data,
        reference=SIGMA * rng.normal(size=shape),
        wcs=tan_wcs(shape),
        meta={
            "exposure_id": "new",
            "reference_id": "old",
            "score_sigma": 1.003,
            "dx_rms": 0.04,
            "dy_rms": 0.05,
            "science_sky_sigma": SIGMA,
            "reference_sky_sigma": SIGMA,
            **meta,
        },
    )


def make_rows(difference: Difference, positions: list[tuple[float, float]], **columns: Any) -> pd.DataFrame:
    """Return rows as `astrid detect` makes them, the first half detections."""
    n = len(positions)
    x, y = np.array(positions, float).reshape(-1, 2).T
    ra, dec = (
        difference.wcs.pixel_to_world_values(x, y) if difference.wcs is not None else (x * np.nan, x * np.nan)
    )
    first = np.arange(n) < (n + 1) // 2
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "ra": ra,
            "dec": dec,
            "flux": np.linspace(500, -100, n),
            "flux_err": np.full(n, 10.0),
            "snr": np.linspace(50, -10, n),
            "sign": np.where(np.arange(n) % 3 == 2, -1, 1),
            "mag": np.full(n, 21.5),
            "mag_err": np.full(n, 0.02),
            "score": np.where(first, 0.97, 0.02),
            "class": np.where(first, "transient", None),
            "is_detection": first,
            "flag_names": ["", "SATURATED,REF_EDGE"] * (n // 2) + [""] * (n % 2),
            **columns,
        }
    )
