"""Positions as people write them, footprints, and names."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.archives import footprint
from astrid_pipeline.archives.coordinates import parse_position, resolve_name
from astrid_pipeline.archives.grouping import separation
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline_tests.archive_server import ArchiveServer

QUICK = Patience(tries=3, first=0.01, longest=0.02, connect=2, read=2)


def test_degrees_and_sexagesimal():
    assert parse_position("10.6847", "41.269") == (10.6847, 41.269)
    ra, dec = parse_position("00:42:44.3", "+41:16:09")
    assert ra == pytest.approx(15 * (42 / 60 + 44.3 / 3600))
    assert dec == pytest.approx(41 + 16 / 60 + 9 / 3600)
    assert parse_position("360", "-90") == (0.0, -90.0)
    assert parse_position("23h59m59s", "-0d00m01s")[1] == pytest.approx(-1 / 3600)


@pytest.mark.parametrize(("ra", "dec"), [("-1", "0"), ("361", "0"), ("10", "91"), ("10", "-90.1"), ("north", "0"),
                                         ("nan", "0"), ("25:00:00", "0"), ("10", "inf")])  # fmt: skip
def test_what_is_no_position_is_refused(ra, dec):
    with pytest.raises(ConfigError):
        parse_position(ra, dec)


def test_names_are_resolved_with_patience():
    with ArchiveServer() as server:
        resolver = f"{server.url}/Santa-war/query"
        server.misbehave("status", "Santa", 1, value=503)
        server.misbehave("half_json", "Santa", 1)
        ra, dec = resolve_name("M101", resolver=resolver, patience=QUICK)
        assert separation(ra, dec, 210.802, 54.349) < 0.02
        with pytest.raises(ConfigError, match="no catalogue knows"):
            resolve_name("not a star", resolver=resolver, patience=QUICK)
        server.misbehave("status", "Santa", -1, value=503)
        with pytest.raises(ServiceError, match="give --ra and --dec"):
            resolve_name("M101", resolver=resolver, patience=QUICK)


def test_recorded_footprints():
    text = (
        "POLYGON GSC1  23.17474785  60.66012593  23.15424076  60.61702967  23.06645518  60.62703769  "
        "23.08684334  60.67014825  23.17474785  60.66012593"
    )
    assert footprint.contains(text, 23.118, 60.642)
    assert not footprint.contains(text, 23.30, 60.642)
    assert footprint.contains("CIRCLE ICRS 210.90789448  54.57587474 0.625", 210.9, 54.0)
    assert not footprint.contains("CIRCLE ICRS 210.90789448  54.57587474 0.625", 210.9, 53.9)
    assert not footprint.contains(None, 1, 1)
    assert not footprint.contains("SOMETHING ELSE", 1, 1)
    two = "POLYGON ICRS 0 0 1 0 1 1 0 1 POLYGON ICRS 5 0 6 0 6 1 5 1"
    assert footprint.contains(two, 0.5, 0.5)
    assert footprint.contains(two, 5.5, 0.5)
    assert not footprint.contains(two, 3, 0.5)


@given(
    ra=st.floats(0, 359.9),
    dec=st.floats(-85, 85),
    angle=st.floats(0, 6.28),
    distance=st.floats(0, 2),
    corners=st.integers(3, 9),
)
def test_a_polygon_near_any_place_holds_what_is_inside(ra, dec, angle, distance, corners):
    """A regular polygon of circumradius 1°: inside for sure within cos(π/n), outside for sure beyond 1."""
    if math.cos(math.pi / corners) - 0.01 < distance < 1.01:
        return
    from astropy.coordinates import SkyCoord

    centre = SkyCoord(ra, dec, unit="deg")
    around = centre.directional_offset_by(np.linspace(0, 360, corners, endpoint=False) * _deg(), 1 * _deg())
    text = "POLYGON ICRS " + " ".join(f"{p.ra.deg:.8f} {p.dec.deg:.8f}" for p in around)
    where = centre.directional_offset_by(math.degrees(angle) * _deg(), distance * _deg())
    assert footprint.contains(text, where.ra.deg, where.dec.deg) == (distance < 1)


def _deg():
    from astropy import units

    return units.deg
