"""What nobody masked: cosmic rays, bad columns and trails that two frames of one field show up.

Nine tenths of the false positives of realistic frames sit on such artefacts. Frames that AstrID calibrated carry most
of these masks; frames of others often carry none. Cosmic rays are what is sharper than the frame's own PSF. Columns
and trails are looked for in the plain difference of the two frames, where stars and galaxies are gone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.calibrate.cosmic_rays import find_cosmic_rays
from astrid_pipeline.imaging.calibrate.defects import light_columns
from astrid_pipeline.imaging.calibrate.trails import find_trails, trail_mask
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.subtract.inputs import Pair, parts

#: Static sources above this many sigma of a pixel are taken out before lines are looked for, since PSFs that differ
#: leave something of them in a plain difference.
SOURCE = 5.0


def mark_cosmic_rays(pair: Pair) -> Pair:
    """Return the pair with `Mask.COSMIC_RAY` set in each frame where light is sharper than its PSF allows."""
    frames, bad = [], []
    for frame, unusable in ((pair.science, pair.bad_science), (pair.reference, pair.bad_reference)):
        variance, psf = parts(frame)
        height, width = frame.shape
        # The sharpest place of the frame counts, so that no star there is taken for a cosmic ray.
        fwhm = min(psf.fwhm(x, y) for x in (0, width / 2, width - 1) for y in (0, height / 2, height - 1))
        hits = find_cosmic_rays(frame.data, variance, unusable, fwhm)
        frames.append(_marked(frame, hits, Mask.COSMIC_RAY))
        bad.append(unusable | hits)
    return dataclasses.replace(
        pair, science=frames[0], reference=frames[1], bad_science=bad[0], bad_reference=bad[1]
    )


def mark_lines(pair: Pair, ratio: Image, sky: Image) -> Pair:
    """Return the pair with `Mask.BAD_COLUMN` and `Mask.TRAIL` set in the science frame.

    Parameters
    ----------
    ratio, sky:
        Of the match: N ≈ ratio · R + sky.
    """
    variance_n, psf = parts(pair.science)
    variance_r = parts(pair.reference)[0]
    noise = np.sqrt(variance_n + ratio**2 * variance_r)
    residual = pair.science.data - ratio * pair.reference.data - sky
    static = ratio * np.abs(pair.reference.data) > SOURCE * pair.science_sigma
    hidden = pair.bad | static
    columns = light_columns(residual, noise, hidden) & ~pair.bad_science
    trails = find_trails(residual, noise, hidden | columns, fwhm=psf.fwhm())
    science, bad = pair.science, pair.bad_science
    for found, bit in ((columns, Mask.BAD_COLUMN), (trail_mask(pair.shape, trails), Mask.TRAIL)):
        if found.any():
            science, bad = _marked(science, found, bit), bad | found
    return dataclasses.replace(pair, science=science, bad_science=bad)


def _marked(frame: Frame, where: npt.NDArray[np.bool_], bit: Mask) -> Frame:
    if not where.any():
        return frame
    return frame.replace(mask=np.where(where, frame.mask | np.int32(bit), frame.mask))
