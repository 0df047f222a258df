"""Drift of nights: a lasting one is told by field and quantity, a single odd night is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline import checks
from astrid_pipeline.archives.base import Field
from astrid_pipeline.learning.drift import LEVELS
from astrid_pipeline.night.drift import LASTING, compare_night, lasting_drift, said

BASELINE = {
    "elongation": np.quantile(np.random.default_rng(0).normal(1.3, 0.1, 20_000), LEVELS).tolist(),
    "chi2": np.quantile(np.random.default_rng(1).normal(1.0, 0.1, 20_000), LEVELS).tolist(),
    "seeing": np.linspace(2, 4, 41).tolist(),
    "score": LEVELS.tolist(),
}


class Kept:
    """Nights as a store has them: by field and night how far elongation and chi2 are off."""

    def __init__(self, nights: dict[str, dict[str, tuple[float, float]]]) -> None:
        self.off = nights

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field."""
        assert asset == "detections"
        return sorted(self.off.get(owner, {}))

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return candidates or detections of a night."""
        field, night = str(partition).split("|")
        elongation, chi2 = self.off[field][night]
        rng = np.random.default_rng(abs(hash((field, night))) % 2**32)
        if asset == "detections":
            return pd.DataFrame({"score": rng.random(60)})
        return pd.DataFrame(
            {"elongation": rng.normal(1.3 + elongation, 0.1, 150), "chi2": rng.normal(1.0 + chi2, 0.1, 150)}
        )


def _fields(*names: str) -> list[Field]:
    return [Field(name=name, ra=1.0, dec=2.0, radius=0.1, archive="folder") for name in names]


def test_only_what_lasts_and_is_the_same_is_told() -> None:
    kept = Kept(
        {
            "steady": {f"2026-01-0{k}": (0.0, 0.0) for k in range(1, 6)},
            "once": {f"2026-01-0{k}": (0.3 * (k == 5), 0.0) for k in range(1, 6)},
            "changing": {"2026-01-01": (0.3, 0.0), "2026-01-02": (0.0, 0.3), "2026-01-03": (0.3, 0.0)},
            "lasting": {f"2026-01-0{k}": (0.3 * (k > 2), 0.0) for k in range(1, 6)},
            "new": {"2026-01-01": (0.5, 0.5)},
        }
    )
    told = lasting_drift(_fields("steady", "once", "changing", "lasting", "new"), kept, BASELINE)
    assert set(told) == {"lasting"}
    assert told["lasting"].startswith(f"for {LASTING} nights: elongation 1.")
    assert "chi2" not in told["lasting"]


def test_a_night_s_check_names_what_drifted() -> None:
    night = Kept({"f": {"2026-01-01": (0.3, 0.0)}})
    candidates, detections = (night.table(asset, "f|2026-01-01") for asset in ("candidates", "detections"))
    good = compare_night(
        candidates.assign(elongation=candidates.elongation - 0.3), detections, [{"seeing": 3.0}], BASELINE
    )
    (result,) = checks.check_detections(good)
    assert result.passed
    assert result.metadata["compared"].value == 4
    bad = compare_night(candidates, detections, [{"seeing": 5.5}, {"seeing": None}], BASELINE)
    (result,) = checks.check_detections(bad)
    assert not result.passed
    assert "elongation" in str(result.description)
    assert "seeing 5.5" in str(result.description)
    assert said(good) == ""


@pytest.mark.parametrize("baseline", [{}, {"unknown": LEVELS.tolist()}])
def test_a_model_without_a_baseline_says_nothing(baseline: dict[str, list[float]]) -> None:
    table = compare_night(
        pd.DataFrame({"chi2": np.ones(90)}), pd.DataFrame({"score": np.ones(90)}), [], baseline
    )
    assert not len(table)
    (result,) = checks.check_detections(table)
    assert result.passed
