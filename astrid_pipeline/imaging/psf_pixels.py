"""What the pixels of the stars say beyond a Moffat: a position-dependent map, as far as noise lets it be believed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.moffat import Moffats, Stack

_Float = npt.NDArray[np.float64]

#: The error of what no star covers.
_NEVER = 1e30

#: Rounds of fitting fluxes and positions, then the map. The map's change shrinks about tenfold a round.
ROUNDS = 3
#: Half width of the interpolation kernel and the width of its Gaussian window, px: of the short kernels this one
#: errs least, 2e-3 of the peak at FWHM 2.5 px where a Lanczos kernel of the same size errs by 7e-3.
REACH, WINDOW = 6, 2.6
#: Share of the star's own light that counts as noise: shapes depend on brightness, bright stars agree no better.
SHARE = 0.01
#: Stars of different brightness needed to tell the PSF's wings from light that lies under all of them.
MIN_FOR_WINGS = 10
#: Stars wanted for each term by which the map varies over the frame.
STARS_PER_TERM = 8
#: A pixel of a star this many sigma off the map is a neighbour or a cosmic ray that no list knew.
PIXEL_SIGMA = 6.0
#: A star this many times worse than the median star (in reduced chi², 3 % of its light allowed for) is dropped.
STAR_CHI2 = 4.0


def monomials(degree: int) -> tuple[tuple[int, int], ...]:
    """Return the exponents (i, j) of all monomials u^i v^j up to a degree, lowest first."""
    return tuple((d - j, j) for d in range(degree + 1) for j in range(d + 1))


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The map and the fit it comes from.

    `maps` (K, S, S) belongs to `exponents`; of sum 0 and without a shift. For each star: position from the middle
    pixel, flux, model stamp of flux 1, the weights its flux and position were fitted with, reduced chi² and relative
    misfit within 1.5 FWHM, and whether it was kept.
    """

    maps: _Float
    exponents: tuple[tuple[int, int], ...]
    dx: _Float
    dy: _Float
    flux: _Float
    model: Stack
    fitted: Stack
    chi2: _Float
    misfit: _Float
    kept: npt.NDArray[np.bool_]


def shift_matrix(shift: npt.NDArray[np.floating], size: int) -> Stack:
    """Return (N, size, size) matrices that shift samples by +shift px: out = matrix @ in. Beyond the ends is zero."""
    shift = np.asarray(shift, float)
    taps = np.arange(-REACH, REACH + 1) + np.rint(shift)[:, None]
    distance = taps - shift[:, None]
    kernel = np.sinc(distance) * np.exp(-0.5 * np.square(distance / WINDOW))
    kernel /= kernel.sum(axis=1, keepdims=True)
    # Row i of the matrix holds the tap k at column i - k.
    column = np.arange(size)[None, :, None] - taps[:, None, :].astype(int)
    matrix = np.zeros((len(shift), size, size), np.float32)
    star, row, tap = np.nonzero((column >= 0) & (column < size))
    matrix[star, row, column[star, row, tap]] = kernel[star, tap]
    return matrix


def solve_pixels(
    stamps: Stack,
    variance: Stack,
    weight: Stack,
    profiles: Moffats,
    x: _Float,
    y: _Float,
    frame: tuple[int, int],
    *,
    max_degree: int = 2,
) -> PixelMap:
    """Solve for the map R in  star = flux · (Moffat + R) shifted to the star, R a polynomial of the position.

    Iterative back-projection: what the present model leaves of each star is shifted to the middle pixel, fitted
    pixel by pixel with weighted polynomials of the position, shrunk to what is significant, and added. The fixed
    point is the least-squares solution of the forward model.
    """
    from astrid_pipeline.imaging.psf_model import PSF

    number, size, _ = stamps.shape
    half = size // 2
    radius = np.hypot(*np.meshgrid(np.arange(size) - half, np.arange(size) - half))
    fwhm = float(np.exp(np.median(profiles.width)))
    core = (radius < 1.5 * fwhm).astype(np.float32)
    degree = max(
        (d for d in range(max_degree + 1) if number >= STARS_PER_TERM * len(monomials(d))), default=0
    )
    exponents = monomials(degree)
    terms = PSF(np.zeros((len(exponents), 1, 1)), exponents, frame).coefficients(x, y)
    middle = profiles.centred().take(np.array([int(np.argmin(np.abs(profiles.width - np.log(fwhm))))]))
    base, slopes = middle.evaluate(size, derivatives=True)
    maps = np.zeros((len(exponents), size, size))
    kept = np.ones(number, bool)
    trust = weight.copy()
    for step in range(ROUNDS + 1):
        model = _model(profiles, maps, terms, size)
        fitted = trust * core / (variance + np.square(SHARE * np.maximum(stamps, 0)))
        profiles, flux, model = _refit(stamps, fitted, model, profiles, first=step == 0)
        bright = flux.astype(np.float32)[:, None, None]
        if step <= 1:
            outside = trust * (radius > 2.5 * fwhm)
            stamps = stamps - _pedestal(stamps - bright * model, outside, flux)[:, None, None]
        residual = stamps - bright * model
        noise = variance + np.square(SHARE * bright * model)
        # Before there is a map, the Moffat may be wrong by a tenth.
        slack = np.float32((0.1, 0.05, 0.03)[min(step, 2)]) * bright * model
        trust = weight * (np.square(residual) < PIXEL_SIGMA**2 * (noise + np.square(slack)))
        kept = _agreeing(residual, variance + np.square(slack), trust * core, flux)
        if step == ROUNDS:
            break
        update = _project(residual / bright, noise / bright**2, trust, profiles, terms, kept)
        maps = _shrunk(maps, update)
        maps = _neutral(maps, base[0].astype(float), slopes[0, 0].astype(float), slopes[1, 0].astype(float))
    chi = trust * core * np.square(residual)
    count = np.maximum((trust * core).sum(axis=(1, 2)) - 3, 1)
    return PixelMap(
        maps=maps,
        exponents=exponents,
        dx=profiles.dx,
        dy=profiles.dy,
        flux=flux,
        model=model,
        fitted=fitted,
        chi2=(chi / variance).sum(axis=(1, 2)).astype(float) / count,
        misfit=np.sqrt(chi.sum(axis=(1, 2))).astype(float) / np.abs(flux),
        kept=kept,
    )


def _model(profiles: Moffats, maps: _Float, terms: _Float, size: int) -> Stack:
    """Return (N, S, S) stamps of flux 1 at the stars' own sub-pixel positions."""
    model = profiles.stamps(size)
    if maps.any():
        local = np.tensordot(terms, maps, axes=1).astype(np.float32)
        rows, columns = shift_matrix(profiles.dy, size), shift_matrix(profiles.dx, size)
        model = model + rows @ local @ columns.transpose(0, 2, 1)
    return model


def _refit(
    stamps: Stack, inverse: Stack, model: Stack, profiles: Moffats, *, first: bool
) -> tuple[Moffats, _Float, Stack]:
    """Fit flux and a small shift of every star by linear least squares; the first time, flux alone.

    Returns the shifted profiles, the fluxes, and the model shifted as well, to first order.
    """
    slope_y, slope_x = np.gradient(model, axis=(1, 2))
    design = np.stack([model, -slope_x, -slope_y], axis=1).reshape(len(model), 3, -1)
    if first:
        design = design[:, :1]
    weighted = design * inverse.reshape(len(model), 1, -1)
    normal = (weighted @ design.transpose(0, 2, 1)).astype(float)
    right = (weighted @ stamps.reshape(len(model), -1, 1)).astype(float)
    floor = 1e-12 * np.maximum(np.einsum("nii->n", normal), 1e-30)
    solution = np.linalg.solve(normal + floor[:, None, None] * np.eye(normal.shape[1]), right)[:, :, 0]
    flux = np.where(solution[:, 0] > 0, solution[:, 0], np.abs(solution[:, 0]) + 1e-30)
    if first:
        return profiles, flux, model
    shift = np.clip(solution[:, 1:] / flux[:, None], -0.2, 0.2)
    dx, dy = shift.T.astype(np.float32)[:, :, None, None]
    moved = replace(profiles, dx=profiles.dx + shift[:, 0], dy=profiles.dy + shift[:, 1])
    return moved, flux, model - dx * slope_x - dy * slope_y


def _pedestal(residual: Stack, weight: Stack, flux: _Float) -> npt.NDArray[np.float32]:
    """Return the light under each star that is not its own: stars too faint to be listed, and errors of the sky.

    It is the level of the outskirts beyond what is proportional to the star's flux, which are the PSF's own wings.
    """
    from astrid_pipeline.imaging.background import clipped_statistics

    rows = np.where(weight > 0, residual, np.float32(np.inf)).reshape(len(residual), -1)
    level, sigma, count = clipped_statistics(rows)
    known = count > 0.1 * rows.shape[1]
    if known.sum() < MIN_FOR_WINGS:
        # A few stars cannot tell wings from sky: the sky that was measured stands.
        return np.zeros(len(residual), np.float32)
    design = np.stack([np.ones_like(flux), flux], axis=1)
    scale = np.maximum(sigma / np.sqrt(np.maximum(count, 1)), 1e-30)
    used = known
    wings = 0.0
    for _ in range(4):
        spread = float(
            np.hypot(np.median(scale[used]), 1.4826 * np.median(np.abs(level - np.median(level))[used]))
        )
        solution = np.linalg.lstsq(design[used], level[used], rcond=None)[0]
        wings = float(solution[1])
        used = known & (np.abs(level - design @ solution) < 3 * spread)
        if used.sum() < MIN_FOR_WINGS:
            break
    return np.where(known, level - wings * flux, 0.0).astype(np.float32)


def _agreeing(residual: Stack, variance: Stack, weight: Stack, flux: _Float) -> npt.NDArray[np.bool_]:
    """Return which stars fit the model about as well as the median star does."""
    count = np.maximum(weight.sum(axis=(1, 2)) - 3, 1)
    chi2 = (weight * np.square(residual) / variance).sum(axis=(1, 2)) / count
    good = (chi2 < STAR_CHI2 * max(1.0, float(np.median(chi2)))) & (flux > 1e-20)
    # A star of which masks and neighbours leave less than half its core says little.
    good &= weight.sum(axis=(1, 2)) > 0.5 * weight.sum(axis=(1, 2)).max()
    return good if good.any() else np.ones(len(residual), bool)


def _project(
    residual: Stack,
    noise: Stack,
    weight: Stack,
    profiles: Moffats,
    terms: _Float,
    kept: npt.NDArray[np.bool_],
) -> _Update:
    """Fit the stars' residuals (at flux 1), shifted to the middle pixel, with polynomials of the position."""
    size = residual.shape[1]
    rows, columns = shift_matrix(-profiles.dy, size), shift_matrix(-profiles.dx, size)
    centred = rows @ (residual * weight) @ columns.transpose(0, 2, 1)
    inverse = (weight * kept[:, None, None] / noise).reshape(len(residual), -1).astype(float)
    flat = centred.reshape(len(residual), -1).astype(float)
    update, error = _weighted_fit(terms, flat, inverse, int(kept.sum()))
    if kept.sum() >= MIN_FOR_WINGS:
        # What no list knew, a cosmic ray or a neighbour, is in one star of many: fit again without.
        chi = np.abs(flat - terms @ update) * np.sqrt(inverse)
        scale = np.maximum(1.4826 * np.median(chi[kept], axis=0), 1.0)
        inverse = inverse * (chi < PIXEL_SIGMA * scale)
        update, error = _weighted_fit(terms, flat, inverse, int(kept.sum()))
    index, members = _rings(size)
    share = members / members.sum(axis=0)
    # A ring's mean in each star; its weight is what the pixels' noise alone would give it.
    ring_weight = inverse @ members
    ring_value = (inverse * flat) @ members / np.maximum(ring_weight, 1e-300)
    ring_weight = ring_weight * _not_outlying(ring_value, ring_weight > 0)
    ring_update, ring_error = _weighted_fit(terms, ring_value, ring_weight, int(kept.sum()))
    shape = (terms.shape[1], size, size)
    return _Update(update.reshape(shape), error.reshape(shape), ring_update, ring_error, index, share)


@dataclass(frozen=True, eq=False)
class _Update:
    """The map's change and its error: by pixel (K, S, S), and of the rings' means (K, rings)."""

    pixels: _Float
    pixel_error: _Float
    rings: _Float
    ring_error: _Float
    index: npt.NDArray[np.int_]
    share: _Float


@lru_cache(maxsize=32)
def _rings(size: int) -> tuple[npt.NDArray[np.int_], _Float]:
    """Return each pixel's ring (S², flat), and the membership matrix (S², rings); rings are 1 to 1.5 px wide."""
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis[None]).ravel()
    edges = np.concatenate([[1.2, 2.3], np.arange(3.5, radius.max() + 1.5, 1.5)])
    index = np.searchsorted(edges, radius, side="left")
    return index, np.eye(index.max() + 1)[index]


def _weighted_fit(terms: _Float, values: _Float, weight: _Float, stars: int) -> tuple[_Float, _Float]:
    """Fit each column of `values` (N, P) with the terms (N, K); return coefficients (K, P) and their errors.

    The errors are what the stars' scatter about the fit says (White's estimate), not only their noise: neighbours and
    true differences between stars are in it.
    """
    count = terms.shape[1]
    products = (terms[:, :, None] * terms[:, None, :]).reshape(len(terms), -1)
    normal = (products.T @ weight).T.reshape(-1, count, count)
    trace = np.einsum("pii->p", normal)
    # What no star covers gets no change: an infinite error.
    ridge = (1e-9 * trace + 1e-30 * max(float(trace.max()), 1e-300))[:, None, None] * np.eye(count)
    covariance = np.linalg.inv(normal + ridge)
    solution = np.einsum("pkl,lp->kp", covariance, terms.T @ (weight * values))
    formal = np.einsum("pkk->kp", covariance)
    error = formal
    if stars > count + 2:
        scatter = np.square(weight * (values - terms @ solution)) * (stars / (stars - count))
        middle = (products.T @ scatter).T.reshape(-1, count, count)
        error = np.maximum(error, np.einsum("pkl,plm,pmk->kp", covariance, middle, covariance))
    covered = trace > 1e-6 * trace.max()
    return np.where(covered, solution, 0.0), np.where(covered, np.sqrt(error), _NEVER)


def _not_outlying(values: _Float, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which stars' values lie within 5 robust sigma of the median, column by column."""
    shown = np.where(known, values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without any value
        middle = np.nanmedian(shown, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(shown - middle), axis=0)
    return np.abs(values - np.nan_to_num(middle)) <= 5 * np.nan_to_num(spread) + 1e-12


def _shrunk(maps: _Float, update: _Update) -> _Float:
    """Return maps + update, shrunk to what exceeds its noise (James & Stein), ring by ring: its mean, its structure."""
    total = (maps + update.pixels).reshape(len(maps), -1)
    out = np.zeros_like(total)
    means = maps.reshape(len(maps), -1) @ update.share + update.rings
    for k, error in enumerate(update.pixel_error.reshape(len(maps), -1)):
        for ring in range(means.shape[1]):
            inside = (update.index == ring) & (error < _NEVER)
            if not inside.any() or update.ring_error[k, ring] >= _NEVER:
                continue
            mean = means[k, ring]
            mean *= max(0.0, 1 - update.ring_error[k, ring] ** 2 / max(mean**2, 1e-300))
            rest = total[k, inside] - total[k, inside].mean()
            structure = max(
                0.0, 1 - float(np.square(error[inside]).sum()) / max(float(np.square(rest).sum()), 1e-300)
            )
            out[k, inside] = mean + structure * rest
    return out.reshape(maps.shape)


def _neutral(maps: _Float, base: _Float, slope_x: _Float, slope_y: _Float) -> _Float:
    """Take from the maps what would shift the PSF or change its flux, so that its centre stays the Moffat's."""
    design = np.stack([slope_x.ravel(), slope_y.ravel()])
    flat = maps.reshape(len(maps), -1)
    flat = flat - (flat @ np.linalg.pinv(design)) @ design
    flat = flat - flat.sum(axis=1, keepdims=True) * (base / base.sum()).ravel()
    return flat.reshape(maps.shape)
