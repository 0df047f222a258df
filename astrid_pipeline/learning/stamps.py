"""What is measured of three cut-outs (science, template, difference) around a source, whatever survey made them.

Only ratios and numbers in units of the cut-outs' own noise are used, so that neither gain, zero point nor exposure
time matter; lengths are pixels. A cut-out that is missing leaves its features NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from astrid_pipeline.learning.channels import (
    CHANNELS,
    squeeze_image,
    squeeze_score,
    unsqueeze_image,
    unsqueeze_score,
)

Image = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

#: Cut-outs are brought to this side: 63² is what most surveys send, and a network takes multiples of 16.
SIDE = 64

#: Radii in px: of the source itself, of its surroundings, and from where on pixels are taken for empty.
_CORE, _NEAR, _FAR = 2.5, 6.0, 9.0

#: Matched filters for seeings of 1.6, 2.6 and 4 px FWHM, between which a stamp's own lies.
_SIGMAS: tuple[float, ...] = (0.7, 1.1, 1.7)

#: Features in order; see `_features` for what each is. How bright the source and its surroundings are in science and
#: template is no feature: it follows a survey's depth, and what was learned of it in one misleads in another. Which
#: share of the light the change is follows no depth: what a star leaves where it was subtracted badly is a few percent.
FEATURES: tuple[str, ...] = (
    "snr",
    "snr_sharp",
    "snr_broad",
    "offset",
    "width",
    "elongation",
    "core_share",
    "single_pixel",
    "negative",
    "opposite",
    "blank_near",
    "crowd",
    "rms_near",
    "width_ratio",
    "share",
)


@dataclass(frozen=True, eq=False)
class Stamp:
    """Three cut-outs of one source, in units of their noise, sky taken off, `SIDE`² with the source in the middle.

    Attributes
    ----------
    science, template, difference:
        (SIDE, SIDE) float32, 0 where there is no pixel; None where the survey sent none. The difference is positive at
        the source.
    blank:
        (SIDE, SIDE) bool: where the difference has no pixel.
    sign:
        -1 where the difference was turned to be positive at the source.
    noise:
        That of science and template, in the survey's units; 0 where there is none.
    """

    science: Image | None
    template: Image | None
    difference: Image
    blank: npt.NDArray[np.bool_]
    sign: float = 1.0
    noise: tuple[float, float] = (0.0, 0.0)


#: Counted light hardly repeats to the last bit: a value of more than this share of the pixels is what a survey fills
#: pixels without data with.
_FILLED = 0.03


def _without_fill(image: Image) -> Image:
    """Return the image with pixels that hold no measurement as NaN; as it is where hardly any would be left."""
    _, inverse, count = np.unique(image, return_inverse=True, return_counts=True)
    repeated = (count[inverse] > _FILLED * image.size).reshape(image.shape)
    repeated |= ~np.isfinite(image)
    return np.where(repeated, np.float32(np.nan), image) if (~repeated).sum() >= 100 else image


def _sky_and_noise(image: Image) -> tuple[float, float]:
    """Return median and 1.4826 MAD of the finite pixels, those of sources among them left out."""
    values = image[np.isfinite(image)]
    for _ in range(3):
        middle = float(np.median(values))
        noise = 1.4826 * float(np.median(np.abs(values - middle)))
        kept = values[np.abs(values - middle) < 3.5 * max(noise, 1e-30)]
        if len(kept) < 50 or len(kept) == len(values):
            break
        values = kept
    return middle, noise


def _centred(image: Image) -> Image:
    """Return the (SIDE, SIDE) pixels around the middle, NaN beyond the cut-out."""
    out = np.full((SIDE, SIDE), np.nan, np.float32)
    height, width = image.shape
    top, left = SIDE // 2 - height // 2, SIDE // 2 - width // 2
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, SIDE), min(left + width, SIDE)
    out[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def make_stamp(difference: Image, science: Image | None = None, template: Image | None = None) -> Stamp:
    """Return cut-outs as a network and `measure` take them.

    Cut-outs may be of any size, the source in the middle (column width // 2, row height // 2); those of sources at a
    frame's edge, which some surveys cut short, have to be filled up by the caller.

    Raises
    ------
    ValueError
        If the difference has no noise (all pixels equal) or hardly a pixel.
    """
    if int(np.isfinite(difference).sum()) < 100:
        raise ValueError("the difference cut-out has fewer than 100 pixels with a value")
    difference = _without_fill(difference)
    sky, noise = _sky_and_noise(difference)
    if not noise > 0:
        raise ValueError("the difference cut-out has no noise: more than half of its pixels are equal")
    middle = (_centred(difference) - np.float32(sky)) / np.float32(noise)
    blank = ~np.isfinite(middle)
    middle = np.where(blank, np.float32(0), middle)
    smooth = ndimage.gaussian_filter(middle, _SIGMAS[1], mode="constant")
    at = smooth[_DISTANCE <= _CORE + 1]
    sign = np.float32(np.sign(at[np.abs(at).argmax()]) or 1)
    planes: list[Image | None] = []
    noises = []
    for image in (science, template):
        if image is None or int(np.isfinite(image).sum()) < 100:
            planes.append(None)
            noises.append(0.0)
            continue
        image = _without_fill(image)
        level, spread = _sky_and_noise(image)
        noises.append(spread)
        plane = (_centred(image) - np.float32(level)) / np.float32(spread or 1)
        planes.append(np.nan_to_num(plane, nan=0.0) if spread > 0 else None)
    return Stamp(planes[0], planes[1], middle * sign, blank, float(sign), (noises[0], noises[1]))


_YY, _XX = np.mgrid[:SIDE, :SIDE] - SIDE // 2
_DISTANCE = np.hypot(_YY, _XX)


def cut_out(image: Image, x: float, y: float) -> Image:
    """Return 63² pixels around (x, y), NaN beyond the image: the size that surveys send."""
    from astropy.nddata import Cutout2D

    cut = Cutout2D(image, (x, y), SIDE - 1, mode="partial", fill_value=np.nan)
    return np.asarray(cut.data, np.float32)


def filled(image: Image, side: int, x: float, y: float) -> Image:
    """Return a cut-out that a survey cut short at the frame's edge with the missing rows and columns as NaN.

    Parameters
    ----------
    side:
        What it would have been.
    x, y:
        Where the source is in the frame: near 0 the missing ones come first, else last.
    """
    pads = []
    for size, position in zip(image.shape, (y, x), strict=True):
        missing = max(side - size, 0)
        pads.append((missing, 0) if position < side / 2 else (0, missing))
    return np.pad(image, pads, constant_values=np.nan)


def planes(stamp: Stamp) -> Image:
    """Return the (4, SIDE, SIDE) planes of a stamp as a network sees them (`channels.CHANNELS`).

    The score is the difference filtered by a Gaussian of 2.6 px FWHM: a stamp does not bring its PSF along. A missing
    cut-out is 0.
    """
    out = np.zeros((len(CHANNELS), SIDE, SIDE), np.float32)
    for plane, image in ((0, stamp.science), (1, stamp.template)):
        if image is not None:
            out[plane] = squeeze_image(image)
    out[2] = squeeze_score(stamp.difference)
    out[3] = squeeze_score(score_of(stamp))
    out[:, stamp.blank] = 0
    return out


def from_planes(kept: npt.NDArray[Any], blank: npt.NDArray[np.bool_]) -> Stamp:
    """Return the stamp that `planes` squeezed; a cut-out that is 0 throughout was not sent."""
    science, template = (
        unsqueeze_image(plane).astype(np.float32) if np.asarray(plane).any() else None for plane in kept[:2]
    )
    return Stamp(science, template, unsqueeze_score(kept[2]).astype(np.float32), blank)


def score_of(stamp: Stamp) -> Image:
    """Return the difference filtered by a Gaussian of 2.6 px FWHM, in units of the filtered image's noise."""
    return _significance(stamp.difference, _SIGMAS[1], (_DISTANCE > _FAR) & ~stamp.blank)


def measure(stamps: Sequence[Stamp]) -> pd.DataFrame:
    """Return one row of `FEATURES` a stamp."""
    return pd.DataFrame([_features(stamp) for stamp in stamps], columns=list(FEATURES), dtype=float)


def _features(stamp: Stamp) -> dict[str, float]:
    d, blank = stamp.difference, stamp.blank
    empty = (_DISTANCE > _FAR) & ~blank
    near, core = _DISTANCE <= _NEAR, _DISTANCE <= _CORE
    filtered = [_significance(d, sigma, empty) for sigma in _SIGMAS]
    snr = [float(s[_DISTANCE <= 3].max()) for s in filtered]
    best = filtered[1]
    peak = _peak(best, 5)
    out: dict[str, float] = dict.fromkeys(FEATURES, float("nan"))
    out["snr"], out["snr_sharp"], out["snr_broad"] = snr[1], snr[0] / snr[1], snr[2] / snr[1]
    out["offset"] = float(np.hypot(*peak))
    out["width"], out["elongation"] = _shape(d, peak)
    positive = np.maximum(d, 0)
    around = np.hypot(_YY - peak[0], _XX - peak[1])
    total = float(positive[around <= _NEAR].sum())
    out["core_share"] = float(positive[around <= 1.5].sum()) / max(total, 1e-9)
    out["single_pixel"] = float(d[core].max()) / max(float(positive[around <= _CORE].sum()), 1e-9)
    # Of the pixels beside the source: how many are negative by 2 sigma, and how deep the deepest hole is.
    out["negative"] = float((d[near & ~blank] < -2).mean()) if (near & ~blank).any() else float("nan")
    out["opposite"] = float(-best[_DISTANCE <= 8].min()) / max(snr[1], 1e-9)
    out["blank_near"] = float(blank[near].mean())
    out["crowd"] = float((np.abs(best[empty]) > 5).mean()) if empty.any() else float("nan")
    ring = (_DISTANCE > _NEAR) & (_DISTANCE <= 12) & ~blank
    out["rms_near"] = float(np.sqrt(np.mean(d[ring] ** 2))) if ring.any() else float("nan")
    if stamp.science is not None:
        width, _ = _shape(stamp.science, _peak(_significance(stamp.science, _SIGMAS[1], empty), 4))
        out["width_ratio"] = out["width"] / max(width, 1e-9)
    # log10 of the change over the light of the brighter image, all in units of their pixels' noise. Floors: less than
    # 1 and 5 of those is no light.
    inside = around <= _CORE
    light = [float(image[inside].sum()) for image in (stamp.science, stamp.template) if image is not None]
    if light:
        out["share"] = float(np.log10(max(float(d[inside].sum()), 1.0) / max(*light, 5.0)))
    return {key: value if np.isfinite(value) else float("nan") for key, value in out.items()}


def _significance(image: Image, sigma: float, empty: npt.NDArray[np.bool_]) -> Image:
    """Return the image filtered by a Gaussian, in units of the filtered image's own noise far from the source.

    Its own: the noise of a difference is correlated by whatever resampled it.
    """
    smooth = ndimage.gaussian_filter(image, sigma, mode="constant")
    values = smooth[empty]
    if len(values) < 50:
        # Noise of white pixels: √Σ G² of the filter.
        return smooth * np.float32(2 * np.sqrt(np.pi) * sigma)
    middle, noise = _sky_and_noise(values)
    # Empty surroundings say nothing of the noise; that of white pixels is left.
    scale = noise if noise > 1e-3 else 1 / (2 * np.sqrt(np.pi) * sigma)
    return (smooth - np.float32(middle)) / np.float32(scale)


def _peak(image: Image, radius: float) -> tuple[int, int]:
    """Return (dy, dx) from the middle of the highest pixel within `radius`."""
    inside = np.where(radius >= _DISTANCE, image, -np.inf)
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row) - SIDE // 2, int(column) - SIDE // 2


def _shape(image: Image, peak: tuple[int, int]) -> tuple[float, float]:
    """Return FWHM (px) and long over short axis, from second moments of what is above 1 sigma around `peak`."""
    dy, dx = _YY - peak[0], _XX - peak[1]
    weight = np.where(np.hypot(dy, dx) <= 5, np.maximum(image - 1, 0), 0).astype(np.float64)
    total = weight.sum()
    if not total > 0:
        return float("nan"), float("nan")
    my, mx = (weight * dy).sum() / total, (weight * dx).sum() / total
    yy = (weight * (dy - my) ** 2).sum() / total
    xx = (weight * (dx - mx) ** 2).sum() / total
    xy = (weight * (dy - my) * (dx - mx)).sum() / total
    half, root = (xx + yy) / 2, float(np.hypot((xx - yy) / 2, xy))
    # A pixel has a variance of 1/12 of its own.
    long, short = np.sqrt(half + root + 1 / 12), np.sqrt(max(half - root, 0) + 1 / 12)
    return float(2.355 * np.sqrt(long * short)), float(long / short)
