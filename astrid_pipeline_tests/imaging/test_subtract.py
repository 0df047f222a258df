"""`subtract` on pairs whose truth is known: noise, flux, masks, odd sizes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import kurtosis, skew

from astrid_pipeline.errors import ConfigError, SubtractionError
from astrid_pipeline.imaging import forced_photometry, subtract
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, Mask
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf
from astrid_pipeline_tests.imaging.subtraction_scenes import Scene


def clean_score(difference):
    return difference.score[difference.mask == 0].astype(float)


@pytest.mark.parametrize("method", ["zogy", "classic"])
@pytest.mark.parametrize(("science_fwhm", "reference_fwhm"), [(2.8, 2.3), (2.2, 2.9)])
def test_score_of_an_unchanged_sky_is_a_unit_gaussian(method, science_fwhm, reference_fwhm):
    scene = Scene(shape=(384, 384), stars=150, science_fwhm=science_fwhm, reference_fwhm=reference_fwhm)
    difference = subtract(*scene.build(), method=method, device="cpu")
    score = clean_score(difference)
    # 384² pixels hold some 13,000 independent ones: 1 ± 0.006, kurtosis ± 0.04.
    assert score.std() == pytest.approx(1, abs=0.025)
    assert abs(kurtosis(score)) < 0.2
    assert np.abs(score).max() < 5.5
    assert difference.meta["score_sigma_raw"] == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize("method", ["zogy", "classic"])
def test_a_new_source_has_its_flux_and_error(method):
    places = [(60.3, 50.7), (150.0, 61.5), (101.2, 140.9), (40.6, 150.2)]
    pulls, ratios = [], []
    for seed in range(4):
        added = [(x, y, 1500.0) for x, y in places]
        difference = subtract(*Scene(seed=seed, added=added).build(), method=method, device="cpu")
        table = forced_photometry(difference, x=[p[0] for p in places], y=[p[1] for p in places])
        pulls.extend((table.flux - 1500.0) / table.flux_err)
        ratios.extend(table.flux / 1500.0)
    # 16 fluxes of S/N 25: mean to 1 %, pulls of unit width to 18 %.
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)
    assert 0.5 < np.std(pulls) < 1.6


def test_what_separates_the_frames_is_solved_from_them():
    scene = Scene(shape=(320, 320), stars=200, shift=(0.23, -0.11), ratio=0.7, sky_offset=3.0, noise=True)
    difference = subtract(*scene.build(), device="cpu")
    assert difference.meta["flux_ratio"] == pytest.approx(0.7, abs=0.005)
    assert difference.meta["shift_x"] == pytest.approx(0.23, abs=0.02)
    assert difference.meta["shift_y"] == pytest.approx(-0.11, abs=0.02)
    assert difference.meta["sky_offset"] == pytest.approx(3.0, abs=0.25)
    assert max(difference.meta["dx_rms"], difference.meta["dy_rms"]) < 0.03
    assert np.abs(clean_score(difference)).max() < 5.5


def test_variables_do_not_pull_the_flux_ratio():
    science, reference = Scene(shape=(256, 256), stars=120, brightest=2e4).build()
    peaks = np.argwhere(ndimage.maximum_filter(reference.data, 9) == reference.data)
    bright = peaks[np.argsort(-reference.data[tuple(peaks.T)])][:8]
    data = science.data.copy()
    for y, x in bright:  # eight of the brightest stars become twice as bright
        box = np.s_[max(y - 6, 0) : y + 7, max(x - 6, 0) : x + 7]
        data[box] += np.maximum(science.data[box], 0)
    changed = subtract(science.replace(data=data), reference, device="cpu")
    assert changed.meta["flux_ratio"] == pytest.approx(0.8, abs=0.01)
    inside = [(y, x) for y, x in bright if 12 < y < 244 and 12 < x < 244]
    assert all(changed.score[y - 1 : y + 2, x - 1 : x + 2].max() > 8 for y, x in inside)


def test_variance_estimated_from_counts_does_not_skew_the_score():
    scene = Scene(shape=(512, 512), stars=60, counted_variance=True)
    science, reference = scene.build()
    # Few photons, so that the variance of a pixel follows its noise by a fifth.
    score = clean_score(subtract(science, reference, device="cpu"))
    assert score.std() == pytest.approx(1, abs=0.02)
    assert abs(skew(score)) < 0.06


def test_a_new_source_s_own_photons_are_counted_once():
    # Against a reference as shallow and broader, half of a new source's light counts as expected under both frames, and
    # its photons' noise with it. What is left of the pull then is the noise itself.
    shape, rng = (480, 480), np.random.default_rng(4)
    static = rng.uniform(20, 460, (2, 120)), rng.uniform(2e3, 2e4, 120)
    new = (np.array([(x, y) for x in range(30, 460, 60) for y in range(30, 460, 60)], float) + 0.3).T
    flux, pulls = 3e4, []
    for _ in range(2):
        frames = []
        for fwhm, changed in ((2.2, True), (3.0, False)):
            light = draw(shape, *static[0], static[1], fwhm)
            if changed:
                light += draw(shape, *new, np.full(new.shape[1], flux), fwhm)
            counts = rng.poisson(light + 100.0).astype(np.float32)
            meta = {"sky_subtracted": True, "gain": 1.0}
            frames.append(
                Frame(counts - 100, np.maximum(counts, 1), psf=gaussian_psf(fwhm, shape, 21), meta=meta)
            )
        table = forced_photometry(subtract(*frames, device="cpu"), x=new[0], y=new[1])
        pulls.append((table.flux - flux) / table.flux_err)
    pull = np.concatenate(pulls)
    print(f"pull {pull.std():.2f}, mean {pull.mean():.2f}")
    assert pull.std() == pytest.approx(1, abs=0.15)  # 128 sources: 0.06


def test_correlated_pixels_are_noticed_and_corrected():
    science, reference = Scene(shape=(320, 320), stars=80).build()
    kernel = np.array([0.25, 0.5, 0.25])
    blur = [
        ndimage.convolve1d(ndimage.convolve1d(f.data, kernel, 0), kernel, 1) for f in (science, reference)
    ]
    psfs = [
        ndimage.convolve1d(ndimage.convolve1d(f.psf.stamp(), kernel, 0), kernel, 1)
        for f in (science, reference)
    ]
    pair = [
        f.replace(data=d, psf=p, variance=f.variance * 0.375**2)  # Σ kernel² = 0.375 on each axis
        for f, d, p in zip((science, reference), blur, psfs, strict=True)
    ]
    difference = subtract(*pair, device="cpu")
    assert difference.meta["score_sigma_raw"] > 1.3
    assert difference.meta["score_rescaled"]
    assert clean_score(difference).std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("science_fwhm", "reference_fwhm"), [(2.8, 2.3), (2.2, 2.9)])
def test_saturated_cores_and_nan_leave_no_ringing(science_fwhm, reference_fwhm):
    science, reference = Scene(
        shape=(256, 256),
        stars=80,
        brightest=8e5,
        seed=5,
        science_fwhm=science_fwhm,
        reference_fwhm=reference_fwhm,
    ).build()
    pair = []
    for frame, level in ((science, 2e4), (reference, 3e4)):
        full = ndimage.binary_dilation(frame.data > level, iterations=1)
        assert full.any()
        data = np.where(frame.data > level, level, frame.data)
        pair.append(frame.replace(data=data, mask=full * np.int32(Mask.SATURATED)))
    hole = pair[0].data.copy()
    hole[100:103, 50:60] = np.nan
    pair[0] = pair[0].replace(data=hole)
    difference = subtract(*pair, device="cpu")
    for name in ("data", "variance", "score", "flux", "flux_err", "science", "reference"):
        assert np.isfinite(getattr(difference, name)).all(), name
    assert np.abs(clean_score(difference)).max() < 6
    assert (difference.mask[100:103, 50:60] & Mask.NO_DATA).all()
    assert (difference.mask != 0).mean() < 0.12


def test_masks_of_both_frames_stay_apart_and_cover_what_they_touch():
    science, reference = Scene().build()
    masks = np.zeros((2, *science.shape), np.int32)
    masks[0, 60, 70], masks[1, 120, 130] = Mask.COSMIC_RAY, Mask.BAD_PIXEL
    difference = subtract(science.replace(mask=masks[0]), reference.replace(mask=masks[1]), device="cpu")
    assert difference.mask[60, 70] == Mask.COSMIC_RAY
    assert difference.mask[60, 71] == Mask.COSMIC_RAY  # a source centred there would lose too much
    assert difference.mask[120, 130] == Mask.BAD_PIXEL << REFERENCE_SHIFT
    assert difference.mask[60, 80] == 0
    assert (difference.mask[0] & Mask.EDGE).all()


def test_a_wrong_psf_ratio_is_corrected_from_the_sources():
    scene = Scene(shape=(384, 384), stars=300, brightest=2e5)
    science, reference = scene.build()
    wrong = Scene(shape=(384, 384), science_fwhm=2.8 * 1.03).build()[0].psf
    score = clean_score(subtract(science.replace(psf=wrong), reference, device="cpu"))
    # A width off by 3 % leaves residuals of 6 % of the stars, 15 sigma and more, if nothing is done.
    assert np.abs(score).max() < 5.5
    assert score.std() == pytest.approx(1, abs=0.03)


@settings(max_examples=8)
@given(height=st.integers(40, 150), width=st.integers(40, 150), seed=st.integers(0, 99))
def test_any_size_of_frame(height, width, seed):
    scene = Scene(shape=(height, width), stars=max(8, height * width // 500), seed=seed)
    science, reference = scene.build(zero_point=25.0)
    # With too few sources in common, the zero points tell the flux ratio.
    science = science.replace(meta={"zero_point": 25.0 + 2.5 * np.log10(scene.ratio)})
    difference = subtract(science, reference, device="cpu")
    assert difference.shape == (height, width)
    assert np.isfinite(difference.score).all()
    score = clean_score(difference)
    assert len(score) > 0.4 * height * width
    assert np.abs(score).max() < 7


def test_same_input_same_output():
    pair = Scene(shape=(128, 128)).build()
    first, second = (subtract(*pair, device="cpu") for _ in range(2))
    assert np.array_equal(first.score, second.score)
    assert np.array_equal(first.data, second.data)


def test_few_sources_fall_back_on_the_zero_points_and_say_so():
    science, reference = Scene(shape=(96, 96), stars=0).build()
    with pytest.raises(SubtractionError, match="zero points"):
        subtract(science, reference, device="cpu")
    difference = subtract(
        science.replace(meta={"zero_point": 25.0}), reference.replace(meta={"zero_point": 25.5}), device="cpu"
    )
    assert difference.meta["flux_ratio"] == pytest.approx(10 ** (-0.4 * 0.5))
    assert "zero points" in difference.meta["match_notes"]


def test_refusals():
    science, reference = Scene(shape=(96, 96)).build()
    with pytest.raises(SubtractionError, match="align"):
        subtract(science, Scene(shape=(96, 100)).build()[1])
    with pytest.raises(SubtractionError, match="usable"):
        subtract(science.replace(mask=np.full(science.shape, Mask.SATURATED, np.int32)), reference)
    with pytest.raises(ConfigError, match="classic, zogy"):
        subtract(science, reference, method="hotpants")
    with pytest.raises(ConfigError, match="nonsense"):
        subtract(science, reference, device="nonsense")


def test_grids_that_lie_apart_are_refused():
    from astropy.wcs import WCS

    science, reference = Scene(shape=(96, 96)).build()
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [10.0, 0.0], [-1e-4, 1e-4]
    wcs.wcs.crpix = [48, 48]
    other = wcs.deepcopy()
    other.wcs.crpix = [58, 48]
    with pytest.raises(SubtractionError, match=r"10\.0 px apart"):
        subtract(science.replace(wcs=wcs), reference.replace(wcs=other))


def test_what_a_frame_lacks_is_measured_from_it():
    science, reference = Scene(shape=(384, 384), stars=150, brightest=1e5, seed=4).build()
    bare = [Frame(f.data + 500.0, meta={"exposure_id": f.name}) for f in (science, reference)]
    difference = subtract(*bare, device="cpu")
    score = clean_score(difference)
    assert score.std() == pytest.approx(1, abs=0.05)
    assert np.abs(score).max() < 6.5
    assert difference.meta["flux_ratio"] == pytest.approx(0.8, abs=0.01)


def test_the_public_name_stays_a_function():
    import importlib

    import astrid_pipeline.imaging as imaging

    importlib.import_module("astrid_pipeline.imaging.subtract.match")
    assert callable(imaging.subtract)
    for name in imaging.__all__:
        assert getattr(imaging, name) is not None
    with pytest.raises(AttributeError):
        _ = imaging.no_such_name


def test_a_single_bad_pixel_is_filled_with_what_the_other_frame_shows():
    science, reference = Scene(shape=(160, 160), stars=80, seed=9).build()
    mask = np.zeros(science.shape, np.int32)
    places = [(50, 60), (80, 81), (110, 40)]
    data = science.data.copy()
    for y, x in places:
        data[y, x], mask[y, x] = 1500.0, Mask.COSMIC_RAY
    difference = subtract(science.replace(data=data, mask=mask), reference, device="cpu")
    for y, x in places:
        assert abs(difference.science[y, x] - science.data[y, x]) < 6 * 12  # noise of a pixel is 10 to 12
    assert np.abs(clean_score(difference)).max() < 5.5


@pytest.mark.parametrize("seed", [2, 4, 21, 26, 28])
def test_single_bad_pixels_beside_bright_stars_are_filled_to_the_noise(seed):
    # Solved to rounding after one step: what rounding then adds must not move the filling.
    science, reference = Scene(shape=(160, 160), stars=80, seed=seed).build()
    y, x = np.random.default_rng(seed).integers(20, 140, (8, 2)).T
    mask, data = np.zeros(science.shape, np.int32), science.data.copy()
    data[y, x], mask[y, x] = 1500.0, Mask.COSMIC_RAY
    difference = subtract(science.replace(data=data, mask=mask), reference, device="cpu")
    assert np.abs(difference.science[y, x] - science.data[y, x]).max() < 5 * 10  # a pixel's noise is 10


@pytest.mark.parametrize("stars", [12, 150])
def test_a_source_that_vanished_is_as_significant_as_one_that_is_new(stars):
    # The brightest source of the reference must not pass for an error of the PSFs that hides it.
    scene = Scene(shape=(256, 256), stars=stars, seed=4)
    science, reference = scene.build()
    new = draw((256, 256), np.array([130.3]), np.array([118.6]), np.array([4e3]), scene.science_fwhm)
    old = draw((256, 256), np.array([130.3]), np.array([118.6]), np.array([5e3]), scene.reference_fwhm)
    appeared = subtract(science.replace(data=science.data + new), reference, device="cpu")
    vanished = subtract(science, reference.replace(data=reference.data + old), device="cpu")
    forward, backward = (
        float(d.score[115:122, 127:134].max()) for d in (appeared, vanished.replace(score=-vanished.score))
    )
    assert forward > 80
    assert backward == pytest.approx(forward, rel=0.25)


def test_cosmic_rays_columns_and_trails_are_flagged_though_nobody_masked_them():
    science, reference = Scene(shape=(400, 400), stars=150, seed=3).build()
    rng = np.random.default_rng(0)
    data = science.data.copy()
    hits = [(int(y), int(x)) for y, x in rng.integers(20, 380, (12, 2))]
    for y, x in hits:
        data[y, x] += 400.0
    data[:, 222] += 35.0
    y, x = np.mgrid[:400, :400]
    across = (y - 60 - 0.4 * x) / np.hypot(1, 0.4)
    data += 60.0 * np.exp(-0.5 * (across / 1.2) ** 2).astype(np.float32)
    difference = subtract(science.replace(data=data), reference, device="cpu")
    found = sum(
        bool(difference.mask[y, x] & (Mask.COSMIC_RAY | Mask.TRAIL | Mask.BAD_COLUMN)) for y, x in hits
    )
    assert found >= 11
    assert ((difference.mask[:, 222] & Mask.BAD_COLUMN) != 0).mean() > 0.9
    on_trail = np.abs(across) < 0.5
    assert ((difference.mask[on_trail] & Mask.TRAIL) != 0).mean() > 0.9
    near = np.zeros(science.shape, bool)
    near[tuple(np.array(hits).T)] = True  # one of them may sit on a star, where no test tells it
    far = ~ndimage.binary_dilation(near, iterations=6) & (difference.mask == 0)
    assert np.abs(difference.score[far]).max() < 6
