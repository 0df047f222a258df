"""What a polynomial leaves of the displacement between two frames: a smooth field, predicted from the stars.

Turbulence in short exposures, and bumps of a distortion, move neighbouring stars alike over some hundred pixels. A
Gaussian process (kriging) predicts such a field as well as the stars allow, and goes to zero where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.pixel_map import Floats, PixelFunction

#: Stars used at most, the most precise ones: more refine a smooth field little, and the cost goes with the cube.
MAX_STARS = 400
#: Stars needed at least: a field of some cells cannot be told from fewer.
MIN_STARS = 40
#: Correlation lengths tried, in shares of the longer side of the frame.
LENGTHS = (0.4, 0.2, 0.1)
#: Amplitudes tried, in units of what the residuals scatter beyond their errors.
AMPLITUDES = (0.6, 1.2, 2.4)
#: Neighbouring stars' residuals must agree by so many σ before a field is looked for at all.
AGREEMENT = 3.0


@dataclass(frozen=True, eq=False)
class SmoothField:
    """A displacement (dx, dy) = Σ_i k(x - x_i) a_i, k a Gaussian of standard deviation `length` pixels.

    Attributes
    ----------
    x, y:
        (N,) positions of the stars.
    weights:
        (N, 2): a_i, amplitude included.
    correction:
        (K, 2) to be added to the polynomial's coefficients: beside a field its best values are others.
    chosen:
        (N,) which of the stars handed over these are.
    residual:
        (N, 2) px: each star's, predicted from all the others.
    """

    x: Floats
    y: Floats
    weights: Floats
    length: float
    correction: Floats
    chosen: npt.NDArray[np.int64]
    residual: Floats

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return (dx, dy) at pixels (x, y)."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        near = _kernel(x.ravel(), y.ravel(), self.x, self.y, self.length)
        moved = (near @ self.weights).reshape(*x.shape, 2)
        return moved[..., 0], moved[..., 1]

    def after(self, base: PixelFunction) -> PixelFunction:
        """Return the map `base` with this field added."""

        def function(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
            u, v = base(x, y)
            dx, dy = self(x, y)
            return u + dx, v + dy

        return function


def fit_field(
    x: Floats, y: Floats, residual: Floats, error: Floats, terms: Floats, size: float
) -> SmoothField | None:
    """Predict a smooth field from what a polynomial left, or return None if it holds nothing to predict.

    Parameters
    ----------
    x, y, error:
        (N,) positions and errors per axis of the stars, px.
    residual:
        (N, 2) what the polynomial left, px.
    terms:
        (N, K) the polynomial's own terms there: what it took up is not known better than the stars tell (universal
        kriging), which keeps left-out predictions honest.
    size:
        Longer side of the frame, px.

    Notes
    -----
    Length and amplitude are those of the largest likelihood; the residual of star i predicted from all others is
    [K⁻¹ r]_i / [K⁻¹]_ii (Rasmussen & Williams 2006, eq. 5.12).
    """
    if len(x) < MIN_STARS or not _agree(x, y, residual, error):
        return None
    best = np.argsort(error, kind="stable")[:MAX_STARS]
    x, y, residual, error, terms = x[best], y[best], residual[best], error[best], terms[best]
    # A pixel for each coefficient, a hundred times what a fit leaves open.
    noise = np.diag(error**2) + terms @ terms.T
    scatter = np.sqrt(max(float(np.average(np.mean(residual**2, axis=1), weights=error**-2)), 1e-6))
    found: tuple[float, float, Floats, Floats] | None = None
    likelihood = _likelihood(noise, residual)[0]
    for share in LENGTHS:
        shape = _kernel(x, y, x, y, share * size)
        for amplitude in scatter * np.array(AMPLITUDES):
            value, solved, inverse_diagonal = _likelihood(noise + amplitude**2 * shape, residual)
            # Two more unknowns have to pay for themselves.
            if value > likelihood + 4:
                likelihood, found = value, (share * size, amplitude, solved, inverse_diagonal)
    if found is None:
        return None
    length, amplitude, solved, inverse_diagonal = found
    left_out = solved / inverse_diagonal[:, None]
    return SmoothField(x, y, amplitude**2 * solved, length, terms.T @ solved, best, left_out)


def _kernel(x: Floats, y: Floats, at_x: Floats, at_y: Floats, length: float) -> Floats:
    """Return exp(-d² / 2 length²) for all pairs; separable, so that two small tables are multiplied."""
    along_x = (x[:, None] - at_x[None, :]) / length
    along_y = (y[:, None] - at_y[None, :]) / length
    return np.exp(-0.5 * (along_x**2 + along_y**2))


def _agree(x: Floats, y: Floats, residual: Floats, error: Floats) -> bool:
    """Return whether stars' residuals are like their nearest neighbours'."""
    from scipy.spatial import cKDTree

    places = np.column_stack([x, y])
    _, neighbours = cKDTree(places).query(places, k=4)
    scaled = np.clip(residual / error[:, None], -4, 4)
    product = np.mean([scaled * scaled[neighbours[:, k]] for k in (1, 2, 3)], axis=0).ravel()
    # Each star is in about four products: they are not independent.
    return bool(product.mean() > AGREEMENT * 1.5 * product.std() / np.sqrt(len(product)))


def _likelihood(covariance: Floats, residual: Floats) -> tuple[float, Floats, Floats]:
    """Return the log likelihood of both axes (without its constant), K⁻¹ r, and the diagonal of K⁻¹."""
    from scipy.linalg import cho_solve, cholesky, lapack

    factor = cholesky(covariance, lower=True)
    solved = cho_solve((factor, True), residual)
    inverse, _ = lapack.dpotri(factor, lower=1)
    value = -0.5 * float(np.sum(residual * solved)) - 2 * float(np.log(np.diag(factor)).sum())
    return value, solved, np.diag(inverse).copy()
