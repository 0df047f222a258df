"""How the model's answers and the candidates become one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.cli.compare import rank
from astrid_pipeline.imaging.candidates import CANDIDATES
from astrid_pipeline.learning import DETECTIONS


def candidates(n: int) -> pd.DataFrame:
    values = pd.DataFrame({"candidate_id": [f"new-C{i:04d}" for i in range(n)], "snr": np.arange(n) - 6.0})
    for column in CANDIDATES.columns:
        if column.name not in values:
            values[column.name] = "" if column.kind == "string" else 0
    return CANDIDATES.conform(values)


def scored(rows: list[tuple[str, float, str]]) -> pd.DataFrame:
    """One row each: candidate_id, score, origin."""
    values = pd.DataFrame(rows, columns=["candidate_id", "score", "origin"])
    values["class"], values["detection_id"] = "transient", [f"D{i}" for i in range(len(rows))]
    for column in DETECTIONS.columns:
        if column.name not in values:
            values[column.name] = "" if column.kind == "string" else 0
    return DETECTIONS.conform(values)


def test_detections_first_then_scores_then_snr_and_silent_candidates_have_no_score() -> None:
    table = rank(
        candidates(5),
        scored([("new-C0003", 0.2, "candidate"), ("new-C0001", 0.9, "candidate"), ("", 0.7, "network")]),
        0.5,
    )
    ids = table.candidate_id.tolist()
    assert ids == ["new-C0001", "", "new-C0003", "new-C0000", "new-C0002", "new-C0004"]
    assert table.is_detection.tolist() == [True, True, False, False, False, False]
    assert table["score"].isna().tolist() == [False, False, False, True, True, True]
    assert table["class"].isna().tolist() == [False, False, True, True, True, True]


def test_a_weak_peak_without_a_candidate_is_left_out() -> None:
    table = rank(candidates(1), scored([("", 0.3, "network")]), 0.5)
    assert table.candidate_id.tolist() == ["new-C0000"]


def test_a_peak_without_a_candidate_must_reach_the_threshold_itself() -> None:
    found = scored([("", 0.9, "network"), ("", 0.8, "network")])
    found["snr"] = [4.0, -6.0]
    table = rank(candidates(0), found, 0.5, 5.0)
    assert table["snr"].tolist() == [-6.0]


def test_two_peaks_at_one_candidate_count_once_as_the_better() -> None:
    table = rank(
        candidates(1), scored([("new-C0000", 0.3, "candidate"), ("new-C0000", 0.8, "candidate")]), 0.5
    )
    assert len(table) == 1
    assert table["score"][0] == 0.8


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_scored(n: int) -> None:
    table = rank(candidates(n), DETECTIONS.empty(), 0.5)
    assert len(table) == n
    assert not table.is_detection.any()
    assert set(DETECTIONS.names) <= set(table.columns)
    assert table.is_detection.dtype == bool


@given(
    answers=st.lists(st.tuples(st.integers(-2, 9), st.floats(0, 1)), max_size=25), least=st.floats(0.01, 1)
)
def test_every_candidate_once_and_every_detection_kept(
    answers: list[tuple[int, float]], least: float
) -> None:
    rows = [(f"new-C{i:04d}", s, "candidate") if i >= 0 else ("", s, "network") for i, s in answers]
    table = rank(candidates(10), scored(rows), least)
    own = table[table.origin == "candidate"]
    assert sorted(own.candidate_id) == [f"new-C{i:04d}" for i in range(10)]
    strong = sum(i < 0 and s >= least for i, s in answers)
    assert (table.origin == "network").sum() == strong
    assert (table[table.is_detection]["score"] >= least).all()
    assert table.is_detection.is_monotonic_decreasing
