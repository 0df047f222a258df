"""Point spread functions of made-up telescopes: elliptical Moffat profiles that vary over the frame.

Everything is done in Fourier space, where the Moffat profile, the pixel's box, a sub-pixel shift and a trail all
have closed forms: a star is placed exactly, to the rounding of float32, at any position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.psf_model import PSF

#: Spectra are sampled to 1 cycle per pixel, twice the pixel grid's Nyquist frequency: there the pixel's own box has
#: its first zero, and what a Moffat of FWHM ≥ 1.5 px has beyond it is below 1e-4.
OVERSAMPLING = 2

#: Terms of the polynomial in (u, v) by which a PSF varies.
QUADRATIC = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))

#: Stamps built in one go, so that their spectra stay within the processor's cache.
_CHUNK = 64


def frequencies(size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return (fy, fx) in cycles per pixel of the oversampled half-plane spectrum of a `size` px stamp."""
    fine = OVERSAMPLING * size
    fy = np.fft.fftfreq(fine, 1 / OVERSAMPLING).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(fine, 1 / OVERSAMPLING).astype(np.float32)[None, :]
    return fy, fx


def fold(spectrum: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.complexfloating]:
    """Return the spectrum on the pixel grid, (..., S, S // 2 + 1), from the oversampled (..., 2 S, S + 1) one.

    Taking every second sample in real space adds the aliases in Fourier space.
    """
    size = spectrum.shape[-2] // OVERSAMPLING
    rows = spectrum[..., :size, :] + spectrum[..., size:, :]
    low = rows[..., : size // 2 + 1]
    # Column i + size of the whole plane is the conjugate of column size - i at the opposite row.
    high = rows[..., :, size - np.arange(size // 2 + 1)]
    opposite = -np.arange(size) % size
    return low + np.conj(high[..., opposite, :])


#: Samples of a Moffat's transform per unit of 2 π k α, and the last of them: beyond, less than 1e-15 is left.
_Z_STEPS, _Z_LAST = 200, 40


@lru_cache(maxsize=16)
def _moffat_table(beta: float) -> npt.NDArray[np.float64]:
    """Return the Fourier transform of a unit Moffat at z = 2 π k α = 0, 1/200 … 40, and one 0 more."""
    from scipy.special import gamma, kv

    nu = beta - 1
    z = np.arange(1, _Z_STEPS * _Z_LAST + 1) / _Z_STEPS
    return np.concatenate([[1.0], z**nu * kv(nu, z) / (2 ** (nu - 1) * gamma(nu)), [0.0]])


def _moffat_transform(k: npt.NDArray[np.floating], alpha: float, beta: float) -> npt.NDArray[np.float64]:
    """Return the Fourier transform of the Moffat (β-1)/(π α²) (1 + r²/α²)^-β at frequency k (cycles per px)."""
    return lookup(_moffat_table(beta), 2 * np.pi * alpha * _Z_STEPS * k)


def lookup(table: npt.NDArray[np.float64], place: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return `table` linearly interpolated at fractional indices; beyond its end, its last value.

    Even steps need no search, which makes it several times as quick as `np.interp`.
    """
    inside = np.minimum(place, len(table) - 1.001)
    low = inside.astype(np.int32)
    value = table[low]
    return value + (inside - low) * (table[low + 1] - value)


def shear(ellipticity: float, angle: float) -> tuple[float, float]:
    """Return (e1, e2) of an ellipse of ellipticity 1 - b/a whose major axis is `angle` radians from the x axis."""
    q = 1 - ellipticity
    e = (1 - q * q) / (1 + q * q)
    return e * math.cos(2 * angle), e * math.sin(2 * angle)


@dataclass(frozen=True, eq=False)
class SkyPSF:
    """An elliptical Moffat whose FWHM and shape vary over the frame as quadratic polynomials of (u, v).

    Attributes
    ----------
    shape:
        (height, width) of the frame; u = 2 x / (width - 1) - 1, v = 2 y / (height - 1) - 1.
    fwhm, e1, e2:
        Coefficients, in the order of `QUADRATIC`, of the FWHM in pixels (of a circle of the same area) and of the
        shape (a² - b²)/(a² + b²) (cos 2θ, sin 2θ). One number means: constant.
    beta:
        The Moffat's exponent; seeing has 2.5 to 4.5.

    The PSF that stars are drawn with is the least-squares quadratic, in Fourier space, through the Moffats at 16
    places: `model` gives exactly that one, so that truth and picture are the same function.
    """

    shape: tuple[int, int]
    fwhm: tuple[float, ...] = (2.4,)
    e1: tuple[float, ...] = (0.0,)
    e2: tuple[float, ...] = (0.0,)
    beta: float = 3.5
    _spectra: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def is_constant(self) -> bool:
        """Whether the PSF is the same everywhere."""
        return not any(any(c[1:]) for c in (self.fwhm, self.e1, self.e2))

    @property
    def exponents(self) -> tuple[tuple[int, int], ...]:
        """The polynomial's terms."""
        return QUADRATIC[:1] if self.is_constant else QUADRATIC

    def coefficients(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the monomials at pixel positions, shape (..., K)."""
        u = 2 * np.asarray(x, float) / max(self.shape[1] - 1, 1) - 1
        v = 2 * np.asarray(y, float) / max(self.shape[0] - 1, 1) - 1
        return np.stack([u**i * v**j for i, j in self.exponents], axis=-1)

    def fwhm_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the FWHM in pixels at pixel positions."""
        u = 2 * np.asarray(x, float) / max(self.shape[1] - 1, 1) - 1
        v = 2 * np.asarray(y, float) / max(self.shape[0] - 1, 1) - 1
        return np.asarray(_polynomial(self.fwhm, u, v))

    def basis(self, size: int) -> npt.NDArray[np.float32]:
        """Return the real spectra (K, 2 size, size + 1) of the terms, centred on the origin."""
        if size not in self._spectra:
            # The frequencies of a small stamp are every n-th of a larger one's.
            step, larger = min(((s // size, s) for s in self._spectra if s % size == 0), default=(0, 0))
            self._spectra[size] = (
                np.ascontiguousarray(self._spectra[larger][:, ::step, ::step])
                if step
                else self._make_basis(size)
            )
        return self._spectra[size]

    def _make_basis(self, size: int) -> npt.NDArray[np.float32]:
        fy, fx = frequencies(size)
        box = np.sinc(fy) * np.sinc(fx)
        # Chebyshev's nodes, so that the fit is good to the corners.
        nodes = [0.0] if self.is_constant else list(np.cos(np.pi * (np.arange(4) + 0.5) / 4))
        u, v = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
        spectra = np.stack([self._spectrum_at(a, b, fy, fx) * box for a, b in zip(u, v, strict=True)])
        design = np.stack([u**i * v**j for i, j in self.exponents], axis=-1)
        terms = np.linalg.pinv(design) @ spectra.reshape(len(spectra), -1)
        return terms.reshape(len(self.exponents), *box.shape).astype(np.float32)

    def _spectrum_at(
        self, u: float, v: float, fy: npt.NDArray[np.floating], fx: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.float64]:
        e1, e2 = _polynomial(self.e1, u, v), _polynomial(self.e2, u, v)
        norm = 1 / math.sqrt(max(1 - e1 * e1 - e2 * e2, 1e-6))
        k2 = norm * ((1 + e1) * fx**2 + 2 * e2 * fx * fy + (1 - e1) * fy**2)
        alpha = _polynomial(self.fwhm, u, v) / (2 * math.sqrt(2 ** (1 / self.beta) - 1))
        return _moffat_transform(np.sqrt(k2), alpha, self.beta)

    def model(self, size: int | None = None, **quality: Any) -> PSF:
        """Return the PSF as the pipeline's own `PSF`, stamps of `size` px (odd; default 8 FWHM)."""
        size = (2 * math.ceil(4 * self.fwhm[0]) + 1) if size is None else size
        grid = 2 * (size // 2 + 8)
        stamps = np.fft.irfft2(fold(self.basis(grid).astype(np.complex128)), s=(grid, grid))
        stamps = np.roll(stamps, (size // 2, size // 2), axis=(1, 2))[:, :size, :size]
        return PSF(stamps, self.exponents, self.shape, dict(quality))

    def trail_loss(self, dx: npt.ArrayLike, dy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the S/N of a matched trail over that of a point of the same flux: √(Σ (P ∗ line)² / Σ P²).

        By Parseval's theorem, in the spectrum of the PSF in the middle of the frame; `dx`, `dy` in pixels.
        """
        size = 64
        fy, fx = frequencies(size)
        power = np.square(self.basis(size)[0], dtype=np.float64)
        power[:, 1:-1] *= 2  # the half of the plane that is not kept
        xs, ys = np.atleast_1d(np.asarray(dx, float)), np.atleast_1d(np.asarray(dy, float))
        loss = [
            (power * np.sinc(x * fx + y * fy) ** 2).sum() / power.sum() for x, y in zip(xs, ys, strict=True)
        ]
        return np.sqrt(np.array(loss, dtype=float))

    def stamps(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        size: int,
        *,
        profile: npt.NDArray[np.float32] | None = None,
        trail: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield (which sources, their stamps (n, size, size)) of unit flux, centred on the pixel nearest to each.

        `size` is even and the centre is pixel `size // 2`. `profile` is the spectrum (n, 2 size, size + 1) of the
        sources' own light, `trail` their (dx, dy) motion in pixels while the shutter was open.
        """
        from scipy.fft import irfft2

        basis = self.basis(size)
        fy, fx = frequencies(size)
        for start in range(0, len(x), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(x)))
            terms = self.coefficients(x[part], y[part]).astype(np.float32)
            spectrum = np.tensordot(terms, basis, axes=1)
            if profile is not None:
                spectrum *= profile[part]
            if trail is not None:
                dx, dy = (np.asarray(d[part], np.float32)[:, None, None] for d in trail)
                spectrum *= np.sinc(dx * fx + dy * fy)
            shift_y = (y[part] - np.rint(y[part]) + size // 2)[:, None, None]
            shift_x = (x[part] - np.rint(x[part]) + size // 2)[:, None, None]
            phased = spectrum * np.exp(-2j * np.pi * fy * shift_y).astype(np.complex64)
            phased *= np.exp(-2j * np.pi * fx * shift_x).astype(np.complex64)
            yield part, irfft2(fold(phased), s=(size, size), axes=(-2, -1)).astype(np.float32, copy=False)


def _polynomial(coefficients: tuple[float, ...], u: Any, v: Any) -> Any:
    return sum(c * u**i * v**j for c, (i, j) in zip(coefficients, QUADRATIC, strict=False))


def constant_psf(
    shape: tuple[int, int], fwhm: float, *, ellipticity: float = 0.0, angle: float = 0.0, beta: float = 3.5
) -> SkyPSF:
    """Return a PSF that is the same all over the frame; `fwhm` in px, `angle` in radians from the x axis."""
    e1, e2 = shear(ellipticity, angle)
    return SkyPSF(shape, (fwhm,), (e1,), (e2,), beta)


def varying_psf(
    rng: np.random.Generator,
    shape: tuple[int, int],
    fwhm: float,
    *,
    variation: float = 0.12,
    ellipticity: float = 0.15,
    beta: float = 3.5,
) -> SkyPSF:
    """Return a PSF whose FWHM varies by ± `variation` over the frame, its ellipticity by up to `ellipticity`."""
    e = shear(ellipticity, 0.0)[0]
    u, v = (g.ravel() for g in np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)))

    def scaled(amplitude: float) -> tuple[float, ...]:
        # A tilt and a bowl, as a tilted or curved focal plane makes; scaled so that ± amplitude is reached.
        raw = [0.0, *rng.normal(0, 1, 2), *rng.normal(0, 0.5, 3)]
        values = _polynomial(tuple(raw), u, v)
        middle, half = (values.max() + values.min()) / 2, (values.max() - values.min()) / 2
        raw[0] = -middle
        return tuple(float(amplitude * c / half) for c in raw)

    relative = scaled(variation)
    widths = (fwhm * (1 + relative[0]), *(fwhm * c for c in relative[1:]))
    # Two components of e / √2 each keep |e| within `ellipticity` everywhere.
    return SkyPSF(shape, widths, scaled(e / math.sqrt(2)), scaled(e / math.sqrt(2)), beta)
