"""Peaks of a significance image: found sparsely, placed between the pixels, and told from one another's flanks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.moments import cut_stamps
from astrid_pipeline.imaging.psf_model import PSF

_Float = npt.NDArray[np.float64]
_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

#: Pixels over the threshold that are looked at; a frame with more (a tenth of 2048²) is not a difference but a wreck.
MAX_PIXELS = 400_000
#: A peak on the flank of a brighter one must rise over the brighter one's expected light by this share of it as well:
#: so well is a PSF known, and a flank's own error is no source.
FLANK_SHARE = 0.10
#: A source on another's shoulder, without a peak of its own, must make this share of the value there: the shoulders of
#: a source a third wider than the PSF stay below.
SHOULDER_SHARE = 0.6
#: Points on either side of the polynomial that interpolates between pixels. On an image filtered with a PSF of FWHM
#: 2.3 px it errs by 1e-3 of the peak at most; a Lanczos kernel of that size by 7e-3, since it droops.
TAPS = 5


@dataclass(frozen=True, eq=False)
class Peaks:
    """Positions between pixels (x, y), the brightest pixel (column, row), and the interpolated value, signed."""

    x: _Float
    y: _Float
    column: _Int
    row: _Int
    value: _Float

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: npt.NDArray) -> Peaks:
        """Return some of them."""
        return Peaks(self.x[index], self.y[index], self.column[index], self.row[index], self.value[index])

    def joined(self, other: Peaks) -> Peaks:
        """Return these and others, strongest first."""
        names = ("x", "y", "column", "row", "value")
        both = Peaks(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))
        return both.take(np.argsort(-np.abs(both.value), kind="stable"))


def correlation(psf: PSF) -> _Float:
    """Return the profile, of peak 1, that a point source has in an image filtered with its own PSF (odd square)."""
    from scipy.signal import fftconvolve

    stamp = psf.stamp()
    profile = fftconvolve(stamp, stamp[::-1, ::-1], mode="same")
    return profile / profile[psf.size // 2, psf.size // 2]


def find_peaks(
    image: Image, threshold: float, profile: _Float, radius: float, excluded: _Bool
) -> tuple[Peaks, int]:
    """Find the peaks of either sign whose value between the pixels reaches the threshold, strongest first.

    Parameters
    ----------
    image:
        (height, width) significance.
    profile:
        From `correlation`.
    radius:
        Two peaks of one sign are at least so far apart, px.
    excluded:
        Where there can be no peak.

    Returns
    -------
    Peaks, and how many pixels over the threshold were not looked at, 0 except in a wrecked frame.
    """
    middle = len(profile) // 2
    # A source between four pixels shows the corner's value on each of them; a little less, for the noise.
    corner = float(np.sqrt(max(profile[middle, middle + 1] * profile[middle + 1, middle], 0.0))) ** 0.5
    low = threshold * min(max(corner, 0.7), 0.97)
    size = np.abs(image)
    over = np.flatnonzero((size >= low) & ~excluded)
    skipped = max(0, len(over) - MAX_PIXELS)
    if skipped:
        over = over[np.argpartition(size.flat[over], skipped)[skipped:]]
    row, column = np.divmod(np.sort(over), image.shape[1])
    row, column = _local_maxima(image, row, column, radius)
    sign = np.sign(image[row, column]).astype(float)
    x, y, value = refine(image, column, row, sign)
    keep = np.abs(value) >= threshold
    order = np.argsort(-np.abs(value[keep]), kind="stable")
    index = np.flatnonzero(keep)[order]
    return Peaks(x, y, column, row, value).take(index), skipped


def _local_maxima(image: Image, row: _Int, column: _Int, radius: float) -> tuple[_Int, _Int]:
    """Return those pixels that no pixel of their own sign within `radius` exceeds; of equals the first."""
    reach = int(radius)
    steps = [
        (dy, dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if 0 < dy * dy + dx * dx <= radius * radius
    ]
    # The nearest first: most pixels lose against a direct neighbour.
    steps.sort(key=lambda s: s[0] ** 2 + s[1] ** 2)
    height, width = image.shape
    for dy, dx in steps:
        y, x = row + dy, column + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        own = image[row, column]
        other = np.where(inside, image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)], 0) * np.sign(own)
        first = (dy, dx) > (0, 0)
        wins = np.abs(own) >= other if first else np.abs(own) > other
        row, column = row[wins], column[wins]
    return row, column


def _lagrange() -> _Float:
    """Return the coefficients (taps, powers) of the polynomials that are 1 at one tap and 0 at the others."""
    taps = np.arange(-TAPS, TAPS + 1)
    return np.linalg.inv(taps[:, None].astype(float) ** np.arange(2 * TAPS + 1)).T


_COEFFICIENTS = _lagrange()


def _weights(offset: _Float, derivative: int = 0) -> _Float:
    """Return (N, taps) weights that interpolate a value, or its derivative, at an offset from the middle tap."""
    power = np.arange(2 * TAPS + 1)
    factor = np.ones(len(power))
    for step in range(derivative):
        factor = factor * (power - step)
    lowered = np.maximum(power - derivative, 0)
    return (factor * offset[:, None] ** lowered) @ _COEFFICIENTS.T


def interpolate(image: Image, x: npt.ArrayLike, y: npt.ArrayLike) -> _Float:
    """Return the values of a smooth image between its pixels, by a polynomial through 11 pixels an axis."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    return interpolate_stamps(cut_stamps(image, column, row, 2 * TAPS + 1), x - column, y - row)


def interpolate_stamps(stamps: npt.NDArray[np.floating], dx: _Float, dy: _Float) -> _Float:
    """Return the values of (N, 11, 11) stamps of smooth images at offsets from their middle pixels."""
    return np.einsum("ni,ni->n", np.einsum("nij,nj->ni", stamps, _weights(dx)), _weights(dy))


def refine(image: Image, column: _Int, row: _Int, sign: _Float) -> tuple[_Float, _Float, _Float]:
    """Return x, y and value of the extremum near each pixel, by Newton's method on the interpolated image.

    The maximum of an image filtered with the PSF is the maximum-likelihood position of a point source. Where the
    method leaves the pixel and its neighbours (a plateau, a saddle), the pixel itself is returned.
    """
    patch = cut_stamps(image, column, row, 2 * TAPS + 1).astype(float)
    dx, dy = refine_stamps(patch * sign[:, None, None])
    return column + dx, row + dy, interpolate_stamps(patch, dx, dy)


def refine_stamps(patch: _Float) -> tuple[_Float, _Float]:
    """Return the offsets from the middle of (N, 11, 11) stamps at which they have their maxima; see `refine`."""
    dx, dy = np.zeros(len(patch)), np.zeros(len(patch))
    for _ in range(6):
        x0, x1, x2 = (_weights(dx, order) for order in range(3))
        y0, y1, y2 = (_weights(dy, order) for order in range(3))
        along, along1, along2 = (np.einsum("nij,nj->ni", patch, w) for w in (x0, x1, x2))
        gx, gy = (along1 * y0).sum(axis=1), (along * y1).sum(axis=1)
        xx, yy, xy = (along2 * y0).sum(axis=1), (along * y2).sum(axis=1), (along1 * y1).sum(axis=1)
        determinant = xx * yy - xy * xy
        peak = (determinant > 0) & (xx < 0)
        safe = np.where(peak, determinant, 1.0)
        step_x = np.where(peak, -(yy * gx - xy * gy) / safe, 0.3 * np.sign(gx))
        step_y = np.where(peak, -(xx * gy - xy * gx) / safe, 0.3 * np.sign(gy))
        dx = np.clip(dx + np.clip(step_x, -0.4, 0.4), -1.2, 1.2)
        dy = np.clip(dy + np.clip(step_y, -0.4, 0.4), -1.2, 1.2)
    away = np.maximum(np.abs(dx), np.abs(dy)) > 1.0
    dx, dy = np.where(away, 0.0, dx), np.where(away, 0.0, dy)
    return dx, dy


def without_flanks(peaks: Peaks, profile: _Float, threshold: float) -> Peaks:
    """Return the peaks (given strongest first) that are not explained by the stronger ones beside them.

    What a point source leaves around itself in a filtered image is its value times `profile`, negative lobes
    included. A peak stays if it exceeds the sum of its stronger neighbours' by the threshold and by `FLANK_SHARE`.
    """
    if len(peaks) < 2:
        return peaks
    strong, weak, share = _pairs(peaks, profile)
    if not len(weak):
        return peaks
    order = np.argsort(weak, kind="stable")
    strong, weak, share = strong[order], weak[order], share[order]
    bounds = np.searchsorted(weak, np.arange(len(peaks) + 1))
    kept = np.ones(len(peaks), bool)
    for i in np.unique(weak):
        part = slice(bounds[i], bounds[i + 1])
        expected = (peaks.value[strong[part]] * share[part])[kept[strong[part]]]
        own = np.sign(peaks.value[i]) * (peaks.value[i] - expected.sum())
        kept[i] = own >= threshold and own >= FLANK_SHARE * np.abs(expected).sum()
    return peaks.take(np.flatnonzero(kept))


def _pairs(peaks: Peaks, profile: _Float) -> tuple[_Int, _Int, _Float]:
    """Return the pairs of peaks, stronger and weaker, within reach of the profile, and its value between them."""
    from scipy.ndimage import map_coordinates
    from scipy.spatial import cKDTree

    half = len(profile) // 2
    pairs = cKDTree(np.column_stack([peaks.x, peaks.y])).query_pairs(half, output_type="ndarray")
    strong, weak = pairs.min(axis=1), pairs.max(axis=1)
    offsets = np.stack([peaks.y[weak] - peaks.y[strong] + half, peaks.x[weak] - peaks.x[strong] + half])
    return strong, weak, map_coordinates(profile, offsets, order=3, mode="constant")


def shoulders(
    flux: Image,
    error: Image,
    sources: Peaks,
    own: _Float,
    profile: _Float,
    threshold: float,
    radius: float,
    excluded: _Bool,
) -> Peaks:
    """Return the peaks that show when the light of the sources is taken away from a flux image.

    A source within about a score's width (1.4 FWHM) of a stronger one has no maximum of its own; what is left at its
    place when the stronger one's profile is subtracted has. It must lie `radius` from every source. The light is taken
    from the flux, not from the score, whose errors differ from pixel to pixel.

    Parameters
    ----------
    flux, error:
        (height, width).
    sources, own:
        The sources and their fluxes, from `placing.place`.
    profile, threshold, excluded:
        As for `find_peaks`.
    """
    from astrid_pipeline.imaging.psf_pixels import shift_matrix

    half = len(profile) // 2
    rest, taken = flux.copy(), excluded.copy()
    reach = int(np.ceil(radius))
    disc = np.hypot(*np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))) < radius
    for start in range(0, len(sources), 500):
        some = sources.take(np.arange(start, min(start + 500, len(sources))))
        rows, columns = (shift_matrix(a, len(profile)) for a in (some.y - some.row, some.x - some.column))
        lights = own[start : start + len(some), None, None] * (rows @ profile @ columns.transpose(0, 2, 1))
        for light, row, column in zip(lights, some.row, some.column, strict=True):
            _at(rest, row, column, half)[...] -= _inside(light, flux.shape, row, column, half)
            _at(taken, row, column, reach)[...] |= _inside(disc, flux.shape, row, column, reach)
    rest /= np.maximum(error, np.float32(1e-30))
    more, _ = find_peaks(rest, threshold, profile, radius, taken)
    there = flux[more.row, more.column] / np.maximum(error[more.row, more.column], 1e-30)
    share = np.abs(more.value) >= SHOULDER_SHARE * np.abs(there)
    share &= np.sign(more.value) == np.sign(there)
    return more.take(np.flatnonzero(share))


def _at(image: npt.NDArray, row: int, column: int, half: int) -> npt.NDArray:
    """Return the part of an image around a pixel, cut at its edges."""
    return image[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1]


def _inside(stamp: npt.NDArray, shape: tuple[int, int], row: int, column: int, half: int) -> npt.NDArray:
    """Return the part of a stamp around a pixel that lies in an image of `shape`."""
    low = (max(half - row, 0), max(half - column, 0))
    return stamp[low[0] : half + shape[0] - row, low[1] : half + shape[1] - column]
