"""Where a pixel of one frame lies in another: an exact function, and a spline of it that is fast everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS, NoConvergence

from astrid_pipeline.errors import RegistrationError

Floats = npt.NDArray[np.float64]
#: (x, y) of pixels in the target frame -> (x, y) in the source frame; NaN where the source has no such point.
PixelFunction = Callable[[npt.ArrayLike, npt.ArrayLike], tuple[Floats, Floats]]

#: Largest error of the spline, in pixels: a hundredth of the best centroid.
TOLERANCE = 1e-4
#: Spacing of the spline's nodes, in pixels: tried from the widest down until `TOLERANCE` is met.
STEPS = (1024, 512, 256, 128, 64, 32, 16)
#: How far beyond the target frame the spline is tabulated, in pixels: what the widest kernel can reach.
MARGIN = 24


def identity(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return (x, y) themselves."""
    return np.array(x, float), np.array(y, float)


def celestial(wcs: WCS) -> WCS:
    """Return the two celestial axes of `wcs`, or raise RegistrationError when it has none."""
    plane = wcs if wcs.naxis == 2 else wcs.celestial
    if not plane.has_celestial or plane.naxis != 2:
        raise RegistrationError(
            "the WCS has no two celestial axes", remedy="drop the WCS, to match the stars by their pattern"
        )
    return plane


def wcs_map(target: WCS, source: WCS) -> PixelFunction:
    """Return the map from pixels of `target` to pixels of `source` through the sky, distortions included.

    Every projection and distortion astropy knows is honoured (TAN, ZPN, TPV, SIP, lookup tables).
    """
    from_wcs, to_wcs = celestial(target), celestial(source)

    def function(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        lon, lat = from_wcs.all_pix2world(x.ravel(), y.ravel(), 0)
        try:
            u, v = to_wcs.all_world2pix(lon, lat, 0, tolerance=1e-6, maxiter=40)
        except NoConvergence as problem:
            # Far outside the frame a distortion polynomial has no inverse: those points have no counterpart.
            u, v = np.array(problem.best_solution, float).T
            for lost in (problem.divergent, problem.slow_conv):
                if lost is not None:
                    u[lost] = v[lost] = np.nan
        return u.reshape(x.shape), v.reshape(x.shape)

    return function


@dataclass(frozen=True)
class Polynomial:
    """A displacement (dx, dy), polynomial in coordinates scaled to the frame; added to a map.

    Attributes
    ----------
    degree:
        Total degree; -1 is no displacement at all, 0 a shift, 1 an affine map.
    coefficients:
        (K, 2): of each term of `terms`, for dx and dy in pixels.
    centre, scale:
        u = (x - centre[0]) / scale, v = (y - centre[1]) / scale.
    """

    degree: int
    coefficients: Floats
    centre: tuple[float, float]
    scale: float

    def terms(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Return the monomials at (x, y), shape (..., K)."""
        return monomials(self.degree, x, y, self.centre, self.scale)

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return (dx, dy) in pixels at pixels (x, y)."""
        moved = self.terms(x, y) @ self.coefficients
        return moved[..., 0], moved[..., 1]

    def after(self, base: PixelFunction) -> PixelFunction:
        """Return the map `base` with this displacement added."""

        def function(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
            u, v = base(x, y)
            dx, dy = self(x, y)
            return u + dx, v + dy

        return function


def monomials(
    degree: int, x: npt.ArrayLike, y: npt.ArrayLike, centre: tuple[float, float], scale: float
) -> Floats:
    """Return u**i v**j for all i + j ≤ degree, shape (..., K); K = 0 for degree -1."""
    u = (np.asarray(x, float) - centre[0]) / scale
    v = (np.asarray(y, float) - centre[1]) / scale
    u, v = np.broadcast_arrays(u, v)
    columns = [u**i * v**j for total in range(degree + 1) for i in range(total, -1, -1) for j in (total - i,)]
    return np.stack(columns, axis=-1) if columns else np.zeros((*u.shape, 0))


class Lattice:
    """A smooth function of two variables as a tensor-product cubic spline on a regular grid of nodes.

    Parameters
    ----------
    x, y:
        Node positions, increasing.
    values:
        (len(y), len(x)) at the nodes.
    """

    def __init__(self, x: Floats, y: Floats, values: Floats) -> None:
        from scipy.interpolate import make_interp_spline

        along_y = make_interp_spline(y, values, k=3)
        along_x = make_interp_spline(x, along_y.c.T, k=3)
        self._ty, self._tx = along_y.t, along_x.t
        self._c = np.ascontiguousarray(along_x.c.T)

    def scaled(self, factor: float, offset: float) -> Lattice:
        """Return `factor` times this function plus `offset`."""
        # B-splines sum to 1 everywhere, so that the coefficients of a constant are that constant.
        other = copy.copy(self)
        other._c = factor * self._c + offset
        return other

    def mirrored(self, at: float) -> Lattice:
        """Return `at` minus this function."""
        return self.scaled(-1.0, at)

    def _basis(self, t: Floats, at: Floats) -> Floats:
        from scipy.interpolate import BSpline

        inside = np.clip(at, t[3], t[-4])
        return BSpline.design_matrix(inside, t, 3).toarray()

    def rows(self, y: Floats, x: Floats) -> Floats:
        """Return the function on the grid of rows `y` and columns `x`, shape (len(y), len(x))."""
        return self.table(y, x).rows(slice(None))

    def table(self, y: Floats, x: Floats) -> Table:
        """Return the function prepared for a grid, so that rows of it at a time cost little."""
        return Table(self._basis(self._ty, y) @ self._c, np.ascontiguousarray(self._basis(self._tx, x).T))

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Return the function at single points."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        bx, by = self._basis(self._tx, x.ravel()), self._basis(self._ty, y.ravel())
        return np.einsum("nk,kl,nl->n", by, self._c, bx, optimize=True).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Table:
    """A lattice on a grid: each row's coefficients, and the columns' splines.

    Four splines count in each column; the product with all of them is three times faster than picking those.
    """

    coefficients: Floats
    splines: Floats

    def rows(self, part: slice) -> Floats:
        """Return some rows of the grid, (rows, columns)."""
        return self.coefficients[part] @ self.splines


@dataclass(frozen=True, eq=False)
class PixelMap:
    """A map from a target frame's pixels to a source frame's, tabulated so that whole rows of it cost little.

    Attributes
    ----------
    function:
        The exact map.
    shape:
        (height, width) of the target frame.
    x, y:
        Splines of the source coordinates over the target frame and `MARGIN` pixels around it.
    step:
        Spacing of their nodes, in pixels.
    error:
        Largest difference found between spline and exact map, in pixels.
    """

    function: PixelFunction
    shape: tuple[int, int]
    x: Lattice
    y: Lattice
    step: int
    error: float

    @classmethod
    def tabulate(cls, function: PixelFunction, shape: tuple[int, int]) -> PixelMap:
        """Tabulate `function` over a target frame, with nodes as wide as `TOLERANCE` allows.

        Raises
        ------
        RegistrationError
            If the map is not finite everywhere on the frame, or not smooth enough for the finest nodes.
        """
        error = np.inf
        for step in STEPS:
            x, y = (_nodes(size, step) for size in (shape[1], shape[0]))
            u, v = function(*np.meshgrid(x, y))
            if not (np.isfinite(u).all() and np.isfinite(v).all()):
                raise RegistrationError(
                    "the WCS of one frame has no answer for parts of the other",
                    remedy="check that both look at the same field; drop a WCS that is wrong",
                )
            result = cls(function, shape, Lattice(x, y, u), Lattice(x, y, v), step, error)
            error = result._worst(x, y)
            if error < TOLERANCE:
                return cls(function, shape, result.x, result.y, step, error)
        # A rough map (a lookup-table distortion with small cells) is used as far as the nodes follow it.
        if error < 100 * TOLERANCE:
            return cls(function, shape, result.x, result.y, step, error)
        raise RegistrationError(
            f"the map between the frames is not smooth: {error:.2f} px within {STEPS[-1]} px",
            remedy="check the distortion terms of the WCS, or drop it to match the stars by their pattern",
        )

    def _worst(self, x: Floats, y: Floats) -> float:
        """Return the largest error at some hundred points as far from the nodes as can be."""
        mid_x, mid_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
        mid_x, mid_y = (m[:: max(1, len(m) // 12)] for m in (mid_x, mid_y))
        u, v = self.function(*np.meshgrid(mid_x, mid_y))
        worst = max(np.abs(self.x.rows(mid_y, mid_x) - u).max(), np.abs(self.y.rows(mid_y, mid_x) - v).max())
        return float(worst)

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return the source position of single target pixels."""
        return self.x(x, y), self.y(x, y)

    def jacobian(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Return d(source x, y) / d(target x, y) at target pixels, shape (..., 2, 2)."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        h = 0.5
        right, left = self.function(x + h, y), self.function(x - h, y)
        up, down = self.function(x, y + h), self.function(x, y - h)
        along_x = np.stack([right[0] - left[0], right[1] - left[1]], axis=-1)
        along_y = np.stack([up[0] - down[0], up[1] - down[1]], axis=-1)
        return np.stack([along_x, along_y], axis=-1)

    def nodes(self) -> tuple[Floats, Floats]:
        """Return the node columns and rows."""
        return _nodes(self.shape[1], self.step), _nodes(self.shape[0], self.step)


def _nodes(size: int, step: int) -> Floats:
    """Return at least five nodes from -MARGIN to size - 1 + MARGIN, no further apart than `step`."""
    count = max(5, int(np.ceil((size - 1 + 2 * MARGIN) / step)) + 1)
    return np.linspace(-MARGIN, size - 1 + MARGIN, count)
