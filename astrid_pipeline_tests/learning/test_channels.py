from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, Mask
from astrid_pipeline.learning.channels import CHANNELS, channels, squeeze_score, unsqueeze_score
from astrid_pipeline_tests.learning.helpers import toy_difference


def test_values_are_those_of_the_formula_pixel_by_pixel():
    difference, _ = toy_difference(1)
    planes = channels(difference)
    assert planes.shape == (len(CHANNELS), 96, 96)
    assert planes.dtype == np.float32
    for y, x in [(10, 20), (50, 50), (95, 0)]:
        want = [
            np.arcsinh(difference.science[y, x] / 1.0) / 3,
            np.arcsinh(difference.reference[y, x] / 0.5) / 3,
            np.arcsinh(difference.data[y, x] / np.sqrt(difference.variance[y, x]) / 2) / 1.5,
            np.arcsinh(difference.score[y, x] / 2) / 1.5,
        ]
        np.testing.assert_allclose(planes[:, y, x], want, rtol=1e-5, atol=1e-6)


def test_the_unit_of_the_frames_does_not_matter():
    # The same images in another unit: fluxes times 7, variances times 49, noise times 7.
    difference, _ = toy_difference(2)
    meta = {"science_sky_sigma": 7.0, "reference_sky_sigma": 3.5}
    other = difference.replace(
        data=difference.data * 7,
        variance=difference.variance * 49,
        science=difference.science * 7,
        reference=difference.reference * 7,
        meta=meta,
    )
    np.testing.assert_allclose(channels(other), channels(difference), atol=1e-6)


@pytest.mark.parametrize("shift", [0, REFERENCE_SHIFT])
def test_pixels_unusable_in_either_frame_are_zero_in_all_planes(shift):
    difference, _ = toy_difference(3)
    mask = difference.mask.copy()
    mask[20:25, 30:35] = int(Mask.SATURATED) << shift
    mask[60, 60] = int(Mask.SUSPECT)  # says something, but the pixel can be used
    planes = channels(difference.replace(mask=mask))
    assert (planes[:, 20:25, 30:35] == 0).all()
    assert (planes[:, :, 3] == 0).all()
    assert (planes[:, 60, 60] != 0).all()


def test_what_is_not_finite_becomes_zero():
    difference, _ = toy_difference(4)
    score = difference.score.copy()
    score[5, 6] = np.nan
    planes = channels(difference.replace(score=score))
    assert np.isfinite(planes).all()
    assert (planes[:, 5, 6] == 0).all()


@pytest.mark.parametrize("value", [None, 0.0, float("nan"), -1.0])
def test_a_difference_without_its_noise_is_refused(value):
    difference, _ = toy_difference(5)
    with pytest.raises(ModelError, match="science_sky_sigma"):
        channels(difference.replace(meta={"science_sky_sigma": value}))


@given(st.floats(-1e4, 1e4))
def test_the_score_comes_back(score):
    assert unsqueeze_score(squeeze_score(score)) == pytest.approx(score, rel=1e-9, abs=1e-9)
