"""Cut-outs of any survey: what is measured of them does not depend on units, size of the cut-out or sign."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.learning.channels import squeeze_image, unsqueeze_image
from astrid_pipeline.learning.stamps import FEATURES, SIDE, filled, make_stamp, measure, planes

YY, XX = np.mgrid[-31:32, -31:32]


def star(snr: float = 40.0, fwhm: float = 2.6, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A Gaussian whose matched filter in unit noise has this S/N."""
    sigma = fwhm / 2.355
    return (
        snr / (np.sqrt(np.pi) * sigma) * np.exp(-((XX - x) ** 2 + (YY - y) ** 2) / (2 * sigma**2))
    ).astype(np.float32)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((63, 63)).astype(np.float32)


def features(difference, science=None, template=None):
    return measure([make_stamp(difference, science, template)]).iloc[0]


def test_a_star_is_measured_as_it_was_made():
    f = features(star() + noise(), star(120) + noise(1), noise(2))
    assert list(f.index) == list(FEATURES)
    assert f["snr"] == pytest.approx(40, rel=0.1)
    assert f["offset"] == 0
    assert f["width"] == pytest.approx(2.6, abs=0.8)
    assert f["elongation"] < 1.3
    assert f["opposite"] < 0.2
    assert f["blank_near"] == 0
    assert f["rms_near"] == pytest.approx(1, abs=0.15)


def test_units_sign_and_sky_change_nothing():
    first = features(star() + noise(), star(120) + noise(1))
    other = features(-7e4 * (star() + noise()) + 300, 3e-3 * (star(120) + noise(1)) - 5)
    np.testing.assert_allclose(other, first, rtol=2e-3, atol=2e-3)


def test_the_share_is_of_the_brighter_image_and_nothing_without_one():
    change, light = star(40) + noise(), star(400) + noise(1)
    assert features(change, light, noise(2))["share"] == pytest.approx(-1, abs=0.08)
    assert features(change, noise(1), light)["share"] == pytest.approx(-1, abs=0.08)
    assert features(-change, light, light)["share"] == pytest.approx(-1, abs=0.08)
    assert features(change, star(40) + noise(1))["share"] == pytest.approx(0, abs=0.08)
    assert np.isnan(features(change)["share"])


def test_a_dipole_a_hot_pixel_and_a_trail_stand_apart():
    dipole = features(star(40, x=-1.2) - star(40, x=1.2) + noise())
    hot = noise()
    hot[31, 31] += 80
    pixel = features(hot)
    trail = features(sum(star(15, x=t) for t in np.linspace(-6, 6, 13)) + noise())
    good = features(star() + noise())
    assert dipole["opposite"] > 0.5 > good["opposite"]
    assert pixel["single_pixel"] > 0.6 > good["single_pixel"]
    assert pixel["snr_sharp"] > 1.2 > good["snr_sharp"]
    assert trail["elongation"] > 1.5 > good["elongation"]


@pytest.mark.parametrize("side", [41, 61, 63, 64, 81])
def test_any_size_has_the_source_in_the_middle(side):
    half = side // 2
    yy, xx = np.mgrid[-half : side - half, -half : side - half]
    rng = np.random.default_rng(3)
    image = 20 * np.exp(-(xx**2 + yy**2) / 3).astype(np.float32)
    f = features((image + rng.standard_normal((side, side))).astype(np.float32))
    assert f["offset"] == 0
    assert f["snr"] > 30


def test_cut_outs_of_a_frames_edge_are_filled_up_on_the_right_side():
    whole = star() + noise()
    low, high = whole[10:, :], whole[:, :-12]
    assert np.isnan(filled(low, 63, x=500, y=21)[:10]).all()
    np.testing.assert_array_equal(filled(low, 63, x=500, y=21)[10:], low)
    assert np.isnan(filled(high, 63, x=3050, y=500)[:, -12:]).all()
    assert features(filled(low, 63, x=500, y=21))["snr"] == pytest.approx(features(whole)["snr"], rel=0.1)


def test_filled_in_numbers_are_no_noise():
    """Some surveys write one number where there is no data: most pixels of a cut-out at the edge of a dither."""
    image = star() + noise()
    image[:, :34] = np.where(XX[:, :34] > -4, image[:, :34], -1.2e-10)
    assert features(image)["snr"] == pytest.approx(40, rel=0.2)


@pytest.mark.parametrize("image", [np.zeros((63, 63), np.float32), np.full((63, 63), np.nan, np.float32)])
def test_what_cannot_be_measured_is_told(image):
    with pytest.raises(ValueError, match="cut-out has"):
        make_stamp(image)


def test_a_network_sees_the_stamp_as_it_sees_an_image():
    stamp = make_stamp(star() + noise(), star(120) + noise(1), None)
    seen = planes(stamp)
    assert seen.shape == (4, SIDE, SIDE)
    np.testing.assert_allclose(seen[0], squeeze_image(stamp.science), rtol=1e-6)
    assert (seen[1] == 0).all()
    assert seen[3].argmax() == SIDE // 2 * SIDE + SIDE // 2
    assert (seen[:, 0] == 0).all()  # 63 of 64 rows are there
    values = np.array([-3.0, 0.0, 0.4, 2e4])
    np.testing.assert_allclose(unsqueeze_image(squeeze_image(values)), values, rtol=1e-9)
