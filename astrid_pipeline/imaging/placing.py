"""Where the sources behind the peaks of a score lie, and how bright each is by itself.

The score is the flux over its error, and where the error varies (on the core of a star or galaxy, whose photons,
registration and PSF are uncertain) its peak is pushed off the source to where the error is smaller. The source lies
where the flux image has its maximum, the light of its neighbours taken away; the flux is read where the score peaks,
where it is best known, and divided by the profile's value between the two places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.moments import cut_stamps
from astrid_pipeline.imaging.peaks import TAPS, Peaks, interpolate, refine_stamps

_Float = npt.NDArray[np.float64]
_Int = npt.NDArray[np.int64]

#: How far from its peak in the score a source is looked for, px and in FWHM.
REACH, REACH_FWHM = 3, 0.95
#: Peaks whose sources lie closer together than this, in FWHM, are of one source: a score that dips on its core has two.
SAME = 0.5
#: Rounds of placing sources whose profiles overlap.
ROUNDS = 4
#: A neighbour counts if its light is this share of the source's own there: it moves a place by a hundredth of a pixel.
COUNTS = 0.02
#: Share of a source's flux that its score's peak must show: less would be a guess.
LEAST = 0.3
#: Sources treated in one go, and pairs of neighbours beyond which only each one's own place is refined (a wreck).
_CHUNK, _MANY = 2000, 40_000


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile of peak 1 (odd square, from `peaks.correlation`) that can be read between its pixels."""

    values: _Float
    spline: _Float

    @classmethod
    def of(cls, values: _Float) -> Profile:
        """Prepare a profile for reading."""
        from scipy.ndimage import spline_filter

        return cls(values, spline_filter(values, order=3, mode="mirror"))

    @property
    def half(self) -> int:
        """How far it reaches, px."""
        return len(self.values) // 2

    def at(self, dx: npt.NDArray[np.floating], dy: npt.NDArray[np.floating]) -> _Float:
        """Return the profile at offsets from its middle, 0 beyond its border."""
        from scipy.ndimage import map_coordinates

        where = np.stack([np.asarray(dy, float) + self.half, np.asarray(dx, float) + self.half])
        read = map_coordinates(self.spline, where, order=3, mode="mirror", prefilter=False)
        inside = (np.abs(dx) <= self.half) & (np.abs(dy) <= self.half)
        return np.asarray(np.where(inside, read, 0.0))


def place(
    flux: Image, peaks: Peaks, profile: Profile, fwhm: float
) -> tuple[Peaks, npt.NDArray[np.int64], _Float, _Float]:
    """Return where the sources behind the peaks of a score lie, and their fluxes.

    Parameters
    ----------
    flux:
        (height, width) flux of a point source at each pixel.
    peaks:
        Of the score, strongest first.
    profile:
        What a source of flux 1 leaves in the flux image.
    fwhm:
        Of the source, px. Peaks closer than this are not told from one another: what separates them is worth less
        than the noise it would amplify.

    Returns
    -------
    The sources, in the peaks' order (their `value` is the score's still); the index of each one's peak (of several
    peaks of one source the strongest stays); each one's own flux; and the number by which the error of the flux at
    the score's peak has to be multiplied, 1 / profile(peak - source).
    """
    every = np.arange(len(peaks))
    if not len(peaks):
        return peaks, every, np.zeros(0), np.ones(0)
    x, y = _placed(flux, peaks, peaks.x, peaks.y, np.zeros(0), profile, fwhm, every, every[:0], every[:0])
    kept = _distinct(x, y, peaks, SAME * fwhm)
    peaks, x, y = peaks.take(kept), x[kept], y[kept]
    seen = interpolate(flux, peaks.x, peaks.y)
    first, second = _neighbours(peaks, profile, fwhm)
    own = _own_values(seen, peaks, x, y, profile, first, second)
    moving = np.unique(first)
    for _ in range(ROUNDS):
        edges = np.isin(first, moving)
        share = np.abs(own[second] * profile.at(x[first] - x[second], y[first] - y[second]))
        edges &= share > COUNTS * np.abs(own[first])
        moving = np.unique(first[edges])
        if not len(moving):
            break
        x[moving], y[moving] = _placed(
            flux, peaks, x, y, own, profile, fwhm, moving, first[edges], second[edges]
        )
        # What runs into its neighbour is one extended source, not two points: it stays where the score has it.
        merging = np.unique(first[np.hypot(x[first] - x[second], y[first] - y[second]) < fwhm])
        x[merging], y[merging] = peaks.x[merging], peaks.y[merging]
        own = _own_values(seen, peaks, x, y, profile, first, second)
        moving = np.setdiff1d(moving, merging)
    between = np.clip(profile.at(peaks.x - x, peaks.y - y), LEAST, None)
    height, width = flux.shape
    column = np.clip(np.rint(x), 0, width - 1).astype(np.int64)
    row = np.clip(np.rint(y), 0, height - 1).astype(np.int64)
    return Peaks(x, y, column, row, peaks.value), kept, own, 1 / between


def _distinct(x: _Float, y: _Float, peaks: Peaks, radius: float) -> _Int:
    """Return the peaks without those whose source a stronger one of the same sign has within `radius` already."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(np.column_stack([x, y])).query_pairs(radius, output_type="ndarray")
    pairs = np.sort(pairs[np.sign(peaks.value[pairs[:, 0]]) == np.sign(peaks.value[pairs[:, 1]])], axis=1)
    kept = np.ones(len(peaks), bool)
    for strong, weak in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if kept[strong]:
            kept[weak] = False
    return np.flatnonzero(kept)


def _neighbours(peaks: Peaks, profile: Profile, nearest: float) -> tuple[_Int, _Int]:
    """Return both directions of the pairs of peaks that reach one another and are `nearest` apart at least."""
    from scipy.spatial import cKDTree

    places = np.column_stack([peaks.x, peaks.y])
    pairs = cKDTree(places).query_pairs(profile.half, output_type="ndarray")
    distance = np.hypot(*(places[pairs[:, 0]] - places[pairs[:, 1]]).T)
    pairs = pairs[distance >= nearest]
    if len(pairs) > _MANY:
        pairs = pairs[:0]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return both[:, 0], both[:, 1]


def _own_values(
    seen: _Float, peaks: Peaks, x: _Float, y: _Float, profile: Profile, first: _Int, second: _Int
) -> _Float:
    """Solve seen_i = Σ_j own_j profile(peak_i - source_j)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import spsolve

    diagonal = np.clip(profile.at(peaks.x - x, peaks.y - y), LEAST, None)
    if not len(first):
        return seen / diagonal
    share = profile.at(peaks.x[first] - x[second], peaks.y[first] - y[second])
    every = np.arange(len(peaks))
    rows, columns = np.concatenate([every, first]), np.concatenate([every, second])
    values = np.concatenate([diagonal, share])
    matrix = coo_matrix((values, (rows, columns)), shape=(len(peaks), len(peaks))).tocsc()
    return np.asarray(spsolve(matrix, seen))


def _placed(
    flux: Image,
    peaks: Peaks,
    x: _Float,
    y: _Float,
    own: _Float,
    profile: Profile,
    fwhm: float,
    moving: _Int,
    first: _Int,
    second: _Int,
) -> tuple[_Float, _Float]:
    """Return the maxima of the flux image nearest to the peaks `moving`, neighbours' light taken away.

    Where there is none within reach, the peak of the score stays.
    """
    side = TAPS + REACH
    taps = np.arange(-side, side + 1)
    new_x, new_y = peaks.x[moving].copy(), peaks.y[moving].copy()
    for start in range(0, len(moving), _CHUNK):
        some = moving[start : start + _CHUNK]
        sign = np.sign(peaks.value[some])
        patch = cut_stamps(flux, peaks.column[some], peaks.row[some], 2 * side + 1).astype(float)
        local = np.searchsorted(some, first)
        here = (local < len(some)) & (some[np.minimum(local, len(some) - 1)] == first)
        for k in np.array_split(np.flatnonzero(here), max(1, int(here.sum()) // _CHUNK)):
            dx = peaks.column[first[k], None] + taps - x[second[k], None]
            dy = peaks.row[first[k], None] + taps - y[second[k], None]
            dx, dy = np.broadcast_arrays(dx[:, None, :], dy[:, :, None])
            np.subtract.at(patch, local[k], own[second[k], None, None] * profile.at(dx, dy))
        patch *= sign[:, None, None]
        column, row, found = _nearest_maximum(patch, peaks.x[some] - peaks.column[some],
                                              peaks.y[some] - peaks.row[some], fwhm)  # fmt: skip
        index = np.arange(len(some))[:, None, None]
        rows = (row + side)[:, None, None] + np.arange(-TAPS, TAPS + 1)[:, None]
        columns = (column + side)[:, None, None] + np.arange(-TAPS, TAPS + 1)
        dx, dy = refine_stamps(patch[index, rows, columns])
        at_x, at_y = peaks.column[some] + column + dx, peaks.row[some] + row + dy
        part = slice(start, start + len(some))
        new_x[part] = np.where(found, at_x, new_x[part])
        new_y[part] = np.where(found, at_y, new_y[part])
    return new_x, new_y


def _nearest_maximum(
    patch: _Float, dx: _Float, dy: _Float, fwhm: float
) -> tuple[_Int, _Int, npt.NDArray[np.bool_]]:
    """Return for each patch the pixel (column, row from the middle) of the positive local maximum nearest to (dx, dy).

    Also whether there is one within reach; (0, 0) where there is not.
    """
    side = patch.shape[1] // 2
    inner = slice(side - REACH, side + REACH + 1)
    core = patch[:, inner, inner]
    highest = core > 0
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            if a or b:
                beside = patch[
                    :, side - REACH + a : side + REACH + 1 + a, side - REACH + b : side + REACH + 1 + b
                ]
                highest &= core >= beside
    axis = np.arange(-REACH, REACH + 1)
    away = np.hypot(axis[:, None] - dy[:, None, None], axis - dx[:, None, None])
    away = np.where(highest & (away <= min(float(REACH), max(1.5, REACH_FWHM * fwhm))), away, np.inf)
    flat = away.reshape(len(patch), -1)
    best = np.argmin(flat, axis=1)
    found = np.isfinite(flat[np.arange(len(flat)), best])
    row, column = np.divmod(best, 2 * REACH + 1)
    return np.where(found, column - REACH, 0), np.where(found, row - REACH, 0), found
