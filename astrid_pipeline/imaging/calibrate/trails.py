"""Satellite trails: straight lines of light across a large part of the frame.

The frame, in units of its noise and with stars held down, is binned, and its fast Radon transform (Brady 1998, SIAM
J. Comput. 27, 107; for streaks Nir, Zackay & Ofek 2018, AJ 156, 229) tells how much light lies along every straight
line. A line is a trail if its sum stands out of all others' and if light is found along
most of its way: a bright galaxy or a row of stars lights up a piece of a line, a trail all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.calibrate.defects import local_median
from astrid_pipeline.imaging.frame import Image

#: Side of the binned image, pixels, a power of two: a trail of ≥ 0.3 σ a pixel shows, and a transform costs little.
BINNED = 256

#: A binned pixel counts for no more than this many σ, so that no star makes a line.
CAP = 3.0

#: σ of the line sums, among all lines of the frame, that a trail must have. 10⁵ lines give 4.3 σ by chance; stars
#: and galaxies make the distribution's tail longer than a Gaussian's.
SIGMA = 8.0

#: Share of the frame's shorter side that a trail must cross.
LENGTH = 0.3

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
    factor = -(-max(data.shape) // BINNED)
    binned, weight = _binned(data, noise, unusable, factor)
    if min(binned.shape) < 32:
        return []
    trails: list[Trail] = []
    for _ in range(maximum):
        line = brightest_line(binned, weight)
        if line is None:
            break
        theta, rho, significance = line
        ends = _ends(binned, weight, theta, rho)
        if ends is not None:
            half = _half_width(data, noise, unusable, ends, factor, fwhm)
            if half is not None:
                scaled = [(v + 0.5) * factor - 0.5 for v in ends]
                trails.append(Trail(scaled[0], scaled[1], scaled[2], scaled[3], half, significance))
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
    sigma = np.broadcast_to(np.asarray(noise, np.float32), data.shape)
    ratio: Image = data[:h, :w] / sigma[:h, :w]
    signal = np.clip(ratio, -CAP, 2 * CAP)
    good = ~unusable[:h, :w]
    blocks = (h // factor, factor, w // factor, factor)
    count = good.reshape(blocks).sum(axis=(1, 3)).astype(np.float32)
    total = np.where(good, signal, 0).reshape(blocks).sum(axis=(1, 3))
    binned = (total / np.sqrt(np.maximum(count, 1))).astype(np.float32)
    # Galaxies, halos and gradients are wider than a trail.
    binned -= local_median(binned, 15)
    low, high = np.percentile(binned[count > 0], [15.87, 84.13]) if (count > 0).any() else (-1.0, 1.0)
    binned = np.clip(binned / max((high - low) / 2, 1e-6), -CAP, CAP)
    weight = (count > 0.3 * factor**2).astype(np.float32)
    return binned * weight, weight


def radon_quadrant(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return sums along the lines that rise by 0 to N − 1 rows over the N columns of a square image, N a power of two.

    Element [s, h] is the sum over columns x of the pixels at row h − N + (about) s x / (N − 1). Two halves of a line
    are lines of half the rise: log₂ N steps make all N · 2N sums.
    """
    n = image.shape[0]
    # Columns first; n empty rows before and after, so that lines may enter and leave through the sides.
    strips = np.zeros((n, 1, 3 * n), np.float32)
    strips[:, 0, n : 2 * n] = image.T
    while strips.shape[0] > 1:
        left, right = strips[0::2], strips[1::2]
        rises = left.shape[1] * 2
        joined = np.empty((left.shape[0], rises, 3 * n), np.float32)
        for rise in range(rises):
            shift = (rise + 1) // 2
            joined[:, rise] = left[:, rise // 2]
            joined[:, rise, : 3 * n - shift] += right[:, rise // 2, shift:]
        strips = joined
    return strips[0, :, : 2 * n]


def _quadrants(image: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Return the image so turned that each line rises by at most 45° from left to right in one of four versions."""
    return [image, image[::-1], image.T, image.T[::-1]]


def brightest_line(
    image: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> tuple[float, float, float] | None:
    """Return (θ, ρ, significance) of the brightest line, or None if none stands `SIGMA` out of all lines.

    The line is x cos θ + y sin θ = ρ, with x and y counted from the image's centre, in pixels.
    """
    side = 1 << (max(image.shape) - 1).bit_length()
    values = np.zeros((side, side), np.float32)
    known = np.zeros((side, side), np.float32)
    values[: image.shape[0], : image.shape[1]] = image
    known[: image.shape[0], : image.shape[1]] = weight
    scores, counts = [], []
    for part, there in zip(_quadrants(values), _quadrants(known), strict=True):
        sums, count = radon_quadrant(part), radon_quadrant(there)
        # A trail lies across two rows as a rule: lines two wide lose nothing.
        sums, count = sums[:, :-1] + sums[:, 1:], count[:, :-1] + count[:, 1:]
        scores.append(sums / np.sqrt(np.maximum(count, 1)))
        counts.append(count)
    score, count = np.stack(scores), np.stack(counts)
    long = count > 2 * LENGTH * min(image.shape)
    if not long.any():
        return None
    sample = score[long]
    low, middle, high = np.percentile(sample[:: max(1, sample.size // 100_000)], [15.87, 50, 84.13])
    score[~long] = -np.inf
    quadrant, rise, height = np.unravel_index(int(np.argmax(score)), score.shape)
    significance = (float(score[quadrant, rise, height]) - middle) / max((high - low) / 2, 1.0)
    if significance < SIGMA:
        return None
    # From (x, y) at the first column to that at the last, back to the image's own axes.
    y0 = float(height) + 0.5 - side
    ends = [(0.0, y0), (side - 1.0, y0 + float(rise))]
    if quadrant % 2:
        ends = [(x, side - 1 - y) for x, y in ends]
    if quadrant >= 2:
        ends = [(y, x) for x, y in ends]
    (xa, ya), (xb, yb) = ends
    theta = float(np.arctan2(xb - xa, ya - yb)) % np.pi
    cx, cy = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return theta, float((xa - cx) * np.cos(theta) + (ya - cy) * np.sin(theta)), float(significance)


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
    """Return how far to either side of its line a trail has to be masked, px; None if the line is no trail.

    A trail is a ridge: it has sky on both sides, of one level. The border of the frame, the edge of a vignetted
    strip or of an amplifier have not.
    """
    offsets, brightness, error = _profile(data, noise, unusable, ends, factor)
    outside = np.abs(offsets) > MAX_HALF_WIDTH
    sides = [brightness[outside & (sign * offsets > 0)] for sign in (-1, 1)]
    if not all(np.isfinite(side).sum() > side.size / 2 for side in sides):
        return None
    left, right = (float(np.nanmedian(side)) for side in sides)
    brightness = np.nan_to_num(brightness - (left + right) / 2)
    lit = brightness > np.maximum(FAINT, 3 * error)
    near = np.abs(offsets) <= 2 * factor + 3
    if not (lit & near).any():
        return None
    peak = int(np.flatnonzero(near)[np.argmax(brightness[near])])
    if abs(left - right) > 0.5 * brightness[peak]:
        return None
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


def _profile(
    data: Image,
    noise: Image | float,
    unusable: npt.NDArray[np.bool_],
    ends: tuple[float, float, float, float],
    factor: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return offsets across a line (px), the median light along it at each in σ of a pixel, and its error.

    NaN where less than half of the line lies inside of the frame.
    """
    sigma = np.broadcast_to(np.asarray(noise, np.float32), data.shape)
    x0, y0, x1, y1 = ((v + 0.5) * factor - 0.5 for v in ends)
    length = float(np.hypot(x1 - x0, y1 - y0))
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    t = np.arange(0, length)
    reach = MAX_HALF_WIDTH + 20
    offsets = np.arange(-reach, reach + 1)
    light = np.full(offsets.size, np.nan)
    error = np.ones(offsets.size)
    for i, offset in enumerate(offsets):
        x = np.rint(x0 + t * ux - offset * uy).astype(int)
        y = np.rint(y0 + t * uy + offset * ux).astype(int)
        inside = (x >= 0) & (x < data.shape[1]) & (y >= 0) & (y < data.shape[0])
        x, y = x[inside], y[inside]
        good = ~unusable[y, x]
        if good.sum() > max(20, t.size / 2):
            light[i] = np.median(data[y, x][good] / sigma[y, x][good])
            error[i] = 1.25 / np.sqrt(good.sum())
    return offsets, light, error


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
