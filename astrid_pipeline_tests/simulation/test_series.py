"""Series of exposures: what lies in the sky is where and as bright as it should be, and the rest is there once."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.imaging.photometry import forced_photometry
from astrid_pipeline.imaging.subtract import subtract
from astrid_pipeline.simulation.series import FILTERS, simulate_series

# A seed whose series has several nights, repeats within a night and both filters; 12 exposures at most are looked at.
SEED = 3


@pytest.fixture(scope="module")
def series():
    return simulate_series(np.random.default_rng(SEED), (192, 192), rate=120.0)


def test_the_schedule_has_nights_repeats_and_both_filters(series):
    assert [one.mjd for one in series] == sorted(one.mjd for one in series)
    assert {one.filter for one in series} == set(FILTERS)
    by_night = {}
    for one in series:
        by_night.setdefault(one.night, []).append(one.mjd)
    assert len(by_night) >= 3
    assert all(np.ptp(times) < 0.3 for times in by_night.values())
    assert max(len(times) for times in by_night.values()) >= 2
    for one in series:
        assert one.pair.science.meta["mjd"] == one.mjd
        assert one.pair.science.meta["filter"] == one.pair.reference.meta["filter"] == one.filter


def test_one_filter_has_one_reference_with_one_noise(series):
    for name in FILTERS:
        frames = [one.pair.reference.data for one in series if one.filter == name]
        assert all((frame == frames[0]).all() for frame in frames)
    first, second = [one.pair.science.data for one in series if one.filter == "r"][:2]
    assert not (first == second).all()


def test_what_is_planted_is_what_photometry_measures(series):
    """The flux at each true place of each difference, against the truth: unit scatter, no bias."""
    pulls = []
    for one in series[:8]:
        difference = subtract(one.pair.science, one.pair.reference)
        truth = one.pair.changes
        points = truth[(truth["kind"] != "moving") & ~truth["masked"] & truth["x"].between(12, 179)]
        points = points[points["y"].between(12, 179) & (points["snr"] < 30)]
        found = forced_photometry(difference, x=points["x"].to_numpy(), y=points["y"].to_numpy())
        pulls += list((found["flux"].to_numpy() - points["flux"].to_numpy()) / found["flux_err"].to_numpy())
    assert len(pulls) >= 20
    assert abs(np.median(pulls)) < 3 * 1.25 / np.sqrt(len(pulls))
    # Beside bright stars, badly subtracted ones and cosmic rays some are off; the bulk is not.
    assert 0.6 < np.subtract(*np.percentile(pulls, [84, 16])) / 2 < 1.7


def test_a_supernova_keeps_its_place_and_an_asteroid_does_not(series):
    places: dict[str, list[tuple[float, float]]] = {}
    for one in series:
        for row in one.pair.changes.to_dict("records"):
            places.setdefault(row["class"], []).append((row["x"], row["y"]))
    for name in ("supernova", "hostless"):
        xy = np.array(places[name])
        near = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
        # Registration is off by a tenth of a pixel; different ones keep 12 px apart.
        assert ((near < 1.0) | (near > 10.0)).all()
        assert (near < 1.0).sum() > len(xy), "it is there more than once"
    rows = {}
    for one in series:
        for row in one.pair.changes.to_dict("records"):
            if row["kind"] == "moving":
                rows.setdefault((one.night, round(row["angle"], 9)), []).append((one.mjd, row["x"], row["y"]))
    moved = [v for v in rows.values() if len(v) > 1]
    assert moved or rows, "there are asteroids"
    for seen in moved:
        assert np.hypot(seen[1][1] - seen[0][1], seen[1][2] - seen[0][2]) > 1.0


def test_bad_stars_repeat_and_cosmic_rays_do_not(series):
    def of(name):
        return [
            {(round(r["x"]), round(r["y"])) for r in one.pair.truth.to_dict("records") if r["class"] == name}
            for one in series
            if one.filter == "r"
        ]

    dipoles, rays = of("dipole"), of("cosmic_ray")
    if dipoles[0]:
        apart = [min(abs(x - u) + abs(y - v) for u, v in dipoles[1]) for x, y in dipoles[0]]
        assert max(apart) <= 2
    assert any(rays)
    assert not set.intersection(*[r for r in rays if r][:2])


def test_the_same_seed_makes_the_same_series():
    first, second = (simulate_series(np.random.default_rng(8), (96, 96), rate=40.0) for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.pair.science.data, b.pair.science.data)
        assert a.pair.truth.equals(b.pair.truth)
