"""Filling unusable pixels before a Fourier transform, so that they leave no ringing and no false change.

Filled pixels of the two frames must agree through the PSFs, else the core of a saturated star rings over hundreds of
pixels. So the values are those that make the difference around the hole smallest: the least-squares solution of
D(N_bad, R_bad) = 0 over a stamp (see `fill_solver`), from a smooth continuation of the surroundings. A pixel that only
one frame lacks is so given what the other frame shows there, through both PSFs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.parallel import each
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import Surface, cells_with, fast_length
from astrid_pipeline.imaging.subtract.fill_solver import MOST, Solver

if TYPE_CHECKING:
    import torch

_Bool = npt.NDArray[np.bool_]

#: Widths of the Gaussians that holes are filled with first, px: the narrowest that reaches usable pixels counts.
WIDTHS = (1.0, 2.5, 6.0)
#: Share of a Gaussian's weight that must lie on usable pixels.
ENOUGH = 0.05
#: Sides of the pieces of holes that one stamp fills, px: single pixels, cosmic rays, and parts of what is longer.
CELLS = (4, 16, 32)
#: Pixels around a piece that the fit looks at: where the PSF of a star as bright as the full well sinks into the sky.
AROUND = 16
#: Pixels around a piece whose own bad pixels are solved for with it; further ones keep their smooth filling for it.
BESIDE = 8
#: Bad pixels of both frames in one place from which a piece is taken for the core of a star that neither frame shows.
BOTH = 10
#: (Bad pixels of a stamp up to, stamps treated at once): few where there are many, so that all stays in the cache.
BATCHES = ((16, 64), (64, 32), (160, 8), (MOST, 2))
#: Stamps of such cores treated at once.
BATCH_OF_CORES = 16


def smooth_fill(data: Image, bad: _Bool) -> Image:
    """Return the data with bad pixels replaced by the mean of usable ones around; 0 where none is within 20 px."""
    out = np.where(bad, np.float32(0), data)
    left = bad.copy()
    for width in WIDTHS:
        for cell, box in cells_of(left, int(3.5 * width) + 1):
            good = (~bad[box]).astype(np.float32)
            weight = ndimage.gaussian_filter(good, width, truncate=3.5)
            value = ndimage.gaussian_filter(np.where(bad[box], np.float32(0), data[box]), width, truncate=3.5)
            own = np.zeros_like(good, bool)
            own[tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(cell, box, strict=True))] = (
                True
            )
            fill = own & left[box] & (weight > ENOUGH)
            out[box][fill] = value[fill] / weight[fill]
            left[box] &= ~fill
    return out


def cells_of(
    holes: _Bool, margin: int, side: int = 64, *, beside: bool = False
) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return (cell, cell grown by `margin`) for the cells that hold holes; with `beside`, for their neighbours too.

    Cells rather than connected holes: a frame with ten thousand cosmic rays has no more cells than one with a few.
    """
    height, width = holes.shape
    held = cells_with(holes, side)
    rows, columns = np.nonzero(ndimage.binary_dilation(held, np.ones((3, 3), bool)) if beside else held)
    return [
        (
            (slice(y, min(y + side, height)), slice(x, min(x + side, width))),
            (
                slice(max(y - margin, 0), min(y + side + margin, height)),
                slice(max(x - margin, 0), min(x + side + margin, width)),
            ),
        )
        for y, x in zip((rows * side).tolist(), (columns * side).tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Piece:
    """A part of a hole, and the middle (y, x) of the stamp that it is filled in."""

    y: int
    x: int
    rows: slice
    columns: slice
    cell: int

    def grown(self, by: int) -> tuple[slice, slice]:
        """Return rows and columns with `by` px on every side, none below 0."""
        rows, columns = (slice(max(s.start - by, 0), s.stop + by) for s in (self.rows, self.columns))
        return rows, columns

    def within(self, size: int) -> tuple[slice, slice]:
        """Return where its rows and columns lie in its stamp of `size` px."""
        rows, columns = (
            slice(s.start - c + size // 2, s.stop - c + size // 2)
            for s, c in ((self.rows, self.y), (self.columns, self.x))
        )
        return rows, columns


def _pieces(holes: _Bool) -> list[Piece]:
    """Return what the holes are filled in: a connected one in one piece about its middle, a long one in several."""
    labels, n = ndimage.label(holes, structure=np.ones((3, 3)))
    out = []
    for rows, columns in ndimage.find_objects(labels, n):
        side = max(rows.stop - rows.start, columns.stop - columns.start)
        cell = next((c for c in CELLS if side <= c), CELLS[-1])
        parts = [_split(s, -(-(s.stop - s.start) // cell)) for s in (rows, columns)]
        for y0, y1 in parts[0]:
            for x0, x1 in parts[1]:
                if side <= cell or holes[y0:y1, x0:x1].any():
                    out.append(Piece((y0 + y1) // 2, (x0 + x1) // 2, slice(y0, y1), slice(x0, x1), cell))
    return out


def _split(extent: slice, n: int) -> list[tuple[int, int]]:
    edges = np.linspace(extent.start, extent.stop, n + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(edges)]


def fill_pair(
    science: Image,
    reference: Image,
    bad_science: _Bool,
    bad_reference: _Bool,
    psf_matched: PSF,
    psf_reference: PSF,
    shift: Surface,
    sigmas: tuple[float, float],
    device: torch.device,
) -> tuple[Image, Image]:
    """Return both frames with their bad pixels filled such that they agree.

    Parameters
    ----------
    science, reference:
        Sky-subtracted, the reference scaled to the science frame's flux.
    psf_matched, psf_reference, shift:
        P_r ∗ N = Q ∗ R(· + shift) for constant sources.
    sigmas:
        Noise of the empty sky in a pixel of each.
    """
    bad = bad_science | bad_reference
    if not bad.any():
        return science, reference
    science, reference = smooth_fill(science, bad_science), smooth_fill(reference, bad_reference)
    # Holes with nothing known around them (corners without data) stay at 0 in both.
    groups: dict[tuple[int, int], list[Piece]] = {}
    for piece in _pieces(bad & ~_deep(bad)):
        groups.setdefault((piece.cell, _batch(piece, bad_science, bad_reference)), []).append(piece)
    margin = fast_length(CELLS[-1] + 2 * AROUND) // 2
    frames = tuple(np.pad(image, margin) for image in (science, reference))
    holes = tuple(np.pad(b, margin) for b in (bad_science, bad_reference))
    solvers = {
        cell: Solver(psf_matched, psf_reference, shift, sigmas, fast_length(cell + 2 * AROUND), device)
        for cell in {cell for cell, _ in groups}
    }
    jobs = [
        (solvers[cell], pieces[start : start + (batch or BATCH_OF_CORES)], batch > 0)
        for (cell, batch), pieces in groups.items()
        for start in range(0, len(pieces), batch or BATCH_OF_CORES)
    ]

    def solved(job: tuple[Solver, list[Piece], bool]) -> list[tuple[npt.NDArray, ...]]:
        solver, part, at_once = job
        filled = _solve(solver, part, frames, holes, margin, at_once=at_once)
        inside = [piece.within(solver.size) for piece in part]
        return [tuple(frame[i][here] for frame in filled) for i, here in enumerate(inside)]

    for (_, part, _), values in zip(jobs, each(solved, jobs), strict=True):
        for piece, new in zip(part, values, strict=True):
            here = (piece.rows, piece.columns)
            for image, value, hole in zip(
                (science, reference), new, (bad_science, bad_reference), strict=True
            ):
                # A hole with too little around it to be solved for keeps its smooth filling.
                where = hole[here] & np.isfinite(value)
                image[here][where] = value[where]
    return science, reference


def _batch(piece: Piece, bad_science: _Bool, bad_reference: _Bool) -> int:
    """Return how many such pieces are solved in one go; 0 for those that are too large to be solved at once."""
    here = (piece.rows, piece.columns)
    if int((bad_science[here] & bad_reference[here]).sum()) >= BOTH:
        return 0
    around = piece.grown(BESIDE)
    unknown = int(bad_science[around].sum()) + int(bad_reference[around].sum())
    return next((batch for most, batch in BATCHES if unknown <= most), 0)


def _solve(
    solver: Solver,
    pieces: list[Piece],
    frames: tuple[Image, ...],
    holes: tuple[_Bool, ...],
    margin: int,
    *,
    at_once: bool,
) -> tuple[npt.NDArray, ...]:
    """Return the filled stamps of some pieces of frames that are padded by `margin`."""
    y, x = (np.array([getattr(p, name) for p in pieces]) for name in ("y", "x"))
    offsets = np.arange(solver.size) - solver.size // 2
    rows, columns = y[:, None, None] + offsets[:, None], x[:, None, None] + offsets
    index = (rows + margin, columns + margin)
    stamps, bad = tuple(f[index] for f in frames), tuple(h[index] for h in holes)
    if not at_once:
        return solver.solve_large(stamps, bad, x, y)
    near = np.ones((len(pieces), solver.size, solver.size), bool)
    for i, piece in enumerate(pieces):
        for positions, part in zip((rows[i], columns[i]), piece.grown(BESIDE), strict=True):
            near[i] &= (positions >= part.start) & (positions < part.stop)
    return solver.solve_small(stamps, tuple(b & near for b in bad), x, y)


def _deep(bad: _Bool) -> _Bool:
    """Return bad pixels further than a stamp's surroundings from any good one."""
    if not bad.mean() > 0.001:
        return np.zeros_like(bad)
    return np.asarray(ndimage.minimum_filter(bad, 2 * AROUND + 1, mode="nearest"))
