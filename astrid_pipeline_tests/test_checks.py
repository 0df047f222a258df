"""Asset checks fail on what must not pass, name the exposure and say what to do; what is right passes."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from astrid_pipeline import checks
from astrid_pipeline.archives.base import OBSERVATIONS
from astrid_pipeline.night.outcome import Outcome, Problem

GOOD = {"score_sigma": 1.01, "dx_rms": 0.05, "dy_rms": 0.06, "coverage": 0.98}


def outcome(problems: tuple[Problem, ...] = (), **metas: dict[str, Any]) -> Outcome[None]:
    return Outcome(products=dict.fromkeys(metas), metas=dict(metas), problems=list(problems))


def by_name(results: Any) -> dict[str, dg.AssetCheckResult]:
    return {str(result.check_name): result for result in results}


def test_a_good_night_passes() -> None:
    for result in checks.check_differences(outcome(a=GOOD)):
        assert result.passed, result
    for result in checks.check_calibrated(outcome(a={"saturated_fraction": 0.001})):
        assert result.passed, result
    for result in checks.check_references(outcome(ref={"filter": "r", "coverage": 0.99}), ["r"]):
        assert result.passed, result


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        ({"score_sigma": 1.06}, "score_noise", "bad: σ = 1.060"),
        ({"score_sigma": 0.94}, "score_noise", "bad: σ = 0.940"),
        ({"score_sigma": float("nan")}, "score_noise", "bad: σ = nan"),
        ({"dx_rms": 0.31}, "registration", "bad: 0.31 px"),
        ({"dy_rms": 0.31}, "registration", "bad: 0.31 px"),
        ({"coverage": 0.84}, "reference_coverage", "bad: covers 84%"),
        ({"coverage": float("nan")}, "reference_coverage", "bad: covers nan%"),
    ],
)
def test_a_bad_difference_fails_its_check_and_no_other(
    change: dict[str, float], name: str, says: str
) -> None:
    results = by_name(checks.check_differences(outcome(good=GOOD, bad={**GOOD, **change})))
    failed = [key for key, result in results.items() if not result.passed]
    assert failed == [name]
    assert results[name].severity == dg.AssetCheckSeverity.ERROR
    text = str(results[name].description)
    assert text.startswith(says), text
    assert " — " in text, "and what to do"
    assert "good" not in text.split(" — ")[0]


def test_a_registration_that_was_not_measured_is_said() -> None:
    nan = float("nan")
    result = by_name(checks.check_differences(outcome(a={**GOOD, "dx_rms": nan, "dy_rms": nan})))[
        "registration"
    ]
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert "not measured" in str(result.description)


def test_an_exposure_that_was_lost_is_said() -> None:
    lost = Problem("b", "difference_images", "RegistrationError", "b.fits: no overlap (point it)", True)
    for results, name in (
        (checks.check_differences(outcome((lost,), a=GOOD)), "all_differenced"),
        (checks.check_calibrated(outcome((lost,), a={})), "all_calibrated"),
    ):
        result = by_name(results)[name]
        assert not result.passed
        assert "b: b.fits: no overlap" in str(result.description)


def test_too_many_saturated_pixels_fail() -> None:
    result = by_name(checks.check_calibrated(outcome(a={"saturated_fraction": 0.021})))["not_saturated"]
    assert not result.passed
    assert "a: 2.1% saturated" in str(result.description)


def test_a_thin_or_missing_reference_fails() -> None:
    results = by_name(checks.check_references(outcome(ref={"filter": "r", "coverage": 0.8}), ["r", "g"]))
    assert not results["coverage"].passed
    assert not results["has_reference"].passed
    assert "g: too few frames" in str(results["has_reference"].description)


def test_an_empty_night_and_an_unreadable_file_are_said() -> None:
    assert not by_name(checks.check_observations(OBSERVATIONS.empty()))["night_not_empty"].passed
    table = pd.DataFrame(
        {"exposure_id": ["a", "b"], "problem": [None, "b.fits: is truncated (copy it again)"]}
    )
    results = by_name(checks.check_observations(table))
    assert results["night_not_empty"].passed
    assert not results["files_readable"].passed
    assert "b: b.fits: is truncated" in str(results["files_readable"].description)
