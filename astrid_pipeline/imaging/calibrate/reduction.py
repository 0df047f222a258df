"""The arithmetic of calibration, pixel by pixel: zero level, dark, gain, flat, and the noise of all of them.

It is done some rows at a time, so that a dozen steps pass over memory once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astrid_pipeline.imaging.calibrate.amplifiers import cut, linearise
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.parallel import each, strips
from astrid_pipeline.imaging.raw import Section

#: A pixel with less than this response (relative to the median) sees nothing that division could bring back.
DEAD = 0.01
#: Pixels treated at once, some whole rows.
_STRIP = 65_536


@dataclass(frozen=True, eq=False)
class Reduction:
    """What is done to the counts of one exposure; None or 0 is left out.

    Attributes
    ----------
    sections, gains, read_noise:
        Of each amplifier: its place, electrons per count, electrons. Without gains the result is in counts; without
        either of both it has no variance.
    pedestal:
        Added where there is no bias, counts.
    exposure:
        Seconds, by which the dark is scaled.
    bias, dark, flat, bias_variance, dark_variance, flat_variance:
        (height, width): counts, counts per second, relative response, and their variances.
    """

    sections: tuple[Section, ...]
    gains: tuple[float, ...] | None = None
    read_noise: tuple[float, ...] | None = None
    pedestal: float = 0.0
    exposure: float = 0.0
    bias: Image | None = None
    dark: Image | None = None
    flat: Image | None = None
    bias_variance: Image | None = None
    dark_variance: Image | None = None
    flat_variance: Image | None = None

    def apply(self, counts: Image) -> tuple[Image, Image | None]:
        """Return data, and variance where it can be known; `counts`, overscan-corrected, are used up.

        V = (R² + signal + dark signal + g² (V_bias + t² V_dark)) / f² + (signal / f)² V_flat / f², in electrons².
        Pixels that a flat calls `DEAD` are NaN.
        """
        height, width = counts.shape
        variance = None
        if self.gains is not None and self.read_noise is not None:
            variance = np.empty(counts.shape, np.float32)

        def work(rows: slice) -> None:
            for number, (y0, y1, x0, x1) in enumerate(self.sections):
                part = (max(rows.start, y0), min(rows.stop, y1), x0, x1)
                if part[0] < part[1]:
                    self._apply(counts, variance, part, number)

        each(work, strips(height, max(1, _STRIP // width)))
        return counts, variance

    def _apply(self, counts: Image, variance: Image | None, part: Section, number: int) -> None:
        """Do it for one part of an amplifier, in place."""
        data = cut(counts, part)
        gain = np.float32(1 if self.gains is None else self.gains[number])
        if self.bias is not None:
            data -= cut(self.bias, part)
        elif self.pedestal:
            data += np.float32(self.pedestal)
        dark_signal: Image | np.float32 = np.float32(0)
        if self.dark is not None:
            dark_signal = cut(self.dark, part) * np.float32(self.exposure)
            data -= dark_signal
        data *= gain
        noise = None
        if variance is not None and self.read_noise is not None:
            noise = cut(variance, part)
            # Dark current has been subtracted, its photon noise has not.
            np.add(data, dark_signal * gain, out=noise)
            np.maximum(noise, 0, out=noise)
            noise += np.float32(self.read_noise[number] ** 2)
            if self.bias_variance is not None:
                noise += cut(self.bias_variance, part) * gain**2
            if self.dark_variance is not None:
                noise += cut(self.dark_variance, part) * np.float32(self.exposure**2 * float(gain) ** 2)
        if self.flat is None:
            return
        flat = cut(self.flat, part)
        inverse = np.where(flat > DEAD, 1 / np.maximum(flat, np.float32(DEAD)), np.float32(np.nan))
        data *= inverse
        if noise is not None:
            if self.flat_variance is not None:
                noise += np.square(data) * cut(self.flat_variance, part)
            noise *= inverse
            noise *= inverse

    def saturation(
        self, level: float, zero_levels: Sequence[float | None], nonlinearity: Sequence[Sequence[float]] = ()
    ) -> float:
        """Return the lowest level at which an amplifier saturates, in the units of the result.

        Parameters
        ----------
        level:
            Counts at which the converter, or the pixels, saturate.
        zero_levels:
            Each amplifier's overscan, counts, or None.
        nonlinearity:
            As for `amplifiers.assemble`.
        """
        found = []
        for number, (section, zero) in enumerate(zip(self.sections, zero_levels, strict=True)):
            counts = np.array([level - (zero or 0.0)], np.float32)
            if nonlinearity:
                counts = linearise(counts, nonlinearity[number if len(nonlinearity) > 1 else 0])
            value = float(counts[0])
            if self.bias is not None:
                value -= float(np.median(cut(self.bias, section)[::8, ::8]))
            else:
                value += self.pedestal
            if self.dark is not None:
                value -= float(np.median(cut(self.dark, section)[::8, ::8])) * self.exposure
            found.append(value * (1.0 if self.gains is None else self.gains[number]))
        return min(found)
