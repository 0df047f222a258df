"""Which detections belong together, against slow and obvious twins and made-up skies of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.catalog import association, sky

PLACES = [(10.0, 41.0), (0.0001, -5.0), (200.0, 89.95)]


def around(rng: np.random.Generator, ra: float, dec: float, n: int, spread: float) -> tuple:
    """`n` positions within `spread` arcsec of a place, also across 0h and beside the pole."""
    east, north, out = association._basis(ra, dec)
    offset = np.radians(rng.uniform(-spread, spread, (n, 2)) / 3600)
    vectors = out + offset[:, :1] * east + offset[:, 1:] * north
    return (
        np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 360,
        np.degrees(np.arctan2(vectors[:, 2], np.hypot(vectors[:, 0], vectors[:, 1]))),
    )


@pytest.mark.parametrize(("ra", "dec"), PLACES)
def test_nearest_is_that_of_all_separations(ra, dec):
    rng = np.random.default_rng(1)
    here, there = around(rng, ra, dec, 80, 20), around(rng, ra, dec, 60, 20)
    found = association.nearest(*here, *there, 2.0)
    distance = 3600 * sky.separation(here[0][:, None], here[1][:, None], there[0][None], there[1][None])
    expected = np.where(distance.min(1) <= 2.0, distance.argmin(1), -1)
    assert (found == expected).all()
    assert (found >= 0).any()
    assert (found < 0).any()


@given(st.integers(0, 10_000))
def test_groups_are_no_wider_than_twice_the_radius(seed):
    rng = np.random.default_rng(seed)
    ra, dec = around(rng, 0.0, 60.0, 30, 8)
    number = association.groups(ra, dec, rng.uniform(0, 9, 30), 1.5)
    assert (number >= 0).all()
    for group in set(number):
        mine = number == group
        width = 3600 * sky.separation(ra[mine][:, None], dec[mine][:, None], ra[mine][None], dec[mine][None])
        assert width.max() <= 3.0 + 1e-9


@pytest.mark.parametrize(("ra", "dec"), PLACES)
def test_movers_are_found_with_their_rates(ra, dec):
    rng = np.random.default_rng(2)
    mjd = 61000.0 + np.arange(5) / 48
    lon, lat, times, exposures = [], [], [], []
    rates = [(30.0, -12.0), (-80.0, 40.0)]
    starts = [(-60.0, 40.0), (150.0, -90.0)]
    for (rate_x, rate_y), (x0, y0) in zip(rates, starts, strict=True):
        for k, when in enumerate(mjd):
            x = x0 + rate_x * (when - mjd[0]) * 24 + rng.normal(0, 0.1)
            y = y0 + rate_y * (when - mjd[0]) * 24 + rng.normal(0, 0.1)
            one = association._sky(np.array([x, y]), ra, dec)
            lon.append(one[0])
            lat.append(one[1])
            times.append(when)
            exposures.append(f"e{k}")
    noise = around(rng, ra, dec, 20, 300)
    lon += list(noise[0])
    lat += list(noise[1])
    which = rng.integers(0, 5, 20)
    times += list(mjd[which])
    exposures += [f"e{k}" for k in which]
    found = association.find_tracks(lon, lat, times, exposures)
    assert [set(m.members) for m in found[:2]] in ([set(range(5)), set(range(5, 10))],) or {
        frozenset(m.members) for m in found[:2]
    } == {frozenset(range(5)), frozenset(range(5, 10))}
    measured = {frozenset(m.members): (m.rate_ra, m.rate_dec) for m in found[:2]}
    # Beside the pole the mean position's axes are turned against those of the start.
    for members, rate in zip((range(5), range(5, 10)), rates, strict=True):
        assert np.hypot(*measured[frozenset(members)]) == pytest.approx(np.hypot(*rate), rel=0.03)
    if abs(dec) < 80:
        assert measured[frozenset(range(5))] == pytest.approx(rates[0], abs=1.0)


def test_noise_and_repeated_spots_are_no_tracks():
    rng = np.random.default_rng(3)
    ra, dec = around(rng, 50.0, 10.0, 12, 400)
    assert association.find_tracks(ra, dec, np.repeat([61000.0, 61000.02], 6), np.repeat(["a", "b"], 6)) == []
    still = [50.0] * 4, [10.0] * 4
    assert association.find_tracks(*still, 61000 + np.arange(4) / 50, list("abcd")) == []


def test_the_mean_of_positions_across_0h():
    ra, dec = association.mean_position([359.9999, 0.0003], [0.0, 0.0], [1.0, 1.0])
    assert (ra, dec) == pytest.approx((0.0001, 0.0), abs=1e-9)


@given(
    st.floats(0, 360, exclude_max=True),
    st.floats(-90, 90),
    st.floats(0.05, 300.0),
    st.floats(0, 2 * np.pi),
    st.floats(0, 1),
)
def test_many_cones_cover_what_is_within(ra, dec, radius, angle, share):
    index, first, last = sky.many_cone_ranges([ra], [dec], radius / 3600)
    assert set(index) == {0}
    assert (first <= last).all()
    offset = share * radius * np.array([np.cos(angle), np.sin(angle)])
    place = association._sky(offset, ra, dec)
    pixel = sky.hpx29(*place)[0]
    assert ((first <= pixel) & (pixel <= last)).any()
