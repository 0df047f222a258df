"""The point spread function of a frame, from the frame's own stars.

A smooth model first, pixels after: an elliptical Moffat whose width and shape are polynomials of the position
(`moffat.py`), and on top of it a map of what the stars' pixels say beyond that, also position dependent
(`psf_pixels.py`). The Moffat carries what interpolation between pixels would blur, so that the PSF is exact for
stars that are hardly sampled; the map carries everything that is not a Moffat, each part of it only as far as the
stars' noise lets it be believed. So the same code is honest with five stars and with five thousand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import PSFError
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import MaskArray, is_set
from astrid_pipeline.imaging.moffat import MoffatFit, Moffats, Stack, fit_moffats
from astrid_pipeline.imaging.moments import cut_stamps
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.psf_pixels import PixelMap, monomials, solve_pixels
from astrid_pipeline.imaging.stars import measure_sources, saturation_above_sky, sky_subtracted

_Float = npt.NDArray[np.float64]

#: More stars than this do not make the PSF better, only later: 250 of S/N 100 give its core to 0.1 %.
MAX_STARS = 250
#: Stars wanted for each coefficient of the position-dependent width and shape, so that one bad star does not bend it.
STARS_PER_TERM = 4
#: Half the side of the PSF's stamp in FWHM, and its limits in px. Beyond 4.5 FWHM a Moffat of beta 3 has 0.2 % of its
#: light.
RADIUS = 4.5
RADIUS_RANGE = (8, 32)
#: Significance, in sigma, by which a higher degree must miss left-out stars by less.
EARNED = 2.5
#: The relative error that the representation by monomials may have at the PSF's peak.
REPRESENTATION = 1e-3
#: A star whose width or shape is this many sigma (and this much) off the others' surface is a galaxy, a blend or a
#: cosmic ray.
OUTLIER_SIGMA = 4.0
OUTLIER_FLOOR = 0.02


@dataclass(frozen=True, eq=False)
class PSFFit:
    """A PSF and what it was fitted to.

    For each star: position and flux, and (N, S, S) its stamp, its model at flux 1, and the weights by which flux and
    position were fitted (0 where the pixel was not used).
    """

    psf: PSF
    x: _Float
    y: _Float
    flux: _Float
    stamps: Stack
    model: Stack
    fitted: Stack


def measure_psf(frame: Frame, *, max_degree: int = 2) -> PSF:
    """Measure the PSF of a frame from its stars.

    Parameters
    ----------
    frame:
        With or without its sky; `mask`, `variance` and `meta["saturation"]` are honoured where they are known.
    max_degree:
        Highest degree of the polynomials by which width and shape vary over the frame. The degree used is the one
        that predicts left-out stars best, 0 where there are fewer than about twelve.

    Returns
    -------
    PSF
        Centred on the middle pixel (the centre of the best-fitting Moffat), of sum 1. `quality` has `n_stars`,
        `chi2` (reduced, median over the stars, within 1.5 FWHM), `fwhm` (px), `ellipticity`, `beta`, `degree`, and
        `residual` (median over the brightest stars of the misfit within 1.5 FWHM, as a share of the star's flux).

    Raises
    ------
    PSFError
        If the frame has no star that can be used.
    """
    data, rms = sky_subtracted(frame)
    saturation = saturation_above_sky(frame)
    sources = measure_sources(data, rms, frame.mask, saturation=saturation)
    variance = np.square(rms) if frame.variance is None else frame.variance
    return fit_psf(data, variance, frame.mask, sources, max_degree=max_degree, where=frame.name).psf


def fit_psf(
    data: Image,
    variance: Image,
    mask: MaskArray,
    sources: pd.DataFrame,
    *,
    max_degree: int = 2,
    where: str | None = None,
) -> PSFFit:
    """Fit the PSF to the stars among `sources` (from `measure_sources`) on sky-subtracted data; see `measure_psf`."""
    chosen = _choose(sources, data.shape, where)
    fwhm = float(np.median(sources["fwhm"].to_numpy()[chosen]))
    half = int(np.clip(np.ceil(RADIUS * fwhm), *RADIUS_RANGE))
    x, y = sources["x"].to_numpy()[chosen], sources["y"].to_numpy()[chosen]
    x0, y0 = np.rint(x).astype(int), np.rint(y).astype(int)
    size = 2 * half + 1
    stamps: Stack = cut_stamps(data, x0, y0, size).astype(np.float32)
    noise = cut_stamps(variance, x0, y0, size, fill=1.0).astype(np.float32)
    weight = 1 - cut_stamps(is_set(mask), x0, y0, size, fill=True).astype(np.float32)

    core = _core_size(fwhm, half)
    noise = _without_own_counts(noise, stamps, weight, core)
    inner = slice(half - core // 2, half + core // 2 + 1)
    zeros = np.zeros(len(x))
    start = Moffats(x - x0, y - y0, zeros + np.log(fwhm), zeros, zeros, 3.0)
    some = slice(0, 100)
    first = fit_moffats(
        stamps[some, inner, inner], noise[some, inner, inner], weight[some, inner, inner], start.take(some)
    )
    mean = [float(np.median(v)) for v in (first.profiles.width, first.profiles.e1, first.profiles.e2)]
    # Neighbours are taken away with the profile found with them, so that it is found better without.
    light = _neighbours(sources, chosen, x0, y0, half, first)
    if light is not None:
        stamps = stamps - light
        # What a neighbour's model leaves is not noise: a tenth of its light counts as such.
        noise = noise + np.square(np.float32(0.1) * light)
    start = Moffats(x - x0, y - y0, zeros + mean[0], zeros + mean[1], zeros + mean[2], first.profiles.beta)
    fit = fit_moffats(
        stamps[:, inner, inner], noise[:, inner, inner], weight[:, inner, inner], start, rounds=5
    )
    shape = _smooth_shape(x, y, fit.profiles, fit.errors, data.shape, max_degree)
    kept = shape.kept
    if not kept.any():
        raise PSFError("no star of the frame looks like another", where=where, remedy="hand over a PSF")
    profiles = replace(
        fit.profiles.take(kept),
        width=shape.at(x, y)[0][kept],
        e1=shape.at(x, y)[1][kept],
        e2=shape.at(x, y)[2][kept],
    )
    pixels = solve_pixels(
        stamps[kept], noise[kept], weight[kept], profiles, x[kept], y[kept], data.shape, max_degree=max_degree
    )
    psf = _assemble(shape, pixels, fit.profiles.beta, size, data.shape)
    stars = np.flatnonzero(kept)[pixels.kept]
    quality = _quality(psf, pixels, shape.degree, fit.profiles.beta)
    return PSFFit(
        psf=replace(psf, quality=quality),
        x=x0[stars] + pixels.dx[pixels.kept],
        y=y0[stars] + pixels.dy[pixels.kept],
        flux=pixels.flux[pixels.kept],
        stamps=stamps[stars],
        model=pixels.model[pixels.kept],
        fitted=pixels.fitted[pixels.kept],
    )


def _without_own_counts(noise: Stack, stamps: Stack, weight: Stack, core: int) -> Stack:
    """Return stamps' variances as far as possible without the counts' own noise, (N, S, S).

    Where a pixel's variance is estimated from its own counts, pixels that noise lowered weigh more than those it
    raised: a PSF fitted so has wings that are too faint by one count a pixel and star, and fluxes measured with it
    are 0.4 % too low. How far the variance follows the counts is read off the stamps' outskirts; there the light is
    replaced by its mean over 3 x 3 pixels.
    """
    from scipy.ndimage import minimum_filter, uniform_filter

    half = stamps.shape[1] // 2
    # A mean that holds what is masked, or lies beyond the frame, tells nothing.
    known = minimum_filter(weight > 0, (0, 3, 3), mode="nearest")
    rough = np.where(known, stamps - uniform_filter(stamps, (0, 3, 3), mode="nearest"), np.float32(0))
    outside = known.copy()
    outside[:, half - core // 2 : half + core // 2 + 1, half - core // 2 : half + core // 2 + 1] = False
    outside &= np.square(rough) < 9 * noise
    change = (noise - uniform_filter(noise, (0, 3, 3), mode="nearest"))[outside].astype(float)
    counts = rough[outside].astype(float)
    power = float(counts @ counts)
    slope = max(float(counts @ change) / power, 0.0) if power > 0 else 0.0
    return np.maximum(noise - np.float32(slope) * rough, np.float32(0.25) * noise)


def _core_size(fwhm: float, half: int) -> int:
    """Return the odd side of the region that the Moffat is fitted to: out to 1.75 FWHM."""
    return 2 * min(half, max(4, int(np.ceil(1.75 * fwhm)))) + 1


def _choose(sources: pd.DataFrame, shape: tuple[int, int], where: str | None) -> npt.NDArray[np.int_]:
    """Return the rows of the stars to use: the brightest, taken in turn from the cells of a grid."""
    star = sources["star"].to_numpy(bool) if len(sources) else np.zeros(0, bool)
    index = np.flatnonzero(star)
    if not len(index):
        raise PSFError(
            f"none of the frame's {len(sources)} sources is a star to measure the PSF from",
            where=where,
            remedy="hand over a PSF, or a frame with unsaturated stars of S/N over 20",
        )
    if len(index) <= MAX_STARS:
        return index
    cells = 6
    column = np.clip((sources["x"].to_numpy()[index] * cells / shape[1]).astype(int), 0, cells - 1)
    row = np.clip((sources["y"].to_numpy()[index] * cells / shape[0]).astype(int), 0, cells - 1)
    # Sources come brightest first, so a star's rank in its cell is its turn.
    turn = pd.Series(row * cells + column).groupby(row * cells + column).cumcount().to_numpy()
    return np.sort(index[np.lexsort((np.arange(len(index)), turn))[:MAX_STARS]])


def _neighbours(
    sources: pd.DataFrame,
    chosen: npt.NDArray[np.int_],
    x0: npt.NDArray[np.int_],
    y0: npt.NDArray[np.int_],
    half: int,
    fit: MoffatFit,
) -> Stack | None:
    """Return the light of other sources in the stars' stamps, taken as point sources; None if there are none."""
    from scipy.spatial import cKDTree

    x, y = sources["x"].to_numpy(), sources["y"].to_numpy()
    measured = sources["flux"].to_numpy()
    # The sources' fluxes are a Gaussian's; the stars among them tell what a Moffat makes of it.
    profiles = fit.profiles
    ratio = float(np.median(fit.flux / measured[chosen[: len(fit.flux)]]))
    tree = cKDTree(np.column_stack([x, y]))
    reach = half + 1.5 * float(np.exp(np.median(profiles.width)))
    near = tree.query_ball_point(np.column_stack([x0, y0]), reach * np.sqrt(2))
    star = np.repeat(np.arange(len(chosen)), [len(n) for n in near])
    other = np.concatenate([np.asarray(n, int) for n in near])
    # Only what can be seen against the star: a thousandth of its light.
    real = (other != chosen[star]) & (measured[other] > 1e-3 * measured[chosen[star]])
    star, other = star[real], other[real]
    if not len(star):
        return None
    size = 2 * half + 1
    light = np.zeros((len(chosen), size, size), np.float32)
    mean = [float(np.median(v)) for v in (profiles.width, profiles.e1, profiles.e2)]
    for start in range(0, len(star), 512):
        some = slice(start, start + 512)
        one = np.ones(len(star[some]))
        moffats = Moffats(
            x[other[some]] - x0[star[some]], y[other[some]] - y0[star[some]],
            mean[0] * one, mean[1] * one, mean[2] * one, profiles.beta,
        )  # fmt: skip
        stamps = moffats.stamps(size) * (ratio * measured[other[some]]).astype(np.float32)[:, None, None]
        np.add.at(light, star[some], stamps)
    return light


@dataclass(frozen=True, eq=False)
class _Shape:
    """ln FWHM, e1 and e2 as polynomials of the position; which stars agree with it."""

    coefficients: _Float  # (3, terms)
    exponents: tuple[tuple[int, int], ...]
    frame: tuple[int, int]
    kept: npt.NDArray[np.bool_]

    @property
    def degree(self) -> int:
        return max(i + j for i, j in self.exponents)

    def at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> _Float:
        return self.coefficients @ terms_at(x, y, self.exponents, self.frame).T


def terms_at(
    x: npt.ArrayLike, y: npt.ArrayLike, exponents: tuple[tuple[int, int], ...], shape: tuple[int, int]
) -> _Float:
    """Return the monomials (N, terms) at pixel positions, in the coordinates of `PSF`."""
    return PSF(np.zeros((len(exponents), 1, 1)), exponents, shape).coefficients(x, y)


def _smooth_shape(
    x: _Float, y: _Float, profiles: Moffats, errors: _Float, shape: tuple[int, int], max_degree: int
) -> _Shape:
    """Fit surfaces through the stars' widths and shapes, of the degree that predicts left-out stars best."""
    values = np.stack([profiles.width, profiles.e1, profiles.e2])
    # Real PSFs have structure that no surface follows; without a floor the brightest stars would decide alone.
    sigma = np.hypot(errors, 0.01)
    kept = np.isfinite(values).all(axis=0) & np.isfinite(sigma).all(axis=0)
    kept &= np.abs(values[0] - np.median(values[0][kept])) < 0.35
    best: tuple[_Float, _Shape] | None = None
    for degree in range(max_degree + 1):
        exponents = monomials(degree)
        if degree and kept.sum() < STARS_PER_TERM * len(exponents):
            break
        terms = terms_at(x, y, exponents, shape)
        coefficients, used = _clipped_fit(terms, values, sigma, kept)
        loss = _left_out_loss(terms, values, sigma, used)
        # A higher degree must earn its place: miss left-out stars by less, with a significance of 2.5 sigma.
        if best is not None:
            both = used & best[1].kept
            gain = (best[0] - loss)[both]
            if not gain.mean() > EARNED * gain.std() / np.sqrt(len(gain)):
                continue
        best = (loss, _Shape(coefficients, exponents, shape, used))
    assert best is not None
    return best[1]


def _clipped_fit(
    terms: _Float, values: _Float, sigma: _Float, start: npt.NDArray[np.bool_]
) -> tuple[_Float, npt.NDArray[np.bool_]]:
    """Return weighted least-squares coefficients (3, terms) without outliers, and which stars were used."""
    used = start
    coefficients = np.zeros((3, terms.shape[1]))
    for step in range(5):
        if step == 0:
            # The median is safe against galaxies where a fit is not yet.
            coefficients[:, 0] = np.median(values[:, used], axis=1)
        else:
            for k in range(3):
                design = terms[used] / sigma[k, used, None]
                coefficients[k] = np.linalg.lstsq(design, values[k, used] / sigma[k, used], rcond=None)[0]
        off = np.abs(values - coefficients @ terms.T)
        scatter = 1.4826 * np.median(off[:, used], axis=1)
        floor = 0.15 if step == 0 else OUTLIER_FLOOR
        limit = OUTLIER_SIGMA * np.maximum(np.maximum(scatter, floor / 2)[:, None], sigma)
        now = start & (off < limit).all(axis=0)
        if now.sum() < max(terms.shape[1], 1):
            break
        if step > 1 and (now == used).all():
            break
        used = now
    return coefficients, used


def _left_out_loss(terms: _Float, values: _Float, sigma: _Float, used: npt.NDArray[np.bool_]) -> _Float:
    """Return by how much chi² each star is missed by the fit to the others (from the hat matrix), capped at 16."""
    loss = np.zeros(len(terms))
    for k in range(3):
        design = terms[used] / sigma[k, used, None]
        leverage = np.square(np.linalg.qr(design)[0]).sum(axis=1)
        target = values[k, used] / sigma[k, used]
        residual = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        loss[used] += np.minimum(np.square(residual / np.maximum(1 - leverage, 0.05)), 16)
    return loss


def _assemble(shape: _Shape, pixels: PixelMap, beta: float, size: int, frame: tuple[int, int]) -> PSF:
    """Return the PSF: Moffat and pixel map as one set of stamps for monomials of the position."""
    grid = np.linspace(0, 1, 7)
    gy, gx = (a.ravel() for a in np.meshgrid(grid * (frame[0] - 1), grid * (frame[1] - 1), indexing="ij"))
    varying = shape.degree > 0
    if not varying:
        gx, gy = gx[24:25], gy[24:25]
    width, e1, e2 = shape.at(gx, gy)
    zeros = np.zeros_like(width)
    stamps = Moffats(zeros, zeros, width, e1, e2, beta).stamps(size).astype(float)
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    flat = stamps.reshape(len(stamps), -1)
    exponents, basis = monomials(0), flat[:1]
    for degree in range(shape.degree, 2 * shape.degree + 1) if varying else ():
        exponents = monomials(degree)
        terms = terms_at(gx, gy, exponents, frame)
        basis = np.linalg.lstsq(terms, flat, rcond=None)[0]
        if np.abs(terms @ basis - flat).max() < REPRESENTATION * flat.max():
            break
    table = {e: b.reshape(size, size).copy() for e, b in zip(exponents, basis, strict=True)}
    for e, image in zip(pixels.exponents, pixels.maps, strict=True):
        if image.any():
            table[e] = table.get(e, 0.0) + image
    return PSF(np.stack(list(table.values())), tuple(table), frame)


def _quality(psf: PSF, pixels: PixelMap, degree: int, beta: float) -> dict[str, float | int]:
    """Return what `measure_psf` promises in `quality`."""
    stamp = psf.stamp()
    axis = np.arange(psf.size) - psf.size // 2
    fwhm = psf.fwhm()
    window = np.exp(-4 * np.log(2) * (axis[:, None] ** 2 + axis**2) / (2 * fwhm**2)) * stamp
    xx, yy, xy = (
        (window * m).sum() for m in (axis[None] ** 2, axis[:, None] ** 2, axis[None] * axis[:, None])
    )
    inverse = (
        np.linalg.inv(np.array([[xx, xy], [xy, yy]]) / window.sum()) - np.eye(2) * np.log(16) / fwhm**2 / 2
    )
    minor, major = np.sqrt(np.sort(1 / np.maximum(np.linalg.eigvalsh(inverse), 1e-6)))
    return {
        "n_stars": int(pixels.kept.sum()),
        "chi2": float(np.median(pixels.chi2[pixels.kept])),
        "residual": float(np.median(pixels.misfit[pixels.kept])),
        "fwhm": fwhm,
        "ellipticity": float(1 - minor / major),
        "beta": float(beta),
        "degree": int(degree),
    }
