"""What a detector does to light: photon noise, saturation and bleeding, cosmic rays, bad pixels, ghosts, trails."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
Hit = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]
Boolean = npt.NDArray[np.bool_]


def photon_noise(rng: np.random.Generator, expected: Image, exposures: int = 1) -> Image:
    """Return one draw of the mean of `exposures` exposures of these expected electrons a pixel."""
    drawn = rng.poisson(np.maximum(expected, 0) * np.float32(exposures))
    return (drawn / exposures).astype(np.float32)


def bleed(image: Image, full_well: float) -> tuple[Boolean, Boolean]:
    """Let pixels over the full well spill their charge along their column, in place; charge is conserved.

    Returns
    -------
    (saturated, bled):
        Pixels that were over the full well by their own light, and pixels that took up spilled charge.
    """
    saturated = image > full_well
    bled = np.zeros(image.shape, bool)
    for x in np.flatnonzero(saturated.any(axis=0)):
        column = image[:, x].astype(np.float64)
        rows = np.flatnonzero(saturated[:, x])
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            low, high = int(run[0]), int(run[-1]) + 1
            excess = float((column[low:high] - full_well).clip(0).sum())
            column[low:high] = np.minimum(column[low:high], full_well)
            up = _spill(column[high:], excess / 2, full_well)
            down = _spill(column[:low][::-1], excess / 2, full_well)
            bled[high : high + up, x] = True
            bled[low - down : low, x] = True
        image[:, x] = column
    return saturated, bled & ~saturated


def _spill(column: npt.NDArray[np.float64], charge: float, full_well: float) -> int:
    """Fill `column` (a view) from its start with `charge`; return how many pixels took any. What reaches the end is
    lost to the register."""
    if charge <= 0 or not len(column):
        return 0
    room = np.maximum(full_well - column, 0)
    taken = np.clip(charge - (np.cumsum(room) - room), 0, room)
    column += taken
    return int(np.count_nonzero(charge > np.cumsum(room) - room))


def cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], n: int) -> list[Hit]:
    """Draw `n` cosmic rays: for each its rows, columns and electrons.

    Muons leave straight tracks as long as their slant through the silicon makes them (median 2 px, seldom over 20),
    with some 100 electrons per µm · 10-20 µm of path in a pixel, and Landau-like tails; one in six is an electron
    that scatters and leaves a worm.
    """
    hits = []
    height, width = shape
    for _ in range(n):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
        worm = rng.random() < 1 / 6
        length = min(rng.exponential(10.0) + 3 if worm else abs(rng.standard_cauchy()) * 1.5, 60.0)
        steps = max(int(length / 0.2), 1)
        turn = np.cumsum(rng.normal(0, 0.18, steps)) if worm else np.zeros(steps)
        xs = x + np.cumsum(np.cos(angle + turn)) * 0.2
        ys = y + np.cumsum(np.sin(angle + turn)) * 0.2
        per_pixel = rng.lognormal(math.log(1200), 0.6)
        inside = (xs >= -0.5) & (xs < width - 0.5) & (ys >= -0.5) & (ys < height - 0.5)
        flat = np.rint(ys[inside]).astype(int) * width + np.rint(xs[inside]).astype(int)
        if not len(flat):
            continue
        # A hit shorter than a pixel still leaves the charge of its whole depth.
        weight = max(length, 1.0) / steps
        pixels, where = np.unique(flat, return_inverse=True)
        charge = np.bincount(where, minlength=len(pixels)) * weight * per_pixel
        charge = charge * rng.lognormal(0, 0.25, len(pixels))
        hits.append((pixels // width, pixels % width, charge))
    return hits


def line_profile(
    shape: tuple[int, int], x: float, y: float, angle: float, fwhm: float
) -> tuple[Image, Boolean]:
    """Return the light of an endless trail through (x, y), 1 on its ridge, and where it is over 1 % of that."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.abs((columns - x) * math.sin(angle) - (rows - y) * math.cos(angle)).astype(np.float32)
    # The line spread function of a Moffat β = 3.5 is a Moffat of one dimension with β - 1/2.
    alpha = np.float32(fwhm / (2 * math.sqrt(2 ** (1 / 3.5) - 1)))
    light = (1 + (distance / alpha) ** 2) ** np.float32(-3)
    return light, light > 0.01


def ghost(shape: tuple[int, int], x: float, y: float, radius: float) -> Image:
    """Return a ghost of unit flux: the image of the pupil, a disc with a hole of a third of its radius."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(columns - x, rows - y).astype(np.float32)
    outer, inner = np.float32(radius), np.float32(radius / 3)
    # Edges of one pixel, so that the disc is not jagged.
    light = np.clip(outer - distance + 0.5, 0, 1) * np.clip(distance - inner + 0.5, 0, 1)
    return (light / max(float(light.sum()), 1.0)).astype(np.float32)


def bad_columns(
    rng: np.random.Generator, shape: tuple[int, int], n: int
) -> list[tuple[int, int, int, float]]:
    """Draw `n` bad columns: (column, first row, end row, factor). They reach from a trap to one end of the detector;
    a factor under 1 traps charge, over 1 leaks it (in units of the sky)."""
    out = []
    for x in rng.choice(shape[1], size=n, replace=False):
        start = int(rng.integers(0, shape[0] // 2))
        y0, y1 = (start, shape[0]) if rng.random() < 0.5 else (0, shape[0] - start)
        factor = float(rng.uniform(0.1, 0.7) if rng.random() < 0.6 else rng.uniform(1.5, 4.0))
        out.append((int(x), y0, y1, factor))
    return out
