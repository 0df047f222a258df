"""From amplifiers as they were read to one image without overscan: the first step of every calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import CalibrationError
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.raw import Amplifier, RawExposure, Section

#: Fewer overscan pixels than this in a row say too little to correct each row by itself.
_MIN_OVERSCAN_WIDTH = 4


@dataclass(frozen=True, eq=False)
class Assembled:
    """A detector's image in counts, overscan removed and trimmed away.

    Attributes
    ----------
    data:
        (h, w) float32 counts.
    peak:
        (h, w) float32 counts as the converter gave them, for comparison with the saturation level.
    sections:
        Where each amplifier's pixels are.
    levels:
        The median overscan level of each amplifier, counts; None where there is no overscan.
    overscan_noise:
        Noise of one overscan pixel, counts: the read noise, if nothing else is in it. None without overscan.
    """

    data: Image
    peak: Image
    sections: tuple[Section, ...]
    levels: tuple[float | None, ...]
    overscan_noise: tuple[float | None, ...]

    @property
    def has_zero_level(self) -> bool:
        """Whether an overscan has told every amplifier's zero level."""
        return all(level is not None for level in self.levels)


def assemble(raw: RawExposure, *, nonlinearity: Sequence[Sequence[float]] | None = None) -> Assembled:
    """Return the image of an exposure, its amplifiers overscan-corrected, trimmed and put in place.

    Parameters
    ----------
    raw:
        The exposure.
    nonlinearity:
        For each amplifier (or one for all) the coefficients (c1, c2, …) of
        ``true = m · (1 + c1 m + c2 m² + …)``, m being counts above the zero level.

    Raises
    ------
    CalibrationError
        If amplifiers leave a part of the detector empty, or polynomials do not fit their number.
    """
    height = max(a.detector_section[1] for a in raw.amplifiers)
    width = max(a.detector_section[3] for a in raw.amplifiers)
    data = np.full((height, width), np.nan, np.float32)
    peak = np.full((height, width), np.nan, np.float32)
    filled = 0
    levels, noises = [], []
    for number, amplifier in enumerate(raw.amplifiers):
        counts = cut(amplifier.data, amplifier.data_section)
        corrected, level, noise = subtract_overscan(amplifier)
        if nonlinearity:
            corrected = linearise(corrected, _coefficients(nonlinearity, number, len(raw.amplifiers), raw))
        target = cut(data, amplifier.detector_section)
        if target.shape != corrected.shape:
            raise CalibrationError(
                f"amplifier {number} has {corrected.shape} pixels for a place of {target.shape}",
                where=raw.meta.get("exposure_id"),
                remedy="correct DATASEC and DETSEC",
            )
        target[...] = _flipped(corrected, amplifier)
        cut(peak, amplifier.detector_section)[...] = _flipped(counts, amplifier)
        filled += corrected.size
        levels.append(level)
        noises.append(noise)
    if filled != height * width:
        raise CalibrationError(
            "the amplifiers overlap or leave a part of the detector empty",
            where=raw.meta.get("exposure_id"),
            remedy="correct DATASEC and DETSEC",
        )
    sections = tuple(a.detector_section for a in raw.amplifiers)
    return Assembled(data, peak, sections, tuple(levels), tuple(noises))


def _coefficients(
    polynomials: Sequence[Sequence[float]], number: int, count: int, raw: RawExposure
) -> Sequence[float]:
    if len(polynomials) not in (1, count):
        raise CalibrationError(
            f"{len(polynomials)} linearity polynomials for {count} amplifiers",
            where=raw.meta.get("exposure_id"),
            remedy="give one for all, or one for each",
        )
    return polynomials[number if len(polynomials) > 1 else 0]


def cut(image: npt.NDArray[np.float32], section: Section) -> npt.NDArray[np.float32]:
    """Return the part of an image that a section names, as a view."""
    y0, y1, x0, x1 = section
    return image[y0:y1, x0:x1]


def _flipped(image: npt.NDArray[np.float32], amplifier: Amplifier) -> npt.NDArray[np.float32]:
    if amplifier.flip_y:
        image = image[::-1]
    return image[:, ::-1] if amplifier.flip_x else image


def linearise(counts: Image, coefficients: Sequence[float]) -> Image:
    """Return ``m · (1 + c1 m + c2 m² + …)``, by Horner's rule."""
    factor = np.zeros_like(counts)
    for coefficient in reversed(coefficients):
        factor = (factor + np.float32(coefficient)) * counts
    return counts * (1 + factor)


def subtract_overscan(amplifier: Amplifier) -> tuple[Image, float | None, float | None]:
    """Return an amplifier's data section minus its overscan, the overscan's level, and its noise in one pixel.

    An overscan beside the data gives a level for each row (the clipped mean over its columns), one above or below it
    a level for each column. Rows share a slowly varying level unless they really differ: if the means scatter no more
    about a smooth curve than their own error explains, the curve is used, which adds less noise.
    """
    data = cut(amplifier.data, amplifier.data_section)
    if amplifier.overscan_section is None:
        return data.astype(np.float32, copy=True), None, None
    y0, y1, x0, x1 = amplifier.data_section
    v0, v1, u0, u1 = amplifier.overscan_section
    overscan = cut(amplifier.data, amplifier.overscan_section)
    level = float(np.median(overscan))
    if u0 <= x0 and u1 >= x1 and v1 - v0 >= _MIN_OVERSCAN_WIDTH:
        means, noise = _clipped_means(overscan[:, x0 - u0 : x1 - u0].T)
        return data - smooth_levels(means, noise, v1 - v0)[None, :], level, noise
    if v0 <= y0 and v1 >= y1 and u1 - u0 >= _MIN_OVERSCAN_WIDTH:
        means, noise = _clipped_means(overscan[y0 - v0 : y1 - v0])
        return data - smooth_levels(means, noise, u1 - u0)[:, None], level, noise
    _, noise = _clipped_means(overscan.reshape(1, -1))
    return data - np.float32(level), level, noise


def _clipped_means(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
    """Return each row's mean without pixels beyond 4 σ (cosmic rays, charge trailing in), and a pixel's noise.

    Counts are integers: a median would be rounded to half a count, and a median deviation to a whole one.
    """
    deviation = rows - np.median(rows, axis=1, keepdims=True)
    scatter = max(1.4826 * float(np.median(np.abs(deviation))), 0.5)
    keep = np.abs(deviation) <= 4 * scatter
    count = np.maximum(keep.sum(axis=1), 1)
    means = np.where(keep, rows, 0).sum(axis=1, dtype=np.float64) / count
    squares = np.where(keep, np.square(rows - means[:, None]), 0).sum()
    return means, float(np.sqrt(squares / max(keep.sum() - len(rows), 1)))


def smooth_levels(levels: npt.NDArray[np.floating], noise: float, count: int) -> npt.NDArray[np.float32]:
    """Return the zero level along rows (or columns) from means of `count` pixels that each have `noise`.

    A cubic polynomial, fitted with outliers clipped at 4 σ, if what is left scatters like the means' own error, else
    the means as they are.
    """
    levels = np.asarray(levels, float)
    n = len(levels)
    if n < 16:
        return levels.astype(np.float32)
    x = np.linspace(-1, 1, n)
    good = np.ones(n, bool)
    fit: npt.NDArray[np.floating] = np.zeros(n)
    for _ in range(5):
        fit = np.polynomial.legendre.legval(x, np.polynomial.legendre.legfit(x[good], levels[good], 3))
        residual = levels - fit
        scatter = 1.4826 * float(np.median(np.abs(residual[good]))) or float(residual[good].std())
        keep = np.abs(residual) <= 4 * scatter if scatter > 0 else good
        if keep.sum() < 8 or (keep == good).all():
            break
        good = keep
    expected = noise / np.sqrt(count)
    # 1.3: beyond it, the rows' own variation is more than a sixth of the scatter's power again.
    smooth = scatter <= 1.3 * expected and good.mean() > 0.95
    return (fit if smooth else levels).astype(np.float32)
