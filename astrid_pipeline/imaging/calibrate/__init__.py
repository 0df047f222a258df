"""Calibration: overscan, bias, dark, flat, linearity, noise, and the mask of what cannot be used."""

from astrid_pipeline.imaging.calibrate.build import build_masters
from astrid_pipeline.imaging.calibrate.frames import calibrate
from astrid_pipeline.imaging.calibrate.masters import MasterCalibration

__all__ = ["MasterCalibration", "build_masters", "calibrate"]
