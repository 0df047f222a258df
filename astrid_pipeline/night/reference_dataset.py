"""One survey image of a place of the sky, asked for by name: a reference to look at, or to compare one's own with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astropy.wcs import WCS

from astrid_pipeline.archives.survey_images import SurveyChoice, survey_reference
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.resources.frames import write_product
from astrid_pipeline.resources.store import Store

#: Pixels a side at most: a larger image than any of the servers gives in a minute.
MOST_PIXELS = 4096
#: Degrees a side at most: beyond, a tangent plane's pixels are no squares any more (1.5 % at the edge of 10°).
MOST_DEGREES = 5.0
#: And at least: some pixels of the sharpest survey (0.25″).
LEAST_DEGREES = 0.001


def reference_key(survey: str, ra: float, dec: float, size: float, pixels: int, band: str = "") -> str:
    """Return where such an image lies in the store.

    `reference-datasets/<survey>/<ra>_<dec>_<size>deg_<n>px.fits`, where a band that was asked for by name stands after
    the survey's, as in `dss2-g`.
    """
    name = survey.lower() + (f"-{band}" if band else "")
    return f"reference-datasets/{name}/{ra:.4f}_{dec:.4f}_{size:g}deg_{pixels}px.fits"


def square_grid(ra: float, dec: float, size: float, pixels: int) -> tuple[WCS, tuple[int, int]]:
    """Return a tangent plane around (ra, dec), ICRS degrees, north up: `pixels` a side on `size` degrees.

    Raises
    ------
    ConfigError
        If it is no such square.
    """
    fits_in = LEAST_DEGREES <= size <= MOST_DEGREES and 8 <= pixels <= MOST_PIXELS
    if not (0 <= ra < 360 and -90 <= dec <= 90 and fits_in):
        raise ConfigError(
            f"no square of the sky: RA {ra}, Dec {dec}, {size}°, {pixels} px",
            remedy=f"use {LEAST_DEGREES:g}° to {MOST_DEGREES:g}°, 8 to {MOST_PIXELS} px",
        )
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(pixels + 1) / 2, (pixels + 1) / 2]
    wcs.wcs.cdelt = [-size / pixels, size / pixels]
    wcs.wcs.set()
    return wcs, (pixels, pixels)


def fetch_reference(
    store: Store,
    survey: str,
    ra: float,
    dec: float,
    size: float,
    pixels: int,
    scratch: Path,
    *,
    band: str = "",
    patience: Patience | None = None,
) -> tuple[str, Frame]:
    """Fetch a survey's image of a square of the sky, keep it as FITS in the store, return its key and the frame.

    Parameters
    ----------
    survey:
        A name of `archives/reference_surveys.yaml`, such as `dss2`; or `hips:ID@FIRST-LAST`.
    ra, dec, size, pixels:
        As `square_grid`.
    scratch:
        Folder for the file on its way.
    band:
        Filter; red where none is named, which every survey of the table has.

    Raises
    ------
    ConfigError
        If the survey or the square is none.
    NoReferenceError, ServiceError
        As `survey_reference`.
    """
    grid = square_grid(ra, dec, size, pixels)
    frame = survey_reference(SurveyChoice.parse(survey), band or "r", grid, patience=patience)
    meta: dict[str, Any] = {"exposure_id": f"{survey.lower()}-{ra:.4f}-{dec:.4f}"}
    frame = frame.replace(meta=meta)
    key = reference_key(survey.partition(":")[0].partition("?")[0], ra, dec, size, pixels, band)
    path = scratch / "reference.fits"
    write_product(frame, path)
    store.put_file(key, path)
    path.unlink()
    return key, frame
