"""Elliptical Moffat profiles integrated over pixels, for many stars at once, with their derivatives.

The Moffat (1969, A&A 3, 455) is what the atmosphere leaves of a star; here it is the smooth start of a measured
PSF, which pixels then correct.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Stack = npt.NDArray[np.floating]
_Float = npt.NDArray[np.float64]

#: Stars evaluated in one go, so that the samples stay in the processor's cache.
_CHUNK = 64
#: Bounds of the exponent: below 1.5 the wings hold more light than any telescope scatters, at 20 it is a Gaussian.
BETA_RANGE = (1.5, 20.0)
_MAX_ELLIPTICITY = 0.6


@dataclass(frozen=True, eq=False)
class Moffats:
    """N profiles K (1 + q)^-beta with q = d' M d and unit flux over the plane.

    dx, dy: offsets from the middle pixel (px); width: ln FWHM, of the circle of equal area (px); e1, e2: distortion,
    (1 - q²) / (1 + q²) times cos and sin of twice the angle, q the axis ratio; beta: one for all.
    """

    dx: _Float
    dy: _Float
    width: _Float
    e1: _Float
    e2: _Float
    beta: float

    def __len__(self) -> int:
        return len(self.dx)

    def take(self, index: npt.NDArray | slice) -> Moffats:
        """Return some of them."""
        return Moffats(
            self.dx[index], self.dy[index], self.width[index], self.e1[index], self.e2[index], self.beta
        )

    def centred(self) -> Moffats:
        """Return them with their centres on the middle pixel."""
        return replace(self, dx=np.zeros_like(self.dx), dy=np.zeros_like(self.dy))

    def stamps(self, size: int) -> Stack:
        """Return (N, size, size) pixel-integrated stamps."""
        return self.evaluate(size)[0]

    def evaluate(self, size: int, derivatives: bool = False) -> tuple[Stack, Stack]:
        """Return stamps, and (6, N, size, size) derivatives by dx, dy, width, e1, e2, beta (else an empty array)."""
        values = np.empty((len(self), size, size), np.float32)
        slopes = np.empty((6, len(self), size, size) if derivatives else (0,), np.float32)
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            stamps, slope = _evaluate(self.take(part), size, derivatives)
            values[part] = stamps
            if derivatives:
                slopes[:, part] = slope
        return values, slopes


@lru_cache(maxsize=64)
def _quadrature(fwhm: float, size: int) -> tuple[_Float, Stack | None]:
    """Return sample positions on an axis, and the matrix (size, samples) that integrates them over each pixel.

    As many Gauss-Legendre points a pixel as leave an error under 4e-4 of the peak at this width (px); one point needs
    no matrix.
    """
    order = 3 if fwhm < 2.6 else 2 if fwhm < 10 else 1
    nodes, weights = np.polynomial.legendre.leggauss(order)
    samples = ((np.arange(size) - size // 2)[:, None] + nodes / 2).ravel()
    return samples, None if order == 1 else np.kron(np.eye(size), weights / 2).astype(np.float32)


def _evaluate(m: Moffats, size: int, derivatives: bool) -> tuple[Stack, list[Stack]]:
    samples, gather = _quadrature(round(float(np.exp(np.min(m.width))), 1), size)
    x = (samples[None] - m.dx[:, None]).astype(np.float32)[:, None, :]
    y = (samples[None] - m.dy[:, None]).astype(np.float32)[:, :, None]
    power = 2 ** (1 / m.beta)
    alpha2 = np.exp(2 * m.width) / 4 / (power - 1)
    root = np.sqrt(1 - m.e1**2 - m.e2**2)
    scale = 1 / (alpha2 * root)
    a, b, c = (
        v.astype(np.float32)[:, None, None] for v in ((1 - m.e1) * scale, -m.e2 * scale, (1 + m.e1) * scale)
    )
    q = a * x * x + c * y * y + (2 * b) * (x * y)
    base = 1 + q
    height = ((m.beta - 1) / (np.pi * alpha2)).astype(np.float32)[:, None, None]
    log_base = np.log(base)
    profile = height * np.exp(np.float32(-m.beta) * log_base)

    def integrate(fine: Stack) -> Stack:
        return fine if gather is None else np.asarray(gather @ fine @ gather.T, np.float32)

    stamps = integrate(profile)
    if not derivatives:
        return stamps, []
    by_q = np.float32(-m.beta) * profile / base
    grow = float(np.log(2) * power / m.beta**2 / (power - 1))
    per_e = scale.astype(np.float32)[:, None, None]
    e1, e2, r2 = ((v.astype(np.float32))[:, None, None] for v in (m.e1, m.e2, root**2))
    slopes = [
        integrate(by_q * (-2) * (a * x + b * y)),
        integrate(by_q * (-2) * (b * x + c * y)),
        integrate(-2 * profile - 2 * q * by_q),
        integrate(by_q * ((y * y - x * x) * per_e + q * (e1 / r2))),
        integrate(by_q * (-2 * (x * y) * per_e + q * (e2 / r2))),
        # At fixed FWHM alpha² grows as beta does: d ln alpha² / d beta = 2^(1/beta) ln 2 / beta² / (2^(1/beta) - 1).
        integrate(profile * (np.float32(1 / (m.beta - 1) - grow) - log_base) + by_q * q * np.float32(-grow)),
    ]
    return stamps, slopes


@dataclass(frozen=True, eq=False)
class MoffatFit:
    """Fitted profiles, their fluxes, and the formal errors of width, e1 and e2 as (3, N)."""

    profiles: Moffats
    flux: _Float
    errors: _Float


def fit_moffats(stamps: Stack, variance: Stack, weight: Stack, start: Moffats, rounds: int = 6) -> MoffatFit:
    """Fit flux, position, width and shape of every star, and one exponent for all of them.

    Gauss-Newton with the stars' own six parameters eliminated from the equation of the common one (Schur
    complement); 2 % of the signal are added to the noise, so that bright stars do not bend the profile to what only
    the pixels of a PSF can follow.

    Parameters
    ----------
    stamps, variance, weight:
        (N, S, S): sky-subtracted data, their variance, and 1 or 0 for usable or not.
    start:
        First guesses: centres to half a pixel, width to a third.
    """
    number, size, _ = stamps.shape
    m = start
    inverse = weight / (variance + np.square(0.02 * stamps))
    first = m.stamps(size)
    flux = np.einsum("nij,nij->n", first * inverse, stamps) / np.einsum("nij,nij->n", first * inverse, first)
    damping = np.full(number, 1e-3)
    previous = np.full(number, np.inf)
    normal = np.zeros((number, 6, 6))
    for step in range(rounds):
        values, slopes = m.evaluate(size, derivatives=True)
        residual = stamps - flux.astype(np.float32)[:, None, None] * values
        chi2 = np.einsum("nij,nij->n", residual * inverse, residual).astype(float)
        damping = np.where(chi2 <= previous * 1.0001, damping * 0.3, np.minimum(damping * 10, 10.0))
        previous = chi2
        design = np.concatenate([values[None], flux.astype(np.float32)[None, :, None, None] * slopes])
        design = design.transpose(1, 0, 2, 3).reshape(number, 7, -1)
        weighted = design * inverse.reshape(number, 1, -1)
        full = (weighted @ design.transpose(0, 2, 1)).astype(float)
        right = (weighted @ residual.reshape(number, -1, 1))[:, :, 0].astype(float)
        normal, cross = full[:, :6, :6], full[:, :6, 6]
        diagonal = np.einsum("nii->ni", normal)
        damped = normal + (damping[:, None] * diagonal + 1e-30)[:, :, None] * np.eye(6)
        solved = np.linalg.solve(damped, np.stack([right[:, :6], cross], axis=2))
        change = 0.0
        if step:
            # Bright stars would decide alone: each has at most 5 times the median's say. The median of what they
            # wish for is not bent by the galaxies and blends among them.
            say = full[:, 6, 6] - np.einsum("nk,nk->n", cross, solved[:, :, 1])
            pull = right[:, 6] - np.einsum("nk,nk->n", cross, solved[:, :, 0])
            share = np.minimum(1, 5 * np.median(say) / np.maximum(say, 1e-30))
            # Where the stars hardly tell it, seeing-limited profiles do: 3.5 +- 2.
            wishes = np.append(pull / np.maximum(say, 1e-30), 3.5 - m.beta)
            change = _weighted_median(wishes, np.append(share * say, 1 / 4))
            change = float(np.clip(change, -0.3 * m.beta, 0.3 * m.beta))
        delta = solved[:, :, 0] - change * solved[:, :, 1]
        flux = np.where(np.isfinite(delta[:, 0]), flux + delta[:, 0], flux)
        m = _moved(m, delta[:, 1:], change)
    covariance = np.linalg.inv(normal + 1e-30 * np.eye(6))
    errors = np.sqrt(np.abs(np.einsum("nii->in", covariance)[3:6]))
    return MoffatFit(m, flux, errors)


def _weighted_median(values: _Float, weights: _Float) -> float:
    """Return the value that has half the weight on either side."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def _moved(m: Moffats, delta: _Float, change: float) -> Moffats:
    """Return the profiles moved by one step, kept within what is possible."""
    delta = np.nan_to_num(delta)
    e1 = m.e1 + np.clip(delta[:, 3], -0.2, 0.2)
    e2 = m.e2 + np.clip(delta[:, 4], -0.2, 0.2)
    shrink = np.minimum(1, _MAX_ELLIPTICITY / np.maximum(np.hypot(e1, e2), 1e-9))
    return Moffats(
        dx=np.clip(m.dx + np.clip(delta[:, 0], -0.5, 0.5), -2, 2),
        dy=np.clip(m.dy + np.clip(delta[:, 1], -0.5, 0.5), -2, 2),
        width=m.width + np.clip(delta[:, 2], -0.3, 0.3),
        e1=e1 * shrink,
        e2=e2 * shrink,
        beta=float(np.clip(m.beta + change, *BETA_RANGE)),
    )
