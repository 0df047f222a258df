"""What a telescope's file holds before calibration: amplifiers with their overscan, and a header in normal form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

#: (y0, y1, x0, x1), zero-based, end exclusive.
Section = tuple[int, int, int, int]


class Kind(StrEnum):
    """What an exposure is of."""

    LIGHT = "light"
    BIAS = "bias"
    DARK = "dark"
    FLAT = "flat"


@dataclass(frozen=True, eq=False)
class Amplifier:
    """The pixels read through one amplifier.

    Attributes
    ----------
    data:
        (h, w) float32 counts as read, overscan included.
    data_section, overscan_section:
        Where light fell, and where none could, in `data`; no overscan is None.
    detector_section:
        Where the data section goes in the whole image.
    flip_x, flip_y:
        Whether the amplifier was read the other way round.
    gain, read_noise:
        Electrons per count, electrons; None if the header does not say.
    """

    data: npt.NDArray[np.float32]
    data_section: Section
    detector_section: Section
    overscan_section: Section | None = None
    gain: float | None = None
    read_noise: float | None = None
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True, eq=False)
class RawExposure:
    """One exposure as it came from the archive.

    Attributes
    ----------
    amplifiers:
        At least one. A frame without amplifier keywords is one amplifier that covers everything.
    kind:
        Light, bias, dark or flat.
    calibrated:
        Whether the archive has removed bias, dark and flat already; then `calibrate` only adds noise and masks.
    meta:
        As in `Frame.meta`, plus `temperature` (°C), `binning` ("2x2"), `date_obs`.
    variance, mask:
        The archive's own, when it gives them (calibrated frames only).
    """

    amplifiers: tuple[Amplifier, ...]
    kind: Kind = Kind.LIGHT
    calibrated: bool = False
    wcs: WCS | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    variance: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.int32] | None = None
