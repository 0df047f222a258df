"""Which frames make a reference, and which reference judges a night."""

from __future__ import annotations

import json
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.errors import ConfigError, NoReferenceError
from astrid_pipeline.night.references import (
    MAX_FRAMES,
    MIN_FRAMES,
    FrameNote,
    choose_reference,
    exposures_named,
    plan_references,
)


def note(night: str, number: int = 0, band: str = "r", **changes: float) -> FrameNote:
    values = {"seeing": 2.5, "depth": 20.0, "masked_fraction": 0.01, **changes}
    return FrameNote(f"{band}-{night}-{number}", night, band, **values)


def metas(plans):
    return {
        p.reference_id: {"filter": p.filter, "valid_from": p.valid_from, "nights": json.dumps(p.nights)}
        for p in plans
    }


def test_the_first_version_waits_for_three_frames_and_holds_from_the_night_after():
    two = [note("2026-01-01", 0), note("2026-01-01", 1)]
    assert plan_references("f", two) == []
    (plan,) = plan_references("f", [*two, note("2026-01-05")])
    assert plan.valid_from == "2026-01-06"
    assert plan.nights == ("2026-01-01", "2026-01-05")
    assert plan.reference_id == "f_r_2026-01-06"


def test_filters_do_not_mix():
    notes = [note("2026-01-01", k, band) for k in range(3) for band in "gr"]
    plans = plan_references("f", notes)
    assert [p.filter for p in plans] == ["g", "r"]
    assert all(name.startswith(p.filter) for p in plans for name in p.exposure_ids)


def test_a_later_version_leaves_out_the_last_month():
    notes = [note("2026-01-01", k) for k in range(3)] + [note("2026-02-01", k) for k in range(3)]
    first, second = plan_references("f", notes)
    assert first.exposure_ids == tuple(f"r-2026-01-01-{k}" for k in range(3))
    assert second.valid_from == "2026-03-04"  # 30 days after the last night, and one


def test_the_worst_third_is_left_out_once_there_are_enough():
    good = [note("2026-01-01", k) for k in range(6)]
    bad = [note("2026-01-01", k, seeing=6.0, depth=18.0) for k in (7, 8, 9)]
    (plan,) = plan_references("f", good + bad)
    assert set(plan.exposure_ids) == {n.exposure_id for n in good}


def test_a_failed_exposure_is_not_used():
    notes = [note("2026-01-01", k) for k in range(3)] + [note("2026-01-01", 9, masked_fraction=0.6)]
    (plan,) = plan_references("f", notes)
    assert "r-2026-01-01-9" not in plan.exposure_ids


def test_named_exposures_judge_every_other_night():
    notes = [note("2026-01-01"), note("2026-01-05"), note("2026-01-09")]
    plans = plan_references("f", notes, "exposures:r-2026-01-09-0")
    found = metas(plans)
    assert choose_reference(found, "r", "2026-01-01") == plans[0].reference_id
    with pytest.raises(NoReferenceError):
        choose_reference(found, "r", "2026-01-09")


def test_policies_that_cannot_be_followed_say_so():
    with pytest.raises(ConfigError, match="not calibrated: nowhere"):
        plan_references("f", [note("2026-01-01")], "exposures:nowhere")
    with pytest.raises(ConfigError, match="unknown reference policy"):
        plan_references("f", [note("2026-01-01")], "the best")


def test_no_reference_says_what_there_is():
    with pytest.raises(NoReferenceError, match="there are: none at all"):
        choose_reference({}, "r", "2026-01-01")
    found = metas(plan_references("f", [note("2026-01-01", k, "g") for k in range(3)]))
    with pytest.raises(NoReferenceError, match=r"no reference in filter r \(there are: g\)"):
        choose_reference(found, "r", "2026-02-01")
    with pytest.raises(NoReferenceError, match="valid from 2026-01-02"):
        choose_reference(found, "g", "2026-01-01")


nights = st.lists(st.integers(0, 400), min_size=1, max_size=40)


@given(nights)
def test_a_reference_never_holds_the_night_it_judges(offsets):
    start = date(2026, 1, 1)
    days = [(start + timedelta(days=d)).isoformat() for d in offsets]
    notes = [note(day, k) for k, day in enumerate(days)]
    plans = plan_references("f", notes)
    found = metas(plans)
    held = {p.reference_id: set(p.nights) for p in plans}
    for day in days:
        try:
            chosen = choose_reference(found, "r", day)
        except NoReferenceError:
            continue
        assert day not in held[chosen]
        assert max(held[chosen]) < day


@given(nights, st.randoms())
def test_versions_do_not_depend_on_the_order_of_frames_and_stay_few(offsets, random):
    days = [(date(2026, 1, 1) + timedelta(days=d)).isoformat() for d in offsets]
    notes = [note(day, k) for k, day in enumerate(days)]
    plans = plan_references("f", notes)
    random.shuffle(notes)
    assert plan_references("f", notes) == plans
    assert len(plans) <= 7
    assert all(MIN_FRAMES <= len(p.exposure_ids) <= MAX_FRAMES for p in plans)


@given(nights)
def test_a_frame_that_comes_later_does_not_change_older_versions(offsets):
    """References that nights were judged by must stay what they were."""
    days = sorted((date(2026, 1, 1) + timedelta(days=d)).isoformat() for d in offsets)
    notes = [note(day, k) for k, day in enumerate(days)]
    before = plan_references("f", [n for n in notes if n.night < days[-1]])
    assert plan_references("f", notes)[: len(before)] == before


@pytest.mark.parametrize("policy", ["", "best", "exposures:", "exposures: , "])
def test_a_policy_that_names_nothing_is_refused(policy):
    with pytest.raises(ConfigError, match="use auto, exposures:"):
        exposures_named(policy, "patch")


def test_a_policy_s_exposures():
    assert exposures_named("auto") == set()
    assert exposures_named("exposures:a, b,") == {"a", "b"}
