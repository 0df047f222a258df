"""The ideal statistic: ZOGY of small patches with the true PSFs, registration, flux ratio, sky and noise.

Written from the paper (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27), apart from the subtraction that is judged. What no
method can know is given to it; so its completeness is the best that these very frames allow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.fft import irfft2, rfft2

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline_tests.benchmarks.known import Floats, KnownPair

#: Side of a patch; its outer `TAPER` pixels fade out, since the transforms take it for periodic.
PATCH, TAPER = 64, 8
#: Positions are looked at within this many pixels of the truth, as for every method.
RADIUS = 2
DISC = np.hypot(*np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]) <= RADIUS


def ideal(known: KnownPair, changes: pd.DataFrame) -> pd.DataFrame:
    """Return what the ideal statistic makes of changes of a pair.

    Columns: `peak` (the largest S_corr of the pixels within `RADIUS`, signed as the change), `at` (S_corr at the true
    position), `flux`, `flux_err` (α and its error there, science electrons), `bound` (the least error of a position
    per axis times the S/N, px: 1 / √(−ρ''(0)), ρ the profile of S around a point source).
    """
    parts = [_some(known, changes.iloc[first : first + 64]) for first in range(0, len(changes), 64)]
    names = ["peak", "at", "flux", "flux_err", "bound"]
    return pd.DataFrame(np.concatenate(parts) if parts else np.empty((0, len(names))), columns=names)


def _some(known: KnownPair, changes: pd.DataFrame) -> Floats:
    pair, scale = known.pair, known.scale
    x, y = changes.x.to_numpy(float), changes.y.to_numpy(float)
    sign = np.sign(changes.flux.to_numpy(float))
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    dx, dy = known.displacement(x, y)
    bad = (pair.science.mask != 0) | (pair.artefacts != 0) | (pair.reference.mask != 0)
    n = _patches(pair.science.data - known.science_sky, row, column)
    r = _patches(pair.reference.data - np.float32(pair.options.sky), row, column) * scale
    v_n = _patches(known.science_variance, row, column)
    v_r = _patches(known.reference_variance, row, column) * scale**2
    lost = _patches(bad, row, column) > 0
    # Where either frame has no value, both are given the reference's: no change there.
    n[lost] = r[lost]
    for v in (v_n, v_r):
        v[lost] = np.median(v)
    window = _window()
    score, flux, error, bound = zogy(
        n * window,
        r * window,
        v_n,
        v_r,
        stamps_on(pair.science_psf, x, y),
        stamps_on(pair.reference_psf, x + dx, y + dy),
        dx,
        dy,
    )
    m = PATCH // 2
    near = sign[:, None] * score[:, m - RADIUS : m + RADIUS + 1, m - RADIUS : m + RADIUS + 1][:, DISC]
    at = between(score, x - column + m, y - row + m)
    value = between(flux, x - column + m, y - row + m)
    return np.column_stack([near.max(1), sign * at, value, error[:, m, m], bound])


def zogy(
    n: Floats, r: Floats, v_n: Floats, v_r: Floats, p_n: Floats, p_r: Floats, dx: Floats, dy: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return S_corr, α, its error, and the bound of a position, of (n, h, w) images in one flux scale (F_n = F_r = 1).

    Parameters
    ----------
    n, r, v_n, v_r:
        Science frames and references, sky removed, and their variances.
    p_n, p_r:
        PSFs, of the images' shape, centred on pixel [0, 0].
    dx, dy:
        (n,): a source at x in `n` stands at x + dx in `r`.
    """
    shape = n.shape[-2:]
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    move = np.exp(2j * np.pi * (kx * dx[:, None, None] + ky * dy[:, None, None]))
    hat_n, hat_r = rfft2(p_n), rfft2(p_r)
    s_n, s_r = (_mean_noise(v, p) for v, p in ((v_n, p_n), (v_r, p_r)))
    den = s_n * np.abs(hat_r) ** 2 + s_r * np.abs(hat_n) ** 2
    k_n = np.conj(hat_n) * np.abs(hat_r) ** 2 / den
    k_r = np.conj(hat_r) * np.abs(hat_n) ** 2 / den * move

    def back(spectrum: npt.NDArray[np.complexfloating]) -> Floats:
        return np.asarray(irfft2(spectrum, s=shape))

    s = back(k_n * rfft2(n) - k_r * rfft2(r))
    # The reference's noise stays where its pixels are: its kernel, moved, carries it.
    variance = back(rfft2(v_n) * rfft2(back(k_n) ** 2) + rfft2(v_r) * rfft2(back(k_r) ** 2))
    profile = np.abs(hat_n) ** 2 * np.abs(hat_r) ** 2 / den
    f_s = back(profile)[:, 0, 0]
    half = np.full(profile.shape[-2:], 2.0)
    half[:, 0] = half[:, -1] = 1.0
    # −ρ'' averaged over both axes: ρ is the transform of `profile`.
    bend = half * (2 * np.pi) ** 2 * (kx**2 + ky**2) / 2
    curvature = (profile * bend).sum((1, 2)) / (profile * half).sum((1, 2))
    width = np.sqrt(variance)
    return s / width, s / f_s[:, None, None], width / f_s[:, None, None], 1 / np.sqrt(curvature)


def _mean_noise(variance: Floats, psf: Floats) -> Floats:
    """Return the mean noise that a source in the middle of each patch meets, (n, 1, 1)."""
    half = (variance.shape[-2] // 2, variance.shape[-1] // 2)
    weight = np.roll(psf**2, half, (-2, -1))
    return np.asarray((weight * variance).sum((-2, -1)) / weight.sum((-2, -1)))[..., None, None]


def stamps_on(psf: PSF, x: Floats, y: Floats, side: int = PATCH) -> Floats:
    """Return the PSF at n places on a grid of `side`², (n, side, side), centred on pixel [0, 0]."""
    stamps = np.tensordot(psf.coefficients(x, y), psf.basis, axes=1)
    middle = psf.size // 2
    half = min(middle, side // 2 - 1)
    stamps = stamps[:, middle - half : middle + half + 1, middle - half : middle + half + 1]
    out = np.zeros((len(x), side, side))
    out[:, : 2 * half + 1, : 2 * half + 1] = stamps / stamps.sum((1, 2), keepdims=True)
    return np.roll(out, (-half, -half), (1, 2))


def between(images: Floats, x: Floats, y: Floats) -> Floats:
    """Return the value of each of n band-limited, periodic images at its own (x, y)."""
    height, width = images.shape[1:]
    ky, kx = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    wave_y = np.exp(2j * np.pi * ky * y[:, None])
    weight = np.full(len(kx), 2.0)
    weight[0] = weight[-1] = 1.0
    wave_x = weight * np.exp(2j * np.pi * kx * x[:, None])
    return np.asarray(np.einsum("nyx,ny,nx->n", rfft2(images), wave_y, wave_x).real / (height * width))


def _patches(image: npt.NDArray, row: npt.NDArray[np.intp], column: npt.NDArray[np.intp]) -> Floats:
    """Return (n, PATCH, PATCH) around pixels; beyond the border the edge is repeated."""
    offset = np.arange(PATCH) - PATCH // 2
    rows = np.clip(row[:, None] + offset, 0, image.shape[0] - 1)
    columns = np.clip(column[:, None] + offset, 0, image.shape[1] - 1)
    return image[rows[:, :, None], columns[:, None, :]].astype(float)


def _window() -> Floats:
    ramp = np.minimum(np.arange(PATCH) + 0.5, PATCH - 0.5 - np.arange(PATCH)) / TAPER
    ramp = np.clip(ramp, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return np.asarray(ramp[:, None] * ramp)
