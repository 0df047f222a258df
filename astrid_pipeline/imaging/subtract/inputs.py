"""What goes into a subtraction: two frames on one grid, with sky removed, noise, mask and PSF known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import SubtractionError
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import is_set
from astrid_pipeline.imaging.parallel import each
from astrid_pipeline.imaging.psf_model import PSF

#: Share of pixels that must be usable in both frames: below, neither sky nor flux ratio can be measured.
MIN_USABLE = 0.02
#: Stamps that reach this many FWHM from their middle hold all of a PSF that matters; fading out their last quarter then
#: takes 1e-3 of its light.
WIDE = 3.5


@dataclass(eq=False)
class Pair:
    """Two frames, ready to be subtracted.

    Attributes
    ----------
    science, reference:
        The frames, prepared: sky-subtracted, with variance, mask and PSF.
    bad_science, bad_reference:
        (height, width) bool: pixels that cannot be used.
    science_sigma, reference_sigma:
        Noise of the empty sky in one pixel, units of each frame.
    light:
        Share of a star's light that the science PSF still holds once its borders are faded out (`rounded`).
    search:
        Whether to look for artefacts that nobody masked (`artefacts`).
    """

    science: Frame
    reference: Frame
    bad_science: npt.NDArray[np.bool_]
    bad_reference: npt.NDArray[np.bool_]
    science_sigma: float
    reference_sigma: float
    light: float = 1.0
    search: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.science.shape

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """Pixels that are unusable in either frame."""
        return self.bad_science | self.bad_reference


def parts(frame: Frame) -> tuple[Image, PSF]:
    """Return the variance and PSF of a prepared frame."""
    assert frame.variance is not None
    assert frame.psf is not None
    return frame.variance, frame.psf


def make_pair(science: Frame, reference: Frame) -> Pair:
    """Return the two frames as a `Pair`; what they lack (sky removed, variance, PSF) is measured from them.

    Raises
    ------
    SubtractionError
        If the grids differ, or too few pixels are usable in both.
    """
    if science.shape != reference.shape:
        raise SubtractionError(
            f"the science frame has {science.shape} pixels, the reference {reference.shape}",
            where=science.name,
            remedy="bring the reference onto the science grid first: align(reference, to=science)",
        )
    _check_wcs(science, reference)
    ready = each(_prepared, (science, reference))
    whole = parts(ready[0])[1]
    ready = [frame.replace(psf=rounded(parts(frame)[1])) for frame in ready]
    bad = [is_set(frame.mask) for frame in ready]
    usable = ~(bad[0] | bad[1])
    if usable.mean() < MIN_USABLE:
        raise SubtractionError(
            f"only {usable.mean():.1%} of the pixels are usable in both frames",
            where=science.name,
            remedy="check the masks, and whether the two frames overlap",
        )
    # The median of the variance is the sky's as long as objects cover less than half of the frame.
    some = max(1, int(np.sqrt(usable.size / 500_000)))  # half a million pixels are enough for a median
    sparse = (slice(None, None, some), slice(None, None, some))
    if not usable[sparse].any():
        sparse = (slice(None), slice(None))
    sigmas = [float(np.sqrt(np.median(parts(frame)[0][sparse][usable[sparse]]))) for frame in ready]
    light = light_of(parts(ready[0])[1]) / light_of(whole)
    return Pair(ready[0], ready[1], bad[0], bad[1], sigmas[0], sigmas[1], light)


def rounded(psf: PSF) -> PSF:
    """Return the PSF faded out to a circle, if its stamps are wide enough not to need their borders.

    The outermost pixels of a measured PSF are noise of some 1e-5, which a star of a million electrons shows. Stamps of
    less than `WIDE` FWHM to either side are left as they are: their borders are signal.
    """
    half = psf.size // 2
    if half < WIDE * psf.fwhm():
        return psf
    offset = np.arange(psf.size) - half
    radius = np.hypot(offset[:, None], offset)
    # From 1 to 0 over the last quarter, without a corner.
    fade = np.clip((half - radius) / (0.25 * half), 0, 1)
    return dataclasses.replace(psf, basis=psf.basis * (fade * fade * (3 - 2 * fade)))


def light_of(psf: PSF) -> float:
    """Return the sum of a PSF's basis in the middle of its frame, before it is scaled to 1."""
    height, width = psf.shape
    return float(psf.coefficients((width - 1) / 2, (height - 1) / 2) @ psf.basis.sum((1, 2)))


def _prepared(frame: Frame) -> Frame:
    if frame.variance is not None and frame.psf is not None and frame.meta.get("sky_subtracted"):
        return frame
    from astrid_pipeline.imaging.quality import prepare

    return prepare(frame)


def _check_wcs(science: Frame, reference: Frame) -> None:
    """Refuse frames whose WCS say that their grids lie pixels apart."""
    if science.wcs is None or reference.wcs is None or science.wcs is reference.wcs:
        return
    height, width = science.shape
    x, y = np.array([0, width - 1, 0, width - 1]), np.array([0, 0, height - 1, height - 1])
    sky = science.wcs.all_pix2world(np.column_stack([x, y]), 0)
    there = reference.wcs.all_world2pix(sky, 0, quiet=True)
    distance = float(np.nanmax(np.hypot(there[:, 0] - x, there[:, 1] - y)))
    # Headers of one exposure series differ by their pointing error; what is solved here is a fraction of a pixel.
    if distance > 3:
        raise SubtractionError(
            f"the two grids lie up to {distance:.1f} px apart, by their WCS",
            where=science.name,
            remedy="bring the reference onto the science grid first: align(reference, to=science)",
        )
