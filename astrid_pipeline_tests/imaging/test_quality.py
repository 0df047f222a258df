"""`prepare` and `assess`: what they measure, keep, and leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from astrid_pipeline.errors import PixelError, PSFError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask, is_set
from astrid_pipeline.imaging.quality import assess, is_prepared, prepare, psf_flux, saturation_of
from astrid_pipeline_tests.imaging.moffat_fields import moffat, star_field


def plain_wcs(side: int = 512, scale: float = 0.4) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [side / 2, side / 2]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


def test_everything_is_measured_and_a_second_time_nothing() -> None:
    field = star_field(512, 300)
    ready = prepare(Frame(field.data, meta={"exposure_id": "a", "gain": 1.0, "read_noise": 5.0}))
    assert is_prepared(ready)
    assert prepare(ready) is ready
    assert ready.variance is not None
    assert ready.psf is not None
    assert ready.meta["sky_subtracted"] is True
    assert ready.meta["sky"] == pytest.approx(200, abs=1.5)
    assert ready.meta["sky_sigma"] == pytest.approx(15, rel=0.015)
    assert ready.meta["gain_source"] == "header"
    assert ready.meta["noise_correlation"] == pytest.approx(1, abs=0.04)
    assert ready.meta["seeing"] == pytest.approx(2.55, rel=0.03)
    assert ready.meta["noise_error"] < 0.03
    assert ready.meta["sky_err"] < 1.5
    assert abs(np.median(ready.data)) < 1.5
    truth = np.median(ready.variance / field.variance)
    assert truth == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("meta", [{}, {"gain": 0.2}, {"unit": "adu"}])
@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_an_absent_or_wrong_gain_is_found(meta: dict[str, Any], gain: float) -> None:
    """Read noise is unknown, so what the sky tells is a little low: the photons' share of its noise."""
    field = star_field(512, 300, gain=gain, seed=1)
    ready = prepare(Frame(field.data, meta=meta))
    share = 200 * gain / (200 * gain + 25)
    assert ready.meta["gain"] == pytest.approx(gain * share, rel=0.1)
    assert "photon transfer" in ready.meta["gain_source"]
    assert np.median(ready.variance) == pytest.approx(np.median(field.variance), rel=0.04)


@pytest.mark.parametrize(("gain", "stated"), [(0.4, None), (2.5, None), (2.5, 0.05), (10.0, 0.2)])
def test_without_a_sky_the_stars_tell_the_gain(gain: float, stated: float | None) -> None:
    field = star_field(512, 400, gain=gain, faintest=500, seed=2)
    meta = {"sky_subtracted": True} | ({"gain": stated} if stated else {})
    ready = prepare(Frame(field.data - 200, meta=meta))
    assert 0.4 * gain < ready.meta["gain"] < 1.7 * gain
    assert "stars" in ready.meta["gain_source"]
    # What is scaled to the sky is right whatever the gain.
    assert np.median(ready.variance) == pytest.approx(np.median(field.variance), rel=0.04)


@pytest.mark.parametrize("factor", [0.25, 0.8, 1.0, 1.3, 9.0])
def test_a_variance_that_the_sky_denies_is_scaled(factor: float) -> None:
    field = star_field(512, 300)
    ready = prepare(Frame(field.data, variance=factor * field.variance))
    assert ready.meta["noise_ratio"] == pytest.approx(factor**-0.5, rel=0.02)
    assert np.median(ready.variance / field.variance) == pytest.approx(1, abs=0.04)
    if factor == 1.0:
        assert np.array_equal(ready.variance, field.variance)


def test_what_is_given_is_kept() -> None:
    field = star_field(512, 300)
    psf = Frame(np.ones((512, 512)), psf=field.psf(255, 255, 12)).psf
    ready = prepare(
        Frame(field.data, psf=psf, meta={"noise_correlation": 1.3, "zero_point": 25.0, "gain": 1.0})
    )
    assert ready.psf is psf
    assert ready.meta["noise_correlation"] == 1.3
    assert ready.meta["zero_point"] == 25.0


def test_units_scale_through() -> None:
    """The same electrons in other units: noise, sky and PSF are the same ones."""
    field = star_field(512, 300)
    one = prepare(Frame(field.data))
    other = prepare(Frame(field.data * 1e-3))
    assert other.meta["sky_sigma"] * 1e3 == pytest.approx(one.meta["sky_sigma"], rel=1e-3)
    assert other.meta["gain"] == pytest.approx(one.meta["gain"] * 1e3, rel=1e-2)
    assert other.meta["seeing"] == pytest.approx(one.meta["seeing"], rel=2e-3)


def test_saturated_pixels_are_masked_by_level_or_by_their_piling_up() -> None:
    field = star_field(512, 300, seed=3)
    clipped = np.minimum(field.data, 2000)
    truth = field.data >= 2000
    assert truth.sum() > 20
    told = prepare(Frame(clipped, meta={"saturation": 2000.0}))
    found = prepare(Frame(clipped))
    for ready in (told, found):
        assert is_set(ready.mask, Mask.SATURATED)[truth].all()
        assert is_set(ready.mask, Mask.SATURATED).sum() <= truth.sum() + 3
    assert found.meta["saturation"] == pytest.approx(2000, rel=0.01)
    assert "pile-up" in found.meta["saturation_source"]
    assert saturation_of(field.data, np.zeros(field.data.shape, np.int32)) is None


def test_frames_that_cannot_be_prepared_say_why() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(PSFError):
        prepare(Frame(rng.normal(100, 5, (200, 200)), meta={"exposure_id": "blank"}))
    with pytest.raises(PixelError):
        prepare(Frame(np.full((200, 200), 7.0)))


def test_a_frame_without_stars_but_with_a_psf_is_prepared() -> None:
    rng = np.random.default_rng(5)
    ready = prepare(Frame(rng.normal(100, 5, (200, 200)), psf=moffat(10, 2.4)))
    assert is_prepared(ready)
    assert ready.meta["sky_sigma"] == pytest.approx(5, rel=0.03)


def catalogue(field: Any, wcs: WCS, zero_point: float, rng: np.random.Generator) -> pd.DataFrame:
    ra, dec = wcs.all_pix2world(field.x, field.y, 0)
    mag = zero_point - 2.5 * np.log10(field.flux) + rng.normal(0, 0.01, len(ra))
    # One in ten is a variable or a wrong match.
    mag[::10] += rng.normal(0, 1.0, len(mag[::10]))
    return pd.DataFrame({"ra": ra, "dec": dec, "mag_r": mag})


def test_zero_point_and_depth_come_from_the_catalogue() -> None:
    field = star_field(512, 300)
    wcs = plain_wcs()
    table = catalogue(field, wcs, 26.3, np.random.default_rng(6))
    seen = assess(Frame(field.data, wcs=wcs, meta={"filter": "r", "zero_point": 20.0, "gain": 1.0}), table)
    assert seen.meta["zero_point"] == pytest.approx(26.3, abs=0.02)
    assert seen.meta["zero_point_err"] < 0.02
    assert seen.meta["zero_point_source"].startswith("catalogue, ")
    assert seen.meta["pixel_scale"] == pytest.approx(0.4, rel=1e-6)
    assert seen.meta["seeing_arcsec"] == pytest.approx(0.4 * seen.meta["seeing"])
    area = 1 / np.square(field.psf(255, 255, 12)).sum()
    assert seen.meta["depth"] == pytest.approx(26.3 - 2.5 * np.log10(5 * 15 * np.sqrt(area)), abs=0.06)
    assert seen.meta["saturated_fraction"] == 0


@pytest.mark.parametrize("columns", [["ra", "dec", "mag_g"], ["ra", "dec", "mag_r"]])
def test_without_matches_the_header_zero_point_stays(columns: list[str]) -> None:
    field = star_field(512, 300)
    far = pd.DataFrame(np.full((20, 3), 10.0), columns=columns)
    frame = Frame(field.data, wcs=plain_wcs(), meta={"filter": "r", "zero_point": 25.0, "gain": 1.0})
    for table in (far, far.iloc[:0], None):
        seen = assess(frame, table)
        assert seen.meta["zero_point"] == 25.0
        assert seen.meta["zero_point_source"] == "header"
    bare = assess(Frame(field.data, meta={"gain": 1.0}))
    assert "zero_point" not in bare.meta
    assert "depth" not in bare.meta
    assert "pixel_scale" not in bare.meta


def test_psf_fluxes_have_no_bias_and_honest_errors() -> None:
    field = star_field(512, 60, faintest=20_000, slope=2.0, seed=7)
    psf = Frame(np.ones((512, 512)), psf=field.psf(255, 255, 20)).psf
    frame = Frame(field.data - 200, variance=field.variance, psf=psf)
    inside = (np.minimum(field.x, field.y) > 25) & (np.maximum(field.x, field.y) < 486)
    x, y = field.x[inside], field.y[inside]
    lonely = np.array(
        [np.sort(np.hypot(field.x - a, field.y - b))[1] > 25 for a, b in zip(x, y, strict=True)]
    )
    flux, error = psf_flux(frame, x[lonely], y[lonely])
    pull = (flux - field.flux[inside][lonely]) / error
    assert lonely.sum() > 15
    assert abs(np.mean(pull)) < 0.8
    assert 0.6 < np.std(pull) < 1.6
    assert np.mean(flux / field.flux[inside][lonely]) == pytest.approx(1, abs=0.005)
