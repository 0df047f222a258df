"""What a network sees of a difference image: four planes in units of the noise, squeezed to a small range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set

if TYPE_CHECKING:
    from astrid_pipeline.imaging.flux_planes import ScorePlanes

#: The planes in order. A model's file repeats them, and `weights.load_model` refuses another order.
CHANNELS: tuple[str, ...] = ("science", "reference", "difference", "score")

# Squeezing by asinh keeps faint sources linear and bright stars finite. The two images hold stars of thousands
# of sigma, difference and score seldom exceed a hundred, hence two softening lengths; the divisors bring the
# planes to about unit spread.
_IMAGE_SOFTENING, _IMAGE_SCALE = 1.0, 3.0
_CHANGE_SOFTENING, _CHANGE_SCALE = 2.0, 1.5

Planes = npt.NDArray[np.float32]


def _squeeze(values: npt.NDArray[np.floating], softening: float, scale: float) -> Planes:
    return (np.arcsinh(values / np.float32(softening)) / np.float32(scale)).astype(np.float32)


def unsqueeze_image(plane: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an image in units of its sky's noise from the network's plane of it."""
    return np.sinh(np.asarray(plane, dtype=np.float64) * _IMAGE_SCALE) * _IMAGE_SOFTENING


def squeeze_image(image: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an image in units of its sky's noise as the network sees it."""
    return np.arcsinh(np.asarray(image) / _IMAGE_SOFTENING) / _IMAGE_SCALE


def squeeze_score(score: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the score, or the difference in units of its noise, as the network sees it."""
    return np.arcsinh(np.asarray(score) / _CHANGE_SOFTENING) / _CHANGE_SCALE


def unsqueeze_score(plane: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return S_corr from the network's score plane: the inverse of `squeeze_score`."""
    return np.sinh(np.asarray(plane, dtype=np.float64) * _CHANGE_SCALE) * _CHANGE_SOFTENING


def unusable(difference: Difference | ScorePlanes) -> npt.NDArray[np.bool_]:
    """Return (H, W) bool: where either frame's pixel cannot be used, or the filters had not all their pixels."""
    return is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)


def _sky_sigma(difference: Difference, name: str) -> float:
    value = difference.meta.get(name)
    if value is None or not np.isfinite(value) or float(value) <= 0:
        raise ModelError(
            f"the difference's meta[{name!r}] is {value!r}, not a positive noise",
            where=difference.meta.get("exposure_id"),
            remedy="make the difference with astrid_pipeline.imaging.subtract",
        )
    return float(value)


def channels(difference: Difference) -> Planes:
    """Return the (4, H, W) float32 planes of `CHANNELS` that networks are trained on and applied to.

    Science and reference are divided by the noise of their empty sky, D by its own noise map; the score has unit
    variance already. The noise is the noise model's, never the image's own spread: dividing by the spread makes
    a crowded field look faint. Pixels unusable in either frame are 0 in all four planes, as is whatever is not
    finite.

    Raises
    ------
    ModelError
        If the difference does not say the noise of its images.
    """
    science_sigma = _sky_sigma(difference, "science_sky_sigma")
    reference_sigma = _sky_sigma(difference, "reference_sky_sigma")
    variance = difference.variance
    sigma = np.sqrt(np.where(variance > 0, variance, np.float32(np.inf)))
    planes = np.empty((len(CHANNELS), *difference.shape), np.float32)
    planes[0] = _squeeze(difference.science / np.float32(science_sigma), _IMAGE_SOFTENING, _IMAGE_SCALE)
    planes[1] = _squeeze(difference.reference / np.float32(reference_sigma), _IMAGE_SOFTENING, _IMAGE_SCALE)
    planes[2] = _squeeze(difference.data / sigma, _CHANGE_SOFTENING, _CHANGE_SCALE)
    planes[3] = _squeeze(difference.score, _CHANGE_SOFTENING, _CHANGE_SCALE)
    planes[:, unusable(difference) | ~np.isfinite(planes).all(axis=0)] = 0
    return planes
