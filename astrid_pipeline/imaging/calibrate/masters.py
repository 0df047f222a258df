"""Master bias, dark and flat frames, kept with what they were made from, and what they may be applied to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from astrid_pipeline.errors import CalibrationError
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import MaskArray
from astrid_pipeline.imaging.raw import Kind, RawExposure, Section

#: Days for which masters hold. Bias and flats of a CCD change over months, dust on a window over weeks.
MAX_AGE = 30.0

#: °C by which the detector may differ from the darks'. Dark current doubles every 6–7 °C: 1 °C is a tenth of it.
MAX_TEMPERATURE_DIFFERENCE = 1.5

#: Relative difference of gains that is still the same setting.
MAX_GAIN_DIFFERENCE = 0.02


#: What `MasterCalibration` holds besides images.
_PLAIN = (
    "instrument",
    "binning",
    "shape",
    "sections",
    "detector",
    "gains",
    "gain_source",
    "read_noise",
    "temperature",
    "mjd",
    "provenance",
    "nonlinearity",
    "max_age",
)


@dataclass(frozen=True, eq=False)
class MasterCalibration:
    """What a detector adds to an exposure, measured from calibration frames.

    Attributes
    ----------
    instrument, detector, binning:
        Whose they are.
    shape, sections:
        Of the trimmed image, and each amplifier's part of it.
    bias, bias_variance:
        Counts left after the overscan (or the whole zero level if there is none), and their variance; None
        without bias frames.
    dark, dark_variance:
        Counts per second; None without dark frames.
    flats, flat_variances:
        Relative response by filter, of median 1, with the amplifiers' gains taken out, and its variance.
    bad:
        `Mask` bits of hot, dead and noisy pixels and of bad columns.
    gains:
        Electrons per count of each amplifier: the header's, or measured from pairs of flats; None if not known.
    read_noise:
        Electrons of each amplifier (counts where the gain is not known), measured from the bias frames; None
        without them.
    gain_source:
        "header", "photon transfer of the flats" or "".
    temperature:
        Mean detector temperature of the darks, °C; None if not known.
    mjd:
        Middle of the time in which the frames were taken.
    provenance:
        Exposure ids by kind ("bias", "dark", "flat:r"), and those that were left out ("rejected", with the reason).
    nonlinearity:
        Polynomials as for `assemble`.
    max_age:
        Days.
    """

    instrument: str
    binning: str
    shape: tuple[int, int]
    sections: tuple[Section, ...]
    detector: str | None = None
    bias: Image | None = None
    bias_variance: Image | None = None
    dark: Image | None = None
    dark_variance: Image | None = None
    flats: Mapping[str, Image] = field(default_factory=dict)
    flat_variances: Mapping[str, Image] = field(default_factory=dict)
    bad: MaskArray | None = None
    gains: tuple[float | None, ...] = ()
    gain_source: str = ""
    read_noise: tuple[float | None, ...] = ()
    temperature: float | None = None
    mjd: float | None = None
    provenance: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nonlinearity: tuple[tuple[float, ...], ...] = ()
    max_age: float = MAX_AGE

    def matches(self, raw: RawExposure) -> None:
        """Check that these masters may be applied to an exposure.

        Raises
        ------
        CalibrationError
            If instrument, detector, shape, binning, gain or temperature differ, if no flat of its filter is here
            though there are flats, or if the masters are too old. The message says which.
        """
        where = raw.meta.get("exposure_id")

        def refuse(what: str, remedy: str) -> None:
            raise CalibrationError(what, where=where, remedy=remedy)

        for name, mine, other in (
            ("instrument", self.instrument, raw.meta.get("instrument", "unknown")),
            ("detector", self.detector, raw.meta.get("detector")),
            ("binning", self.binning, raw.meta.get("binning", "1x1")),
            ("amplifier layout", self.sections, tuple(a.detector_section for a in raw.amplifiers)),
        ):
            if mine != other:
                refuse(
                    f"the master frames are of another {name} ({mine}, the exposure has {other})",
                    f"take calibration frames with the same {name}",
                )
        if self.gain_source == "header":
            for gain, amplifier in zip(self.gains, raw.amplifiers, strict=True):
                if gain and amplifier.gain and abs(amplifier.gain / gain - 1) > MAX_GAIN_DIFFERENCE:
                    refuse(
                        f"the master frames were taken with a gain of {gain:g}, the exposure with {amplifier.gain:g}",
                        "take calibration frames with the same gain",
                    )
        temperature = raw.meta.get("temperature")
        darks = self.temperature if self.dark is not None else None
        if (
            darks is not None
            and temperature is not None
            and abs(temperature - darks) > MAX_TEMPERATURE_DIFFERENCE
        ):
            refuse(
                f"the darks were taken at {darks:.1f} °C, the exposure at {temperature:.1f} °C",
                f"take darks within {MAX_TEMPERATURE_DIFFERENCE:g} °C",
            )
        mjd = raw.meta.get("mjd")
        if self.mjd is not None and mjd is not None and abs(mjd - self.mjd) > self.max_age:
            refuse(
                f"the master frames are {abs(mjd - self.mjd):.0f} days away, more than {self.max_age:g}",
                "take newer calibration frames",
            )
        wanted = raw.meta.get("filter", "none")
        if raw.kind is Kind.LIGHT and self.flats and wanted not in self.flats:
            refuse(
                f"no flat for filter {wanted!r} (there are: {', '.join(sorted(self.flats))})",
                "take flats with it",
            )

    def to_planes(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return the images by a name of at most eight characters or so, and everything else as plain values."""
        planes: dict[str, npt.NDArray[Any]] = {}
        for name in ("bias", "bias_variance", "dark", "dark_variance", "bad"):
            if getattr(self, name) is not None:
                planes[name.upper()] = getattr(self, name)
        filters = sorted(self.flats)
        for number, name in enumerate(filters):
            planes[f"FLAT{number}"] = self.flats[name]
            planes[f"FLAT{number}_VARIANCE"] = self.flat_variances[name]
        info = {name: getattr(self, name) for name in _PLAIN}
        return planes, {**info, "filters": filters}

    @classmethod
    def from_planes(
        cls, planes: Mapping[str, npt.NDArray[Any]], info: Mapping[str, Any]
    ) -> MasterCalibration:
        """Return what `to_planes` took apart."""
        values = dict(info)
        filters = values.pop("filters")
        for name in ("shape", "gains", "read_noise"):
            values[name] = tuple(values[name])
        for name in ("sections", "nonlinearity"):
            values[name] = tuple(tuple(part) for part in values[name])
        values["provenance"] = {key: tuple(ids) for key, ids in values["provenance"].items()}
        known: dict[str, Any] = {
            name.lower(): plane for name, plane in planes.items() if not name.startswith("FLAT")
        }
        return cls(
            flats={name: planes[f"FLAT{i}"] for i, name in enumerate(filters)},
            flat_variances={name: planes[f"FLAT{i}_VARIANCE"] for i, name in enumerate(filters)},
            **known,
            **values,
        )
