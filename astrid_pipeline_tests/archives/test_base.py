"""Nights, names, fields and copies."""

from __future__ import annotations

import datetime as dt
import math
import re
from pathlib import Path

import pytest
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.archives import OBSERVATIONS, Archive, Field, night_of, open_archive, safe_name
from astrid_pipeline.archives.base import copy_checked, sha256_of
from astrid_pipeline.archives.folder import FolderArchive
from astrid_pipeline.errors import ConfigError, ReadError


@pytest.mark.parametrize(
    ("time", "longitude", "night"),
    [
        ("2024-03-02T23:30:00", None, "2024-03-02"),
        ("2024-03-03T00:30:00", None, "2024-03-03"),
        ("2024-03-03T05:00:00", -70.4, "2024-03-02"),  # past midnight in Chile
        ("2024-03-02T23:30:00", -70.4, "2024-03-02"),  # evening of the same night
        ("2024-03-02T12:00:00", 149.1, "2024-03-02"),  # evening in Australia
        ("2024-03-02T18:00:00", 149.1, "2024-03-02"),  # morning after
        ("2024-03-02T06:00:00", 204.5, "2024-03-01"),  # Hawaii, longitude counted to 360
        ("2024-03-02T06:00:00", -155.5, "2024-03-01"),
    ],
)
def test_night_is_named_by_its_evening(time: str, longitude: float | None, night: str) -> None:
    assert night_of(float(Time(time).mjd), longitude) == night


@given(mjd=st.floats(40000, 80000), longitude=st.floats(-180, 180))
def test_night_runs_from_local_noon_to_noon(mjd: float, longitude: float) -> None:
    evening = dt.date.fromisoformat(night_of(mjd, longitude))
    noon = (evening - dt.date(1858, 11, 17)).days + 0.5 - longitude / 360
    assert noon - 1e-6 <= mjd <= noon + 1 + 1e-6


def test_no_time_has_no_night() -> None:
    with pytest.raises(ValueError, match="no time"):
        night_of(math.nan)


@given(st.text())
def test_names_are_safe_and_stay_as_they_are(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert safe_name(name) == name


def test_fields_check_themselves() -> None:
    field = Field("M31", 10.68, 41.27, 0.5, ["g", "r"])  # type: ignore[arg-type]
    assert field.filters == ("g", "r")
    for values, message in (
        (("M 31|x", 10.0, 41.0, 0.5), "call it 'M_31_x'"),
        (("a", 360.0, 41.0, 0.5), "right ascension"),
        (("a", 10.0, -91.0, 0.5), "declination"),
        (("a", 10.0, 41.0, 0.0), "radius"),
    ):
        with pytest.raises(ConfigError, match=message):
            Field(*values)  # type: ignore[arg-type]


def test_archives_are_opened_by_their_text(tmp_path: Path) -> None:
    archive = open_archive(f"folder:{tmp_path}")
    assert isinstance(archive, FolderArchive)
    assert isinstance(archive, Archive)
    assert archive.fields() == []
    assert isinstance(open_archive("simulated"), Archive)
    for spec in ("floppy:1", "folder:", ""):
        with pytest.raises(ConfigError, match="no known kind"):
            open_archive(spec)
    with pytest.raises(ReadError, match="is not there"):
        open_archive(f"folder:{tmp_path}/none")


def test_observations_table_takes_records(tmp_path: Path) -> None:
    table = OBSERVATIONS.empty()
    assert list(table.columns) == OBSERVATIONS.names


def test_copy_is_whole_or_absent(tmp_path: Path) -> None:
    source = tmp_path / "a.fits"
    source.write_bytes(b"x" * 1000)
    digest = sha256_of(source)
    target = copy_checked(source, tmp_path / "out" / "a.fits", size=1000, sha256=digest)
    assert target.read_bytes() == source.read_bytes()
    source.write_bytes(b"y" * 1000)
    # Already there and equal to what was listed: left alone.
    assert copy_checked(source, target, size=1000, sha256=digest).read_bytes() == b"x" * 1000
    for size, sha, message in ((900, None, "900 were listed"), (None, digest, "digest")):
        with pytest.raises(ReadError, match=message):
            copy_checked(source, tmp_path / "out" / "b.fits", size=size, sha256=sha)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.fits"]
    with pytest.raises(ReadError, match="cannot be copied"):
        copy_checked(tmp_path / "none", tmp_path / "out" / "c.fits")
