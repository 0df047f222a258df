"""The table that ends the demo: readable in 80 columns, and saying the right numbers."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from rich.console import Console

from astrid_pipeline.driver.demo import night_table

BINS = [(3.0, 5.0), (5.0, 7.0), (7.0, 10.0), (10.0, 20.0), (20.0, 50.0)]


def summary() -> pd.DataFrame:
    """Two filters of one night."""
    cells = json.dumps(
        [{"snr_low": low, "snr_high": high, "injected": 20, "found": k} for k, (low, high) in enumerate(BINS)]
    )
    row = {
        "field": "sim-01",
        "night": "2026-03-14",
        "exposures": 3,
        "candidates": 600,
        "detections": 55,
        "completeness": cells,
        "true_changes": 50.0,
        "true_found": 49.0,
        "false_alarms": 4.0,
        "score_sigma": 1.001,
    }
    return pd.DataFrame([{**row, "filter": "g"}, {**row, "filter": "r"}])


@pytest.mark.parametrize(("narrow", "width"), [(True, 80), (False, 150)])
def test_nothing_of_the_table_is_cut_off(narrow: bool, width: int) -> None:
    stream = io.StringIO()
    seconds = {("sim-01", "2026-03-14"): 93.4}
    Console(file=stream, width=width).print(night_table(summary(), seconds, narrow=narrow))
    text = stream.getvalue()
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("sim-01")).split()
    numbers = ["6", "1200", "110", "0/40", "2/40", "4/40", "6/40", "8/40", "98/100", "8"]
    assert row == ["sim-01", "2026-03-14", *numbers, *([] if narrow else ["1.001"]), "93"]
