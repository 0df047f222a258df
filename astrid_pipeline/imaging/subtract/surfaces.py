"""Smooth surfaces through what single sources say, without those that do not belong: variables, movers, blends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.subtract.arrays import Array, Surface

#: Sources per term of a polynomial: with fewer, a term rather follows the noise than the frame.
SOURCES_PER_TERM = 6
#: Sources further off than this many standard deviations belong to no surface. 4: of 1500 good ones 0.1 is lost.
OUTLIER = 4.0
#: Correlation lengths of a surface that are tried, in halves of the frame's longer side: from what the highest degree
#: can just follow to a mere slope.
LENGTHS = (0.2, 0.3, 0.45, 0.7, 1.1, 2.0, 4.0)
#: Amplitudes that are tried, in units of the values' own spread; the smallest is a constant.
AMPLITUDES = (0.001, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Fit:
    """A surface and how well it describes the sources.

    Attributes
    ----------
    surface:
        The polynomial.
    inliers:
        (n,) bool: sources that agree with it.
    scatter:
        Standard deviation of the sources about it beyond their errors.
    error:
        Median over the frame of the surface's own standard error.
    """

    surface: Surface
    inliers: npt.NDArray[np.bool_]
    scatter: float
    error: float

    @property
    def left(self) -> float:
        """What is left after removal of the surface: scatter and error together."""
        return float(np.hypot(self.scatter, self.error))


def robust_sigma(values: npt.NDArray[np.floating]) -> float:
    """Return the standard deviation of the Gaussian core: cut at 2 sigma until that changes nothing.

    With 4 % of the values spread by sources to one side, percentiles are off by 5 %, a cut at 3 sigma by 1.4 %, at 2
    sigma by 0.4 %; a narrower one gains nothing.
    """
    if len(values) < 2:
        return 0.0
    low, middle, high = np.percentile(values, [25, 50, 75])
    sigma = float(high - low) / 1.349
    for _ in range(30):
        core = values[np.abs(values - middle) < 2 * sigma]
        if len(core) < 2:
            break
        # A Gaussian cut at ± 2 sigma has a standard deviation of 0.87962.
        new, middle = float(core.std(dtype=np.float64)) / 0.87962, float(core.mean(dtype=np.float64))
        if abs(new - sigma) < 1e-4 * sigma:
            return new
        sigma = new
    return sigma


def fit_surface(
    shape: tuple[int, int],
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    values: Array,
    errors: Array,
    max_degree: int,
) -> Fit:
    """Fit a polynomial of up to `max_degree` to values of n ≥ 1 sources.

    Outliers are found against least squares of as many terms as the sources can carry. The surface itself is the mean
    of a Gaussian process of amplitude A and correlation length ℓ, both those under which the values are most probable
    (the evidence). So it is as smooth as the sources say, and a constant if they say nothing.
    """
    n = len(values)
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    full = Surface.design(shape, max_degree, x, y)
    top = 0
    while top < max_degree and n >= SOURCES_PER_TERM * len(Surface.terms(top + 1)):
        top += 1
    # Too few to carry a slope are too few to outvote a star that moved by least squares: the median begins.
    inliers, scatter = _about_median(values, errors) if top == 0 else (np.ones(n, bool), 0.0)
    for degree in (min(top, 2), top, top):
        design = full[:, : len(Surface.terms(degree))]
        for _ in range(4):
            weight = 1 / (errors**2 + scatter**2)
            coefficients, _ = _solve(design[inliers], values[inliers], weight[inliers])
            residual = values - design @ coefficients
            scatter = _excess(residual[inliers], errors[inliers], design.shape[1])
            deviation = np.abs(residual) / np.sqrt(errors**2 + scatter**2)
            # Half of the sources always stay, so that a bad start cannot throw out the good ones.
            limit = max(OUTLIER, float(np.median(deviation)) * 1.5)
            kept = deviation < limit
            if (kept == inliers).all():
                break
            inliers = kept
    design, good = full[inliers], values[inliers]
    grid = np.linspace(0, 1, 9)
    gx, gy = (g.ravel() for g in np.meshgrid(grid * (shape[1] - 1), grid * (shape[0] - 1)))
    everywhere = Surface.design(shape, max_degree, gx, gy)
    for _ in range(2):
        weight = 1 / (errors[inliers] ** 2 + scatter**2)
        coefficients, covariance = _most_probable(shape, design, good, weight)
        # Terms in use: the trace of the hat matrix.
        used = float((((design @ covariance) * design).sum(1) * weight).sum())
        scatter = _excess(good - design @ coefficients, errors[inliers], used)
    error = float(np.sqrt(np.median(((everywhere @ covariance) * everywhere).sum(1))))
    return Fit(Surface(shape, max_degree, coefficients), inliers, scatter, error)


def _about_median(values: Array, errors: Array) -> tuple[npt.NDArray[np.bool_], float]:
    """Return which values agree with their median, and their scatter about it beyond their errors.

    Of five sources two may have moved or varied: least squares would call the spread of all five their scatter.
    """
    away = np.abs(values - np.median(values))

    def usual(scatter: float) -> float:
        return float(np.median(away / np.sqrt(errors**2 + scatter**2))) - 0.6745  # of a Gaussian

    low, high = 0.0, float(away.max()) + 1e-12
    for _ in range(40 if usual(0.0) > 0 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if usual(middle) > 0 else (low, middle)
    scatter = high if usual(0.0) > 0 else 0.0
    deviation = away / np.sqrt(errors**2 + scatter**2)
    return deviation < max(OUTLIER, 1.5 * float(np.median(deviation))), scatter


def _most_probable(
    shape: tuple[int, int], design: Array, values: Array, weight: Array
) -> tuple[Array, Array]:
    """Return the coefficients under the process that makes the values most probable, and their covariance."""
    middle = float(np.average(values, weights=weight))
    spread = float(np.sqrt(np.average((values - middle) ** 2, weights=weight))) + 1e-12
    normal, right = design.T @ (weight[:, None] * design), design.T @ (weight * values)
    # Unknowns: the level, which is free, and independent parts of the process, each with a prior of its own width.
    width = np.full(len(normal) + 1, 1e3 * (abs(middle) + spread))
    best: tuple[float, Array, Array, Array] | None = None
    for length in LENGTHS:
        to_terms = _stationary(shape, design.shape[1], length)
        matrix, vector = to_terms.T @ normal @ to_terms, to_terms.T @ right
        for amplitude in AMPLITUDES:
            width[1:] = amplitude * spread
            # In units of the priors' widths: what the values say nothing of stays 1 on the diagonal.
            scaled = width[:, None] * matrix * width + np.eye(len(width))
            factor = np.linalg.cholesky(scaled)
            inner = np.linalg.solve(factor, width * vector)
            evidence = float(inner @ inner - 2 * np.log(np.diag(factor)).sum())
            if best is None or evidence > best[0]:
                best = (evidence, scaled, width * vector, to_terms * width)
    assert best is not None
    _, scaled, vector, to_terms = best
    covariance = np.linalg.inv(scaled)
    return to_terms @ (covariance @ vector), to_terms @ covariance @ to_terms.T


@lru_cache(maxsize=64)
def _stationary(shape: tuple[int, int], terms: int, length: float) -> Array:
    """Return the coefficients (terms, 1 + terms) of a level and of independent parts that make a stationary process.

    The process has unit variance and a correlation exp(−d² / 2 ℓ²), ℓ in halves of the longer side; what of it
    polynomials describe is its projection on them. A prior by degree alone would be several times wider at the border
    than in the middle, since all polynomials are ± 1 there, and let the surface run off where few sources hold it.
    """
    degree = next(d for d in range(terms) if len(Surface.terms(d)) == terms)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    values = np.polynomial.legendre.legvander(nodes, degree)
    project = (values * weights[:, None]).T * (np.arange(degree + 1) + 0.5)[:, None]
    along = []
    for size in (shape[1], shape[0]):
        reach = length * max(shape) / size
        kernel = np.exp(-((nodes[:, None] - nodes) ** 2) / (2 * reach**2))
        along.append(project @ kernel @ project.T)
    i, j = (np.array(index) for index in zip(*Surface.terms(degree), strict=True))
    covariance = along[0][np.ix_(i, i)] * along[1][np.ix_(j, j)]
    covariance += 1e-9 * np.eye(terms)  # of the highest terms a long ℓ holds nothing
    return np.column_stack([np.eye(terms)[:, 0], np.linalg.cholesky(covariance)])


def _solve(design: Array, values: Array, weight: Array) -> tuple[Array, Array]:
    """Return the least-squares coefficients and their covariance."""
    normal = design.T @ (weight[:, None] * design)
    # A trace of ridge keeps sources on one line, or fewer of them than terms, from being singular.
    normal += np.eye(len(normal)) * 1e-9 * np.trace(normal)
    covariance = np.linalg.inv(normal)
    return np.asarray(covariance @ (design.T @ (weight * values))), np.asarray(covariance)


def _excess(residual: Array, errors: Array, n_terms: float) -> float:
    """Return the standard deviation that, added to the errors, explains the residuals.

    Solves median-like Σ r² / (e² + s²) = n - k for s by bisection; large residuals count as 3 sigma.
    """
    freedom = max(len(residual) - n_terms, 1.0)

    def excess(s: float) -> float:
        return float(np.minimum(residual**2 / (errors**2 + s * s), 9.0).sum()) - freedom

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, float(np.sqrt(np.mean(residual**2))) + 1e-12
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
