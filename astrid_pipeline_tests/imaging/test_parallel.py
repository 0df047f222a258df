"""Strips of a frame on several threads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.imaging.parallel import each, strips, workers


@given(height=st.integers(1, 500), rows=st.integers(1, 600))
def test_strips_cover_every_row_once(height: int, rows: int) -> None:
    covered = [row for part in strips(height, rows) for row in range(part.start, part.stop)]
    assert covered == list(range(height))


@pytest.mark.parametrize("threads", ["1", "4"])
def test_results_come_in_order_and_errors_come_through(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert workers() == int(threads)
    assert each(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        each(lambda n: 1 // n, [1, 0, 2])


def test_without_a_word_the_cores_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert workers() >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert workers() == 2
