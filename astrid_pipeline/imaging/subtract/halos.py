"""The noise around the brightest stars, measured there.

A star ten thousand times as bright as the noise shows what no fit on ordinary sources can tell: the far wings of its
PSF, halos, charge that bled. What is left of it around its core is measured ring by ring, and where it is more than the
noise the variance is raised to it. Medians over a ring do not see a transient that lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import norm

from astrid_pipeline.imaging.frame import Image

#: Static flux, in units of the sky's flux error, from which a star is looked at: wings that are off by 10 % at 1e-4 of
#: the core then show at 1 % of the noise, far below what matters; ten times brighter ones matter.
BRIGHT = 1000.0
#: Edges of the rings, px from the region brighter than that.
RINGS = (0.5, 2.0, 4.0, 6.5, 9.5, 13.0, 17.5, 23.0, 30.0)
#: A ring counts as noisier than expected beyond this many standard errors of its median, and by at least 10 %.
SIGNIFICANT = 2.5
LEAST = 1.1

#: Rings next to a saturated core and what bled from it, where single peaks count: the highest of n independent Gaussian
#: values would be what one in 4 n exceeds, but never less than `PEAK`.
CLOSE = 3
PEAK = 2.7

_Bool = npt.NDArray[np.bool_]


def raise_variance(flux: Image, variance: Image, static: Image, bad: _Bool, fwhm: float) -> int:
    """Raise `variance`, in place, around the brightest stars; return how many stars needed it.

    Parameters
    ----------
    flux, variance, static:
        Of the score: PSF flux, its variance, and the reference's static flux.
    bad:
        Pixels that cannot be used.
    fwhm:
        Of the score's kernel, px: how many pixels share their noise.
    """
    step = max(1, int(math.sqrt(variance.size / 250_000)))
    sky = float(np.median(variance[::step, ::step]))
    labels, n = ndimage.label(static > BRIGHT * math.sqrt(sky))
    if not n:
        return 0
    correlated = 1.13 * fwhm**2  # pixels of one independent value: the area of a Gaussian of that width
    reach = math.ceil(RINGS[-1])
    raised = 0
    before = variance.copy()
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        window = tuple(
            slice(max(s.start - reach, 0), min(s.stop + reach, size))
            for s, size in ((rows, flux.shape[0]), (columns, flux.shape[1]))
        )
        core, usable = labels[window] == index, ~bad[window]
        score = np.abs(flux[window]) / np.sqrt(before[window])
        hit = False
        for inside in _rings(core, RINGS):
            values = score[inside & usable]
            independent = len(values) / correlated
            if independent < 3:
                continue
            # The median of |x| of a unit Gaussian is 0.6745, its standard error 0.79 / √n.
            width = float(np.median(values)) / 0.6745
            if width > max(LEAST, 1 + SIGNIFICANT * 1.17 / math.sqrt(independent)):
                hit |= _raise(variance[window], before[window], inside, width)
        if (core & ~usable).any():
            # Beside a saturated core light falls by half from pixel to pixel, and what bled from it is as steep: what
            # is left comes in single peaks.
            parts, _ = ndimage.label(core | ~usable, np.ones((3, 3)))
            spilled = np.isin(parts, np.unique(parts[core]))
            for region in (core, spilled):
                for inside in (region, *_rings(region, RINGS[: CLOSE + 1])):
                    values = score[inside & usable]
                    if len(values):
                        highest = max(PEAK, norm.isf(0.25 / max(len(values) / correlated, 1.0)))
                        width = float(values.max()) / highest
                        if width > LEAST:
                            hit |= _raise(variance[window], before[window], inside, width)
        raised += hit
    return raised


def _rings(region: _Bool, edges: tuple[float, ...]) -> Iterator[_Bool]:
    """Yield the pixels whose distance from a region lies between two edges, from the inside out."""
    ring = np.digitize(ndimage.distance_transform_edt(~region), edges)
    for k in range(1, len(edges)):
        yield ring == k


def _raise(variance: Image, before: Image, inside: _Bool, width: float) -> bool:
    """Raise the variance inside to `width`² times what it was before, in place; return True."""
    variance[inside] = np.maximum(variance[inside], before[inside] * np.float32(width**2))
    return True
