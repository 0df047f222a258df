"""From raw exposures to calibrated frames: detector out, noise and masks in, sky, PSF and depth measured."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

import pandas as pd

from astrid_pipeline.errors import CalibrationError
from astrid_pipeline.imaging.calibrate import MasterCalibration, calibrate
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.quality import assess, prepare
from astrid_pipeline.imaging.raw import RawExposure
from astrid_pipeline.night.ingest import read_raw, usable
from astrid_pipeline.night.masters import MASTERS_MAX_AGE_DAYS
from astrid_pipeline.night.outcome import Outcome, for_each
from astrid_pipeline.resources.store import Store

MastersFor = Callable[[str], MasterCalibration | None]


def calibrate_night(
    observations: pd.DataFrame,
    store: Store,
    masters_for: MastersFor,
    catalogue: pd.DataFrame | None = None,
    progress: Callable[[str], Any] | None = None,
    into: MutableMapping[str, Frame] | None = None,
) -> Outcome[Frame]:
    """Return the calibrated frame of every usable light frame of a night.

    Parameters
    ----------
    observations:
        Table of schema `OBSERVATIONS`.
    store:
        Where the raw files are.
    masters_for:
        Gives the masters of an instrument for this night, or None where there are none.
    catalogue:
        Stars of the field (ra, dec, mag_<filter>) for astrometry and zero point, or None.
    progress, into:
        As in `for_each`.
    """
    rows = {str(row.exposure_id): row for _, row in usable(observations).iterrows()}

    def one(row: pd.Series) -> Frame:
        started = time.perf_counter()
        raw = read_raw(store, row)
        frame = calibrate_one(raw, masters_for(str(row.instrument)), catalogue)
        return frame.replace(meta={"seconds": time.perf_counter() - started})

    return for_each(rows, one, stage="calibrated_frames", progress=progress, into=into)


def calibrate_one(
    raw: RawExposure, masters: MasterCalibration | None, catalogue: pd.DataFrame | None = None
) -> Frame:
    """Calibrate, measure and assess one exposure.

    Raises
    ------
    CalibrationError
        If a raw frame has no masters, or they do not match it.
    """
    if masters is None and not raw.calibrated:
        raise CalibrationError(
            f"raw frame, but no master calibrations within {MASTERS_MAX_AGE_DAYS} days",
            where=str(raw.meta.get("exposure_id")),
            remedy="materialize master_calibrations for its instrument and night",
        )
    frame = prepare(calibrate(raw, masters))
    if catalogue is not None and frame.wcs is not None:
        from astrid_pipeline.imaging.astrometry import solve

        frame = solve(frame, catalogue)
    return assess(frame, catalogue)
