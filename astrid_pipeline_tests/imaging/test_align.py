from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.errors import InputError, RegistrationError
from astrid_pipeline.imaging.align import align, move_psf
from astrid_pipeline.imaging.bayer import superpixels
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.pixel_map import PixelMap
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.quality import is_prepared, prepare
from astrid_pipeline_tests.imaging import star_fields as sf

SHAPE = (384, 400)


def turned(degrees: float, shift=(0.0, 0.0), scale: float = 1.0):
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))

    def function(x, y):
        u, v = np.asarray(x, float) - 200, np.asarray(y, float) - 190
        return c * u - s * v + 200 + shift[0], s * u + c * v + 190 + shift[1]

    return function


def pair(rng, function, *, number=120, fwhm=2.6, **options):
    places = sf.positions(rng, number, SHAPE)
    flux = sf.fluxes(rng, len(places))
    there = np.column_stack(function(places[:, 0], places[:, 1]))
    wcs = sf.tan_wcs(SHAPE)
    science = sf.frame(rng, SHAPE, places, flux, wcs=wcs, exposure_id="science")
    reference = sf.frame(
        rng, SHAPE, there, flux, fwhm=fwhm, sigma=3.0, wcs=wcs, exposure_id="reference", **options
    )
    return science, reference, places, flux


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (0.5, 1.002), (12.0, 1.0), (181.0, 0.95)])
def test_an_aligned_reference_is_what_it_would_have_been_on_the_grid(degrees: float, scale: float) -> None:
    """Data, variance and PSF agree with a frame drawn on the science grid: differences are noise of unit variance."""
    rng = np.random.default_rng(1)
    science, reference, places, flux = pair(rng, turned(degrees, (3.3, -2.6), scale), fwhm=3.0)
    out = align(reference, to=science)
    wanted = sf.draw(SHAPE, places[:, 0], places[:, 1], flux, 3.0 / scale)
    good = out.mask == 0
    assert good.mean() > 0.7
    faint = wanted < 50
    pull = (out.data - wanted) / np.sqrt(out.variance)
    assert 0.8 < pull[good & faint].std() < 1.0
    bright = good & (wanted > 3000)
    assert np.abs(out.data[bright] / wanted[bright] - 1).max() < 0.05
    assert out.psf is not None
    x, y = 150.0, 180.0
    truth = sf.gaussian_psf(3.0 / scale, SHAPE, out.psf.size).stamp()
    # The stamp has the source's pixel, the drawn star the target's: a twentieth of either in width at 5 %.
    assert np.abs(out.psf.stamp(x, y) - truth).max() < (0.002 if scale == 1.0 else 0.06) * truth.max() + 2e-3
    assert max(out.meta["dx_rms"], out.meta["dy_rms"]) < 0.05
    assert out.meta["n_matched"] > 20
    assert out.meta["flux_scale"] == pytest.approx(scale**2, rel=1e-3)
    assert out.wcs is science.wcs
    assert 0.95 < out.meta["noise_correlation"] <= 1.02


def test_a_result_needs_no_preparing_again() -> None:
    """`prepare` would otherwise scale the variance to pixels that share their noise."""
    science, reference, _, _ = pair(np.random.default_rng(2), turned(0.2, (0.5, 0.5)))
    out = align(reference, to=science)
    assert is_prepared(out)
    assert prepare(out) is out


def test_an_unprepared_reference_is_prepared_before_it_is_moved() -> None:
    rng = np.random.default_rng(3)
    science, reference, _, _ = pair(rng, turned(0.0, (0.5, 0.5)))
    raw = Frame(
        reference.data + 500, wcs=reference.wcs, meta={"gain": 1.0, "exposure_id": "raw", "unit": "electron"}
    )
    out = align(raw, to=science)
    assert out.meta["sky_subtracted"]
    assert out.meta["sky"] == pytest.approx(500, abs=2)
    good = out.mask == 0
    assert np.median(out.data[good]) == pytest.approx(0, abs=1.5)
    # Drawn with noise of 3, which no single pixel shows any more after the move.
    assert np.sqrt(np.median(out.variance[good])) == pytest.approx(3.0, rel=0.1)


def test_coverage_is_the_share_of_the_grid() -> None:
    science, reference, _, _ = pair(np.random.default_rng(4), turned(0.0, (100.0, 0.0)))
    out = align(reference, to=science)
    assert out.meta["coverage"] == pytest.approx(0.75, abs=0.005)
    assert ((out.mask & int(Mask.NO_DATA)) != 0).mean() == pytest.approx(0.25, abs=0.005)


def test_holes_in_the_reference_do_not_cover() -> None:
    science, reference, _, _ = pair(np.random.default_rng(14), turned(0.0))
    mask = reference.mask.copy()
    mask[:96] = int(Mask.NO_DATA)
    out = align(reference.replace(mask=mask), to=science)
    assert out.meta["coverage"] == pytest.approx(0.75, abs=0.01)


def test_frames_of_other_size_fit_too() -> None:
    rng = np.random.default_rng(5)
    science, reference, _, _ = pair(rng, turned(0.0, (5.0, 5.0)))
    part = Frame(
        reference.data[20:330, 30:],
        reference.variance[20:330, 30:],
        None,
        reference.psf,
        reference.wcs[20:330, 30:],
        dict(reference.meta),
    )
    out = align(part, to=science)
    assert out.shape == SHAPE
    assert 0.7 < out.meta["coverage"] < 0.8


def test_no_common_sky_is_an_error() -> None:
    science, reference, _, _ = pair(np.random.default_rng(6), turned(0.0))
    with pytest.raises(RegistrationError, match="do not overlap"):
        align(reference.replace(wcs=sf.tan_wcs(SHAPE, ra=10.0)), to=science)


def test_a_grid_without_wcs_gets_the_references() -> None:
    science, reference, _, _ = pair(np.random.default_rng(7), turned(0.3, (4.0, 9.0)))
    out = align(reference, to=science.replace(wcs=None))
    assert out.wcs is not None
    x, y = np.array([20.0, 200.0, 380.0]), np.array([300.0, 100.0, 20.0])
    ra, dec = out.wcs.all_pix2world(x, y, 0)
    wanted = reference.wcs.all_pix2world(*turned(0.3, (4.0, 9.0))(x, y), 0)
    assert np.abs(ra - wanted[0]).max() * 3600 < 0.02
    assert np.abs(dec - wanted[1]).max() * 3600 < 0.02


def test_levels_follow_the_pixel_area() -> None:
    science, reference, _, _ = pair(np.random.default_rng(8), turned(90.0, scale=1.2), saturation=60000.0)
    out = align(reference, to=science)
    assert out.meta["saturation"] == pytest.approx(60000 * 1.44, rel=2e-3)
    assert out.meta["sky_sigma"] == pytest.approx(3.0 * 1.2, rel=2e-3)
    assert out.meta["seeing"] == pytest.approx(2.6 / 1.2, rel=2e-3)


def test_a_varying_psf_follows_the_map() -> None:
    """P_t(u; x) is P_s(J u; map(x)): compared with stamps drawn at the source's own places."""
    basis = np.stack(
        [
            sf.gaussian_psf(3.0, SHAPE).stamp(),
            0.3 * (sf.gaussian_psf(3.6, SHAPE).stamp() - sf.gaussian_psf(3.0, SHAPE).stamp()),
        ]
    )
    psf = PSF(basis, ((0, 0), (1, 0)), SHAPE, {"n_stars": 50})
    function = turned(90.0, (0.0, 0.0))
    moved = move_psf(psf, PixelMap.tabulate(function, SHAPE), SHAPE)
    assert moved.quality == psf.quality
    for x, y in ((60.0, 50.0), (200.0, 190.0), (300.0, 330.0)):
        u, v = function(x, y)
        # A quarter turn of the target's axes: rows of one are columns of the other.
        np.testing.assert_allclose(
            moved.stamp(x, y), np.rot90(psf.stamp(float(u), float(v)), 1), atol=2e-4 * basis[0].max()
        )
    assert np.abs(moved.stamp(200, 20) - moved.stamp(200, 360)).max() > 1e-3


def test_bayer_mosaics_are_refused_and_superpixels_are_not() -> None:
    science, reference, _, _ = pair(np.random.default_rng(9), turned(0.0, (2.0, 4.0)), fwhm=5.0)
    with pytest.raises(InputError, match="superpixels"):
        align(reference.replace(meta={"bayer": "RGGB"}), to=science)


@pytest.mark.parametrize(("channel", "pixels"), [("all", 4), ("green", 2)])
def test_superpixels_are_sums_of_their_pixels(channel: str, pixels: int) -> None:
    rng = np.random.default_rng(10)
    colour = np.tile(np.array([[1.0, 10.0], [20.0, 300.0]]), (20, 25))
    mask = np.zeros((40, 50), np.int32)
    mask[5, 7] = int(Mask.COSMIC_RAY)
    frame = Frame(
        colour + 0 * rng.random((40, 50)),
        np.full((40, 50), 2.0),
        mask,
        wcs=sf.tan_wcs((40, 50)),
        meta={"bayer": "RGGB", "saturation": 290.0, "read_noise": 5.0},
    )
    out = superpixels(frame, channel)
    assert out.shape == (20, 25)
    assert (out.data == (331 if channel == "all" else 30)).all()
    assert (out.variance == 2 * pixels).all()
    assert out.meta["saturation"] == 290 * pixels
    assert out.meta["bayer"] is None
    # Blue is over the saturation level in every block.
    assert ((out.mask & int(Mask.SATURATED)) != 0).all() == (channel == "all")
    assert bool(out.mask[2, 3] & int(Mask.COSMIC_RAY)) == (channel == "all")
    x, y = np.array([0.0, 10.0, 24.0]), np.array([0.0, 19.0, 3.0])
    np.testing.assert_allclose(
        out.wcs.all_pix2world(x, y, 0), frame.wcs.all_pix2world(2 * x + 0.5, 2 * y + 0.5, 0), atol=1e-10
    )
    assert superpixels(out) is out


def test_unknown_mosaics_are_refused() -> None:
    frame = Frame(np.ones((4, 4)), meta={"bayer": "RGBW"})
    with pytest.raises(InputError, match="RGBW"):
        superpixels(frame)
    with pytest.raises(InputError, match="channel"):
        superpixels(frame.replace(meta={"bayer": "RGGB"}), "red")
