"""The noise around the brightest stars, measured there.

A star ten thousand times as bright as the noise shows what no fit on ordinary sources can tell: the far wings of its
PSF, halos, charge that bled. What is left of it around its core is measured ring by ring, and where it is more than the
noise the variance is raised to it. Medians over a ring do not see a transient that lies in it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.imaging.frame import Image

#: Static flux, in units of the sky's flux error, from which a star is looked at: wings that are off by 10 % at 1e-4 of
#: the core then show at 1 % of the noise, far below what matters; ten times brighter ones matter.
BRIGHT = 1000.0
#: Edges of the rings, px from the region brighter than that.
RINGS = (0.5, 2.0, 4.0, 6.5, 9.5, 13.0, 17.5, 23.0, 30.0)
#: A ring counts as noisier than expected beyond this many standard errors of its median, and by at least 10 %.
SIGNIFICANT = 2.5
LEAST = 1.1

#: Rings next to a saturated core, where single peaks count; the highest of some hundred independent Gaussian values
#: would be about `PEAK`.
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
        distance = ndimage.distance_transform_edt(labels[window] != index)
        score = np.abs(flux[window]) / np.sqrt(before[window])
        usable = ~bad[window]
        ring = np.digitize(distance, RINGS)
        hit = False
        saturated = bool((bad[window] & (distance == 0)).any())
        for k in range(0 if saturated else 1, len(RINGS)):
            inside = ring == k
            values = score[inside & usable]
            independent = len(values) / correlated
            close = saturated and k < CLOSE
            if len(values) == 0 or (independent < 3 and not close):
                continue
            # The median of |x| of a unit Gaussian is 0.6745, its standard error 0.79 / √n.
            width = float(np.median(values)) / 0.6745
            if close:
                # Beside a saturated core light falls by half from pixel to pixel: what is left comes in single peaks.
                width = max(width, float(values.max()) / PEAK)
            if width > max(LEAST, 1 + SIGNIFICANT * 1.17 / math.sqrt(max(independent, 3.0))):
                target = variance[window]
                target[inside] = np.maximum(target[inside], before[window][inside] * np.float32(width**2))
                hit = True
        raised += hit
    return raised
