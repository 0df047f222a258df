"""How good recent images are: measured against the field's own best, and told where it falls."""

from __future__ import annotations

import datetime as dt

import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night import data_quality

TODAY = dt.date(2026, 6, 10)
GOOD = {"filter": "g", "seeing": 2.0, "science_sky_sigma": 5.0, "masked_fraction": 0.0, "score_sigma": 1.0}


class Kept:
    """Metas of difference images by (field, night)."""

    def __init__(self, metas) -> None:
        self.kept = metas

    def nights(self, asset, owner):
        assert asset == "difference_images"
        return sorted(night for field, night in self.kept if field == owner)

    def metas(self, asset, owner, night):
        if (owner, night) not in self.kept:
            raise MissingProductError("not in the store", where=night)
        return self.kept[owner, night]


def nights(field: str, **last) -> dict:
    """A month of good nights, and two within the last week that are as `last` says."""
    days = [TODAY - dt.timedelta(days=k) for k in range(40, 8, -1)]
    kept = {(field, str(day)): {f"{field}-{day}": dict(GOOD)} for day in days}
    for k in (2, 5):
        day = TODAY - dt.timedelta(days=k)
        kept[field, str(day)] = {f"{field}-{day}": {**GOOD, **last}}
    return kept


def test_a_week_is_measured_against_the_half_year_before():
    kept = Kept({**nights("a"), **nights("b", seeing=8.0)})
    fields = [Field(name, 10.0, 20.0, 1.0) for name in ("a", "b", "empty")]
    recent = data_quality.recent_quality(fields, kept, TODAY)
    assert len(recent) == 4
    by_field = recent.groupby("field")["quality"].mean()
    assert by_field["a"] == pytest.approx(1.0)
    # Alone, the two of b would be each other's best.
    assert by_field["b"] == pytest.approx(0.25**0.25)
    poor = data_quality.poor_fields(recent, 0.8)
    assert list(poor) == ["b"]
    assert "quality 0.71 over 2 images of 2 nights" in poor["b"]
    assert "seeing 8" in poor["b"]


def test_what_was_not_measured_counts_as_nothing():
    kept = Kept(nights("a", seeing=None))
    recent = data_quality.recent_quality([Field("a", 10.0, 20.0, 1.0)], kept, TODAY)
    assert recent["quality"].isna().all()
    assert "a" in data_quality.poor_fields(recent, 0.8)


def test_no_recent_night_is_no_fault():
    recent = data_quality.recent_quality([Field("a", 10.0, 20.0, 1.0)], Kept({}), TODAY)
    assert data_quality.poor_fields(recent, 0.8) == {}
    assert list(recent.columns) == [*data_quality.COLUMNS, "quality"]


def test_a_night_that_is_gone_meanwhile_is_passed_over():
    kept = Kept(nights("a"))
    asked = [*kept.nights("difference_images", "a"), "2026-06-09"]
    assert len(data_quality.conditions(kept, "a", asked)) == len(asked) - 1
