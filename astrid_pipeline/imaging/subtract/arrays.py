"""Arrays on a device: torch tensors, the Fourier transforms of PSFs, and polynomials over the frame.

torch's own transforms serve both processors; on a CPU they are as fast as any other (10 ms a megapixel for a pair
of them), so that one code path does for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.psf_model import PSF

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]


def open_device(device: Any = None) -> torch.device:
    """Return the torch device that `device` names; None takes a GPU where there is one.

    Raises
    ------
    ConfigError
        If the device is not known or not there.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}",
            where="subtract",
            remedy="use device='cpu', or None for what is there",
        ) from error
    return chosen


def fast_length(n: int) -> int:
    """Return the smallest even length ≥ n that Fourier transforms like: only factors 2, 3, 5 and 7."""
    best = 1 << (n - 1).bit_length()
    for five in (1, 5, 25):
        for seven in (1, 7):
            for three in (1, 3, 9, 27):
                m = 2 * five * seven * three
                while m < n:
                    m *= 2
                best = min(best, m)
    return max(best, 2)


def frequencies(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ky, kx) in radians per pixel, shapes (size, 1) and (1, size // 2 + 1)."""
    import torch

    ky = 2 * np.pi * torch.fft.fftfreq(size, device=device)[:, None]
    kx = 2 * np.pi * torch.fft.rfftfreq(size, device=device)[None, :]
    return ky, kx


def moved(dx: torch.Tensor, dy: torch.Tensor, ky: torch.Tensor, kx: torch.Tensor) -> torch.Tensor:
    """Return the transforms exp(i k·d) that move n images by −d, (n, size, size // 2 + 1), from d of shape (n,)."""
    import torch

    # One exponential a row and a column, not one a pixel.
    return torch.exp(1j * ky * dy[:, None, None]) * torch.exp(1j * kx * dx[:, None, None])


def power(image: torch.Tensor) -> torch.Tensor:
    """Return |image|² of complex values; `abs` would take roots only to square them, and ten times as long."""
    return image.real.square().add_(image.imag.square())


def spectra(stamps: Array, size: int, device: torch.device) -> torch.Tensor:
    """Return the transforms (K, size, size // 2 + 1) of stamps (K, S, S) whose middle is moved to pixel [0, 0].

    Stamps larger than `size` are cut; what a PSF has there is beyond the reach of the tile's margin anyway.
    """
    import torch

    half = min(stamps.shape[-1] // 2, (size - 1) // 2)
    middle = stamps.shape[-1] // 2
    cut = stamps[:, middle - half : middle + half + 1, middle - half : middle + half + 1]
    grid = torch.zeros((len(stamps), size, size), dtype=torch.float64, device=device)
    grid[:, : 2 * half + 1, : 2 * half + 1] = torch.as_tensor(cut, device=device)
    grid = torch.roll(grid, (-half, -half), dims=(1, 2))
    return torch.fft.rfft2(grid).to(torch.complex64)


def normalised_coefficients(psf: PSF, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return c_k(x, y), shape (..., K), such that Σ c_k basis[k] is the PSF there with sum 1."""
    terms = psf.coefficients(x, y)
    return terms / (terms @ psf.basis.sum((1, 2)))[..., None]


def cells_with(mask: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    """Return which cells of `side` px hold a set pixel, (rows, columns); the last ones may be cut off by the frame."""
    height, width = mask.shape
    rows, columns = -(-height // side), -(-width // side)
    padded = np.zeros((rows * side, columns * side), np.uint8)
    padded[:height, :width] = mask
    # Along rows first, where whole lines of memory are joined at once.
    lines = np.bitwise_or.reduce(padded.reshape(rows, side, -1), axis=1)
    return np.asarray(lines.reshape(rows, columns, side).any(axis=2))


def legendre(u: npt.ArrayLike, degree: int) -> Array:
    """Return the Legendre polynomials P_0 … P_degree at u, shape (..., degree + 1)."""
    points = np.asarray(u, float)
    return np.polynomial.legendre.legvander(points, degree).reshape(*points.shape, degree + 1)


@dataclass(frozen=True, eq=False)
class Surface:
    """A polynomial of total degree d over a frame: Σ c_ij P_i(u) P_j(v), u and v from -1 to 1 over the frame.

    Attributes
    ----------
    coefficients:
        (n_terms, ...) one row a term of `terms(degree)`; trailing axes are several surfaces of one kind.
    """

    shape: tuple[int, int]
    degree: int
    coefficients: Array

    @staticmethod
    def terms(degree: int) -> list[tuple[int, int]]:
        """Return the (i, j) of the terms, by total degree."""
        return [(t - j, j) for t in range(degree + 1) for j in range(t + 1)]

    @staticmethod
    def design(shape: tuple[int, int], degree: int, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Return the value of each term at pixel positions, shape (..., n_terms)."""
        u = 2 * np.asarray(x, float) / max(shape[1] - 1, 1) - 1
        v = 2 * np.asarray(y, float) / max(shape[0] - 1, 1) - 1
        # Beyond the frame a polynomial runs away; it keeps the value of the border.
        pu, pv = (legendre(np.clip(w, -1, 1), degree) for w in (u, v))
        return np.stack([pu[..., i] * pv[..., j] for i, j in Surface.terms(degree)], axis=-1)

    @classmethod
    def constant(cls, shape: tuple[int, int], value: npt.ArrayLike) -> Surface:
        """Return the surface that has one value everywhere."""
        return cls(shape, 0, np.asarray(value, float)[None])

    def at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Return the values at pixel positions."""
        return np.asarray(self.design(self.shape, self.degree, x, y) @ self.coefficients)

    def image(self) -> npt.NDArray[np.float32]:
        """Return the (height, width) image of a single surface."""
        u, v = (np.linspace(-1, 1, n) for n in (self.shape[1], self.shape[0]))
        matrix = np.zeros((self.degree + 1, self.degree + 1))
        for (i, j), c in zip(self.terms(self.degree), self.coefficients, strict=True):
            matrix[j, i] = c
        return np.asarray(legendre(v, self.degree) @ matrix @ legendre(u, self.degree).T, np.float32)


def join(shape: tuple[int, int], surfaces: list[Surface]) -> Surface:
    """Return several surfaces as one with a trailing axis."""
    degree = max(s.degree for s in surfaces)
    out = np.zeros((len(Surface.terms(degree)), len(surfaces)))
    for i, surface in enumerate(surfaces):
        out[: len(surface.coefficients), i] = surface.coefficients
    return Surface(shape, degree, out)


def add(a: Surface, b: Surface) -> Surface:
    """Return the sum of two single surfaces."""
    if len(a.coefficients) < len(b.coefficients):
        a, b = b, a
    out = a.coefficients.copy()
    out[: len(b.coefficients)] += b.coefficients
    return Surface(a.shape, a.degree, out)
