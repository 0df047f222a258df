"""Drift of nights: a lasting one is told by field and quantity, a single odd night is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline import checks
from astrid_pipeline.archives.base import Field
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.learning.drift import LEVELS
from astrid_pipeline.night.drift import LASTING, compare_night, lasting_drift, said

_RNG = np.random.default_rng(0)


def _row(low: float, high: float, **values: object) -> dict[str, object]:
    return {"images": np.linspace(low, high, 41).tolist(), **values}


BASELINE = {
    "elongation": _row(1.3, 1.5, values=np.quantile(_RNG.normal(1.3, 0.1, 20_000), LEVELS).tolist()),
    "chi2": _row(1.0, 1.2, values=np.quantile(_RNG.normal(1.0, 0.1, 20_000), LEVELS).tolist()),
    "seeing": _row(2, 4),
    "score": _row(0.3, 1, values=LEVELS.tolist()),
}


class Kept:
    """Nights as a store has them: by field and night how far elongation and chi2 are off, and the seeing."""

    def __init__(self, nights: dict[str, dict[str, tuple[float, ...]]]) -> None:
        self.off = nights

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field."""
        assert asset == "detections"
        return sorted(self.off.get(owner, {}))

    def table(self, asset: str, partition: str | None) -> pd.DataFrame:
        """Return candidates or detections of a night."""
        field, night = str(partition).split("|")
        elongation, chi2 = self.off[field][night][:2]
        rng = np.random.default_rng(abs(hash((field, night))) % 2**32)
        if asset == "detections":
            return pd.DataFrame({"exposure_id": "e", "score": rng.random(60)})
        return pd.DataFrame(
            {
                "exposure_id": "e",
                "elongation": rng.normal(1.3 + elongation, 0.1, 150),
                "chi2": rng.normal(1.0 + chi2, 0.1, 150),
            }
        )

    def metas(self, asset: str, owner: str, night: str) -> dict[str, dict[str, object]]:
        """Return the meta of the night's one difference; a seeing of 0 stands for pixels that are gone."""
        assert asset == "difference_images"
        seeing = (*self.off[owner][night], 3.0)[2]
        if not seeing:
            raise MissingProductError("gone", where=night)
        return {"e": {"exposure_id": "e", "seeing": seeing, "good_pixels": 1_000_000}}


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
    (meta,) = night.metas("difference_images", "f", "2026-01-01").values()
    good = compare_night(
        candidates.assign(elongation=candidates.elongation - 0.3), detections, [meta], BASELINE
    )
    (result,) = checks.check_detections(good)
    assert result.passed
    assert result.metadata["compared"].value == 4
    other = {"exposure_id": "f", "seeing": None}
    bad = compare_night(candidates, detections, [{**meta, "seeing": 5.5}, other], BASELINE)
    (result,) = checks.check_detections(bad)
    assert not result.passed
    assert "elongation" in str(result.description)
    assert "seeing 5.5" in str(result.description)
    assert said(good) == ""


def test_a_field_is_compared_with_its_own_nights_too() -> None:
    """3.6 px is nothing that the training has not seen, and half as much again as this camera's nights."""
    usual = {f"2026-01-{k:02d}": (0.0, 0.0, 2.4 + 0.05 * (k % 5)) for k in range(1, 16)}
    last = ("2026-01-13", "2026-01-14", "2026-01-15")
    kept = Kept(
        {
            "steady": usual,
            "blurred": usual | dict.fromkeys(last, (0.0, 0.0, 3.6)),
            "two-nights": usual | dict.fromkeys(last[1:], (0.0, 0.0, 3.6)),
            "young": dict.fromkeys([f"2026-01-0{k}" for k in range(1, 9)], (0.0, 0.0, 2.4))
            | dict.fromkeys(last, (0.0, 0.0, 3.6)),
            "gone": usual | dict.fromkeys(last, (0.0, 0.0, 0.0)),
        }
    )
    told = lasting_drift(_fields("steady", "blurred", "two-nights", "young", "gone"), kept, BASELINE)
    assert told == {"blurred": "for 3 nights: seeing 3.6 (its nights before 2.4 to 2.6)"}


@pytest.mark.parametrize("baseline", [{}, {"unknown": _row(0, 1)}, {"chi2": LEVELS.tolist()}])
def test_a_model_without_a_baseline_says_nothing(baseline: dict[str, Any]) -> None:
    one = pd.DataFrame({"exposure_id": "e", "chi2": np.ones(90), "score": np.ones(90)})
    table = compare_night(one, one, [{"exposure_id": "e"}], baseline)
    assert not len(table)
    (result,) = checks.check_detections(table)
    assert result.passed
