"""Ten people scanning while the server is killed: the benchmark at a small size, for what must hold at any."""

from __future__ import annotations

import pytest

from astrid_pipeline_tests.benchmarks import scanning
from astrid_pipeline_tests.support import apart


@pytest.mark.slow
@pytest.mark.postgres
def test_no_label_is_lost_when_the_server_is_killed_in_the_middle():
    found = apart(lambda: scanning.measure(people=10, rows=20_000, seconds=10, period=0.5))
    assert found.sent >= 50
    assert found.lost == 0
    assert found.doubled == 0
    # One each for the most: who was in the middle of one when it ended.
    assert len(found.triplets) >= found.sent - 30


def test_a_lost_or_doubled_verdict_is_told():
    """The count itself must be able to fail."""
    import numpy as np

    line = scanning.Outcome(np.ones(3), np.ones(3), sent=3, lost=1, doubled=2).line()
    assert "1 lost, 2 twice" in line
