"""Where a science frame's pixels lie in a reference frame: WCS first, then the stars both have.

The WCS gives the map with its distortions; matched stars correct it by a polynomial whose degree cross-validation
chooses, from none to quartic. A WCS that is wrong by many pixels is put right by the shift most star pairs share;
frames without a WCS are matched by that shift too, or by the pattern of their stars (astroalign).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import RegistrationError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask
from astrid_pipeline.imaging.pixel_map import (
    Floats,
    PixelFunction,
    Polynomial,
    identity,
    monomials,
    wcs_map,
)
from astrid_pipeline.imaging.residual_field import SmoothField, fit_field
from astrid_pipeline.imaging.star_match import beyond_chance, match, pattern, vote

#: Stars used at most, spread over the frame: 2000 give a mean to 0.002 px, more only cost time.
MAX_STARS = 2000
#: Centroid errors below this share of a pixel are never believed: pixels and PSF models are not that perfect.
CENTROID_FLOOR = 0.02
#: Matched stars needed for a polynomial of degree 0, 1, 2, …: three for each coefficient that an axis has.
MIN_STARS = (3, 9, 18, 30, 45)
#: Stars on which residuals are quoted: their own centroid error is 0.03 px or less in usual seeing.
BRIGHT_SNR = 50.0


@dataclass(frozen=True, eq=False)
class Registration:
    """The map from science pixels to reference pixels, and how good it is.

    Attributes
    ----------
    function:
        (x, y) of the science frame -> (x, y) of the reference frame.
    degree:
        Of the polynomial that corrects the first map; -1 if nothing had to be corrected.
    n_matched:
        Stars both frames have, after outliers were left out.
    n_science, n_reference:
        Stars found in either frame.
    dx_rms, dy_rms:
        Residuals in pixels per axis, of stars left out of the fit in turn; of those over `BRIGHT_SNR` where there are
        five of them, else of all, weighted. NaN with fewer than three stars.
    source:
        "wcs", "shift", "pattern" or "identity": where the first map came from; with "+stars" when a polynomial
        corrected it, "+field" when a smooth field was added to that.
    is_identity:
        Whether every pixel lies on the same pixel of the reference to a thousandth.
    fwhm:
        Median width of the reference's stars in pixels; NaN if none.
    """

    function: PixelFunction
    degree: int
    n_matched: int
    n_science: int
    n_reference: int
    dx_rms: float
    dy_rms: float
    source: str
    is_identity: bool
    fwhm: float


def register(reference: Frame, science: Frame, *, refine: bool = True) -> Registration:
    """Find where each pixel of `science` lies in `reference`.

    Parameters
    ----------
    refine:
        Whether stars correct the WCS. Without it both frames need a WCS, and it is believed.

    Raises
    ------
    RegistrationError
        If the frames do not overlap, or have too few stars in common; the counts are in the message.
    """
    where = f"{reference.name} onto {science.name}"
    if reference.wcs is not None and science.wcs is not None:
        function, source = wcs_map(science.wcs, reference.wcs), "wcs"
        same = _is_identity(function, science.shape) and science.shape == reference.shape
    else:
        if not refine:
            raise RegistrationError(
                "one of the frames has no WCS", where=where, remedy="let the stars be matched (refine=True)"
            )
        function, source, same = identity, "identity", False
    if source == "wcs":
        _require_overlap(function, science, reference, where)
    if not refine:
        return Registration(function, -1, 0, 0, 0, np.nan, np.nan, source, same, np.nan)
    stars = [registration_stars(frame) for frame in (science, reference)]
    here, there = stars
    counts = f"{len(here)} stars in the science and {len(there)} in the reference frame"
    fwhm = float(there["fwhm"].median()) if len(there) else np.nan

    found = _first_guess(function, here, there, science.shape, reference.shape, source)
    if found is None:
        if same:
            # Resampled to one grid before (stamps of a survey): the grid is better known than two or three stars say.
            return Registration(function, -1, 0, len(here), len(there), np.nan, np.nan, source, True, fwhm)
        raise RegistrationError(
            f"too few common stars: none of the shifts and patterns tried agrees ({counts})",
            where=where,
            remedy="check that both show the same field"
            + (", or trust the WCS (refine=False)" if source == "wcs" else ", or give both a WCS"),
        )
    first, how = found
    fit = _refine(first, here, there, science.shape, trusted=same and how == source)
    if fit is None:
        raise RegistrationError(
            f"too few common stars: the matches do not hold together ({counts})",
            where=where,
            remedy="check that both show the same field and give both a WCS",
        )
    function, n_matched, (dx, dy), degree, field = fit
    _require_overlap(function, science, reference, where)
    same = science.shape == reference.shape and _is_identity(function, science.shape)
    label = how + ("+stars" if degree >= 0 else "") + ("+field" if field else "")
    return Registration(function, degree, n_matched, len(here), len(there), dx, dy, label, same, fwhm)


#: Stars found before: a night's exposures are all registered with one reference, and frames never change.
_found: weakref.WeakKeyDictionary[Frame, pd.DataFrame] = weakref.WeakKeyDictionary()


def registration_stars(frame: Frame) -> pd.DataFrame:
    """Return the sources of a frame that positions can be taken from: x, y, snr, fwhm, error (px), brightest first.

    Round and unspoilt sources over 10 σ; galaxies may be among them, for their centres stay where they are. The table
    is kept for as long as the frame is: do not change it.
    """
    table = _found.get(frame)
    if table is None:
        table = _found[frame] = _measure_stars(frame)
    return table


def _measure_stars(frame: Frame) -> pd.DataFrame:
    from astrid_pipeline.imaging.stars import detect_stars

    table = detect_stars(frame, only_stars=False, max_sources=4 * MAX_STARS)
    saturation = frame.meta.get("saturation")
    good = (table["snr"] > 10) & (table["elongation"] < 2.0) & np.isfinite(table["sigma"])
    good &= (table["flags"].to_numpy(np.int64) & int(UNUSABLE | Mask.EDGE)) == 0
    if saturation is not None and np.isfinite(saturation):
        sky = float(frame.meta.get("sky") or 0.0) if frame.meta.get("sky_subtracted") else 0.0
        good &= table["peak"] + sky < 0.9 * float(saturation)
    table = table[good]
    if len(table) > MAX_STARS:
        table = _spread(table, frame.shape)
    table = table[["x", "y", "flux", "snr", "fwhm", "sigma", "star"]].reset_index(drop=True)
    # √2 s / (S/N) is the bound for a Gaussian of width s against sky noise; windowed centroids come near it.
    table["error"] = np.hypot(np.sqrt(2) * table["sigma"] / table["snr"], CENTROID_FLOOR)
    return table


def _spread(table: pd.DataFrame, shape: tuple[int, int]) -> pd.DataFrame:
    """Return `MAX_STARS` of the stars, the brightest of each of 12 × 12 parts of the frame."""
    cell = np.floor(12 * table["y"] / shape[0]) * 12 + np.floor(12 * table["x"] / shape[1])
    rank = table.groupby(cell)["flux"].rank(ascending=False, method="first")
    return table.loc[rank.sort_values(kind="stable").index[:MAX_STARS]].sort_values(
        "flux", ascending=False, kind="stable"
    )


def _is_identity(function: PixelFunction, shape: tuple[int, int]) -> bool:
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 9), np.linspace(0, shape[0] - 1, 9))
    u, v = function(x, y)
    return bool(np.all(np.abs(u - x) < 1e-3) and np.all(np.abs(v - y) < 1e-3))


def _require_overlap(function: PixelFunction, science: Frame, reference: Frame, where: str) -> None:
    x, y = np.meshgrid(np.linspace(0, science.shape[1] - 1, 33), np.linspace(0, science.shape[0] - 1, 33))
    u, v = function(x, y)
    height, width = reference.shape
    inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    if not inside.any():
        raise RegistrationError(
            "the two frames do not overlap",
            where=where,
            remedy="check the pointing in both headers, and that the reference is of this field",
        )


def positions(table: pd.DataFrame) -> Floats:
    """Return a table's x, y as (N, 2)."""
    return table[["x", "y"]].to_numpy(float)


def _first_guess(
    function: PixelFunction,
    here: pd.DataFrame,
    there: pd.DataFrame,
    shape: tuple[int, int],
    reference_shape: tuple[int, int],
    source: str,
) -> tuple[PixelFunction, str] | None:
    """Return a map that brings stars to within some pixels, and where it came from; None if there is none."""
    seen = np.column_stack(function(here["x"], here["y"]))
    shift = vote(seen, positions(there), reference_shape)
    if shift is not None:
        if np.hypot(*shift) < 3.0:
            # So little is left to the fit, which may find that it is nothing.
            return function, source
        moved = Polynomial(0, np.array([shift]), (0.0, 0.0), 1.0)
        return moved.after(function), f"{source} shifted" if source == "wcs" else "shift"
    similarity = pattern(positions(here), positions(there))
    return None if similarity is None else (similarity, "pattern")


def _refine(
    first: PixelFunction,
    here: pd.DataFrame,
    there: pd.DataFrame,
    shape: tuple[int, int],
    *,
    trusted: bool,
) -> tuple[PixelFunction, int, tuple[float, float], int, bool] | None:
    """Correct `first` on the stars matched, ever closer; None if fewer than three match.

    Returns the map, the stars matched, their left-out rms in dx and dy, the polynomial's degree (-1 for none), and
    whether a smooth field was added to it.
    """
    x, y = here["x"].to_numpy(float), here["y"].to_numpy(float)
    wanted = positions(there)
    base = np.column_stack(first(x, y))
    centre = (float(np.mean(x)), float(np.mean(y)))
    scale = float(max(np.ptp(x), np.ptp(y), 1.0)) / 2
    moved = base
    radius = 12.0
    fit = Polynomial(-1, np.zeros((0, 2)), centre, scale)
    i = j = np.zeros(0, np.int64)
    for step in range(12):
        i, j = match(moved, wanted, radius)
        if len(i) < MIN_STARS[0]:
            return None
        left = wanted[j] - moved[i]
        error = np.hypot(here["error"].to_numpy()[i], there["error"].to_numpy()[j])
        spread = float(1.4826 * np.median(np.abs(left - np.median(left, axis=0))))
        if step < 4:
            # While the map itself is off by some pixels, all stars are equally good.
            error = np.hypot(error, spread)
        keep, error = _consistent(left, error)
        degree = sum(len(i) >= n for n in MIN_STARS[1:]) if step > 2 else int(len(i) >= MIN_STARS[1])
        fit = _solve(degree, x[i[keep]], y[i[keep]], (wanted[j] - base[i])[keep], error[keep], centre, scale)
        moved = base + np.column_stack(fit(x, y))
        # A pixel at least, so that faint stars with their larger errors stay in.
        shrunk = max(1.0, min(8 * spread, 0.7 * radius))
        if step > 5 and shrunk > 0.9 * radius:
            break
        radius = shrunk
    i, j = match(moved, wanted, radius)
    left = wanted[j] - moved[i]
    keep, error = _consistent(left, np.hypot(here["error"].to_numpy()[i], there["error"].to_numpy()[j]))
    i, j, error = i[keep], j[keep], error[keep]
    if len(i) < MIN_STARS[0] or not beyond_chance(len(i), len(here), len(there), radius, shape):
        return None
    offset = wanted[j] - base[i]
    degree, residual = _choose_degree(x[i], y[i], offset, error, centre, scale, trusted)
    fit = _solve(degree, x[i], y[i], offset, error, centre, scale)
    field: SmoothField | None = None
    # High powers run away in corners without stars; a field on an affine map does not, where it explains as much.
    for powers in sorted({degree, min(degree, 1)}, reverse=True):
        plain = _solve(powers, x[i], y[i], offset, error, centre, scale)
        left = offset - np.column_stack(plain(x[i], y[i]))
        found = fit_field(x[i], y[i], left, error, plain.terms(x[i], y[i]), max(shape))
        if found is None:
            continue
        before = residual[found.chosen] if field is None else field.residual
        cost = [np.sum((r / error[found.chosen, None]) ** 2, axis=1) for r in (found.residual, before)]
        gain = np.minimum(cost[1], 32) - np.minimum(cost[0], 32)
        if gain.mean() > (-1 if powers < degree else 1) * gain.std() / np.sqrt(len(gain)):
            corrected = plain.coefficients + found.correction
            fit, degree, field = replace(plain, coefficients=corrected), powers, found
    function = fit.after(first) if degree >= 0 else first
    if field is not None:
        function = field.after(function)
        i, j, error, residual = i[field.chosen], j[field.chosen], error[field.chosen], field.residual
    n_matched = int(keep.sum())
    snr = np.minimum(here["snr"].to_numpy()[i], there["snr"].to_numpy()[j])
    bright = (snr >= BRIGHT_SNR) & here["star"].to_numpy(bool)[i] & there["star"].to_numpy(bool)[j]
    # With few bright stars all count, by what they can tell.
    weight = bright.astype(float) if bright.sum() >= 5 else error**-2
    dx, dy = np.sqrt(np.average(residual**2, axis=0, weights=weight))
    return function, n_matched, (float(dx), float(dy)), degree, field is not None


def _consistent(left: Floats, error: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Return which residuals lie within 4 σ of the crowd, and each star's σ as the crowd's scatter tells it.

    Correlated noise and galaxies make faint centroids worse than their photons say, by a factor; proper motions and
    PSF asymmetries move bright stars, by an amount. Faint half and bright half tell one each.
    """
    if not len(left):
        return np.zeros(0, bool), error
    away = np.abs(left - np.median(left, axis=0))
    faint = error >= np.median(error) if len(left) >= 12 else np.zeros(len(left), bool)
    factor = max(1.0, float(1.4826 * np.median(away[faint] / error[faint, None]))) if faint.any() else 1.0
    scaled = error * factor
    bright = ~faint
    # The amount that brings the median of |residual| / σ to a Gaussian's 0.6745, by bisection.
    low, high = 0.0, float(1.4826 * np.median(away[bright])) + 1e-6
    if np.median(away[bright] / scaled[bright, None]) > 0.6745:
        for _ in range(20):
            amount = (low + high) / 2
            ratio = np.median(away[bright] / np.hypot(scaled[bright], amount)[:, None])
            low, high = (amount, high) if ratio > 0.6745 else (low, amount)
        scaled = np.hypot(scaled, high)
    return np.asarray((away < 4 * scaled[:, None]).all(axis=1)), scaled


def _solve(
    degree: int,
    x: Floats,
    y: Floats,
    offset: Floats,
    error: Floats,
    centre: tuple[float, float],
    scale: float,
) -> Polynomial:
    """Fit a displacement polynomial by weighted least squares, with less weight for what lies over 2 σ off (Huber)."""
    terms = monomials(degree, x, y, centre, scale)
    if not terms.shape[1]:
        return Polynomial(degree, np.zeros((0, 2)), centre, scale)
    weight = 1 / error[:, None]
    solution = np.linalg.lstsq(terms * weight, offset * weight, rcond=None)[0]
    for _ in range(3):
        away = np.hypot(*(offset - terms @ solution).T) / error
        weight = (np.minimum(1.0, np.sqrt(2.0 / np.maximum(away, 1e-9))) / error)[:, None]
        solution = np.linalg.lstsq(terms * weight, offset * weight, rcond=None)[0]
    return Polynomial(degree, np.asarray(solution, float), centre, scale)


def _choose_degree(
    x: Floats,
    y: Floats,
    offset: Floats,
    error: Floats,
    centre: tuple[float, float],
    scale: float,
    trusted: bool,
) -> tuple[int, Floats]:
    """Choose the degree whose predictions of left-out stars are best, and return their residuals too.

    The lowest degree that is not worse than the best by more than the standard error of their difference. Without a
    trusted first map a shift is the least.
    """
    highest = sum(len(x) >= n for n in MIN_STARS) - 1
    lowest = -1 if trusted else 0
    # A fixed order keeps the result the same every time; stars come by brightness, so folds are alike.
    folds = np.arange(len(x)) % min(10, len(x))
    left = {}
    for degree in range(lowest, max(highest, lowest) + 1):
        residual = np.empty_like(offset)
        for fold in range(folds.max() + 1):
            out = folds == fold
            fit = _solve(degree, x[~out], y[~out], offset[~out], error[~out], centre, scale)
            residual[out] = offset[out] - np.column_stack(fit(x[out], y[out]))
        left[degree] = residual
    cost = {d: np.minimum(np.sum((r / error[:, None]) ** 2, axis=1), 32.0) for d, r in left.items()}
    best = min(cost, key=lambda d: cost[d].mean())
    for degree in sorted(cost):
        worse = cost[degree] - cost[best]
        if worse.mean() <= worse.std() / np.sqrt(len(worse)):
            return degree, left[degree]
    return best, left[best]
