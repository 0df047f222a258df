"""Folders of small real FITS frames, night after night: what backfills are tried and measured on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from astrid_pipeline_tests.assets.test_folder_nights import write_light

FIRST = dt.date(2025, 1, 1)
#: Frames of the first night: what a reference is made of.
FOUNDERS = 3


def night_of(number: int) -> str:
    """Return the date of a survey's night."""
    return (FIRST + dt.timedelta(days=number)).isoformat()


def write_field(
    folder: Path,
    name: str,
    nights: int,
    *,
    size: int = 256,
    ra: float = 150.0,
    frames: Mapping[int, int] | None = None,
) -> None:
    """Write a field's frames, one a night and three in the first: the same stars, noise of its own in each.

    `frames` says how many another night has, up to 60.
    """
    from astrid_pipeline.simulation.pairs import simulate_pair

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(round(ra))
    wcs = WCS(naxis=2)
    middle = (size + 1) / 2
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [ra, 20.0], [middle, middle], [-1 / 3600, 1 / 3600]
    pair = simulate_pair(rng, (size, size), psf="none")
    noise = float(np.sqrt(np.median(pair.reference.variance)))
    for number in range(nights):
        for k in range((frames or {}).get(number, FOUNDERS if number == 0 else 1)):
            data = pair.reference.data + rng.normal(0, noise, (size, size))
            write_light(
                folder / f"{name}-{number:04d}-{k}.fits",
                data,
                f"{night_of(number)}T03:{k:02d}:00",
                wcs,
                OBJECT=name,
            )
