"""What unusable pixels must have been for two frames to agree: least squares of D over one stamp a hole.

A stamp is a part of both frames with a hole in its middle. D depends linearly on the pixels of the hole, and a change
of one pixel changes D by one kernel, wherever the pixel is: so the normal equations are read off three correlation
images, and a hole of some hundred pixels is solved at once. Larger ones (the cores of saturated stars) are left to
conjugate gradients, which want a good guess: the star that is under the hole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import (
    Surface,
    frequencies,
    moved,
    normalised_coefficients,
    power,
    spectra,
)

if TYPE_CHECKING:
    import torch

#: The most pixels of a stamp that are solved at once: the time grows with the cube, and is that of the transforms here.
MOST = 512
#: Prior width of a filled pixel about its first guess, in units of the noise. It matters only for what the PSFs let
#: through nothing of, which the frames say nothing about.
PRIOR = 30.0
#: Rounds in which what the prior held back is solved for again: each takes its share to the next power.
ROUNDS = 3
#: Steps of conjugate gradients: the operator is nearly the identity, each step gains some factor of 3.
STEPS = 12
#: A stamp is solved when the squared gradient has fallen to this share of the first: float32 knows no more.
SOLVED = 1e-13

Images = tuple[npt.NDArray, ...]


@dataclass(eq=False)
class _Operator:
    """D of a batch of stamps as a linear function of both, with noise √(v_n + v_r) everywhere."""

    forward_n: torch.Tensor
    forward_r: torch.Tensor
    weight: torch.Tensor
    size: int

    def back(self, image: torch.Tensor) -> torch.Tensor:
        """Return the inverse transform."""
        import torch

        return torch.fft.irfft2(image, s=(self.size, self.size))

    def difference(self, n: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """Return D, faded out where the stamps' borders lack their surroundings."""
        import torch

        return self.weight * self.back(
            self.forward_n * torch.fft.rfft2(n) + self.forward_r * torch.fft.rfft2(r)
        )

    def adjoint(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of an image with each pixel's kernel, for pixels of either frame."""
        import torch

        transform = torch.fft.rfft2(image * self.weight)
        return self.back(self.forward_n.conj() * transform), self.back(self.forward_r.conj() * transform)

    def correlations(self) -> torch.Tensor:
        """Return the products of two pixels' kernels by their distance, (n, 2, 2, L, L): frames of the two pixels."""
        import torch

        both = (self.forward_n, self.forward_r)
        return torch.stack([torch.stack([self.back(a.conj() * b) for b in both], 1) for a in both], 1)


class Solver:
    """Least squares for the bad pixels of batches of stamps of one size."""

    def __init__(
        self,
        psf_matched: PSF,
        psf_reference: PSF,
        shift: Surface,
        sigmas: tuple[float, float],
        size: int,
        device: torch.device,
    ) -> None:
        import torch

        self.q, self.r, self.shift, self.size, self.device = psf_matched, psf_reference, shift, size, device
        self.basis_q, self.basis_r = (spectra(p.basis, size, device) for p in (psf_matched, psf_reference))
        self.v_n, self.v_r = sigmas[0] ** 2, sigmas[1] ** 2
        self.ky, self.kx = frequencies(size, device)
        # The outermost pixels lack their surroundings; the weight fades out over 4 px.
        ramp = (torch.minimum(torch.arange(size), torch.arange(size).flip(0)) - 4).clamp(0, 4) / 4.0
        self.weight = (ramp[:, None] * ramp[None, :]).to(device)

    def _send(self, a: npt.NDArray) -> torch.Tensor:
        import torch

        return torch.as_tensor(np.ascontiguousarray(a), device=self.device)

    def _operator(self, x: npt.NDArray, y: npt.NDArray) -> tuple[_Operator, torch.Tensor, torch.Tensor]:
        """Return the operator of stamps at (x, y), and the transforms of Q and P_r there."""
        import torch

        q, p_r = (
            torch.einsum(
                "nk,kij->nij", self._send(normalised_coefficients(psf, x, y)).to(torch.complex64), basis
            )
            for psf, basis in ((self.q, self.basis_q), (self.r, self.basis_r))
        )
        d = self._send(self.shift.at(x, y)).float()
        phase = moved(d[:, 0], d[:, 1], self.ky, self.kx)
        den = (
            power(p_r).mul_(self.v_n).add_(power(q), alpha=self.v_r).clamp_min_(1e-8 * (self.v_n + self.v_r))
        )
        white = torch.sqrt((self.v_n + self.v_r) / den)
        return _Operator(p_r * white, -q * phase * white, self.weight, self.size), q, p_r

    def solve_small(self, images: Images, holes: Images, x: npt.NDArray, y: npt.NDArray) -> Images:
        """Return both frames' stamps with all of their bad pixels, at most `MOST`, solved for at once."""
        import torch

        operator, *_ = self._operator(x, y)
        frames = [self._send(i).float() for i in images]
        # Unknowns: (stamp, frame, row, column), a stamp's own in a row of `most`, the rest of the row left alone.
        stamp, kind, row, column = np.nonzero(np.stack(holes, axis=1))
        count = np.bincount(stamp, minlength=len(x))
        most, rank = int(count.max()), np.arange(len(stamp)) - np.repeat(np.cumsum(count) - count, count)
        where = np.zeros((3, len(x), most), np.int64)
        where[:, stamp, rank] = kind, row, column
        k, v, u = (self._send(w) for w in where)
        used = self._send(np.arange(most) < count[:, None])
        left = torch.stack(operator.adjoint(-operator.difference(*frames)), 1)
        n = torch.arange(len(x), device=self.device)[:, None]
        right = torch.where(used, left[n, k, v, u], 0.0).double()
        # Two pixels' place in the table is the difference of two numbers, one each: laid out twice along both axes it
        # needs no wrapping. With some hundred thousand pairs a stamp this is where the time goes.
        wide = 2 * self.size
        table = operator.correlations().tile((1, 1, 1, 2, 2)).flatten(1)
        place = v * wide + u
        from_first, from_second = place + k * (2 * wide**2), place - k * wide**2
        pairs = (from_first + self.size * (wide + 1))[:, :, None] - from_second[:, None, :]
        normal = torch.gather(table, 1, pairs.flatten(1)).view(pairs.shape).double()
        if int(count.min()) < most:
            normal *= used[:, :, None] & used[:, None, :]
        ridge = 1 / PRIOR**2  # D's noise in units of itself over the prior's
        normal.diagonal(dim1=1, dim2=2).add_(torch.where(used, ridge, 1.0))
        factor = torch.linalg.cholesky(normal)
        first = torch.cholesky_solve(right[:, :, None], factor)
        solution = first
        for _ in range(ROUNDS - 1):
            solution = first + ridge * torch.cholesky_solve(solution, factor)
        amount = solution[:, :, 0].float().cpu().numpy()[stamp, rank]
        out = tuple(f.cpu().numpy().copy() for f in frames)
        for i in (0, 1):
            mine = kind == i
            out[i][stamp[mine], row[mine], column[mine]] += amount[mine]
        return out

    def solve_large(self, images: Images, holes: Images, x: npt.NDArray, y: npt.NDArray) -> Images:
        """Return both frames' stamps with their bad pixels filled, from the star that fits best under each hole."""
        import torch

        operator, q, p_r = self._operator(x, y)
        difference = operator.difference
        hole_n, hole_r = (self._send(h).float() for h in holes)
        n, r = (self._send(i).float() for i in images)
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
        step = _in(operator.adjoint(residual), hole_n, hole_r)
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
            gradient = list(_in(operator.adjoint(residual), hole_n, hole_r))
            new = _square(gradient)
            ratio = torch.where(active, new / norm.clamp_min(1e-20), 0.0)[:, None, None]
            step = (gradient[0] + ratio * step[0], gradient[1] + ratio * step[1])
            norm = torch.where(active, new, 0.0)
        return n.cpu().numpy(), r.cpu().numpy()


def _in(
    images: tuple[torch.Tensor, torch.Tensor], hole_n: torch.Tensor, hole_r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return images[0] * hole_n, images[1] * hole_r


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
