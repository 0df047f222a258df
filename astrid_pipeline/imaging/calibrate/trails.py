"""Satellite trails: straight lines of light across a large part of the frame.

The frame, in units of its noise and with stars held down, is binned, and its Radon transform tells how much light
lies along every straight line. A line is a trail if its sum stands out of all others' and if light is found along
most of its way: a bright galaxy or a row of stars lights up a piece of a line, a trail all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image

#: Side of the binned image, pixels: a trail of ≥ 0.3 σ a pixel then shows, and a transform takes a tenth of a second.
BINNED = 256

#: A binned pixel counts for no more than this many σ, so that no star makes a line.
CAP = 3.0

#: σ of the line sums, among all lines of the frame, that a trail must have. 10⁵ lines give 4.3 σ by chance; stars
#: and galaxies make the distribution's tail longer than a Gaussian's.
SIGMA = 8.0

#: Share of the frame's shorter side that a trail must cross.
LENGTH = 0.5

#: The line is cut into pieces, and this share of those between its ends must show light by themselves.
COVERED = 0.75
PIECES = 24

#: The mask reaches to where the trail's profile has sunk to this share of a pixel's noise: what is fainter stays
#: below half a σ in a matched filter.
FAINT = 0.15

#: A wider band than this (pixels, either side) is no trail but cloud or scattered light.
MAX_HALF_WIDTH = 40


@dataclass(frozen=True)
class Trail:
    """A straight line from (x0, y0) to (x1, y1), pixels, masked `half_width` to either side."""

    x0: float
    y0: float
    x1: float
    y1: float
    half_width: float
    significance: float


def find_trails(
    data: Image,
    noise: Image | float,
    unusable: npt.NDArray[np.bool_],
    *,
    fwhm: float | None = None,
    maximum: int = 8,
) -> list[Trail]:
    """Return the trails of a frame, the most significant first.

    Parameters
    ----------
    data:
        (h, w), sky removed.
    noise:
        σ of a pixel: (h, w), or one number.
    unusable:
        Masked pixels, which count for nothing.
    fwhm:
        Of the stars, px: a trail is at least that wide.
    maximum:
        How many trails are looked for.
    """
    factor = max(1, min(data.shape) // BINNED)
    binned, weight = _binned(data, noise, unusable, factor)
    if min(binned.shape) < 32:
        return []
    radon = _Radon(binned.shape)
    trails: list[Trail] = []
    for _ in range(maximum):
        line = radon.best(binned, weight)
        if line is None:
            break
        theta, rho, significance = line
        ends = _ends(binned, weight, theta, rho)
        if ends is not None:
            half = _half_width(data, noise, unusable, ends, factor, fwhm)
            if half is not None:
                scaled = [(v + 0.5) * factor - 0.5 for v in ends]
                trails.append(Trail(*scaled, half, significance))
        # Whatever it was, the next search is to find something else.
        _erase(binned, weight, theta, rho)
    return trails


def trail_mask(shape: tuple[int, int], trails: list[Trail]) -> npt.NDArray[np.bool_]:
    """Return the pixels that trails cover, ends included."""
    mask = np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for t in trails:
        length = float(np.hypot(t.x1 - t.x0, t.y1 - t.y0)) or 1.0
        ux, uy = (t.x1 - t.x0) / length, (t.y1 - t.y0) / length
        along = (x - t.x0) * ux + (y - t.y0) * uy
        across = np.abs((y - t.y0) * ux - (x - t.x0) * uy)
        mask |= (across <= t.half_width) & (along >= -t.half_width) & (along <= length + t.half_width)
    return mask


def _binned(
    data: Image, noise: Image | float, unusable: npt.NDArray[np.bool_], factor: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the binned image in units of its own noise, smooth structure removed, and each pixel's weight."""
    h, w = (n // factor * factor for n in data.shape)
    # Stars are held down before binning already, or each would fill its bin to the cap.
    signal = np.clip(
        data[:h, :w] / noise if np.isscalar(noise) else data[:h, :w] / noise[:h, :w], -CAP, 2 * CAP
    )
    good = ~unusable[:h, :w]
    blocks = (h // factor, factor, w // factor, factor)
    count = good.reshape(blocks).sum(axis=(1, 3)).astype(np.float32)
    total = np.where(good, signal, 0).reshape(blocks).sum(axis=(1, 3))
    binned = (total / np.sqrt(np.maximum(count, 1))).astype(np.float32)
    # Galaxies, halos and gradients are wider than a trail.
    binned -= ndimage.median_filter(binned, size=15, mode="nearest")
    low, high = np.percentile(binned[count > 0], [15.87, 84.13]) if (count > 0).any() else (-1.0, 1.0)
    binned = np.clip(binned / max((high - low) / 2, 1e-6), -CAP, CAP)
    weight = (count > 0.3 * factor**2).astype(np.float32)
    return binned * weight, weight


class _Radon:
    """Sums along all straight lines of an image: x cos θ + y sin θ = ρ, in steps of a pixel at the border."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
        self.reach = int(np.ceil(np.hypot(*shape) / 2)) + 1
        steps = int(np.ceil(np.pi / 2 * max(shape)))
        self.thetas = np.arange(steps) * np.pi / steps
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        self.x, self.y = (x - self.centre[0]).ravel(), (y - self.centre[1]).ravel()
        self.index: list[npt.NDArray[np.int32]] | None = None

    def best(
        self, image: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
    ) -> tuple[float, float, float] | None:
        """Return (θ, ρ, significance) of the brightest line, or None if none stands `SIGMA` out."""
        bins = 2 * self.reach + 1
        used = np.flatnonzero(weight.ravel() > 0)
        values = image.ravel()[used]
        x, y = self.x[used], self.y[used]
        sums = np.empty((len(self.thetas), bins), np.float32)
        counts = np.empty_like(sums)
        for i, theta in enumerate(self.thetas):
            rho = (x * np.float32(np.cos(theta)) + y * np.float32(np.sin(theta)) + self.reach + 0.5).astype(
                np.int32
            )
            sums[i] = np.bincount(rho, values, bins)
            counts[i] = np.bincount(rho, minlength=bins)
        # A trail lies across two bins as a rule: lines two wide lose nothing.
        sums = sums[:, :-1] + sums[:, 1:]
        counts = counts[:, :-1] + counts[:, 1:]
        long = counts > 2 * LENGTH * min(self.shape)
        if not long.any():
            return None
        score = np.where(long, sums / np.sqrt(np.maximum(counts, 1)), 0)
        middle = float(np.median(score[long]))
        low, high = np.percentile(score[long], [15.87, 84.13])
        sigma = max(float(high - low) / 2, 1.0)
        at = np.unravel_index(np.argmax(score), score.shape)
        significance = (float(score[at]) - middle) / sigma
        if significance < SIGMA:
            return None
        return float(self.thetas[at[0]]), float(at[1] + 0.5 - self.reach), significance


def _along(
    image: npt.NDArray[np.float32], theta: float, rho: float, offset: float = 0.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x, y of the points of a line, a pixel apart, that lie inside of the image, and the places along it."""
    height, width = image.shape
    cx, cy = (width - 1) / 2, (height - 1) / 2
    t = np.arange(-np.hypot(height, width) / 2, np.hypot(height, width) / 2)
    x = cx + (rho + offset) * np.cos(theta) - t * np.sin(theta)
    y = cy + (rho + offset) * np.sin(theta) + t * np.cos(theta)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return x[inside], y[inside], t[inside]


def _sample(image: npt.NDArray[Any] | Image, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return image[np.rint(y).astype(int), np.rint(x).astype(int)]


def _ends(
    image: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], theta: float, rho: float
) -> tuple[float, float, float, float] | None:
    """Return the two ends of the light along a line in binned pixels, or None if it is not lit for long enough."""
    x, y, _ = _along(image, theta, rho)
    if x.size < LENGTH * min(image.shape):
        return None
    values = np.zeros(x.size)
    known = np.zeros(x.size)
    for offset in (-1.0, 0.0, 1.0):
        xo = np.clip(x + offset * np.cos(theta), 0, image.shape[1] - 1)
        yo = np.clip(y + offset * np.sin(theta), 0, image.shape[0] - 1)
        values += _sample(image, xo, yo)
        known += _sample(weight, xo, yo)
    edges = np.linspace(0, x.size, PIECES + 1).astype(int)
    sums = np.add.reduceat(values, edges[:-1])
    counts = np.maximum(np.add.reduceat(known, edges[:-1]), 1)
    # 2 σ of a piece's own noise: by chance one piece in forty is lit.
    lit = sums > 2 * np.sqrt(counts)
    blind = np.add.reduceat(known, edges[:-1]) < 0.3 * 3 * np.diff(edges)
    where = np.flatnonzero(lit)
    if where.size < 2:
        return None
    # The longest stretch in which no more than two pieces in a row are dark.
    breaks = np.flatnonzero(np.diff(where) > 3)
    first = np.concatenate([[0], breaks + 1])
    last = np.concatenate([breaks, [where.size - 1]])
    longest = int(np.argmax(where[last] - where[first]))
    begin, end = int(where[first[longest]]), int(where[last[longest]]) + 1
    span = edges[end] - edges[begin]
    seen = ~blind[begin:end]
    if span < LENGTH * min(image.shape) or not seen.any() or lit[begin:end][seen].mean() < COVERED:
        return None
    a, b = edges[begin], edges[end] - 1
    # An end within a piece of the border is at the border: trails do not stop there.
    a = 0 if begin <= 1 else a
    b = x.size - 1 if end >= PIECES - 1 else b
    return float(x[a]), float(y[a]), float(x[b]), float(y[b])


def _half_width(
    data: Image,
    noise: Image | float,
    unusable: npt.NDArray[np.bool_],
    ends: tuple[float, float, float, float],
    factor: int,
    fwhm: float | None,
) -> float | None:
    """Return how far to either side of its line a trail has to be masked, px; None if the light has no end there."""
    x0, y0, x1, y1 = ((v + 0.5) * factor - 0.5 for v in ends)
    length = float(np.hypot(x1 - x0, y1 - y0))
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    t = np.arange(0, length)
    reach = MAX_HALF_WIDTH + 20
    profile, error = [], []
    offsets = np.arange(-reach, reach + 1)
    for offset in offsets:
        x = np.rint(x0 + t * ux - offset * uy).astype(int)
        y = np.rint(y0 + t * uy + offset * ux).astype(int)
        inside = (x >= 0) & (x < data.shape[1]) & (y >= 0) & (y < data.shape[0])
        x, y = x[inside], y[inside]
        good = ~unusable[y, x]
        values = data[y, x][good] / (noise if np.isscalar(noise) else noise[y, x][good])
        profile.append(float(np.median(values)) if values.size > 20 else 0.0)
        error.append(1.25 / np.sqrt(max(values.size, 1)))
    brightness = np.array(profile)
    outside = np.abs(offsets) > MAX_HALF_WIDTH
    brightness -= np.median(brightness[outside])
    threshold = np.maximum(FAINT, 3 * np.array(error))
    lit = brightness > threshold
    near = np.abs(offsets) <= 2 * factor + 3
    if not (lit & near).any():
        return None
    peak = int(np.flatnonzero(near)[np.argmax(brightness[near])])
    low = high = peak
    while low > 0 and lit[low - 1]:
        low -= 1
    while high < lit.size - 1 and lit[high + 1]:
        high += 1
    half = float(max(abs(offsets[low]), abs(offsets[high])))
    if half > MAX_HALF_WIDTH:
        return None
    # The line is known to half a binned pixel, and a star's width beyond the last lit row is still touched.
    return half + max(1.0, 0.5 * (fwhm or 2.0)) + 0.5


def _erase(
    image: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    theta: float,
    rho: float,
    half: float = 3.0,
) -> None:
    """Give the pixels about a line no more weight, in place."""
    height, width = image.shape
    y, x = np.ogrid[:height, :width]
    distance = (x - (width - 1) / 2) * np.cos(theta) + (y - (height - 1) / 2) * np.sin(theta) - rho
    near = np.abs(distance) <= half
    image[near] = 0
    weight[near] = 0
