"""Filling unusable pixels before a Fourier transform, so that they leave no ringing and no false change.

Filled pixels of the two frames must agree through the PSFs, else the core of a saturated star rings over hundreds of
pixels. So the values are those that make the difference around the hole smallest: the least-squares solution of
D(N_bad, R_bad) = 0 over a stamp, found by conjugate gradients from a smooth continuation of the surroundings. A pixel
that only one frame lacks is so given what the other frame shows there, through both PSFs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import (
    Surface,
    fast_length,
    frequencies,
    moved,
    normalised_coefficients,
    spectra,
)

if TYPE_CHECKING:
    import torch

_Bool = npt.NDArray[np.bool_]

#: Widths of the Gaussians that holes are filled with first, px: the narrowest that reaches usable pixels counts.
WIDTHS = (1.0, 2.5, 6.0)
#: Share of a Gaussian's weight that must lie on usable pixels.
ENOUGH = 0.05
#: Side of the part of a hole that one stamp fills, px.
CELL = 32
#: Pixels around it that the fit looks at: where the PSF of a star as bright as the full well sinks into the sky.
AROUND = 16
#: Steps of conjugate gradients: the operator is nearly the identity, each step gains some factor of 3.
STEPS = 12
#: A stamp is solved when the squared gradient has fallen to this share of the first: float32 knows no more.
SOLVED = 1e-13
#: Stamps treated at once, so that they stay in the processor's cache.
BATCH = 16


def smooth_fill(data: Image, bad: _Bool) -> Image:
    """Return the data with bad pixels replaced by the mean of usable ones around; 0 where none is within 20 px."""
    out = np.where(bad, np.float32(0), data)
    left = bad.copy()
    for width in WIDTHS:
        for cell, box in _cells(left, int(3.5 * width) + 1):
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


def _cells(
    holes: _Bool, margin: int, side: int = 64
) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return (cell, cell grown by `margin`) for the cells of the frame that hold holes.

    Cells rather than connected holes: a frame with ten thousand cosmic rays has no more cells than one with a few.
    """
    height, width = holes.shape
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    count = np.add.reduceat(np.add.reduceat(holes, rows, axis=0, dtype=np.int32), columns, axis=1)
    return [
        (
            (slice(y, min(y + side, height)), slice(x, min(x + side, width))),
            (
                slice(max(y - margin, 0), min(y + side + margin, height)),
                slice(max(x - margin, 0), min(x + side + margin, width)),
            ),
        )
        for y, x in zip(rows[np.nonzero(count)[0]], columns[np.nonzero(count)[1]], strict=True)
    ]


def _pieces(holes: _Bool) -> list[tuple[int, int, slice, slice]]:
    """Return (y, x of a stamp's middle, rows and columns that it fills) for all holes.

    A connected hole up to CELL px long gets one stamp about its middle, a longer one several side by side.
    """
    labels, n = ndimage.label(holes, structure=np.ones((3, 3)))
    out = []
    for rows, columns in ndimage.find_objects(labels, n):
        ny, nx = (-(-(s.stop - s.start) // CELL) for s in (rows, columns))
        for y0, y1 in _split(rows, ny):
            for x0, x1 in _split(columns, nx):
                if holes[y0:y1, x0:x1].any():
                    out.append(((y0 + y1) // 2, (x0 + x1) // 2, slice(y0, y1), slice(x0, x1)))
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
    pieces = _pieces(bad & ~_deep(bad))
    size = fast_length(CELL + 2 * AROUND)
    solver = _Solver(psf_matched, psf_reference, sigmas, size, device)
    images = tuple(_padded(image, size) for image in (science, reference))
    holes = tuple(_padded(b, size) for b in (bad_science, bad_reference))
    offsets = np.arange(size)
    for start in range(0, len(pieces), BATCH):
        part = pieces[start : start + BATCH]
        # The padding of size // 2 makes pixel (y, x) the middle of a stamp that begins at (y, x).
        y, x = (np.array([p[i] for p in part]) for i in (0, 1))
        index = (y[:, None, None] + offsets[:, None], x[:, None, None] + offsets)
        n, r = solver.solve(
            tuple(image[index] for image in images), tuple(h[index] for h in holes), x, y, shift
        )
        for i, (yc, xc, rows, columns) in enumerate(part):
            inside = tuple(
                slice(s.start - c + size // 2, s.stop - c + size // 2) for s, c in ((rows, yc), (columns, xc))
            )
            for image, solved, hole in ((science, n, bad_science), (reference, r, bad_reference)):
                # A hole with too little around it to be solved for keeps its smooth filling.
                where = hole[rows, columns] & np.isfinite(solved[i][inside])
                image[rows, columns][where] = solved[i][inside][where]
    return science, reference


def _deep(bad: _Bool) -> _Bool:
    """Return bad pixels further than a stamp's surroundings from any good one."""
    if not bad.mean() > 0.001:
        return np.zeros_like(bad)
    return np.asarray(ndimage.minimum_filter(bad, 2 * AROUND + 1, mode="nearest"))


def _padded(image: npt.NDArray, size: int) -> npt.NDArray:
    return np.pad(image, size // 2)


class _Solver:
    """Least squares for the bad pixels of a batch of stamps."""

    def __init__(
        self,
        psf_matched: PSF,
        psf_reference: PSF,
        sigmas: tuple[float, float],
        size: int,
        device: torch.device,
    ) -> None:
        import torch

        self.q, self.r, self.size, self.device = psf_matched, psf_reference, size, device
        self.basis_q, self.basis_r = (spectra(p.basis, size, device) for p in (psf_matched, psf_reference))
        self.v_n, self.v_r = sigmas[0] ** 2, sigmas[1] ** 2
        self.ky, self.kx = frequencies(size, device)
        # The outermost pixels lack their surroundings; the weight fades out over 4 px.
        ramp = (torch.minimum(torch.arange(size), torch.arange(size).flip(0)) - 4).clamp(0, 4) / 4.0
        self.weight = (ramp[:, None] * ramp[None, :]).to(device)

    def solve(
        self,
        images: tuple[npt.NDArray, ...],
        holes: tuple[npt.NDArray, ...],
        x: npt.NDArray,
        y: npt.NDArray,
        shift: Surface,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the filled stamps of both frames."""
        import torch

        def send(a: npt.NDArray) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(a), device=self.device)

        q, p_r = (
            torch.einsum("nk,kij->nij", send(normalised_coefficients(psf, x, y)).to(torch.complex64), basis)
            for psf, basis in ((self.q, self.basis_q), (self.r, self.basis_r))
        )
        d = send(shift.at(x, y)).float()
        phase = moved(d[:, 0], d[:, 1], self.ky, self.kx)
        den = (self.v_n * p_r.abs() ** 2 + self.v_r * q.abs() ** 2).clamp_min(1e-8 * (self.v_n + self.v_r))
        white = torch.sqrt((self.v_n + self.v_r) / den)
        forward_n, forward_r = p_r * white, -q * phase * white
        hole_n, hole_r = (send(h).float() for h in holes)
        n, r = (send(i).float() for i in images)
        shape = (self.size, self.size)

        def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            image = torch.fft.irfft2(forward_n * torch.fft.rfft2(a) + forward_r * torch.fft.rfft2(b), s=shape)
            return image * self.weight

        def adjoint(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            transform = torch.fft.rfft2(image * self.weight)
            return (
                torch.fft.irfft2(forward_n.conj() * transform, s=shape) * hole_n,
                torch.fft.irfft2(forward_r.conj() * transform, s=shape) * hole_r,
            )

        # Two guesses to begin with: the smooth continuation, and a star under the hole. The one is taken that leaves
        # less outside the science frame's holes: inside them anything can be made to agree.
        star_n, ways_n = _with_star(n, hole_n, q, self.v_n)
        star_r, ways_r = _with_star(r, hole_r, p_r, self.v_r)
        best = [difference(n, r), n, r]
        for guess in ((star_n, star_r), (n, star_r), (star_n, r)):
            left = difference(*guess)
            outside = [(((1 - hole_n) * image) ** 2).sum((1, 2)) for image in (left, best[0])]
            better = (outside[0] < outside[1])[:, None, None]
            best = [torch.where(better, a, b) for a, b in zip((left, *guess), best, strict=True)]
        n, r = best[1:]
        # The stars' flux, place and width are what conjugate gradients are slowest to find: they are solved first.
        ways = [(a, torch.zeros_like(a)) for a in ways_n] + [(torch.zeros_like(a), a) for a in ways_r]
        amounts = _least_squares(torch.stack([difference(*way) for way in ways], dim=1), -best[0])
        for i, (a, b) in enumerate(ways):
            best[1] = best[1] + amounts[:, i, None, None] * a
            best[2] = best[2] + amounts[:, i, None, None] * b
        n, r = best[1:]
        best[0] = difference(n, r)
        # Conjugate gradients on the normal equations (Hestenes & Stiefel 1952), each stamp with its own steps.
        residual = -best[0]
        step = adjoint(residual)
        gradient = [s.clone() for s in step]
        norm = first = _square(gradient)
        for _ in range(STEPS):
            image = difference(*step)
            power = (image**2).sum((1, 2))
            # The step that leaves least along its direction, taken from the residual itself. The textbook's
            # norm / power is the same in exact arithmetic; once a stamp is solved to rounding (one pixel is, after one
            # step), it is noise divided by noise, and throws the filling far off.
            active = norm > SOLVED * first
            best_length = (image * residual).sum((1, 2)) / power.clamp_min(1e-20)
            length = torch.where(active, best_length, 0.0)[:, None, None]
            n, r = n + length * step[0], r + length * step[1]
            residual = residual - length * image
            gradient = list(adjoint(residual))
            new = _square(gradient)
            ratio = torch.where(active, new / norm.clamp_min(1e-20), 0.0)[:, None, None]
            step = (gradient[0] + ratio * step[0], gradient[1] + ratio * step[1])
            norm = torch.where(active, new, 0.0)
        return n.cpu().numpy(), r.cpu().numpy()


def _square(images: list[torch.Tensor]) -> torch.Tensor:
    return (images[0] ** 2).sum((1, 2)) + (images[1] ** 2).sum((1, 2))


def _least_squares(columns: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the amounts (n, J) of columns (n, J, L, L) that make up targets (n, L, L) best; 0 for empty columns."""
    import torch

    flat, y = columns.flatten(2).double(), target.flatten(1).double()
    scale = flat.square().sum(2).sqrt()
    empty = scale < 1e-6 * scale.amax(1, keepdim=True).clamp_min(1e-30)
    flat = flat / scale.clamp_min(1e-30)[:, :, None] * (~empty)[:, :, None]
    # A star's slopes under a hole may be much alike: a trace of ridge keeps their amounts finite.
    normal = flat @ flat.transpose(1, 2) + 1e-6 * torch.eye(
        flat.shape[1], device=flat.device, dtype=flat.dtype
    )
    amounts = torch.linalg.solve(normal, (flat @ y[:, :, None]))[:, :, 0]
    return (amounts / scale.clamp_min(1e-30) * ~empty).float()


def _with_star(
    image: torch.Tensor, hole: torch.Tensor, psf: torch.Tensor, variance: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return stamps whose holes are filled with the star that fits best what is seen around them.

    Beside them, what the filling changes by if the star's flux, place and width do: (n, L, L) each, 0 off the holes.

    The star's flux at every position is a matched filter over the good pixels alone; its place is where that filter
    takes away most of χ², to a fraction of a pixel by parabolas.
    """
    import torch

    size = image.shape[-1]
    # In float64: under a saturated core a star has a hundred-thousandth of its weight on good pixels, which is where
    # float32 transforms end.
    image, hole, psf = image.double(), hole.double(), psf.to(torch.complex128)
    good = 1 - hole
    weight = good / (variance + image.abs())  # photon noise, so that the wings count beside the flanks
    profile = torch.fft.irfft2(psf, s=(size, size))
    kernel = torch.fft.rfft2(profile**2).conj()
    top = torch.fft.irfft2(torch.fft.rfft2(weight * image) * psf.conj(), s=(size, size))
    bottom = torch.fft.irfft2(torch.fft.rfft2(weight) * kernel, s=(size, size))
    # Where less than that falls on good pixels nothing is known of a star: what the transforms leave there is rounding,
    # and a quotient of it would be a star brighter than any.
    floor = (1e-8 * bottom.amax((1, 2), keepdim=True)).clamp_min(1e-20)
    known = bottom > floor
    bottom = torch.maximum(bottom, floor)
    gain = torch.where((hole > 0) & (top > 0) & known, top**2 / bottom, torch.zeros_like(top))
    flat = gain.flatten(1).argmax(1)
    y, x = flat // size, flat % size
    y, x = y.clamp(1, size - 2), x.clamp(1, size - 2)
    n = torch.arange(len(image), device=image.device)
    value = top**2 / bottom
    moves = []
    for dy, dx in ((1, 0), (0, 1)):
        before, here, after = value[n, y - dy, x - dx], value[n, y, x], value[n, y + dy, x + dx]
        bend = (2 * here - before - after).clamp_min(1e-6)
        # Where the filter overflows on every side there is no parabola: the star stays on its pixel.
        moves.append(((after - before) / (2 * bend)).nan_to_num(0.0, 0.0, 0.0).clamp(-0.6, 0.6))
    ky, kx = frequencies(size, image.device)
    cy, cx = y + moves[0], x + moves[1]
    placed = psf * moved(-cx, -cy, ky, kx)
    star = torch.fft.irfft2(placed, s=(size, size))
    flux = (weight * image * star).sum((1, 2)) / torch.maximum((weight * star**2).sum((1, 2)), floor[:, 0, 0])
    # A stamp in which no place is known keeps its smooth filling.
    flux = torch.where(gain.amax((1, 2)) > 0, flux, torch.zeros_like(flux)).clamp_min(0)[:, None, None]
    slopes = [torch.fft.irfft2(placed * d, s=(size, size)) for d in (1j * kx, 1j * ky, -(kx**2), -(ky**2))]
    ways = [(flux * image * hole).float() for image in (star, *slopes)]
    return torch.where(hole > 0, flux * star, image).float(), ways
