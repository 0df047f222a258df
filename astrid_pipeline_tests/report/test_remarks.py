"""Every remark appears where its number is over the limit, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from astrid_pipeline.report.remarks import remarks

GOOD = {"score_sigma": 1.01, "score_sigma_raw": 1.02, "dx_rms": 0.1, "dy_rms": 0.2, "coverage": 0.99}
FRAME = {
    "saturated_fraction": 0.001,
    "n_stars": 80,
    "gain_source": "header",
    "filter": "r",
    "zero_point": 25.0,
}


def about(difference: dict[str, Any], frame: dict[str, Any], **options: Any) -> set[str]:
    return {r.about for r in remarks({**GOOD, **difference}, {**FRAME, **frame}, FRAME, **options)}


def test_good_data_need_no_words() -> None:
    assert about({}, {}) == set()
    assert about({"flux_ratio": 0.5, "flux_ratio_error": 0.02}, {}) == set()


@pytest.mark.parametrize(
    ("difference", "frame", "expected"),
    [
        ({"score_sigma": 1.06}, {}, "score noise"),
        ({"score_sigma": 0.94}, {}, "score noise"),
        ({"score_sigma_raw": 1.3}, {}, "score noise"),
        ({"dy_rms": 0.31}, {}, "registration"),
        ({"flux_ratio": 9.2, "flux_ratio_error": 1.5, "n_matched": 4}, {}, "flux scale"),
        ({"coverage": 0.84}, {}, "coverage"),
        ({}, {"saturated_fraction": 0.05}, "saturation"),
        ({}, {"n_stars": 4}, "psf"),
        ({}, {"gain_source": "photon transfer"}, "gain"),
        ({}, {"filter": "g"}, "filter"),
        ({}, {"zero_point": None}, "zero point"),
        ({}, {"zero_point": float("nan")}, "zero point"),
        ({}, {"bayer": "RGGB"}, "bayer"),
    ],
)
def test_each_limit_has_its_remark(difference: dict[str, Any], frame: dict[str, Any], expected: str) -> None:
    assert about(difference, frame) == {expected}


def test_no_wcs_is_a_warning_and_warnings_come_first() -> None:
    found = remarks({**GOOD, "score_sigma_raw": 1.3}, FRAME, FRAME, has_wcs=False)
    assert [r.level for r in found] == ["warning", "note"]
    assert found[0].about == "position"


def test_unknown_numbers_are_not_warned_about() -> None:
    assert {r.about for r in remarks({}, {}, {})} == {"zero point"}
