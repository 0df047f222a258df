"""What a network is asked to answer: heat maps, a mask, and where neither counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.learning.schema import CLASSES

#: Bits of a sample's label plane.
UNUSABLE_BIT, SOURCE_BIT = 1, 2

# A fitted Gaussian of this width is about the score's own peak for a seeing of 2-3 px; wider ones merge
# neighbours, narrower ones give the loss too few pixels.
HEAT_SIGMA = 1.5

# Below S/N 4 a change cannot be told from noise at a useful purity (a megapixel of noise has some 60 peaks over
# 4): it is neither asked for nor held against the network. Below 1.5 it does not exist for practical purposes.
POSITIVE_SNR, NOTHING_SNR = 4.0, 1.5

#: A trail's Gaussian is longer by this share of its length, so that a network need not guess its middle to a pixel; a
#: sixth keeps one maximum, and a trail's ends dark.
TRAIL_SHARE = 1 / 6

#: Around what is neither asked for nor forbidden, pixels within this radius do not count.
IGNORE_RADIUS = 4.0


@dataclass(frozen=True)
class Target:
    """What to answer for one image.

    Attributes
    ----------
    heat:
        (classes, H, W) float32: exactly 1 at the pixel of each source, a Gaussian around it, longer along a trail.
    mask:
        (H, W) float32, 1 where a source stands out of the noise.
    weight:
        (H, W) float32, 0 where the answer does not count.
    """

    heat: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


def render(truth: pd.DataFrame, labels: npt.NDArray[np.uint8], *, x0: int = 0, y0: int = 0) -> Target:
    """Return the target of the part of an image that begins at (x0, y0) and has the shape of `labels`.

    Parameters
    ----------
    truth:
        Columns x, y, length (px in the whole image), angle, snr_here, label and usable; rows labelled ``artefact``
        are answered with nothing.
    labels:
        (H, W) bits `UNUSABLE_BIT` and `SOURCE_BIT`.
    """
    height, width = labels.shape
    heat = np.zeros((len(CLASSES), height, width), np.float32)
    weight = ((labels & UNUSABLE_BIT) == 0).astype(np.float32)
    mask = ((labels & SOURCE_BIT) != 0).astype(np.float32)
    columns = zip(
        truth["x"] - x0,
        truth["y"] - y0,
        truth["snr_here"],
        truth["label"],
        truth["usable"],
        np.where(truth["label"] == "moving", np.nan_to_num(truth["length"].to_numpy(float)), 0.0),
        np.nan_to_num(truth["angle"].to_numpy(float)),
        strict=True,
    )
    asked: list[tuple[int, int, int]] = []
    for x, y, snr, label, usable, length, angle in columns:
        if label not in CLASSES or snr < NOTHING_SNR:
            continue
        long = float(np.hypot(HEAT_SIGMA, TRAIL_SHARE * length))
        reach = int(np.ceil(4 * long))
        if not (-reach <= x < width + reach and -reach <= y < height + reach):
            continue
        left, right = max(int(x) - reach, 0), min(int(x) + reach + 2, width)
        low, high = max(int(y) - reach, 0), min(int(y) + reach + 2, height)
        if left >= right or low >= high:
            continue
        rows, cols = np.ogrid[low:high, left:right]
        squared = (cols - x) ** 2 + (rows - y) ** 2
        along = (cols - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        if snr < POSITIVE_SNR or not usable:
            weight[low:high, left:right][squared <= IGNORE_RADIUS**2] = 0
            continue
        exponent = (squared - along**2) / HEAT_SIGMA**2 + along**2 / long**2
        blob = np.exp(-exponent / 2).astype(np.float32)
        place = heat[CLASSES.index(label), low:high, left:right]
        np.maximum(place, blob, out=place)
        asked.append((CLASSES.index(label), round(y), round(x)))
    for c, row, col in asked:
        if 0 <= row < height and 0 <= col < width:
            heat[c, row, col] = 1.0
            # A sure source beside an unsure one is still asked for, unless its pixel cannot be used.
            weight[row, col] = float((labels[row, col] & UNUSABLE_BIT) == 0)
    return Target(heat, mask, weight)


def footprint(difference: Difference, truth: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return (H, W) bool: where the true changes alone stand out of the noise of one pixel.

    That is |flux| · P_D ≥ σ_D, and always the part above half the peak, so that a faint source has a mask as well.
    A trail is the mean of the PSF along its length. `truth` has columns x, y, flux, label, length, angle (px;
    radians from x towards y).
    """
    from scipy.ndimage import shift

    height, width = difference.shape
    out = np.zeros((height, width), bool)
    sigma = np.sqrt(np.maximum(difference.variance, 0))
    real = truth[truth["label"].isin(CLASSES)]
    numbers = real[["x", "y", "flux", "length", "angle"]].to_numpy(np.float64)
    for x, y, flux, length, angle in np.where(np.isfinite(numbers), numbers, 0.0):
        stamp = difference.psf.stamp(x, y)
        half = stamp.shape[0] // 2 + int(np.ceil(length / 2))
        canvas = np.zeros((2 * half + 1, 2 * half + 1))
        cx, cy = round(x), round(y)
        middle = half - stamp.shape[0] // 2
        inner = slice(middle, middle + stamp.shape[0])
        canvas[inner, inner] = stamp
        # Half a pixel between the points of a trail leaves no beads in it.
        steps = np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1)
        profile = np.zeros_like(canvas)
        for t in steps:
            offset = (y - cy + t * np.sin(angle), x - cx + t * np.cos(angle))
            profile += shift(canvas, offset, order=1, mode="constant") / len(steps)
        left, right = max(cx - half, 0), min(cx + half + 1, width)
        low, high = max(cy - half, 0), min(cy + half + 1, height)
        if left >= right or low >= high:
            continue
        part = profile[low - cy + half : high - cy + half, left - cx + half : right - cx + half]
        bright = abs(flux) * part >= sigma[low:high, left:right]
        out[low:high, left:right] |= bright | (part >= 0.5 * profile.max())
    return out
