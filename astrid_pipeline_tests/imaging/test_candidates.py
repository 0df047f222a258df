"""Candidates in differences of white noise with known sources in them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.candidates import (
    CANDIDATES,
    FEATURES,
    TooManyCandidatesWarning,
    find_candidates,
)
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, Mask
from astrid_pipeline.imaging.peaks import _local_maxima, correlation, find_peaks, interpolate, refine
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline_tests.imaging.moffat_fields import add, difference_of, moffat

FWHM = 2.4
STAMP = moffat(12, FWHM)
ERROR = 1 / np.sqrt(np.square(STAMP).sum())


def source(snr: float, x: float, y: float, half: int = 12) -> np.ndarray:
    return snr * ERROR * moffat(half, FWHM, dx=x - round(x), dy=y - round(y))


def injected(
    snr: float, number: int, seed: int, side: int = 700
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image of white noise with sources of either sign, their positions and signs."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(side, side))
    grid = np.arange(25, side - 25, 40)
    places = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    places = rng.permutation(places)[:number] + rng.uniform(-0.5, 0.5, (number, 2))
    signs = rng.choice([-1, 1], number)
    for (x, y), sign in zip(places, signs, strict=True):
        add(image, sign * source(snr, x, y), x, y)
    return image, places, signs


def matched(table: pd.DataFrame, places: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, int]:
    """Return the candidates within 2 px of a source, which source each belongs to, and how many lie elsewhere."""
    distance, index = cKDTree(places).query(table[["x", "y"]].to_numpy())
    near = distance < 2
    return table[near].reset_index(drop=True), index[near], int((~near).sum())


@pytest.mark.parametrize("snr", [15, 50, 300])
def test_flux_and_position_have_no_bias(snr: float) -> None:
    tables, truths, false = [], [], 0
    for seed in range(3):
        image, places, signs = injected(snr, 240, seed)
        table, index, others = matched(find_candidates(difference_of(image, STAMP)), places)
        assert sorted(index) == list(range(240))
        tables.append(table)
        truths.append(np.column_stack([places, signs])[index])
        false += others
    table, truth = pd.concat(tables), np.concatenate(truths)
    assert false <= 5
    assert (table["sign"] == truth[:, 2]).all()
    ratio = table["flux"].to_numpy() / (truth[:, 2] * snr * ERROR)
    # The highest point of signal and noise is higher than the signal by 1 / snr² of it.
    assert np.mean(ratio) - 1 / snr**2 == pytest.approx(1, abs=0.003 + 3 / snr / np.sqrt(720))
    pull = (table["flux"].to_numpy() - truth[:, 2] * snr * ERROR) / table["flux_err"].to_numpy()
    assert np.std(pull) == pytest.approx(1, abs=0.1 if snr < 100 else 0.4)
    # Fisher's bound on a position: 1 / (snr · |gradient of P| / |P|).
    slope = np.gradient(moffat(12, FWHM), axis=1)
    bound = np.sqrt(np.square(STAMP).sum() / np.square(slope).sum()) / snr
    for offset in (table["x"].to_numpy() - truth[:, 0], table["y"].to_numpy() - truth[:, 1]):
        assert abs(np.mean(offset)) < 4 * bound / np.sqrt(720) + 5e-4
        assert np.std(offset) < 1.15 * bound + 1e-3


def test_completeness_at_the_threshold_and_false_alarms() -> None:
    found = {}
    for snr in (5, 7, 9):
        image, places, _ = injected(snr, 240, 10 + snr)
        found[snr] = len(set(matched(find_candidates(difference_of(image, STAMP)), places)[1])) / 240
    # At S/N 5 the noise decides, and the peak between the pixels is a little over the true position's value.
    assert 0.45 < found[5] < 0.72
    assert found[7] > 0.95
    assert found[9] == 1
    rng = np.random.default_rng(20)
    false = [len(find_candidates(difference_of(rng.normal(size=(1000, 1000)), STAMP))) for _ in range(4)]
    # Gaussian noise alone: some 0.3 a megapixel and sign.
    assert sum(false) <= 9


def test_the_table_is_what_its_schema_says() -> None:
    image = injected(12, 60, 1)[0]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [0.01, -30.0], [350, 350]
    wcs.wcs.cdelt = [-1e-4, 1e-4]
    difference = difference_of(image, STAMP, mjd=60000.5, filter="r", zero_point=25.0).replace(wcs=wcs)
    table = find_candidates(difference)
    pd.testing.assert_frame_equal(table, CANDIDATES.conform(table))
    assert list(table.columns) == CANDIDATES.names
    assert set(FEATURES) <= set(CANDIDATES.names)
    assert np.isfinite(table[list(FEATURES)].to_numpy(float)).all()
    assert table["candidate_id"].is_unique
    assert table["candidate_id"].str.fullmatch(r"[A-Za-z0-9._-]+").all()
    assert (table[["ra"]].to_numpy() >= 0).all()
    assert (table[["ra"]].to_numpy() < 360).all()
    ra, dec = wcs.all_pix2world(table["x"], table["y"], 0)
    assert np.allclose(table["ra"], ra % 360)
    assert np.allclose(table["dec"], dec)
    from astropy import units
    from astropy_healpix import HEALPix

    place = HEALPix(2**29, order="nested").healpix_to_lonlat(table["hpx29"].to_numpy())
    assert np.allclose(place[1].to_value(units.deg), dec, atol=1e-6)
    assert np.allclose(table["mag"], 25 - 2.5 * np.log10(table["flux"].abs()))
    assert (table["mjd"] == 60000.5).all()
    assert (table["filter"] == "r").all()
    assert table.attrs["left_out"] == 0


def test_nothing_found_is_an_empty_table_of_the_schema() -> None:
    table = find_candidates(difference_of(np.zeros((100, 100)), STAMP))
    pd.testing.assert_frame_equal(table, CANDIDATES.empty())


def test_without_wcs_time_or_zero_point_they_are_null() -> None:
    image = np.random.default_rng(2).normal(size=(100, 100))
    add(image, source(20, 50.2, 49.8), 50.2, 49.8)
    row = find_candidates(difference_of(image, STAMP)).iloc[0]
    assert row["hpx29"] == -1
    assert np.isnan(row[["ra", "dec", "mjd", "mag"]].to_numpy(float)).all()
    assert row["filter"] is None


@pytest.mark.parametrize("bit", [Mask.SATURATED, Mask.COSMIC_RAY, Mask.TRAIL, Mask.BAD_PIXEL, Mask.SUSPECT])
@pytest.mark.parametrize("shift", [0, REFERENCE_SHIFT])
def test_masked_candidates_are_flagged_not_dropped(bit: Mask, shift: int) -> None:
    image = np.random.default_rng(3).normal(size=(120, 120))
    for x in (30.0, 80.0):
        add(image, source(20, x, 60), x, 60)
    mask = np.zeros(image.shape, np.int32)
    mask[58:63, 78:83] = int(bit) << shift
    table = find_candidates(difference_of(image, STAMP, mask=mask)).sort_values("x")
    assert len(table) == 2
    clean, flagged = table.iloc[0], table.iloc[1]
    assert flagged["flag_names"] == ("REF_" if shift else "") + str(bit.name)
    assert flagged["flags"] == int(bit) << shift
    assert clean["flags"] == 0
    assert clean["flag_names"] == ""
    assert clean["mask_distance"] == 20
    if bit is not Mask.SUSPECT:
        assert flagged["mask_distance"] == 0
        assert flagged["masked_fraction"] > 0.9


@pytest.mark.parametrize("bit", [Mask.NO_DATA, Mask.EDGE])
@pytest.mark.parametrize("shift", [0, REFERENCE_SHIFT])
def test_where_there_is_nothing_there_is_no_candidate(bit: Mask, shift: int) -> None:
    image = np.random.default_rng(4).normal(size=(120, 120))
    add(image, source(50, 60, 60), 60, 60)
    mask = np.zeros(image.shape, np.int32)
    mask[50:, :] = int(bit) << shift
    assert len(find_candidates(difference_of(image, STAMP, mask=mask))) == 0


def test_values_that_are_not_finite_hide_nothing_else() -> None:
    image = np.random.default_rng(5).normal(size=(120, 120))
    add(image, source(30, 40, 60), 40, 60)
    difference = difference_of(image, STAMP)
    score = difference.score.copy()
    score[90:100, 20:80] = np.nan
    table = find_candidates(difference.replace(score=score))
    assert len(table) == 1
    with pytest.raises(PixelError, match="finite"):
        find_candidates(difference.replace(score=np.full(score.shape, np.nan)))


def test_two_sources_side_by_side_are_two_and_a_bright_ones_flanks_are_none() -> None:
    image = np.random.default_rng(6).normal(size=(300, 300))
    for x, y, snr in [(60, 60, 40), (64.5, 60.4, 30), (200, 200, 2000), (60, 220, 60), (65.2, 224.1, 12)]:
        add(image, source(snr, x, y), x, y)
    table = find_candidates(difference_of(image, STAMP))
    assert len(table) == 5
    for x, y, snr in [(60, 60, 40), (64.5, 60.4, 30), (60, 220, 60), (65.2, 224.1, 12), (200, 200, 2000)]:
        row = table.iloc[np.argmin(np.hypot(table["x"] - x, table["y"] - y))]
        assert np.hypot(row["x"] - x, row["y"] - y) < 0.6
        # Each has its own light: within 3 sigma, and the 2 % that the neighbour's shifted place costs.
        assert row["flux"] == pytest.approx(snr * ERROR, rel=0.02, abs=3 * ERROR)


def test_a_psf_with_lobes_makes_no_candidates_in_them() -> None:
    """ZOGY's PSF has negative rings: those of a bright source are over the threshold, and explained by it."""
    lobed = STAMP - 0.9 * moffat(12, 4.5)
    lobed /= lobed.sum()
    image = np.random.default_rng(7).normal(size=(200, 200))
    add(image, 300 / np.sqrt(np.square(lobed).sum()) * lobed, 100, 100)
    difference = difference_of(image, lobed)
    assert difference.score.min() < -8
    table = find_candidates(difference)
    assert len(table) == 1
    assert table["dipole"].iloc[0] < 0.05


def test_a_dipole_is_told_from_a_source() -> None:
    image = np.random.default_rng(8).normal(size=(200, 200))
    add(image, source(40, 60, 60), 60, 60)
    add(image, source(80, 140, 140), 140, 140)
    add(image, -source(75, 141.5, 140), 141.5, 140)
    table = find_candidates(difference_of(image, STAMP))
    lone = table[np.hypot(table["x"] - 60, table["y"] - 60) < 3]
    pair = table[np.hypot(table["x"] - 140, table["y"] - 140) < 6]
    assert len(lone) == 1
    assert set(pair["sign"]) == {-1, 1}
    assert (pair["dipole"] > 0.5).all()
    assert (lone["dipole"] == 0).all()
    assert pair["neg_fraction"].min() > lone["neg_fraction"].max()


def test_a_cosmic_ray_is_sharper_and_a_galaxy_blunter_than_a_star() -> None:
    image = np.random.default_rng(9).normal(size=(300, 300))
    add(image, source(40, 60, 60), 60, 60)
    image[150, 150] += 40
    add(image, 60 * ERROR * moffat(20, 5.5), 240, 240)
    table = find_candidates(difference_of(image, STAMP))
    star, ray, galaxy = (
        table.iloc[np.argmin(np.hypot(table["x"] - c, table["y"] - c))] for c in (60, 150, 240)
    )
    assert star["sharpness"] == pytest.approx(1, abs=0.15)
    assert ray["sharpness"] > 2
    assert galaxy["sharpness"] < 0.88
    assert star["fwhm_ratio"] == pytest.approx(1, abs=0.12)
    assert ray["fwhm_ratio"] < 0.7
    assert galaxy["fwhm_ratio"] > 1.4
    assert star["chi2"] < 2 < min(ray["chi2"], galaxy["chi2"])


@pytest.mark.parametrize(("length", "angle"), [(25, 20.0), (60, -35.0), (200, 80.0)])
def test_a_trail_is_one_candidate_with_its_length_and_direction(length: float, angle: float) -> None:
    image = np.random.default_rng(10).normal(size=(300, 300))
    steps = np.linspace(-length / 2, length / 2, int(length * 2))
    for s in steps:
        x, y = 150 + s * np.cos(np.radians(angle)), 150 + s * np.sin(np.radians(angle))
        add(image, source(8, x, y), x, y)
    table = find_candidates(difference_of(image, STAMP))
    assert len(table) == 1
    row = table.iloc[0]
    assert row["trail"] == pytest.approx(length, rel=0.15, abs=5)
    assert (row["angle"] - angle + 90) % 180 - 90 == pytest.approx(0, abs=3)
    assert np.hypot(row["x"] - 150, row["y"] - 150) < 2


def test_a_point_source_has_no_trail() -> None:
    image, places, _ = injected(60, 100, 11)
    table, _, _ = matched(find_candidates(difference_of(image, STAMP)), places)
    assert table["trail"].max() < 1.5 * FWHM


def test_the_reference_source_beside_it() -> None:
    rng = np.random.default_rng(12)
    reference = rng.normal(size=(200, 200))
    add(reference, 4000 * moffat(12, FWHM), 100, 100)
    image = rng.normal(size=(200, 200))
    for x, y in [(103.0, 104.0), (30.0, 30.0)]:
        add(image, source(30, x, y), x, y)
    table = find_candidates(difference_of(image, STAMP, reference=reference)).sort_values("x")
    far, near = table.iloc[0], table.iloc[1]
    assert near["ref_distance"] == pytest.approx(5, abs=0.4)
    assert near["ref_flux"] == pytest.approx(4000, rel=0.2)
    assert far["ref_distance"] == 50
    assert far["ref_flux"] == 0
    assert far["ref_ratio"] > near["ref_ratio"]


def test_a_wreck_of_a_difference_is_cut_short_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from astrid_pipeline.imaging import candidates

    monkeypatch.setattr(candidates, "MAX_CANDIDATES", 100)
    difference = difference_of(np.random.default_rng(13).normal(size=(300, 300)), STAMP)
    with pytest.warns(TooManyCandidatesWarning, match="left out"):
        table = find_candidates(difference.replace(score=6 * difference.score))
    assert 0 < len(table) <= 100
    assert table.attrs["left_out"] > 100
    # The strongest are those that stay.
    assert table["peak_score"].abs().min() > 5


def test_an_ordinary_difference_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_candidates(difference_of(injected(10, 50, 14)[0], STAMP))


@pytest.mark.parametrize("threshold", [0.0, -3.0, float("nan")])
def test_a_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        find_candidates(difference_of(np.zeros((50, 50)), STAMP), threshold)


def test_a_higher_threshold_keeps_a_part() -> None:
    difference = difference_of(injected(9, 100, 15)[0], STAMP)
    low, high = find_candidates(difference, 5.0), find_candidates(difference, 9.0)
    assert set(high["candidate_id"]) < set(low["candidate_id"])
    assert (high["peak_score"].abs() >= 9).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), flip=st.booleans(), turn=st.booleans())
def test_turning_mirroring_and_inverting_the_frame_changes_nothing_else(
    seed: int, flip: bool, turn: bool
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(90, 110))
    for _ in range(4):
        x, y = rng.uniform(15, 75, 2)
        add(image, rng.choice([-1, 1]) * source(rng.uniform(8, 60), x, y), x, y)
    table = find_candidates(difference_of(image, STAMP))
    other_image = -image.T if turn else -image
    other_image = other_image[:, ::-1] if flip else other_image
    other = find_candidates(difference_of(np.ascontiguousarray(other_image), STAMP))
    x, y = (other["y"], other["x"]) if turn else (other["x"], other["y"])
    if flip:
        x, y = (x, other_image.shape[1] - 1 - y) if turn else (other_image.shape[1] - 1 - x, y)
    assert len(other) == len(table)
    index = cKDTree(np.column_stack([x, y])).query(table[["x", "y"]].to_numpy())[1]
    assert np.allclose(np.column_stack([x, y])[index], table[["x", "y"]], atol=0.02)
    assert np.allclose(-other["flux"].to_numpy()[index], table["flux"], rtol=1e-3, atol=1e-2)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), radius=st.floats(1.0, 3.5))
def test_local_maxima_are_those_of_the_slow_search(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    image = np.rint(rng.normal(0, 2, (30, 25))).astype(np.float32)  # whole numbers: with ties
    over = np.flatnonzero(np.abs(image) >= 3)
    row, column = np.divmod(over, image.shape[1])
    fast = set(zip(*(a.tolist() for a in _local_maxima(image, row, column, radius)), strict=True))
    slow = set()
    for y, x in zip(row.tolist(), column.tolist(), strict=True):
        sign, wins = np.sign(image[y, x]), True
        for j in range(30):
            for i in range(25):
                if (j, i) == (y, x) or (j - y) ** 2 + (i - x) ** 2 > radius**2:
                    continue
                value = sign * image[j, i]
                # Of equals the first in reading order wins.
                if value > abs(image[y, x]) or (value == abs(image[y, x]) and (j, i) < (y, x)):
                    wins = False
        if wins:
            slow.add((y, x))
    # Of two equals the slow search keeps the first only if nothing else beats it, and so does the fast one.
    assert fast == slow


def test_interpolation_and_refinement_of_a_smooth_peak() -> None:
    axis = np.arange(41) - 20
    for dx, dy in [(0, 0), (0.5, -0.5), (0.31, 0.12), (-0.44, 0.49)]:
        image = 100 * np.exp(-0.5 * ((axis[None] - dx) ** 2 + (axis[:, None] - dy) ** 2) / 1.5**2)
        x, y, value = refine(image, np.array([20]), np.array([20]), np.ones(1))
        assert x[0] == pytest.approx(20 + dx, abs=3e-3)
        assert y[0] == pytest.approx(20 + dy, abs=3e-3)
        assert value[0] == pytest.approx(100, abs=0.2)
        there = interpolate(image, [20 + dx + 0.3], [20 + dy - 0.2])[0]
        assert there == pytest.approx(100 * np.exp(-0.5 * 0.13 / 1.5**2), abs=0.15)


def test_the_profile_of_a_source_in_the_score_is_the_psfs_correlation() -> None:
    psf = PSF.from_stamp(STAMP, (101, 101))
    image = np.zeros((101, 101))
    add(image, source(50, 50, 50), 50, 50)
    score = difference_of(image, STAMP).score
    profile = correlation(psf)
    assert np.abs(score[38:63, 38:63] / score[50, 50] - profile).max() < 2e-3
    peaks, skipped = find_peaks(score, 5.0, profile, 2.0, np.zeros(score.shape, bool))
    assert skipped == 0
    assert len(peaks) == 1
    assert peaks.value[0] == pytest.approx(50, rel=1e-3)
