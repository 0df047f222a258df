"""Pairs of calibrated frames and their truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.simulation import CASE_SHAPE, CASES, random_options, simulate_pair
from astrid_pipeline.simulation.truth import ARTEFACTS, CLASSES, KINDS, TRUTH

EVERYTHING = {
    "psf_variation": 0.1,
    "psf_ellipticity": 0.1,
    "variables": 60,
    "movers": 60,
    "fading": 0.3,
    "cosmic_rays": 80,
    "bad_columns": 6,
    "hot_pixels": 40,
    "ghosts": 12,
    "dipoles": 30,
    "bad_subtractions": 20,
    "trails": 1,
    "edges": 1,
    "gradient": 0.2,
    "distortion": 0.05,
    "shift": (0.1, -0.05),
}


@pytest.fixture(scope="module")
def rich():
    """One pair with all there is."""
    return simulate_pair(np.random.default_rng(11), (512, 640), **EVERYTHING)


def test_the_same_seed_gives_the_same_pair(rich):
    again = simulate_pair(np.random.default_rng(11), (512, 640), **EVERYTHING)
    np.testing.assert_array_equal(again.science.data, rich.science.data)
    np.testing.assert_array_equal(again.reference.data, rich.reference.data)
    np.testing.assert_array_equal(again.science.mask, rich.science.mask)
    assert again.truth.equals(rich.truth)
    other = simulate_pair(np.random.default_rng(12), (512, 640), **EVERYTHING)
    assert not np.array_equal(other.science.data, rich.science.data)


def test_everything_asked_for_is_there(rich):
    truth = rich.truth
    assert list(truth.columns)[: len(TRUTH.names)] == TRUTH.names
    assert set(truth["kind"]) == set(KINDS)
    for kind, classes in CLASSES.items():
        assert set(truth.loc[truth["kind"] == kind, "class"]) <= set(classes)
    found = set(truth.loc[truth["kind"] == "artefact", "class"])
    assert found == set(ARTEFACTS)
    assert {"supernova", "hostless", "fading", "variable_star", "agn", "asteroid", "trail"} <= set(
        truth["class"]
    )
    changes = rich.changes
    assert len(changes) == pytest.approx((100 + 60 + 60) * 512 * 640 / 2**20, abs=4)
    assert (changes.loc[changes["class"] == "fading", "flux"] < 0).all()
    assert changes["snr"].between(2.3, 65).all()
    assert (changes["snr"] < changes["snr_science"]).all()
    hosted = changes[changes["class"] == "supernova"]
    assert hosted["on_galaxy"].all()
    assert (hosted["host_distance"] <= 3 * hosted["host_re"] + 1e-9).all()


def test_changes_keep_apart_and_off_the_border(rich):
    places = rich.changes[["x", "y"]].to_numpy()
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 99 * np.eye(len(places))
    assert distance.min() >= 12
    assert places.min() >= 11
    assert (places[:, 0] < 640 - 11).all()


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_the_mask_covers_what_it_is_said_to(masked):
    pair = simulate_pair(np.random.default_rng(2), **{**EVERYTHING, "masked": masked})
    artefacts = pair.truth[pair.truth["kind"] == "artefact"]
    silent = pair.truth["class"].isin(["dipole", "bad_subtraction", "bleed"])
    assert artefacts.loc[~silent, "masked"].mean() == pytest.approx(masked, abs=0.1)
    saturation = int(Mask.SATURATED | Mask.BLEED)
    assert ((pair.artefacts & ~int(Mask.SUSPECT)) != 0).sum() >= (pair.science.mask != 0).sum()
    if not masked:
        assert not (pair.science.mask & ~saturation).any()
    for name, bit in {
        "cosmic_ray": Mask.COSMIC_RAY,
        "bad_column": Mask.BAD_COLUMN,
        "hot_pixel": Mask.BAD_PIXEL,
    }.items():
        row = artefacts[artefacts["class"] == name].iloc[0]
        y, x = round(row["y"]), round(row["x"])
        assert (pair.artefacts[y - 1 : y + 2, x - 1 : x + 2] & int(bit)).any()


def test_artefacts_are_where_the_truth_says(rich):
    """Against the same scene without artefacts: what differs by much is marked."""
    clean = {k: v for k, v in EVERYTHING.items() if k not in ("cosmic_rays", "hot_pixels", "bad_columns")}
    excess = rich.science.data - np.median(rich.science.data)
    for _, row in rich.truth[rich.truth["class"] == "hot_pixel"].iterrows():
        assert excess[int(row["y"]), int(row["x"])] > row["flux"] - 300
    assert len(clean) < len(EVERYTHING)
    near = (rich.artefacts & int(Mask.COSMIC_RAY)) != 0
    assert np.median(excess[near]) > 300


def centroids(image, x, y, half=5):
    """Centres by a Gaussian-weighted centroid, iterated: unbiased for symmetric stars."""
    out = []
    for a, b in zip(x, y, strict=True):
        cx, cy = float(a), float(b)
        yy, xx = np.mgrid[round(b) - half : round(b) + half + 1, round(a) - half : round(a) + half + 1]
        cut = image[yy, xx]
        for _ in range(30):
            weight = cut * np.exp(-((xx - cx) ** 2 + (yy - cy) ** 2) / (2 * 1.6**2))
            cx += 2 * ((weight * xx).sum() / weight.sum() - cx)
            cy += 2 * ((weight * yy).sum() / weight.sum() - cy)
        out.append((cx, cy))
    return np.array(out)


def bright_isolated(image, n=25):
    """Local maxima that are bright, unsaturated and alone."""
    from scipy.ndimage import maximum_filter

    peaks = (image == maximum_filter(image, 31)) & (image > 1500) & (image < 40_000)
    y, x = np.nonzero(peaks)
    inside = (x > 20) & (x < image.shape[1] - 20) & (y > 20) & (y < image.shape[0] - 20)
    order = np.argsort(-image[y[inside], x[inside]])[:n]
    return x[inside][order], y[inside][order]


def test_the_reference_is_displaced_by_the_shift():
    pair = simulate_pair(
        np.random.default_rng(3), (700, 700), transients=0, galaxies=0, shift=(0.25, -0.1), reference_fwhm=2.4
    )
    x, y = bright_isolated(pair.science.data - 200)
    assert len(x) > 8
    moved = centroids(pair.reference.data - 200, x, y) - centroids(pair.science.data - 200, x, y)
    np.testing.assert_allclose(np.median(moved, axis=0), (0.25, -0.1), atol=0.02)


def test_the_flux_ratio_is_that_of_the_stars():
    pair = simulate_pair(
        np.random.default_rng(4), (700, 700), transients=0, galaxies=0, flux_ratio=0.7, clouds=0.2
    )
    science, reference = pair.science.data - 220, pair.reference.data - 200
    x, y = bright_isolated(science)
    sums = [
        [image[b - 10 : b + 11, a - 10 : a + 11].sum() for a, b in zip(x, y, strict=True)]
        for image in (science, reference)
    ]
    assert np.median(np.divide(*sums)) == pytest.approx(0.56, rel=0.02)
    assert pair.science.meta["zero_point"] - pair.reference.meta["zero_point"] == pytest.approx(
        2.5 * np.log10(0.56)
    )


def test_saturated_stars_bleed_and_are_masked():
    pair = simulate_pair(np.random.default_rng(6), (600, 600), stars=8000, transients=0)
    assert (pair.truth["class"] == "bleed").any()
    at_well = pair.science.data > 0.995 * pair.options.full_well
    assert at_well.sum() > 10
    assert (pair.science.mask[at_well] & int(Mask.SATURATED | Mask.BLEED)).all()
    bare = simulate_pair(
        np.random.default_rng(6), (600, 600), stars=8000, transients=0, saturation_masked=False
    )
    assert not bare.science.mask.any()
    assert bare.artefacts.any()


@pytest.mark.parametrize("name", sorted(CASES))
def test_cases_are_what_the_comparison_asks_for(name):
    pair = simulate_pair(np.random.default_rng(1), CASE_SHAPE, **CASES[name])
    changes = pair.changes
    assert len(changes) == pytest.approx(100, abs=1)
    assert changes["snr"].between(2.4, 62).all()
    assert (changes["flux"] > 0).all()
    assert pair.options.reference_depth == 5
    assert pair.options.flux_ratio == 0.8
    assert pair.science.psf.is_constant == (name not in ("varpsf", "real"))
    if name == "real":
        unmasked = pair.truth[pair.truth["class"].isin(["cosmic_ray", "bad_column", "satellite_trail"])]
        assert len(unmasked) > 40
        assert unmasked["masked"].mean() < 0.1


def test_options_choose_variance_and_psf():
    kinds = {"data": np.ndarray, "none": type(None)}
    for variance, kind in kinds.items():
        pair = simulate_pair(np.random.default_rng(0), (128, 128), variance=variance, psf="none")
        assert isinstance(pair.science.variance, kind)
        assert pair.science.psf is None
        assert pair.science_psf.stamp().sum() == pytest.approx(1)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(64, 200), width=st.integers(64, 200), seed=st.integers(0, 2**31))
def test_any_shape_and_random_options_work(height, width, seed):
    rng = np.random.default_rng(seed)
    pair = simulate_pair(rng, (height, width), **random_options(rng))
    for frame in (pair.science, pair.reference):
        assert frame.shape == (height, width)
        assert np.isfinite(frame.data).all()
        assert (frame.variance > 0).all()
    changes = pair.changes
    assert changes["x"].between(0, width - 1).all()
    assert np.isfinite(changes["flux"].astype(float)).all()


def test_unknown_options_are_named():
    with pytest.raises(ConfigError, match="cosmicrays"):
        simulate_pair(np.random.default_rng(0), cosmicrays=3)
    with pytest.raises(ConfigError, match="variance"):
        simulate_pair(np.random.default_rng(0), variance="guess")
