"""The gold standard: what is put in is where it should be, is judged by its own truth, and is the same each time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.night import gold
from astrid_pipeline_tests.report.example import make_difference


@pytest.fixture(scope="module")
def made():
    """A simulated pair and its gold standard, by the shipped model; and again with the same seed."""
    from astrid_pipeline.imaging import find_candidates
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.night.differences import difference_one
    from astrid_pipeline.simulation.pairs import simulate_pair

    pair, model = simulate_pair(np.random.default_rng(2), (400, 400)), load_model()
    difference, _ = difference_one(pair.science, pair.reference)
    found = find_candidates(difference)

    def once() -> gold.Gold:
        return gold.make_gold(
            *(pair.science, pair.reference, difference, found, np.random.default_rng(5), model),
            transients=5,
            artefacts=5,
        )

    return pair, difference, found, once()


def test_transients_and_artefacts_are_found_where_the_night_has_nothing(made):
    _, difference, found, one = made
    counts = one.table.truth.value_counts()
    assert counts["real"] == 5
    assert counts["bogus"] >= 3
    reals = one.detections[one.detections.truth == "real"]
    assert (reals.score > 0.2).all()
    for row in one.table.itertuples():
        away = np.hypot(found.x - row.x, found.y - row.y).min()
        assert away > gold.CLEAR * difference.psf.fwhm() - gold.MATCH_RADIUS - difference.psf.fwhm()
        assert abs(difference.score[round(row.y), round(row.x)]) < 6, "the untouched image has nothing there"
    assert set(one.candidates.truth) <= {"bogus"}, (
        "a transient that the model missed is no question to a person"
    )


def test_stamps_hold_what_was_put_in(made, tmp_path):
    one = made[-1]
    one.write(tmp_path)
    stamps = pd.read_parquet(tmp_path / "stamps.parquet")
    planes = np.load(tmp_path / "stamps.npy")
    assert len(stamps) == len(one.table) == len(pd.read_parquet(tmp_path / "gold.parquet"))
    reals = one.table[one.table.truth == "real"]
    for row in reals.itertuples():
        stamp = planes[stamps.index[np.hypot(stamps.x - row.x, stamps.y - row.y) < 0.5][0]]
        assert stamp[3, 28:35, 28:35].max() > 5


def test_the_plan_moves_stars_and_keeps_apart():
    yy, xx = np.mgrid[:300, :400]
    difference = make_difference((300, 400))
    sky = difference.reference.copy()
    stars = [(x, y) for x in range(30, 390, 40) for y in range(30, 290, 40)]
    for x, y in stars:
        sky += 400 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 4)
    difference = difference.replace(reference=sky.astype(np.float32))
    found = pd.DataFrame({"x": [200.0], "y": [150.0]})
    plan = gold.plan_gold(difference, found, np.random.default_rng(0), 6, 12)
    assert set(plan.kind) == {"point", "dipole", "hit"}
    assert (plan.truth == np.where(plan.kind == "point", "real", "bogus")).all()
    dipoles = plan[plan.kind == "dipole"]
    assert 1 <= len(dipoles) <= max(2, gold.HOST_SHARE * len(stars))
    for row in dipoles.itertuples():
        assert min(np.hypot(row.x - x, row.y - y) for x, y in stars) < 0.5, "a dipole is a star that moved"
    places = plan[["x", "y"]].to_numpy()
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(places))
    assert apart.min() > 2 * gold.CLEAR * difference.psf.fwhm()
    assert np.hypot(plan.x - 200, plan.y - 150).min() >= gold.CLEAR * difference.psf.fwhm()


def test_only_what_shows_is_kept_and_the_model_s_errors_come_first():
    plan = pd.DataFrame(
        {
            "x": [10.0, 50.0, 90.0, 130.0],
            "y": 20.0,
            "snr": 10.0,
            "kind": ["point", "point", "hit", "hit"],
            "truth": ["real", "real", "bogus", "bogus"],
        }
    )
    candidates = pd.DataFrame({"x": [10.3, 50.2, 90.0, 130.0], "y": 20.0, "candidate_id": list("abcd")})
    detections = candidates.iloc[[0, 3]].assign(score=[0.9, 0.8], detection_id=["1", "2"])
    one = gold.judge_gold(plan, make_difference(), candidates, detections, 5, 1)
    assert list(one.detections.candidate_id) == ["a", "d"]
    assert list(one.detections.truth) == ["real", "bogus"]
    assert len(one.candidates) == 0
    two = gold.judge_gold(plan, make_difference(), candidates, detections, 5, 2)
    assert list(two.candidates.candidate_id) == ["c"]
    assert list(two.table.sort_values("x").score.isna()) == [False, True, False]


@pytest.mark.parametrize(("detections", "number"), [(0, 2), (30, 3), (1000, 10)])
def test_one_in_ten_is_known(detections, number):
    assert gold.number_of_gold(detections, 10) == number
    assert gold.number_of_gold(detections, 0) == 0


def test_known_sources_get_points_of_earlier_nights_and_of_their_own_exposure():
    from astrid_pipeline.night.light_curves import KNOWN_NIGHTS, measure_known

    changed = make_difference((300, 400), ((200, 150, 40),), exposure_id="e", mjd=61100.0, zero_point=25.0)
    ra, dec = changed.wcs.all_pix2world(200, 150, 0)
    objects = pd.DataFrame({"id": [7], "ra": [float(ra)], "dec": [float(dec)]})
    nights = [f"2026-{1 + k // 28:02d}-{1 + k % 28:02d}" for k in range(KNOWN_NIGHTS + 2)]
    quiet = {
        night: {night: make_difference((300, 400), (), exposure_id=night, mjd=61000.0 + k, zero_point=25.0)}
        for k, night in enumerate(nights)
    }
    points = measure_known(objects, quiet, "2026-04-01", changed)
    assert sorted(points) == [*nights[2:], "2026-04-01"]
    assert points["2026-04-01"].snr.iloc[0] > 20
    assert abs(points[nights[-1]].snr.iloc[0]) < 5
