"""Treating pixels: frames, calibration, registration, differencing, candidates. No Dagster, no database.

The names below are the public surface. They are imported on first use, since astropy, torch and photutils are slow
to load and Dagster loads every room.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrid_pipeline.imaging.align import align
    from astrid_pipeline.imaging.background import measure_background
    from astrid_pipeline.imaging.calibrate import build_masters, calibrate
    from astrid_pipeline.imaging.candidates import CANDIDATES, FEATURES, find_candidates
    from astrid_pipeline.imaging.coadd import coadd
    from astrid_pipeline.imaging.frame import Difference, Frame
    from astrid_pipeline.imaging.inject import flux_at_snr, inject
    from astrid_pipeline.imaging.io import read_difference, read_frame, write_difference, write_frame
    from astrid_pipeline.imaging.mask import Mask
    from astrid_pipeline.imaging.noise import estimate_variance
    from astrid_pipeline.imaging.photometry import forced_photometry
    from astrid_pipeline.imaging.psf import measure_psf
    from astrid_pipeline.imaging.psf_model import PSF
    from astrid_pipeline.imaging.quality import assess, prepare
    from astrid_pipeline.imaging.raw import RawExposure
    from astrid_pipeline.imaging.stars import detect_stars
    from astrid_pipeline.imaging.subtract import subtract

_HOMES = {
    "CANDIDATES": "candidates",
    "FEATURES": "candidates",
    "PSF": "psf_model",
    "Difference": "frame",
    "Frame": "frame",
    "Mask": "mask",
    "RawExposure": "raw",
    "align": "align",
    "assess": "quality",
    "build_masters": "calibrate",
    "calibrate": "calibrate",
    "coadd": "coadd",
    "detect_stars": "stars",
    "estimate_variance": "noise",
    "find_candidates": "candidates",
    "flux_at_snr": "inject",
    "forced_photometry": "photometry",
    "inject": "inject",
    "measure_background": "background",
    "measure_psf": "psf",
    "prepare": "quality",
    "read_difference": "io",
    "read_frame": "io",
    "subtract": "subtract",
    "write_difference": "io",
    "write_frame": "io",
}

__all__ = [
    "CANDIDATES",
    "FEATURES",
    "PSF",
    "Difference",
    "Frame",
    "Mask",
    "RawExposure",
    "align",
    "assess",
    "build_masters",
    "calibrate",
    "coadd",
    "detect_stars",
    "estimate_variance",
    "find_candidates",
    "flux_at_snr",
    "forced_photometry",
    "inject",
    "measure_background",
    "measure_psf",
    "prepare",
    "read_difference",
    "read_frame",
    "subtract",
    "write_difference",
    "write_frame",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Imaging(ModuleType):
    """Keeps `align`, `subtract` and the like functions; importing their modules would put modules in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Imaging
