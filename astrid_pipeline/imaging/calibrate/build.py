"""Builds master frames: stacks of bias, dark and flat exposures, averaged without their outliers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import CalibrationError
from astrid_pipeline.imaging.calibrate import defects
from astrid_pipeline.imaging.calibrate.amplifiers import Assembled, assemble, cut
from astrid_pipeline.imaging.calibrate.masters import (
    MAX_AGE,
    MAX_TEMPERATURE_DIFFERENCE,
    MasterCalibration,
)
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.raw import Kind, RawExposure, Section

#: σ beyond which one exposure's pixel is left out of a master. With ten frames of 10⁶ pixels, 5 σ loses six by chance.
CLIP = 5.0

#: A flat is used if its level is between these shares of the saturation level: above, it is no longer linear;
#: below, its photon noise would be added to every frame.
FLAT_LEVELS = (0.02, 0.8)

#: Rows of a stack that are combined at a time, so that memory stays bounded.
_ROWS = 256


def build_masters(
    exposures: Iterable[RawExposure],
    *,
    nonlinearity: Sequence[Sequence[float]] = (),
    max_age: float = MAX_AGE,
) -> MasterCalibration:
    """Return the master frames of one detector from its bias, dark and flat exposures.

    Each stack is averaged after pixels that deviate by more than `CLIP` σ from the stack's median have been left
    out, σ being what the frames' own noise predicts (read noise for bias, scaled by photons for darks and flats):
    with five frames a pixel's own scatter says little. Flats are first freed of bias and dark, multiplied by the
    amplifiers' gains and divided by their median. Light frames among the exposures are passed over.

    Raises
    ------
    CalibrationError
        If there is no calibration frame, if frames differ in detector, binning, gain or temperature, if darks lack
        an exposure time, or if no flat of a filter is usable.
    """
    frames: dict[Kind, list[RawExposure]] = {Kind.BIAS: [], Kind.DARK: [], Kind.FLAT: []}
    for raw in exposures:
        if raw.kind is not Kind.LIGHT:
            frames[raw.kind].append(raw)
    everything = [raw for group in frames.values() for raw in group]
    if not everything:
        raise CalibrationError(
            "there is no bias, dark or flat frame", remedy="take some, or pass masters=None"
        )
    first = everything[0]
    _check_alike(everything, frames[Kind.DARK])
    builder = _Builder(tuple(tuple(c) for c in nonlinearity), first)
    provenance: dict[str, tuple[str, ...]] = {}
    bias = dark = bias_variance = dark_variance = None
    biases: list[Assembled] = []
    if frames[Kind.BIAS]:
        biases = [builder.assemble(raw) for raw in frames[Kind.BIAS]]
        bias, bias_variance = combine([a.data for a in biases])
        provenance["bias"] = _ids(frames[Kind.BIAS])
    if frames[Kind.DARK]:
        dark, dark_variance = builder.dark(frames[Kind.DARK], bias, bias_variance)
        provenance["dark"] = _ids(frames[Kind.DARK])
    gains, source = builder.gains(frames[Kind.FLAT], bias)
    flats, variances, used, rejected = builder.flats(frames[Kind.FLAT], bias, dark, gains)
    provenance.update(used)
    if rejected:
        provenance["rejected"] = tuple(rejected)
    times = [raw.meta["mjd"] for raw in everything if raw.meta.get("mjd") is not None]
    temperatures = [raw.meta["temperature"] for raw in frames[Kind.DARK] if "temperature" in raw.meta]
    return MasterCalibration(
        instrument=str(first.meta.get("instrument", "unknown")),
        detector=first.meta.get("detector"),
        binning=str(first.meta.get("binning", "1x1")),
        shape=builder.shape,
        sections=builder.sections,
        bias=bias,
        bias_variance=bias_variance,
        dark=dark,
        dark_variance=dark_variance,
        flats=flats,
        flat_variances=variances,
        bad=defects.learn([a.data for a in biases], bias, dark, dark_variance, flats, builder.sections),
        gains=gains,
        gain_source=source,
        read_noise=builder.read_noise(biases, gains),
        temperature=float(np.mean(temperatures)) if temperatures else None,
        mjd=float(np.median(times)) if times else None,
        provenance=provenance,
        nonlinearity=builder.nonlinearity,
        max_age=max_age,
    )


def _ids(frames: Sequence[RawExposure]) -> tuple[str, ...]:
    return tuple(str(raw.meta.get("exposure_id", "unknown")) for raw in frames)


def _check_alike(everything: Sequence[RawExposure], darks: Sequence[RawExposure]) -> None:
    """Refuse frames that were not taken with one detector in one setting."""
    settings: tuple[tuple[str, Callable[[RawExposure], Any]], ...] = (
        ("instrument", lambda raw: raw.meta.get("instrument", "unknown")),
        ("detector", lambda raw: raw.meta.get("detector")),
        ("binning", lambda raw: raw.meta.get("binning", "1x1")),
        ("amplifier layout", lambda raw: tuple(a.detector_section for a in raw.amplifiers)),
        ("gain", lambda raw: tuple(a.gain for a in raw.amplifiers)),
    )
    for name, setting in settings:
        values: dict[Any, str] = {}
        for raw in everything:
            values.setdefault(setting(raw), str(raw.meta.get("exposure_id", "unknown")))
        if len(values) > 1:
            (a, first), (b, second) = list(values.items())[:2]
            raise CalibrationError(
                f"calibration frames of different {name}: {a} in {first}, {b} in {second}",
                where=second,
                remedy="build masters from frames of one setting",
            )
    temperatures = [raw.meta["temperature"] for raw in darks if "temperature" in raw.meta]
    if temperatures and max(temperatures) - min(temperatures) > 2 * MAX_TEMPERATURE_DIFFERENCE:
        raise CalibrationError(
            f"darks between {min(temperatures):.1f} and {max(temperatures):.1f} °C",
            remedy="build masters from darks of one temperature",
        )


def combine(
    stack: Sequence[Image], *, level: float = 0.0, read_variance: float | None = None
) -> tuple[Image, Image]:
    """Return the clipped mean of images, and the variance of that mean.

    Parameters
    ----------
    stack:
        N images of one shape. Two cannot outvote each other: with N < 3 nothing is clipped.
    level:
        Mean signal with photon noise; the expected variance then grows in proportion to a pixel's median.
    read_variance:
        Variance of one pixel of one image; measured from the stack where it is not given.
    """
    n = len(stack)
    if n == 1:
        from astrid_pipeline.imaging.io import sky_noise

        own = read_variance if read_variance is not None else sky_noise(stack[0]) ** 2
        return stack[0].astype(np.float32), np.full(stack[0].shape, max(own, 1e-12), np.float32)
    if read_variance is None:
        # From differences of neighbours in the series: of one image to the next, nothing but noise changes.
        read_variance = float(np.mean([_robust_variance(a - b) / 2 for a, b in itertools.pairwise(stack)]))
    mean: Image = np.empty(stack[0].shape, np.float32)
    variance: Image = np.empty(stack[0].shape, np.float32)
    for y in range(0, len(mean), _ROWS):
        part = np.stack([image[y : y + _ROWS] for image in stack])
        middle = np.median(part, axis=0)
        expected = np.full(middle.shape, max(read_variance, 1e-12), np.float32)
        if level > 0:
            expected *= np.maximum(middle / level, 0.01)
        # The median of n itself scatters by √(π/2n) of one pixel.
        reach = CLIP**2 * expected * (1 + math.pi / (2 * n))
        keep = np.square(part - middle) <= reach if n > 2 else np.ones(part.shape, bool)
        count = np.maximum(keep.sum(axis=0), 1)
        mean[y : y + _ROWS] = np.where(keep.any(axis=0), (part * keep).sum(axis=0) / count, middle)
        variance[y : y + _ROWS] = expected / count
    return mean, variance


def _robust_variance(values: npt.NDArray[np.floating]) -> float:
    sample = values.ravel()[:: max(1, values.size // 500_000)]
    low, high = np.percentile(sample, [15.87, 84.13])
    return float((high - low) / 2) ** 2


@dataclass
class _Builder:
    """Assembles calibration frames and makes masters of them."""

    nonlinearity: tuple[tuple[float, ...], ...]
    first: RawExposure

    def __post_init__(self) -> None:
        self.sections: tuple[Section, ...] = tuple(a.detector_section for a in self.first.amplifiers)
        self.shape = (max(s[1] for s in self.sections), max(s[3] for s in self.sections))

    def assemble(self, raw: RawExposure) -> Assembled:
        return assemble(raw, nonlinearity=self.nonlinearity)

    def zeroed(self, raw: RawExposure, bias: Image | None) -> Image:
        """Return counts above the zero level."""
        assembled = self.assemble(raw)
        if bias is not None:
            return assembled.data - bias
        if not assembled.has_zero_level:
            raise CalibrationError(
                "has neither overscan nor bias frames: its zero level is not known",
                where=raw.meta.get("exposure_id"),
                remedy="add bias frames",
            )
        return assembled.data

    def dark(
        self, darks: Sequence[RawExposure], bias: Image | None, bias_variance: Image | None
    ) -> tuple[Image, Image]:
        """Return the dark rate in counts per second and its variance; each frame counts by its exposure time."""
        times = []
        for raw in darks:
            time = raw.meta.get("exposure")
            if not time or time <= 0:
                raise CalibrationError(
                    "a dark frame without exposure time",
                    where=raw.meta.get("exposure_id"),
                    remedy="correct EXPTIME",
                )
            times.append(float(time))
        groups: dict[float, list[Image]] = {}
        for raw, time in zip(darks, times, strict=True):
            groups.setdefault(time, []).append(self.zeroed(raw, bias))
        weight = np.zeros(self.shape, np.float32)
        total = np.zeros(self.shape, np.float32)
        for time, stack in groups.items():
            mean, noise = combine(stack)
            w = np.float32(time**2) / noise
            total += w * mean / np.float32(time)
            weight += w
        variance = np.float32(1) / weight
        if bias_variance is not None:
            # The bias was subtracted from all of them: its error does not average out.
            variance = variance + bias_variance / np.float32(np.mean(times) ** 2)
        return total / weight, variance

    def gains(self, flats: Sequence[RawExposure], bias: Image | None) -> tuple[tuple[float | None, ...], str]:
        """Return each amplifier's gain: the header's, else that of the photon transfer of pairs of flats."""
        header = tuple(a.gain for a in self.first.amplifiers)
        if all(header):
            return header, "header"
        measured = self._photon_transfer(flats, bias)
        if measured is None:
            return header, ""
        return tuple(h or m for h, m in zip(header, measured, strict=True)), "photon transfer of the flats"

    def _photon_transfer(
        self, flats: Sequence[RawExposure], bias: Image | None
    ) -> tuple[float | None, ...] | None:
        """Return gains from the variance of differences of flats: gain = mean / variance (in counts).

        Two flats of one filter are scaled to one level; the variance of their difference is that of photons and
        readout, the latter small at a flat's level. The median over the pairs and over boxes of 32² pixels, within
        which a flat is even, keeps out defects and gradients.
        """
        by_filter: dict[str, list[RawExposure]] = {}
        for raw in flats:
            by_filter.setdefault(str(raw.meta.get("filter", "none")), []).append(raw)
        estimates: list[list[float]] = []
        for group in by_filter.values():
            if len(group) < 2 or (bias is None and not self.assemble(group[0]).has_zero_level):
                continue
            images = [self.zeroed(raw, bias) for raw in group[:4]]
            for a, b in itertools.pairwise(images):
                estimates.append([_pair_gain(cut(a, s), cut(b, s)) for s in self.sections])
        if not estimates:
            return None
        medians = np.nanmedian(np.array(estimates), axis=0)
        return tuple(float(m) if np.isfinite(m) and m > 0 else None for m in medians)

    def flats(
        self,
        flats: Sequence[RawExposure],
        bias: Image | None,
        dark: Image | None,
        gains: Sequence[float | None],
    ) -> tuple[dict[str, Image], dict[str, Image], dict[str, tuple[str, ...]], list[str]]:
        """Return flats and variances by filter, the exposures used, and those rejected with the reason."""
        masters: dict[str, Image] = {}
        variances: dict[str, Image] = {}
        used: dict[str, tuple[str, ...]] = {}
        rejected: list[str] = []
        gain = gain_map(self.shape, self.sections, gains)
        names = sorted({str(raw.meta.get("filter", "none")) for raw in flats})
        for name in names:
            stack, ids, noise = [], [], []
            for raw in flats:
                if str(raw.meta.get("filter", "none")) != name:
                    continue
                identity = str(raw.meta.get("exposure_id", "unknown"))
                image = self.zeroed(raw, bias)
                if dark is not None:
                    image = image - dark * np.float32(raw.meta.get("exposure") or 0.0)
                ceiling = float(raw.meta.get("saturation") or 65535.0)
                share = float(np.median(image)) / ceiling
                if not FLAT_LEVELS[0] <= share <= FLAT_LEVELS[1]:
                    rejected.append(f"{identity}: level {share:.0%} of saturation")
                    continue
                image = image * gain
                image /= np.float32(np.median(image))
                stack.append(image)
                ids.append(identity)
                noise.append(_robust_variance(image[:, 2:] - image[:, :-2]) / 2)
            if not stack:
                raise CalibrationError(
                    f"no usable flat for filter {name!r}: {'; '.join(rejected)}",
                    remedy=f"take flats between {FLAT_LEVELS[0]:.0%} and {FLAT_LEVELS[1]:.0%} of saturation",
                )
            read_variance = float(np.median(noise)) if len(stack) < 2 else None
            masters[name], variances[name] = combine(stack, level=1.0, read_variance=read_variance)
            used[f"flat:{name}"] = tuple(ids)
        return masters, variances, used, rejected

    def read_noise(
        self, biases: Sequence[Assembled], gains: Sequence[float | None]
    ) -> tuple[float | None, ...]:
        """Return the noise of a bias frame's pixels by amplifier, from differences of successive frames."""
        if len(biases) < 2:
            return tuple(None for _ in self.sections)
        out = []
        for section, gain in zip(self.sections, gains, strict=True):
            values = [
                _robust_variance(cut(a.data, section) - cut(b.data, section)) / 2
                for a, b in itertools.pairwise(biases)
            ]
            out.append(float(np.sqrt(np.mean(values))) * (gain or 1.0))
        return tuple(out)


def _pair_gain(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], box: int = 32) -> float:
    """Return mean / variance of a pair of flats, in electrons per count; NaN if there are too few pixels."""
    ny, nx = a.shape[0] // box, a.shape[1] // box
    if ny * nx < 4:
        return math.nan

    def boxes(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        part = image[: ny * box, : nx * box].reshape(ny, box, nx, box)
        return part.transpose(0, 2, 1, 3).reshape(ny * nx, box * box)

    first, second = boxes(a), boxes(b)
    ratio = np.median(first, axis=1, keepdims=True) / np.median(second, axis=1, keepdims=True)
    low, high = np.percentile(first - ratio * second, [15.87, 84.13], axis=1)
    variance = ((high - low) / 2) ** 2
    level = np.median(first, axis=1)
    # var(first) + ratio² var(second) = level / gain · (1 + ratio), photon noise being in proportion to the level.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nanmedian(level * (1 + ratio[:, 0]) / variance))


def gain_map(shape: tuple[int, int], sections: Sequence[Section], gains: Sequence[float | None]) -> Image:
    """Return each pixel's gain; 1 where it is not known."""
    out = np.ones(shape, np.float32)
    for section, gain in zip(sections, gains, strict=True):
        cut(out, section)[...] = gain or 1.0
    return out
