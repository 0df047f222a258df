"""HEALPix indices, ranges and separations, against plain spherical trigonometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from astrid_pipeline.catalog import sky


def test_hpx29_of_known_positions() -> None:
    # The twelve base pixels' centres (Górski et al. 2005, section 4): four at +41.81°, four at 0°, four at -41.81°.
    lat = math.degrees(math.asin(2 / 3))
    ra = [45, 135, 225, 315, 0.1, 90.1, 180.1, 270.1, 45, 135, 225, 315]
    dec = [lat] * 4 + [0.1] * 4 + [-lat] * 4
    assert list(sky.hpx29(ra, dec) >> 58) == list(range(12))
    assert list(sky.hpx29([math.nan, 1.0], [0.0, math.inf])) == [-1, -1]
    assert sky.hpx29([361.0], [10.0]) == sky.hpx29([1.0], [10.0])


positions = st.tuples(
    st.floats(0, 360, exclude_max=True, allow_subnormal=False), st.floats(-90, 90, allow_subnormal=False)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(positions, st.floats(0.01, 90_000.0), st.integers(0, 2**32 - 1))
@example((0.0, 90.0), 3600.0, 1)
@example((359.9999, -89.9999), 7200.0, 2)
@example((0.0, 0.0), 0.5, 3)
def test_ranges_hold_every_position_of_the_cone(place: tuple[float, float], radius: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ra, dec = place
    # Positions at all distances up to 1.5 radii, in all directions, on the sphere.
    distance = np.radians(radius / 3600.0) * np.sqrt(rng.uniform(0, 2.25, 300))
    distance = np.minimum(distance, np.pi)
    angle = rng.uniform(0, 2 * np.pi, 300)
    lat0, lon0 = np.radians(dec), np.radians(ra)
    lat = np.arcsin(
        np.clip(np.sin(lat0) * np.cos(distance) + np.cos(lat0) * np.sin(distance) * np.cos(angle), -1, 1)
    )
    lon = lon0 + np.arctan2(
        np.sin(angle) * np.sin(distance) * np.cos(lat0), np.cos(distance) - np.sin(lat0) * np.sin(lat)
    )
    lons, lats = np.degrees(lon) % 360.0, np.degrees(lat)
    inside = sky.separation(ra, dec, lons, lats) * 3600.0 <= radius
    index = sky.hpx29(lons, lats)
    ranges = sky.cone_ranges(ra, dec, radius / 3600.0)
    held = np.zeros(len(index), bool)
    for first, last in ranges:
        held |= (index >= first) & (index <= last)
    assert held[inside].all()
    assert len(ranges) < 100


@given(positions, positions)
def test_separation_is_the_angle_between_vectors(a: tuple[float, float], b: tuple[float, float]) -> None:
    def vector(place: tuple[float, float]) -> np.ndarray:
        ra, dec = np.radians(place)
        return np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])

    u, v = vector(a), vector(b)
    expected = np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v)), u @ v))
    assert sky.separation(*a, *b) == pytest.approx(expected, abs=1e-9)
