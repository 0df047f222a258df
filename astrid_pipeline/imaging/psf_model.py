"""A point spread function that may vary over the frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PSF:
    """PSF(x, y) = Σ_k p_k(x, y) · basis[k], with p_k the monomials of `exponents` in scaled coordinates.

    Attributes
    ----------
    basis:
        (K, S, S) float64, S odd. Pixel-integrated stamps centred on the middle pixel; `basis[0]` belongs to the
        constant term.
    exponents:
        K pairs (i, j): term k is u**i * v**j, where u = 2 x / (width - 1) - 1 and v = 2 y / (height - 1) - 1.
    shape:
        (height, width) of the frame that the coordinates refer to.
    quality:
        Numbers on how it was made: `n_stars`, `chi2` (reduced, median over the stars), `fwhm` (px),
        `ellipticity`, ...
    """

    basis: npt.NDArray[np.float64]
    exponents: tuple[tuple[int, int], ...] = ((0, 0),)
    shape: tuple[int, int] = (1, 1)
    quality: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        basis = np.ascontiguousarray(self.basis, dtype=np.float64)
        if basis.ndim == 2:
            basis = basis[None]
        if basis.ndim != 3 or basis.shape[1] != basis.shape[2] or basis.shape[1] % 2 == 0:
            raise ValueError(f"PSF basis must be (K, S, S) with S odd, not {basis.shape}")
        if len(self.exponents) != len(basis):
            raise ValueError(f"{len(basis)} basis stamps but {len(self.exponents)} terms")
        if not np.isfinite(basis).all():
            raise ValueError("PSF basis has values that are not finite")
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "exponents", tuple((int(i), int(j)) for i, j in self.exponents))
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))

    @classmethod
    def from_stamp(cls, stamp: npt.ArrayLike, shape: tuple[int, int] = (1, 1), **quality: Any) -> PSF:
        """Return a constant PSF from one stamp; it is padded to an odd square and scaled to sum 1."""
        image = np.asarray(stamp, dtype=np.float64)
        if image.ndim != 2 or not np.isfinite(image).all() or image.sum() <= 0:
            raise ValueError("a PSF stamp must be a finite 2-D array with a positive sum")
        size = max(image.shape) | 1
        padded = np.zeros((size, size))
        peak = np.unravel_index(np.argmax(image), image.shape)
        # An even stamp has no middle pixel: place it so that the peak's side of the middle is the middle.
        y0, x0 = (
            (size - n) // 2 if n % 2 else (size // 2 - p if abs(p - n / 2) <= 1 else (size - n) // 2)
            for n, p in zip(image.shape, peak, strict=True)
        )
        y0, x0 = min(max(int(y0), 0), size - image.shape[0]), min(max(int(x0), 0), size - image.shape[1])
        padded[y0 : y0 + image.shape[0], x0 : x0 + image.shape[1]] = image
        return cls(padded[None] / padded.sum(), shape=shape, quality=dict(quality))

    @property
    def size(self) -> int:
        """Side of the stamps in pixels."""
        return int(self.basis.shape[1])

    @property
    def is_constant(self) -> bool:
        """Whether the PSF is the same everywhere."""
        return len(self.basis) == 1

    def coefficients(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return p_k(x, y), shape (..., K), at zero-based pixel positions."""
        u = 2 * np.asarray(x, float) / max(self.shape[1] - 1, 1) - 1
        v = 2 * np.asarray(y, float) / max(self.shape[0] - 1, 1) - 1
        return np.stack([u**i * v**j for i, j in self.exponents], axis=-1)

    def stamps(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the (N, S, S) PSFs at N pixel positions, each of sum 1."""
        images = np.tensordot(self.coefficients(np.atleast_1d(x), np.atleast_1d(y)), self.basis, axes=1)
        return images / images.sum(axis=(1, 2), keepdims=True)

    def stamp(self, x: float | None = None, y: float | None = None) -> npt.NDArray[np.float64]:
        """Return the (S, S) PSF at pixel (x, y), default the frame's centre; its sum is 1."""
        x = (self.shape[1] - 1) / 2 if x is None else x
        y = (self.shape[0] - 1) / 2 if y is None else y
        image = np.tensordot(self.coefficients(x, y), self.basis, axes=1)
        return image / image.sum()

    def fwhm(self, x: float | None = None, y: float | None = None) -> float:
        """Return the full width at half maximum in pixels: of a circle with the area above half the peak.

        The area is counted on the core magnified by spline interpolation; a fine pixel on the border counts by the
        part of it that the local gradient puts inside, so that the width is not quantised.
        """
        from scipy.ndimage import zoom

        stamp = self.stamp(x, y)
        # The core holds the half-maximum contour: pixels over a quarter of the peak, and what interpolation needs.
        rows, columns = np.nonzero(stamp > 0.25 * stamp.max())
        centre = self.size // 2
        reach = int(max(np.abs(rows - centre).max(), np.abs(columns - centre).max())) + 6
        core = np.pad(stamp, 6)[
            max(centre + 6 - reach, 0) : centre + 7 + reach, max(centre + 6 - reach, 0) : centre + 7 + reach
        ]
        fine = zoom(core, 5, order=3, grid_mode=True, mode="grid-constant")
        over = fine - fine.max() / 2
        slope = np.hypot(*np.gradient(fine))
        inside = np.clip(0.5 + over / np.maximum(slope, 1e-12 * fine.max()), 0, 1)
        return float(2 * np.sqrt(inside.sum() / np.pi) / 5)

    def noise_area(self, x: float | None = None, y: float | None = None) -> float:
        """Return 1 / Σ P², the pixels whose noise a PSF-weighted flux sums up."""
        return float(1 / np.square(self.stamp(x, y)).sum())
