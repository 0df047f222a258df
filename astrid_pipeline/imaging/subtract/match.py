"""Solving from the frames themselves how they differ: sky, flux ratio, shift, and the shape of their PSFs.

What ZOGY assumes to be known (Zackay, Ofek & Gal-Yam 2016, section 3.4, eqs 37-39, solve it for one number each) is
found here as smooth surfaces over the frame, from up to 1500 sources:

1. each source by itself gives flux ratio, shift and second moments of the PSF difference, with errors;
2. robust polynomials, whose degree the sources decide, pass through flux ratio and shift; variables, movers and
   transients stand out and are left behind;
3. all sources together give the correction of the PSF ratio: derivatives of the PSF up to fourth order and its
   wings, with coefficients that vary over the frame (the freedom that a fitted kernel has, without its noise).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import SubtractionError
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import Surface, join
from astrid_pipeline.imaging.subtract.columns import Measured, measure
from astrid_pipeline.imaging.subtract.inputs import Pair, parts
from astrid_pipeline.imaging.subtract.shape import fit_shape
from astrid_pipeline.imaging.subtract.sky import Level, fit_sky
from astrid_pipeline.imaging.subtract.stars import Stamps, cut_stamps
from astrid_pipeline.imaging.subtract.surfaces import fit_surface

if TYPE_CHECKING:
    import torch

#: Degree up to which the shift may vary: distortion left by a fit of low order has some two periods over the frame.
SHIFT_DEGREE = 9
#: Degree up to which the flux ratio may vary: flat-field and extinction gradients are smoother than that.
RATIO_DEGREE = 3
#: Fewer sources than this give flux ratio and shift only.
MIN_FOR_SHAPE = 3
#: Fewer sources than this cannot be told from a variable.
MIN_SOURCES = 3


@dataclass(frozen=True, eq=False)
class Match:
    """How the reference becomes the science frame: N ≈ ratio · (Q ∗ R)(x + shift) + sky, with Q / P_r the kernel.

    Attributes
    ----------
    ratio:
        Flux of a source in the science frame over that in the reference; one surface.
    shift:
        (dx, dy), px: a source at x in the science frame is at x + shift in the reference; two surfaces.
    psf:
        Q, the science PSF corrected such that P_r ∗ N = ratio · Q ∗ R for sources that do not change.
    sky:
        Level of science − ratio · reference, units of the science frame.
    sources, n_matched:
        Sources looked at, and those that the surfaces rest on.
    dx_rms, dy_rms:
        Registration left after the shift's removal: scatter of the sources beyond their errors, and the surface's
        own error.
    changed:
        (k, 2) x, y of the sources that none of the surfaces describes: movers, variables, hosts of transients.
    ratio_error, ratio_scatter:
        Standard error of the flux ratio, and the scatter of the sources about it beyond their errors (relative).
    """

    ratio: Surface
    shift: Surface
    psf: PSF
    sky: Level
    sources: int = 0
    n_matched: int = 0
    dx_rms: float = 0.0
    dy_rms: float = 0.0
    ratio_error: float = 0.0
    ratio_scatter: float = 0.0
    changed: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    notes: list[str] = field(default_factory=list)


def solve_match(pair: Pair, device: torch.device) -> Match:
    """Return how the two frames differ, measured on the sources that they have in common.

    Raises
    ------
    SubtractionError
        If the frames have too few sources in common and no zero points that give the flux ratio.
    """
    shape = pair.shape
    stamps = cut_stamps(pair, device)
    psf = parts(pair.science)[1]
    if len(stamps.x) < MIN_SOURCES:
        ratio = Surface.constant(shape, _ratio_of_zero_points(pair))
        note = f"{len(stamps.x)} sources in common: flux ratio from the zero points, shift not solved"
        return Match(
            ratio,
            Surface.constant(shape, [0.0, 0.0]),
            psf,
            fit_sky(pair, ratio),
            len(stamps.x),
            0,
            notes=[note],
        )
    ratio = Surface.constant(shape, _first_ratio(stamps))
    shift = Surface.constant(shape, [0.0, 0.0])
    # The columns are linear in the shift only to about 0.3 px: a second round starts from the first one's solution.
    for _ in range(2):
        measured = measure(stamps, ratio, shift, order=2)
        good = _sane(measured)
        if good.sum() < MIN_SOURCES:
            raise SubtractionError(
                f"{int(good.sum())} of {len(good)} sources have a common profile in both frames",
                where=pair.science.name,
                remedy="check that the frames are registered (align) and their PSFs are right",
            )
        x, y = stamps.x, stamps.y
        factor = ratio.at(x, y)
        a = measured.values[:, 0]
        fit_a = fit_surface(
            shape, x[good], y[good], (factor * a)[good], (factor * measured.errors[:, 0])[good], RATIO_DEGREE
        )
        before = shift.at(x, y)
        fits = [
            fit_surface(
                shape,
                x[good],
                y[good],
                (before[:, i] + measured.values[:, 1 + i] / a)[good],
                measured.errors[good, 1 + i],
                SHIFT_DEGREE,
            )
            for i in (0, 1)
        ]
        ratio, shift = fit_a.surface, join(shape, [f.surface for f in fits])
    inliers = np.flatnonzero(good)[fit_a.inliers & fits[0].inliers & fits[1].inliers]
    chosen = np.zeros(len(good), bool)
    chosen[inliers] = True
    if chosen.sum() >= MIN_FOR_SHAPE:
        psf, ratio, shift = fit_shape(stamps.take(chosen), pair, ratio, shift)
    sky = fit_sky(pair, ratio)
    scale = float(np.median(ratio.at(stamps.x, stamps.y)))
    return Match(
        ratio,
        shift,
        psf,
        sky,
        len(stamps.x),
        int(chosen.sum()),
        fits[0].left,
        fits[1].left,
        fit_a.error / scale,
        fit_a.scatter / scale,
        np.column_stack([stamps.x, stamps.y])[good & ~chosen],
    )


def _ratio_of_zero_points(pair: Pair) -> float:
    zero_points = [frame.meta.get("zero_point") for frame in (pair.science, pair.reference)]
    values = [float(z) if z is not None else float("nan") for z in zero_points]
    if not np.isfinite(values).all():
        raise SubtractionError(
            "the two frames have fewer than three sources in common, and no zero points",
            where=pair.science.name,
            remedy="give both frames meta['zero_point'], or use deeper or wider frames",
        )
    return float(10 ** (0.4 * (values[0] - values[1])))


def _first_ratio(stamps: Stamps) -> float:
    """Return the median flux ratio of the sources, from sums within 1.3 FWHM or so, less the sky around."""
    import torch

    n, r = (stamps.middle(image).double() for image in (stamps.science, stamps.reference))
    side = n.shape[-1]
    d = torch.arange(side, device=n.device) - side // 2
    radius = torch.hypot(d[:, None].double(), d[None, :].double())
    inner, ring = radius <= 0.55 * stamps.reach, radius >= 0.85 * stamps.reach
    sums = [
        ((image - image[:, ring].median(dim=1).values[:, None, None]) * inner).sum((1, 2)) for image in (n, r)
    ]
    ratio = (sums[0] / sums[1])[sums[1] > 0]
    if not len(ratio) or not float(ratio.median()) > 0:
        return 1.0
    return float(ratio.median())


def _sane(measured: Measured) -> npt.NDArray[np.bool_]:
    """Return sources worth averaging: significant in both frames, shifts within reach, not far from their profile."""
    shift = np.hypot(measured.values[:, 1], measured.values[:, 2])
    # Twice the median of χ² leaves constant sources of any brightness in, and most variables on galaxies out.
    usual = np.median(measured.chi2)
    return np.asarray(
        (measured.values[:, 0] > 5 * measured.errors[:, 0])
        & (shift < 3)
        & (measured.chi2 < max(2 * usual, 2.0))
    )
