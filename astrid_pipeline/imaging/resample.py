"""Resampling an image onto another grid: flux, variance and mask of a frame at a map's positions.

Pixels are read along curves in two passes (Catmull & Smith 1980): first down the source columns to where each
target row crosses them, then along the target rows. Twelve weighted pixels do what thirty-six would in two
dimensions. Maps that turn by more than some degrees, or that shrink the image, take the two-dimensional way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.interpolation import FRACTIONS, Kernel, coefficients, kernel
from astrid_pipeline.imaging.mask import Mask, MaskArray, is_set
from astrid_pipeline.imaging.pixel_map import Floats, Lattice, PixelMap

Image = npt.NDArray[np.float32]

#: Pixels treated at once, some whole rows: their work arrays stay in the processor's cache.
STRIP = 32768
#: Pixels mirrored around the source, more than any kernel reaches.
PAD = 8
#: Largest slope of the map (3 degrees of rotation) for which rows and columns are treated one after the other: along
#: a slanted row the finest scales of both axes add up, which costs accuracy beyond.
MAX_SLOPE = 0.05
#: Source pixels per target pixel, along one axis, above which the kernel is widened against aliasing: below, stars
#: have nothing that folds back, and interpolation keeps their flux better.
SHRINKS = 1.25


@dataclass(frozen=True, eq=False)
class Resampled:
    """What `resample` returns: planes on the target grid, and the share of it that the source covers."""

    data: Image
    variance: Image | None
    mask: MaskArray
    coverage: float


def resample(
    data: Image,
    variance: Image | None,
    mask: MaskArray,
    pixel_map: PixelMap,
    *,
    method: str = "quintic",
) -> Resampled:
    """Bring a frame's planes onto a map's target grid; a source's total flux is kept.

    Parameters
    ----------
    data, variance, mask:
        (H, W) of the source; variance may be None. Unusable pixels are filled from their neighbours first, so that
        a saturated core or a cosmic ray sends no ripples into good pixels.
    pixel_map:
        Where each target pixel lies in the source.
    method:
        Interpolation kernel: "quintic", "lanczos3" or "lanczos4".

    Returns
    -------
    Resampled
        data: interpolated and multiplied by the area of a target pixel in source pixels, |det J|.
        variance: interpolated linearly and multiplied by |det J|. It is the variance that white noise would need to
        have the power that is really there at the scales of a star: what a matched filter assumes. The scatter of
        single pixels is lower, since interpolation takes away the finest scales (`noise_widening`).
        mask: all bits of the up to four source pixels around the position; NO_DATA outside the source, EDGE where
        the kernel reached over the border.
    """
    source = _Source(data, variance, mask, pixel_map)
    interpolation = kernel(method)
    warped = _two_passes(source, interpolation) if source.is_gentle else _direct(source, interpolation)
    return _finish(source, warped, interpolation.half)


class _Source:
    """A source frame turned so that the map runs along its rows and columns, and the map turned with it."""

    def __init__(self, data: Image, variance: Image | None, mask: MaskArray, pixel_map: PixelMap) -> None:
        self.shape = pixel_map.shape
        height, width = self.shape
        bad = is_set(mask)
        filled = fill_masked(data, bad) if bad.any() else data
        columns, rows = pixel_map.nodes()
        jacobian = pixel_map.jacobian(*np.meshgrid(columns, rows))
        x_map, y_map = pixel_map.x, pixel_map.y
        middle = pixel_map.jacobian((width - 1) / 2, (height - 1) / 2)
        swap = bool(abs(middle[0, 1]) + abs(middle[1, 0]) > abs(middle[0, 0]) + abs(middle[1, 1]))
        if swap:
            x_map, y_map = y_map, x_map
            jacobian, middle = jacobian[..., ::-1, :], middle[::-1]
        left, up = bool(middle[0, 0] < 0), bool(middle[1, 1] < 0)

        def turned(plane: Image) -> Image:
            plane = plane.T if swap else plane
            return np.ascontiguousarray(plane[:: -1 if up else 1, :: -1 if left else 1])

        self.data = turned(filled)
        self.variance = None if variance is None else turned(variance)
        self.mask: MaskArray = turned(mask)  # type: ignore[arg-type, assignment]  # any dtype turns alike
        if left:
            x_map = x_map.mirrored(self.data.shape[1] - 1)
        if up:
            y_map = y_map.mirrored(self.data.shape[0] - 1)
        self.x_map, self.y_map = x_map, y_map
        self.columns, self.rows = columns, rows
        self.area = np.abs(np.linalg.det(jacobian))
        self.area_map = Lattice(columns, rows, self.area)
        self.constant_area = bool(np.ptp(self.area) < 1e-6 * self.area.mean())
        singular = np.linalg.svd(jacobian, compute_uv=False)
        self.scale = float(singular[..., 0].max())
        diagonal = np.abs(jacobian[..., [0, 1], [0, 1]])
        slope = np.abs(jacobian[..., [0, 1], [1, 0]]) / diagonal
        self.is_gentle = bool(
            slope.max() < MAX_SLOPE and diagonal.min() > 1 / 1.5 and singular[..., 0].max() < SHRINKS
        )


def _two_passes(source: _Source, interpolation: Kernel) -> Image:
    """Interpolate down the columns, then along the rows."""
    height, width = source.shape
    half = interpolation.half
    plane = coefficients(source.data, PAD, prefilter=interpolation.prefilter)
    rows_in, columns_in = plane.shape
    # Source columns that some target pixel needs.
    extreme = source.x_map.rows(source.rows, source.columns)
    first = int(np.clip(np.floor(extreme.min()) - half, -PAD, source.data.shape[1] + PAD - 1))
    last = int(np.clip(np.ceil(extreme.max()) + half + 1, first + 1, source.data.shape[1] + PAD))
    # Positions in units of a tabulated fraction, from the mirrored border on: whole numbers of them are all one needs.
    j = np.arange(first, last, dtype=float)
    x, y = np.arange(width, dtype=float), np.arange(height, dtype=float)
    crossing = _crossings(source, first, last).scaled(FRACTIONS, FRACTIONS * PAD + 0.5).table(y, j)
    x_map = source.x_map.scaled(FRACTIONS, 0.5 - FRACTIONS * first).table(y, x)
    out = np.empty((height, width), np.float32)
    strip = _strip(width)
    down = _Taps(interpolation, (strip, len(j)))
    along = _Taps(interpolation, (strip, width))
    flat = plane.reshape(-1)
    column = np.arange(first + PAD, last + PAD, dtype=np.intp)
    line = np.arange(strip, dtype=np.intp)[:, None] * len(j)
    for rows in _strips(height, strip):
        middle = down.sum(flat, crossing.rows(rows), columns_in, rows_in, column)
        out[rows] = along.sum(middle.reshape(-1), x_map.rows(rows), 1, len(j), line[: len(middle)])
    return out


def _strip(width: int) -> int:
    """Return how many rows of this width are treated at once."""
    return max(2, STRIP // width)


def _strips(height: int, strip: int) -> Iterator[slice]:
    for start in range(0, height, strip):
        yield slice(start, min(start + strip, height))


def _crossings(source: _Source, first: int, last: int) -> Lattice:
    """Return the spline of the source row at which target row y crosses source column j, over (j, y)."""
    from scipy.interpolate import make_interp_spline

    columns = np.linspace(source.columns[0], source.columns[-1], 2 * len(source.columns) - 1)
    x_at = source.x_map.rows(source.rows, columns)
    j = np.linspace(first, last - 1, max(5, len(columns)))
    y_at = np.empty((len(source.rows), len(j)))
    for i, row in enumerate(source.rows):
        target_x = make_interp_spline(x_at[i], columns, k=3)(np.clip(j, x_at[i, 0], x_at[i, -1]))
        y_at[i] = source.y_map.rows(np.array([row]), target_x)[0]
        # Source columns that this row never meets are not read, but the spline must stay smooth across them.
        ends = source.y_map.rows(np.array([row]), columns[[0, 1, -2, -1]])[0]
        before, after = np.minimum(j - x_at[i, 0], 0), np.maximum(j - x_at[i, -1], 0)
        y_at[i] += before * (ends[1] - ends[0]) / (x_at[i, 1] - x_at[i, 0])
        y_at[i] += after * (ends[3] - ends[2]) / (x_at[i, -1] - x_at[i, -2])
    return Lattice(j, source.rows, y_at)


class _Taps:
    """A one-dimensional weighted sum over a kernel's pixels at many positions, with its work arrays."""

    def __init__(self, interpolation: Kernel, shape: tuple[int, int]) -> None:
        self.kernel = interpolation
        self.index = np.empty(shape, np.intp)
        self.fraction = np.empty(shape, np.intp)
        self.pixel, self.weight, self.total = (np.empty(shape, np.float32) for _ in range(3))

    def sum(self, flat: Image, where: Floats, step: int, length: int, offset: npt.NDArray[np.intp]) -> Image:
        """Return Σ_k w_k(p - floor p) flat[(floor p - half + 1 + k) * step + offset], p = where / FRACTIONS.

        `where` holds half a unit more, so that cutting off rounds; p is kept within `length`.
        """
        n = len(where)
        index, fraction = self.index[:n], self.fraction[:n]
        pixel, weight, total = self.pixel[:n], self.weight[:n], self.total[:n]
        half = self.kernel.half
        low, high = (half - 1) * FRACTIONS, (length - half) * FRACTIONS - 1
        if where.min() < low or where.max() > high:
            np.clip(where, low, high, out=where)
        np.copyto(index, where, casting="unsafe")
        np.bitwise_and(index, FRACTIONS - 1, out=fraction)
        index >>= FRACTIONS.bit_length() - 1
        index -= half - 1
        if step != 1:
            index *= step
        index += offset
        for k in range(2 * half):
            np.take(flat, index, out=pixel, mode="clip")
            np.take(self.kernel.weights[k], fraction, out=weight, mode="clip")
            if k == 0:
                np.multiply(pixel, weight, out=total)
            else:
                pixel *= weight
                total += pixel
            index += step
        return total


def _direct(source: _Source, interpolation: Kernel) -> Image:
    """Interpolate over a square of pixels around each position; where the map shrinks, over a wider one."""
    height, width = source.shape
    widen = source.scale if source.scale > SHRINKS else 1.0
    prefilter = interpolation.prefilter and widen == 1.0
    # A widened spline no longer interpolates: the windowed sinc does without coefficients.
    used = interpolation if widen == 1.0 or not interpolation.prefilter else kernel("lanczos4")
    reach = int(np.ceil(used.half * widen))
    pad = max(PAD, reach + 1)
    plane = coefficients(source.data, pad, prefilter=prefilter)
    rows_in, columns_in = plane.shape
    flat = plane.reshape(-1)
    x, y = np.arange(width, dtype=float), np.arange(height, dtype=float)
    out = np.empty((height, width), np.float32)
    taps = np.arange(-reach + 1, reach + 1)
    x_map, y_map = source.x_map.table(y, x), source.y_map.table(y, x)
    for rows in _strips(height, _strip(width)):
        u, v = x_map.rows(rows) + pad, y_map.rows(rows) + pad
        np.clip(u, reach - 1, columns_in - reach - 1, out=u)
        np.clip(v, reach - 1, rows_in - reach - 1, out=v)
        i, j = np.floor(u), np.floor(v)
        weights_u, weights_v = (_weights(used, part, taps, widen) for part in (u - i, v - j))
        index = j.astype(np.intp) * columns_in + i.astype(np.intp)
        total = np.zeros(u.shape, np.float32)
        for a, row in enumerate(taps):
            line = np.zeros(u.shape, np.float32)
            for b, column in enumerate(taps):
                line += weights_u[b] * np.take(flat, index + (row * columns_in + column), mode="clip")
            total += weights_v[a] * line
        out[rows] = total
    return out


def _weights(used: Kernel, fraction: Floats, taps: npt.NDArray[np.int_], widen: float) -> list[Image]:
    """Return the weight planes of the taps at these fractions, for a kernel `widen` times as wide."""
    if widen == 1.0:
        entry = (fraction * FRACTIONS + 0.5).astype(np.intp)
        return [np.take(used.weights[k], entry) for k in range(len(taps))]
    weights = []
    for tap in taps:
        distance = (fraction - tap) / widen
        weights.append(
            np.where(np.abs(distance) < used.half, np.sinc(distance) * np.sinc(distance / used.half), 0)
        )
    total = np.sum(weights, axis=0)
    return [(w / total).astype(np.float32) for w in weights]


def _finish(source: _Source, warped: Image, half: int) -> Resampled:
    """Scale to the pixels' area, and carry variance and mask."""
    height, width = source.shape
    h_in, w_in = source.mask.shape
    x, y = np.arange(width, dtype=float), np.arange(height, dtype=float)
    mask = np.zeros((height, width), np.int32)
    variance = None if source.variance is None else np.empty((height, width), np.float32)
    corners = _corners(source.mask).reshape(-1) if source.mask.any() else None
    x_map, y_map, area_map = (m.table(y, x) for m in (source.x_map, source.y_map, source.area_map))
    covered = 0
    area: Image = np.float32(source.area.mean())  # type: ignore[assignment]  # one number where it is constant
    for rows in _strips(height, _strip(width)):
        u, v = x_map.rows(rows), y_map.rows(rows)
        if not source.constant_area:
            area = area_map.rows(rows).astype(np.float32)
        warped[rows] *= area
        i, j = np.floor(u), np.floor(v)
        # Most strips lie wholly inside.
        low, high = min(i.min(), j.min()), max(i.max() - w_in, j.max() - h_in)
        inside: npt.NDArray[np.bool_] | None = None
        if low < half - 1 or high > -half - 1:
            inside = (u > -0.5) & (u < w_in - 0.5) & (v > -0.5) & (v < h_in - 0.5)
            whole = (u >= half - 1) & (u <= w_in - half) & (v >= half - 1) & (v <= h_in - half)
            np.clip(i, 0, w_in - 1, out=i)
            np.clip(j, 0, h_in - 1, out=j)
            mask[rows] = np.where(whole, np.int32(0), np.int32(Mask.EDGE))
            mask[rows] |= np.where(inside, np.int32(0), np.int32(Mask.NO_DATA))
            warped[rows][~inside] = 0
        u -= i
        v -= j
        if corners is not None or variance is not None:
            j *= w_in
            j += i
            index = j.astype(np.intp)
        if corners is not None:
            mask[rows] |= np.take(corners, index, mode="clip")
        covered += u.size if inside is None else int(np.count_nonzero(inside))
        if variance is not None and source.variance is not None:
            variance[rows] = _bilinear(source.variance, index, u, v)
            variance[rows] *= area
    return Resampled(warped, variance, mask, covered / mask.size)


def _bilinear(plane: Image, index: npt.NDArray[np.intp], u: Floats, v: Floats) -> Image:
    """Return the linear interpolation of `plane` at fractions (u, v) right of and below the pixels `index`.

    Fractions beyond 0 to 1, at the border, mean the nearest pixel.
    """
    flat, pitch = plane.reshape(-1), plane.shape[1]
    du, dv = np.clip(u, 0, 1).astype(np.float32), np.clip(v, 0, 1).astype(np.float32)

    def along(first: npt.NDArray[np.intp]) -> Image:
        left = np.take(flat, first, mode="clip")
        right = np.take(flat, first + 1, mode="clip")
        right -= left
        right *= du
        left += right
        return left

    top, bottom = along(index), along(index + pitch)
    bottom -= top
    bottom *= dv
    top += bottom
    return top


def _corners(mask: MaskArray) -> MaskArray:
    """Return the union of the bits of each pixel and its right, lower and lower right neighbours."""
    out = mask.copy()
    out[:, :-1] |= mask[:, 1:]
    out[:-1] |= out[1:].copy()
    return out


def fill_masked(data: Image, bad: npt.NDArray[np.bool_], *, rings: int = 24) -> Image:
    """Return `data` with the pixels of `bad` filled from their neighbours, ring by ring inwards.

    Each pixel becomes the mean of its good neighbours, diagonal ones at half weight; what lies more than `rings`
    pixels inside a masked region gets the good pixels' median.
    """
    width = data.shape[1]
    filled = np.pad(data, 1)
    left = np.pad(bad, 1, constant_values=True)
    pitch = width + 2
    values, unknown = filled.reshape(-1), left.reshape(-1)
    todo = np.flatnonzero(bad)
    todo = (todo // width + 1) * pitch + todo % width + 1
    around = (-pitch - 1, -pitch, -pitch + 1, -1, 1, pitch - 1, pitch, pitch + 1)
    nearness = (0.5, 1.0, 0.5, 1.0, 1.0, 0.5, 1.0, 0.5)
    for _ in range(rings):
        if not len(todo):
            break
        total, weight = np.zeros(len(todo)), np.zeros(len(todo))
        for step, near in zip(around, nearness, strict=True):
            known = ~unknown[todo + step]
            total += near * np.where(known, values[todo + step], 0)
            weight += near * known
        reached = weight > 0
        if not reached.any():
            break
        values[todo[reached]] = total[reached] / weight[reached]
        unknown[todo[reached]] = False
        todo = todo[~reached]
    if len(todo):
        sample = data[::7, ::7][~bad[::7, ::7]]
        good = sample if len(sample) else data[~bad]
        values[todo] = np.median(good) if len(good) else 0
    return np.ascontiguousarray(filled[1:-1, 1:-1])
