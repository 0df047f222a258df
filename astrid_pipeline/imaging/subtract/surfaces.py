"""Smooth surfaces through what single sources say, without those that do not belong: variables, movers, blends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.subtract.arrays import Array, Surface

#: Sources per term of a polynomial: with fewer, a term rather follows the noise than the frame.
SOURCES_PER_TERM = 6
#: Sources further off than this many standard deviations belong to no surface. 4: of 1500 good ones 0.1 is lost.
OUTLIER = 4.0


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
        Root mean square of the surface's own standard error at the sources.
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
    """Return the standard deviation of the Gaussian core: cut at 3 sigma until that changes nothing.

    Percentiles would do for symmetric outliers, but 3 % of artefacts on one side move them by 5 %.
    """
    if len(values) < 2:
        return 0.0
    low, middle, high = np.percentile(values, [25, 50, 75])
    sigma = float(high - low) / 1.349
    for _ in range(8):
        core = values[np.abs(values - middle) < 3 * sigma]
        if len(core) < 2:
            break
        # A Gaussian cut at ± 3 sigma has a standard deviation of 0.98658.
        new, middle = float(core.std(dtype=np.float64)) / 0.98658, float(core.mean(dtype=np.float64))
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
    """Fit a polynomial to values of n ≥ 1 sources; its degree is the one that the sources ask for.

    The degree minimises the Bayesian information criterion, n ln(χ²) + k ln n, over the sources that a polynomial of
    middling degree leaves in.
    """
    n = len(values)
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    top = 0
    while top < max_degree and n >= SOURCES_PER_TERM * len(Surface.terms(top + 1)):
        top += 1
    inliers = np.ones(n, bool)
    scatter = 0.0
    # Outliers are found against a polynomial that is free enough to follow the surface, yet well determined.
    for degree in (min(top, 2), top, top):
        for _ in range(4):
            design = Surface.design(shape, degree, x, y)
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
    weight = 1 / (errors**2 + scatter**2)
    best: tuple[float, int] = (np.inf, 0)
    count = int(inliers.sum())
    for degree in range(top + 1):
        design = Surface.design(shape, degree, x, y)[inliers]
        coefficients, _ = _solve(design, values[inliers], weight[inliers])
        chi2 = float((weight[inliers] * (values[inliers] - design @ coefficients) ** 2).sum())
        criterion = count * np.log(max(chi2, 1e-12)) + design.shape[1] * np.log(count)
        if criterion < best[0]:
            best = (criterion, degree)
    degree = best[1]
    design = Surface.design(shape, degree, x, y)
    coefficients, _ = _solve(design[inliers], values[inliers], weight[inliers])
    scatter = _excess((values - design @ coefficients)[inliers], errors[inliers], design.shape[1])
    weight = 1 / (errors**2 + scatter**2)
    coefficients, covariance = _solve(design[inliers], values[inliers], weight[inliers])
    error = float(np.sqrt(np.einsum("ni,ij,nj->n", design, covariance, design).mean()))
    return Fit(Surface(shape, degree, coefficients), inliers, scatter, error)


def _solve(design: Array, values: Array, weight: Array) -> tuple[Array, Array]:
    normal = design.T @ (weight[:, None] * design)
    # A trace of ridge keeps sources on one line, or fewer of them than terms, from being singular.
    normal += np.eye(len(normal)) * 1e-9 * np.trace(normal)
    covariance = np.linalg.inv(normal)
    return covariance @ (design.T @ (weight * values)), covariance


def _excess(residual: Array, errors: Array, n_terms: int) -> float:
    """Return the standard deviation that, added to the errors, explains the residuals.

    Solves median-like Σ r² / (e² + s²) = n - k for s by bisection; large residuals count as 3 sigma.
    """
    freedom = max(len(residual) - n_terms, 1)

    def excess(s: float) -> float:
        return float(np.minimum(residual**2 / (errors**2 + s * s), 9.0).sum()) - freedom

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, float(np.sqrt(np.mean(residual**2))) + 1e-12
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
