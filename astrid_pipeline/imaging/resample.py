"""Resampling an image onto another grid: flux, variance and mask of a frame at a map's positions.

Pixels are read along curves in two passes (Catmull & Smith 1980): first down the source columns to where each
target row crosses them, then along the target rows. Twelve weighted pixels do what thirty-six would in two
dimensions. Maps that turn by more than some degrees, or that shrink the image, take the two-dimensional way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.interpolation import FRACTIONS, Kernel, coefficients, fill_masked, kernel
from astrid_pipeline.imaging.mask import Mask, MaskArray, is_set
from astrid_pipeline.imaging.parallel import each, strips
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
    target = _Target(source, interpolation.half)
    (_two_passes if source.is_gentle else _direct)(source, interpolation, target)
    return Resampled(target.data, target.variance, target.mask, target.covered / target.mask.size)


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


class _Target:
    """The planes that come out, filled strip by strip."""

    def __init__(self, source: _Source, half: int) -> None:
        self.source, self.half = source, half
        self.x, self.y = (np.arange(n, dtype=float) for n in source.shape[::-1])
        self.data = np.empty(source.shape, np.float32)
        self.variance = None if source.variance is None else np.empty(source.shape, np.float32)
        self.mask: MaskArray = np.zeros(source.shape, np.int32)
        self.covered = 0
        self._corners = _corners(source.mask).reshape(-1) if source.mask.any() else None
        self._area = (
            np.float32(source.area.mean()) if source.constant_area else source.area_map.table(self.y, self.x)
        )

    def finish(self, rows: slice, u: Floats, v: Floats) -> int:
        """Scale the strip `rows`, whose pixels lie at (u, v) of the source, to the pixels' area; carry its mask.

        Returns how many of its pixels the source covers. `u` and `v` are used up.
        """
        height, width = self.source.mask.shape
        area = self._area if isinstance(self._area, np.float32) else self._area.rows(rows).astype(np.float32)
        for plane in (self.data, self.variance):
            if plane is not None:
                plane[rows] *= area
        covered, half = u.size, self.half
        if min(u.min(), v.min()) < half - 1 or u.max() > width - half or v.max() > height - half:
            inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
            whole = (u >= half - 1) & (u <= width - half) & (v >= half - 1) & (v <= height - half)
            self.mask[rows] = np.where(whole, np.int32(0), np.int32(Mask.EDGE))
            self.mask[rows] |= np.where(inside, np.int32(0), np.int32(Mask.NO_DATA))
            self.data[rows][~inside] = 0
            covered = int(np.count_nonzero(inside))
            np.clip(u, 0, width - 1, out=u)
            np.clip(v, 0, height - 1, out=v)
        if self._corners is not None:
            np.floor(v, out=v)
            v *= width
            v += u
            # Cutting off what is left of u rounds down, the rows before being whole numbers.
            self.mask[rows] |= np.take(self._corners, v.astype(np.intp), mode="clip")
        return covered


def _two_passes(source: _Source, interpolation: Kernel, target: _Target) -> None:
    """Interpolate down the columns, then along the rows."""
    height, width = source.shape
    half = interpolation.half
    plane = coefficients(source.data, PAD, prefilter=interpolation.prefilter)
    rows_in, columns_in = plane.shape
    noise = None if source.variance is None else np.pad(source.variance, PAD, mode="edge").reshape(-1)
    # Source columns that some target pixel needs.
    extreme = source.x_map.rows(source.rows, source.columns)
    first = int(np.clip(np.floor(extreme.min()) - half, -PAD, source.data.shape[1] + PAD - 1))
    last = int(np.clip(np.ceil(extreme.max()) + half + 1, first + 1, source.data.shape[1] + PAD))
    # Positions in units of a tabulated fraction, from the mirrored border on: whole numbers of them are all one needs.
    j = np.arange(first, last, dtype=float)
    crossing = _crossings(source, first, last).scaled(FRACTIONS, FRACTIONS * PAD + 0.5).table(target.y, j)
    x_map, y_map = source.x_map.table(target.y, target.x), source.y_map.table(target.y, target.x)
    strip = max(2, STRIP // width)
    flat = plane.reshape(-1)
    column = np.arange(first + PAD, last + PAD, dtype=np.intp)
    line = np.arange(strip, dtype=np.intp)[:, None] * len(j)
    spare: list[tuple[_Taps, _Taps]] = []

    def work(rows: slice) -> int:
        # Work arrays are used again.
        down, along = spare.pop() if spare else (
            _Taps(interpolation, (strip, len(j))), _Taps(interpolation, (strip, width))
        )  # fmt: skip
        u, v = x_map.rows(rows), y_map.rows(rows)
        down.locate(crossing.rows(rows), columns_in, rows_in, column)
        where = u * FRACTIONS
        where += 0.5 - FRACTIONS * first
        along.locate(where, 1, len(j), line[: len(u)])
        middle = down.sum(flat)
        target.data[rows] = along.sum(middle.reshape(-1))
        if noise is not None and target.variance is not None:
            middle = down.linear(noise)
            target.variance[rows] = along.linear(middle.reshape(-1))
        spare.append((down, along))
        return target.finish(rows, u, v)

    target.covered = sum(each(work, strips(height, strip)))


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
    """Weighted sums over a kernel's pixels along one axis, at many positions at once, with their work arrays."""

    def __init__(self, interpolation: Kernel, shape: tuple[int, int]) -> None:
        self.kernel = interpolation
        self.index, self.fraction, self.at = (np.empty(shape, np.intp) for _ in range(3))
        self.pixel, self.weight, self.total = (np.empty(shape, np.float32) for _ in range(3))
        self.rows, self.step = 0, 1

    def locate(self, where: Floats, step: int, length: int, offset: npt.NDArray[np.intp]) -> None:
        """Take the positions p = where / FRACTIONS, in pixels that lie `step` apart from `offset` on.

        `where`, which is used up, holds half a unit more, so that cutting off rounds; p is kept within `length`.
        """
        n = self.rows = len(where)
        self.step = step
        index, fraction = self.index[:n], self.fraction[:n]
        half = self.kernel.half
        low, high = (half - 1) * FRACTIONS, (length - half) * FRACTIONS - 1
        if where.min() < low or where.max() > high:
            np.clip(where, low, high, out=where)
        np.copyto(index, where, casting="unsafe")
        np.bitwise_and(index, FRACTIONS - 1, out=fraction)
        index >>= FRACTIONS.bit_length() - 1
        if step != 1:
            index *= step
        index += offset

    def sum(self, flat: Image) -> Image:
        """Return Σ_k w_k(p - floor p) flat[floor p - half + 1 + k]."""
        n = self.rows
        at, fraction = self.at[:n], self.fraction[:n]
        pixel, weight, total = self.pixel[:n], self.weight[:n], self.total[:n]
        np.subtract(self.index[:n], (self.kernel.half - 1) * self.step, out=at)
        for k in range(2 * self.kernel.half):
            np.take(flat[k * self.step :], at, out=pixel, mode="clip")
            np.take(self.kernel.weights[k], fraction, out=weight, mode="clip")
            if k == 0:
                np.multiply(pixel, weight, out=total)
            else:
                pixel *= weight
                total += pixel
        return total

    def linear(self, flat: Image) -> Image:
        """Return the straight line between the two pixels around p."""
        n = self.rows
        index, pixel, weight, total = self.index[:n], self.pixel[:n], self.weight[:n], self.total[:n]
        np.take(flat, index, out=total, mode="clip")
        np.take(flat[self.step :], index, out=pixel, mode="clip")
        pixel -= total
        np.multiply(self.fraction[:n], np.float32(1 / FRACTIONS), out=weight, casting="unsafe")
        pixel *= weight
        total += pixel
        return total


def _direct(source: _Source, interpolation: Kernel, target: _Target) -> None:
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
    taps = np.arange(-reach + 1, reach + 1)
    x_map, y_map = source.x_map.table(target.y, target.x), source.y_map.table(target.y, target.x)

    def work(rows: slice) -> int:
        u, v = x_map.rows(rows), y_map.rows(rows)
        at_u = np.clip(u + pad, reach - 1, columns_in - reach - 1)
        at_v = np.clip(v + pad, reach - 1, rows_in - reach - 1)
        i, j = np.floor(at_u), np.floor(at_v)
        weights_u, weights_v = (_weights(used, part, taps, widen) for part in (at_u - i, at_v - j))
        index = j.astype(np.intp) * columns_in + i.astype(np.intp)
        total = np.zeros(u.shape, np.float32)
        for a, row in enumerate(taps):
            line = np.zeros(u.shape, np.float32)
            for b, column in enumerate(taps):
                line += weights_u[b] * np.take(flat, index + (row * columns_in + column), mode="clip")
            total += weights_v[a] * line
        target.data[rows] = total
        if source.variance is not None and target.variance is not None:
            target.variance[rows] = _bilinear(source.variance, u, v)
        return target.finish(rows, u, v)

    target.covered = sum(each(work, strips(height, max(2, STRIP // width))))


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


def _bilinear(plane: Image, u: Floats, v: Floats) -> Image:
    """Return the linear interpolation of `plane` at columns u and rows v; beyond its border, the nearest pixel."""
    height, width = plane.shape
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    i, j = np.floor(u), np.floor(v)
    flat, index = plane.reshape(-1), j.astype(np.intp) * width + i.astype(np.intp)
    du, dv = (u - i).astype(np.float32), (v - j).astype(np.float32)

    def along(first: npt.NDArray[np.intp]) -> Image:
        left = np.take(flat, first, mode="clip")
        right = np.take(flat, first + 1, mode="clip")
        right -= left
        right *= du
        left += right
        return left

    top, bottom = along(index), along(index + width)
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
