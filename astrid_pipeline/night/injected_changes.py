"""What else changes in the sky, to be put into a night's frames beside new points: stars that vary, sources that have
faded since the reference, and moving objects with their trails."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.stars import extract_plain

#: Of a megapixel's other changes: variable stars, sources that have faded, moving objects.
SHARES: Mapping[str, float] = {"variable": 0.4, "fading": 0.25, "moving": 0.35}
#: Few stars vary by more than this share of their mean.
MOST = 0.6
#: At most this share of the stars varies: the match of the two frames is measured on them.
STAR_SHARE = 0.05
#: Trails, px, log-uniform: from what one image cannot tell from a point to what crosses a stamp.
TRAIL = (1.5, 25.0)
BORDER = 12
_COLUMNS = ["x", "y", "flux", "snr", "on_galaxy", "kind", "length", "angle"]


def trail_gain(length: npt.ArrayLike, sigma: float) -> npt.NDArray[np.float64]:
    """Return Σ T² / Σ P² of a Gaussian of width `sigma` drawn along a line: how much less a trail stands out.

    The line's own autocorrelation is a triangle, the Gaussian's a Gaussian of width √2 σ:
    2/L² ∫₀ᴸ (L − u) exp(−u² / 4σ²) du.
    """
    from scipy.special import erf

    line = np.maximum(np.asarray(length, float), 1e-6)
    a = 2 * sigma
    whole = line * a * math.sqrt(math.pi) / 2 * erf(line / a) - a**2 / 2 * -np.expm1(-((line / a) ** 2))
    return np.where(line < 1e-3, 1.0, 2 * whole / line**2)


def plan_changes(
    difference: Difference,
    rng: np.random.Generator,
    taken: pd.DataFrame,
    per_megapixel: float,
    snr_range: tuple[float, float],
    *,
    stars: list[tuple[float, float, float]] | None = None,
) -> pd.DataFrame:
    """Choose variable stars, faded sources and moving objects.

    Parameters
    ----------
    difference:
        The untouched difference: its flux error sets the flux of a given S/N, its reference says where stars are.
    taken:
        Columns x, y: places to keep away from; may have kind: stars that vary already count among `STAR_SHARE`.
    per_megapixel:
        How many in all, in the proportions of `SHARES`.
    snr_range:
        S/N, log-uniform; a trail's is that of a matched trail.
    stars:
        `stars_of` the difference, where they are known already.

    Returns
    -------
    DataFrame
        x, y (px), flux (units of the science frame, negative where it faded), snr, on_galaxy (False), kind
        (``variable``, ``fading``, ``moving``), length (px), angle (rad).
    """
    height, width = difference.shape
    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    fwhm = difference.psf.fwhm()
    places = _Places(taken, bad, 6 * fwhm)
    stars = stars_of(difference, bad, fwhm) if stars is None else stars
    already = int((taken["kind"] == "variable").sum()) if "kind" in taken else 0
    varying = max(math.ceil(STAR_SHARE * len(stars)) - already, 0)
    rows: list[dict[str, object]] = []
    for kind, share in SHARES.items():
        expected = per_megapixel * share * bad.size / 1e6
        number = int(expected + rng.random())
        pool = rng.permutation(len(stars))[:varying]
        for attempt in range(60 * number):
            if number == 0:
                break
            if kind == "variable":
                if attempt >= len(pool):
                    break
                x, y, light = stars[pool[attempt]]
            else:
                x, y = rng.uniform(BORDER, width - BORDER - 1), rng.uniform(BORDER, height - BORDER - 1)
                light = math.inf
            if not places.free(x, y):
                continue
            length = float(np.exp(rng.uniform(*np.log(TRAIL)))) if kind == "moving" else 0.0
            error = float(difference.flux_err[round(y), round(x)])
            error /= math.sqrt(float(trail_gain(length, fwhm / 2.3548)))
            # A star varies by no more than it shines.
            highest = min(snr_range[1], MOST * light / error)
            if highest <= snr_range[0]:
                continue
            snr = float(np.exp(rng.uniform(math.log(snr_range[0]), math.log(highest))))
            flux = snr * error
            places.take(x, y)
            number -= 1
            sign = {"variable": rng.choice([-1.0, 1.0]), "fading": -1.0, "moving": 1.0}[kind]
            angle = float(rng.uniform(0, math.pi)) if kind == "moving" else 0.0
            rows.append(
                {
                    "x": x,
                    "y": y,
                    "flux": sign * flux,
                    "snr": snr,
                    "on_galaxy": False,
                    "kind": kind,
                    "length": length,
                    "angle": angle,
                }
            )
    return pd.DataFrame(rows, columns=_COLUMNS)


def science_part(plan: pd.DataFrame) -> pd.DataFrame:
    """Return what of a plan goes into the science frame, as `imaging.inject` takes it."""
    part = plan[plan["kind"] != "fading"]
    return part.assign(kind=np.where(part["kind"] == "moving", "trail", "point"))


def with_faded(aligned: Frame, plan: pd.DataFrame, flux_ratio: float, rng: np.random.Generator) -> Frame:
    """Return the reference, on the science frame's grid, with the sources that have faded since.

    Parameters
    ----------
    flux_ratio:
        Science units of one unit of the reference.
    """
    from astrid_pipeline.imaging import inject

    faded = plan[plan["kind"] == "fading"]
    if not len(faded):
        return aligned
    return inject(aligned, faded.assign(flux=-faded["flux"] / flux_ratio, kind="point"), rng)


class _Places:
    """Positions that are taken or cannot be used."""

    def __init__(self, taken: pd.DataFrame, bad: npt.NDArray[np.bool_], apart: float) -> None:
        self.taken = [(float(x), float(y)) for x, y in taken[["x", "y"]].to_numpy(float)]
        self.bad, self.apart = bad, apart

    def free(self, x: float, y: float) -> bool:
        column, row = round(x), round(y)
        height, width = self.bad.shape
        if not (BORDER <= column < width - BORDER and BORDER <= row < height - BORDER):
            return False
        if self.bad[row - 3 : row + 4, column - 3 : column + 4].any():
            return False
        return all((x - a) ** 2 + (y - b) ** 2 >= self.apart**2 for a, b in self.taken)

    def take(self, x: float, y: float) -> None:
        self.taken.append((x, y))


def stars_of(
    difference: Difference, bad: npt.NDArray[np.bool_], fwhm: float
) -> list[tuple[float, float, float]]:
    """Return x, y and flux (science units) of the reference's sources that are as sharp as its stars."""
    sigma = float(difference.meta["reference_sky_sigma"])
    found = extract_plain(difference.reference, sigma, bad, 10.0)
    size = 2.3548 * np.sqrt(np.maximum(found["a"] * found["b"], 0))
    sharp = size < 1.3 * fwhm
    return [
        (float(x), float(y), float(f))
        for x, y, f in zip(found["x"][sharp], found["y"][sharp], found["flux"][sharp], strict=True)
    ]
