"""Fields from a file, sites, and large areas cut into fields."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.archives.base import Field, night_of, pace_of
from astrid_pipeline.archives.field_files import longitude_of, read_fields, sites, write_fields
from astrid_pipeline.archives.grouping import separation
from astrid_pipeline.archives.tiling import Cell, cells_of, tile_circle, tile_pointings
from astrid_pipeline.errors import ConfigError, ReadError

TEXT = """
fields:
  - name: m31
    centre: M31
    radius: 0.3
    filters: [g, r, i, z, y]
    surveys: [HST, JWST]
    poll_minutes: 90
    reference: auto+ps1
    site: space
  - name: early
    centre: {ra: 00:02:03, dec: -00:30:00}
    archive: folder:/data/early
    site: paranal
  - name: plain
    centre: [150.1, 2.2]
    site_longitude: -70.8
"""


def resolve(name: str) -> tuple[float, float]:
    assert name == "M31"
    return 10.68, 41.27


@pytest.fixture
def read(tmp_path):
    def inner(text: str) -> list[Field]:
        path = tmp_path / "fields.yaml"
        path.write_text(text)
        return read_fields(path, archive="simulated", resolve=resolve)

    return inner


def test_a_file_of_fields(read):
    m31, early, plain = read(TEXT)
    assert (m31.ra, m31.dec, m31.radius) == (10.68, 41.27, 0.3)
    assert m31.filters == ("g", "r", "i", "z", "y")  # not "yes"
    assert m31.archive == "mast:HST,JWST"
    assert (m31.poll_minutes, pace_of(m31)) == (90, 90)
    assert m31.reference == "auto+ps1"
    assert m31.site_longitude is None
    assert early.ra == pytest.approx(15 * (2 / 60 + 3 / 3600))  # not 123
    assert early.dec == -0.5
    assert early.site_longitude == pytest.approx(-70.4042)
    assert pace_of(early) == 1
    assert plain.archive == "simulated"
    assert plain.site_longitude == -70.8


def test_what_is_written_is_read_again(read):
    fields = [*read(TEXT), *tile_circle(Field("wide", 200.0, -10.0, 3.0), 20)]
    again = read(write_fields(fields))
    assert again == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fields: []", "no list of fields"),
        ("- a", "no list of fields"),
        ("fields:\n  - radius: 1", "no name"),
        ("fields:\n  - name: a\n    colour: red", "unknown key colour"),
        ("fields:\n  - name: a\n    centre: [400, 0]", "right ascension 400"),
        ("fields:\n  - name: a\n    centre: [40, 100]", "declination 100"),
        ("fields:\n  - name: a\n    centre: [40, 0]\n    radius: wide", "radius 'wide' is no number"),
        ("fields:\n  - name: a\n    centre: [40, 0]\n    site: moon", "no site is called 'moon'"),
        (
            "fields:\n  - name: a\n    centre: [40, 0]\n    surveys: [HST]\n    archive: simulated",
            "both surveys",
        ),
        ("fields:\n  - {name: a, centre: [1, 1]}\n  - {name: a, centre: [2, 2]}", "there twice"),
        ("fields:\n  - {name: a b, centre: [1, 1]}", "a key cannot hold"),
        ("fields:\n  - {name: a, centre: [1, 1], poll_minutes: 0}", "no pace"),
        ("fields:\n  - {name: a, tiles: 5}", "no position"),
    ],
)
def test_a_wrong_file_is_told_by_its_field(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path, read):
    with pytest.raises(ReadError, match="cannot be read"):
        read_fields(tmp_path / "none.yaml")
    with pytest.raises(ReadError, match="not YAML"):
        read("fields: [")


def test_sites_are_places_with_a_time_zone():
    from zoneinfo import ZoneInfo

    for name, site in sites().items():
        longitude = longitude_of(name)
        assert longitude is None or -180 <= longitude <= 180
        ZoneInfo(site["timezone"])
    # An exposure in the evening and one before dawn are of one night at the site, of two by UTC.
    evening, morning = 60000.98, 60001.38
    assert night_of(evening, longitude_of("paranal")) == night_of(morning, longitude_of("paranal"))
    assert night_of(evening) != night_of(morning)


@given(ra=st.floats(0, 359.99), dec=st.floats(-90, 90), radius=st.floats(0.5, 20), most=st.integers(4, 60))
def test_tiles_cover_the_circle_each_place_once(ra, dec, radius, most):
    fields = tile_circle(Field("a", ra, dec, radius), most)
    assert 1 <= len(fields) <= max(most, 12)
    assert len({field.name for field in fields}) == len(fields)
    rng = np.random.default_rng(1)
    for _ in range(20):
        distance, angle = radius * math.sqrt(rng.uniform()) * 0.999, rng.uniform(0, 2 * math.pi)
        place = _offset(ra, dec, distance, angle)
        holding = [field for field in fields if field.holds(*place)]
        assert len(holding) == 1
        # Whoever asks an archive by circle gets everything of the cell.
        assert separation(*place, holding[0].ra, holding[0].dec) <= holding[0].radius * 1.0001


def _offset(ra: float, dec: float, distance: float, angle: float) -> tuple[float, float]:
    from astropy import units
    from astropy.coordinates import SkyCoord

    place = SkyCoord(ra, dec, unit="deg").directional_offset_by(angle * units.rad, distance * units.deg)
    return float(place.ra.deg), float(place.dec.deg)


def test_thousands_of_pointings_become_some_hundred_fields():
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 5000), np.degrees(np.arcsin(rng.uniform(-0.5, 1, 5000)))
    pattern = Field("ztf", 0.0, 0.0, 1.0, filters=("g", "r"), archive="folder:/ztf", poll_minutes=5)
    fields = tile_pointings(pattern, list(ra), list(dec), 300)
    assert 75 < len(fields) <= 300
    assert all(f.archive == "folder:/ztf" and f.filters == ("g", "r") and f.poll_minutes == 5 for f in fields)
    order = Cell.parse(fields[0].cell).order
    cells = {Cell.parse(field.cell).index for field in fields}
    assert set(cells_of(ra, dec, order)) == cells
    # A few pointings of one small survey get small fields.
    few = tile_pointings(pattern, [10.0, 10.3, 10.6], [5.0, 5.0, 5.0], 300)
    assert len(few) == 3
    assert max(field.radius for field in few) < 0.2
    assert tile_pointings(pattern, [], []) == []


def test_a_wanted_order_that_is_too_fine_is_refused():
    with pytest.raises(ConfigError, match="more than 300"):
        tile_circle(Field("a", 10, 10, 10), order=7)
    assert len(tile_circle(Field("a", 10, 10, 1), order=4)) <= 9
    for text in ("5", "5/99999", "x/y", "30/1"):
        with pytest.raises(ConfigError):
            Cell.parse(text)


def test_a_cell_field_takes_what_is_centred_in_it_alone():
    field = dataclasses.replace(Field("a", 0, 0, 1), cell="3/100")
    ra, dec = Cell(3, 100).centre
    assert field.holds(ra, dec)
    assert not field.holds((ra + 10) % 360, dec)
