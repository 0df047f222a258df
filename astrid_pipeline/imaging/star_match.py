"""Finding which star of one list is which of another: by the shift they share, by their pattern, by nearness.

Star lists are (N, 2) arrays of x, y in pixels, brightest first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.pixel_map import Floats, PixelFunction

#: Brightest stars whose pairs vote for a common shift.
MAX_VOTERS = 250
#: A chance of one in a thousand that unrelated stars agree as well as the accepted shift.
CHANCE = 1e-3
#: Shifts up to this many pixels are tried first, without a search, so that few stars suffice.
SMALL_SHIFT = 1.5
#: Stars that must agree: fewer fit any shift.
MIN_AGREE = 3

Index = npt.NDArray[np.int64]


def vote(seen: Floats, there: Floats, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Return the shift that more pairs of stars share than chance explains, or None.

    Boxes of 3 px (good maps) and 12 px (maps that are turned a little) are tried; in each the number of pairs by
    chance is Poisson, and all boxes had the chance to be the fullest.
    """
    from scipy.ndimage import uniform_filter
    from scipy.stats import poisson

    inside = np.isfinite(seen).all(axis=1)
    a, b = seen[inside][:MAX_VOTERS], there[:MAX_VOTERS]
    if not len(a) or not len(b):
        return None
    shifts = (b[None, :, :] - a[:, None, :]).reshape(-1, 2)
    # Pairs within two pixels of the expected place need no search: one box, so that few stars suffice.
    close = shifts[np.hypot(*shifts.T) < SMALL_SHIFT]
    expected = len(shifts) * np.pi * SMALL_SHIFT**2 / (shape[0] * shape[1])
    if len(close) >= MIN_AGREE and poisson.sf(len(close) - 1, expected) < CHANCE:
        return _centre(shifts, np.median(close, axis=0), SMALL_SHIFT)
    reach = 0.5 * max(shape)
    shifts = shifts[(np.abs(shifts) < reach).all(axis=1)]
    for box in (3.0, 12.0):
        bins = int(np.ceil(2 * reach / box))
        counts, edges, _ = np.histogram2d(
            shifts[:, 0], shifts[:, 1], bins=bins, range=[[-bins * box / 2, bins * box / 2]] * 2
        )
        # 2 × 2 boxes together, so that a shift on a boundary is not split.
        joined = 4 * uniform_filter(counts, 2, mode="constant")
        wide = uniform_filter(counts, 25, mode="nearest")
        chance = poisson.sf(np.rint(joined) - 1, np.maximum(4 * wide, 4 * len(shifts) / counts.size / 4))
        best = np.unravel_index(np.argmin(np.where(joined >= 4, chance, 1.0)), joined.shape)
        if joined[best] >= 4 and chance[best] * 4 * counts.size < CHANCE:
            middle = np.array([edges[best[0]], edges[best[1]]])
            return _centre(shifts, middle, box)
    return None


def _centre(shifts: Floats, start: Floats, radius: float) -> tuple[float, float]:
    """Return the mean of the densest part of the shifts around `start`."""
    centre = np.asarray(start, float)
    for shrink in (1.5, 1.0, 0.7, 0.5):
        near = shifts[np.hypot(*(shifts - centre).T) < shrink * radius]
        if not len(near):
            break
        centre = np.median(near, axis=0)
    return float(centre[0]), float(centre[1])


def pattern(here: Floats, there: Floats) -> PixelFunction | None:
    """Match the stars by the triangles they form: any shift, turn and scale, mirrored too; None if nothing fits.

    astroalign (Beroiz, Cabral & Sanchez 2020) finds the similarity; it knows no mirroring, so that both are tried.
    """
    import astroalign

    if len(here) < 3 or len(there) < 3:
        return None
    seen, wanted = here[:MAX_VOTERS], there[:MAX_VOTERS]
    for mirror in (1.0, -1.0):
        flipped = seen * (mirror, 1.0)
        try:
            transform, (matched, _) = astroalign.find_transform(flipped, wanted, max_control_points=40)
        except (astroalign.MaxIterError, TypeError, ValueError):
            # astroalign's ways to say that no triangle fits, or that there are too few stars.
            continue
        if len(matched) < MIN_AGREE + 2:
            continue
        matrix = np.asarray(transform.params, float)

        def function(
            x: npt.ArrayLike, y: npt.ArrayLike, matrix: Floats = matrix, mirror: float = mirror
        ) -> tuple[Floats, Floats]:
            x, y = np.asarray(x, float) * mirror, np.asarray(y, float)
            return (
                matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
                matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
            )

        return function
    return None


def match(seen: Floats, there: Floats, radius: float) -> tuple[Index, Index]:
    """Return the pairs (index into seen, index into there) that are each other's nearest, within `radius` pixels."""
    from scipy.spatial import cKDTree

    usable = np.flatnonzero(np.isfinite(seen).all(axis=1))
    if not len(usable) or not len(there):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distance, nearest = cKDTree(there).query(seen[usable], distance_upper_bound=radius)
    ok = np.isfinite(distance)
    usable, nearest = usable[ok], nearest[ok]
    if not len(usable):
        return usable, nearest
    _, back = cKDTree(seen[usable]).query(there[nearest])
    mutual = back == np.arange(len(usable))
    return usable[mutual], nearest[mutual]


def beyond_chance(matches: int, here: int, there: int, radius: float, shape: tuple[int, int]) -> bool:
    """Return whether so many matches within `radius` pixels are more than two unrelated lists would have."""
    from scipy.stats import poisson

    expected = here * there * np.pi * radius**2 / (shape[0] * shape[1])
    return bool(poisson.sf(matches - 1, expected) < CHANCE)
