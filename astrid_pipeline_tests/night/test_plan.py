"""The planner walks a survey from raw frames to summaries, in an order that can be run, and then has nothing to do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import pandas as pd
import pytest

from astrid_pipeline.archives.base import ExposureRecord, Field
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night.plan import Listing, ready_steps
from astrid_pipeline.night.references import note_of, plan_references

FIELD = Field("m33", 23.4, 30.6, 0.5)


class Archive:
    """An archive that lists, and has no pixels."""

    name = "listing"

    def __init__(self, nights: dict[str, int], raw: bool = True) -> None:
        self.raw = raw
        self.records = [
            ExposureRecord(f"{night}-{band}{k}", FIELD.name, "light", 0.0, night, band, "cam", 60.0, "", 1)
            for night, count in nights.items()
            for band in "gr"
            for k in range(count)
        ]

    def exposures(self, field, since=None):
        return list(self.records)

    def calibrations(self, instrument, night):
        if not self.raw:
            return []
        return [
            ExposureRecord(f"{night}-bias{k}", "", "bias", 0.0, night, "", instrument, 0.0, "", 1)
            for k in range(3)
        ]


class Made:
    """What the runs would have left in the store: the view that the planner asks, filled by `do`."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.partitions: dict[str, set[str]] = {}
        self.tables: dict[tuple[str, str], pd.DataFrame] = {}
        self.frames: dict[tuple[str, str], dict[str, dict]] = {}

    def nights(self, asset, owner):
        return sorted(
            k.rpartition("|")[2] for k in self.partitions.get(asset, ()) if k.startswith(f"{owner}|")
        )

    def metas(self, asset, owner, night=None):
        key = (asset, owner if night is None else f"{owner}|{night}")
        if key not in self.frames:
            raise MissingProductError("not there", where=str(key))
        return self.frames[key]

    def table(self, asset, partition):
        if (asset, partition) not in self.tables:
            raise MissingProductError("not there", where=str(partition))
        return self.tables[asset, partition]

    def _mark(self, asset, partition):
        self.partitions.setdefault(asset, set()).add(partition)

    def do(self, step):
        if step.job == "make_masters":
            self._mark("master_calibrations", step.partition)
        elif step.job == "make_references":
            made = [frames for (asset, _), frames in self.frames.items() if asset == "calibrated_frames"]
            notes = [note_of(meta) for frames in made for meta in frames.values()]
            self.frames["reference_images", step.partition] = {
                p.reference_id: {
                    "filter": p.filter,
                    "valid_from": p.valid_from,
                    "nights": json.dumps(p.nights),
                    "inputs": json.dumps(p.exposure_ids),
                }
                for p in plan_references(FIELD.name, notes)
            }
        else:
            night = step.partition.rpartition("|")[2]
            records = [r for r in self.archive.records if r.night == night]
            if self.archive.raw:
                assert f"cam|{night}" in self.partitions["master_calibrations"], (
                    "calibrated before its masters"
                )
            self._mark("observations", step.partition)
            self.tables["observations", step.partition] = pd.DataFrame(
                {"exposure_id": [r.exposure_id for r in records]}
            )
            self._mark("calibrated_frames", step.partition)
            self.frames["calibrated_frames", step.partition] = {
                r.exposure_id: {"exposure_id": r.exposure_id, "night": night, "filter": r.filter}
                for r in records
            }
            if step.job == "process_night":
                assert ("reference_images", FIELD.name) in self.frames, "judged before there was a reference"
                self._mark("night_summary", step.partition)


def walk(archive, made):
    done = []
    for _ in range(50):
        steps = ready_steps(archive, Listing.of(archive, FIELD), made)
        if not steps:
            return done
        for step in steps:
            made.do(step)
        done += steps
    pytest.fail("the planner never ends")


@pytest.mark.parametrize("raw", [True, False])
def test_a_survey_is_walked_once_in_order(raw):
    archive = Archive({"2026-01-01": 5, "2026-03-02": 3, "2026-03-03": 3}, raw)
    made = Made(archive)
    done = walk(archive, made)
    processed = [s.partition for s in done if s.job == "process_night"]
    assert processed == ["m33|2026-03-02", "m33|2026-03-03"]
    assert sum(s.job == "make_masters" for s in done) == (3 if raw else 0)
    assert len({s.run_key for s in done}) == len(done)
    assert ready_steps(archive, Listing.of(archive, FIELD), made) == []
    # A night that waits for a reference is calibrated once, when it is judged.
    assert [s.partition for s in done if s.job == "calibrate_night"] == ["m33|2026-01-01"]


def test_named_reference_exposures_are_calibrated_first():
    archive = Archive({"2026-01-01": 1, "2026-01-02": 1, "2026-01-03": 1}, raw=False)
    named = replace(FIELD, reference="exposures:2026-01-03-g0,2026-01-03-r0")
    steps = ready_steps(archive, Listing.of(archive, named), Made(archive))
    assert [(s.job, s.partition) for s in steps] == [("calibrate_night", "m33|2026-01-03")]


def test_a_late_exposure_remakes_its_night_alone():
    archive = Archive({"2026-01-01": 5, "2026-03-02": 3, "2026-03-03": 3})
    made = Made(archive)
    before = walk(archive, made)
    archive.records.append(replace(archive.records[-1], exposure_id="late"))
    again = walk(archive, made)
    assert [(s.job, s.partition) for s in again] == [("process_night", "m33|2026-03-03")]
    assert again[0].run_key not in {s.run_key for s in before}


def test_too_few_frames_for_a_reference_are_only_calibrated():
    archive = Archive({"2026-01-01": 1, "2026-01-02": 1})
    made = Made(archive)
    assert {s.job for s in walk(archive, made)} == {"make_masters", "calibrate_night"}


def test_dates_and_filters_narrow_the_listing():
    archive = Archive({"2026-01-01": 1, "2026-01-02": 2, "2026-01-03": 1})
    listing = Listing.of(archive, replace(FIELD, filters=("g",)), "2026-01-02", "2026-01-02")
    assert "2026-01-03" not in listing.nights
    assert {r.filter for r in listing.nights["2026-01-02"]} == {"g"}
    assert Listing.of(archive, FIELD, "2026-02-01").nights == {}


def test_a_range_brings_the_earlier_nights_that_its_reference_is_made_of_and_does_not_judge_them():
    nights = {f"2026-01-{day:02d}": 2 for day in range(1, 20)}
    archive = Archive(nights)
    listing = Listing.of(archive, FIELD, "2026-01-10", "2026-01-12")
    assert listing.for_reference == {"2026-01-01", "2026-01-02"}
    made = Made(archive)
    done = []
    while steps := ready_steps(archive, listing, made):
        for step in steps:
            made.do(step)
            done.append((step.job, step.partition.rpartition("|")[2]))
    assert made.nights("night_summary", FIELD.name) == ["2026-01-10", "2026-01-11", "2026-01-12"]
    assert made.nights("calibrated_frames", FIELD.name) == [
        "2026-01-01", "2026-01-02", "2026-01-10", "2026-01-11", "2026-01-12",
    ]  # fmt: skip
    assert len(done) == len(set(done))


def test_exposures_named_by_a_policy_come_along_though_they_are_later_than_the_range():
    archive = Archive({"2026-01-01": 1, "2026-01-02": 1, "2026-01-09": 1})
    field = replace(FIELD, reference="exposures:2026-01-09-g0,2026-01-09-r0")
    listing = Listing.of(archive, field, "2026-01-01", "2026-01-01")
    assert list(listing.nights) == ["2026-01-01", "2026-01-09"]
    assert listing.for_reference == {"2026-01-09"}


def test_a_year_of_nights_ends_with_every_judgeable_night_judged():
    start = date(2026, 1, 1)
    nights = {(start + timedelta(days=3 * k)).isoformat(): 2 for k in range(40)}
    archive = Archive(nights)
    made = Made(archive)
    walk(archive, made)
    judged = set(made.nights("night_summary", FIELD.name))
    # Two nights of two frames a filter are needed for the first reference.
    assert judged == set(sorted(nights)[2:])
