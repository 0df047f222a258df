"""What detections are taken for: tables small enough to be counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.learning import kinds
from astrid_pipeline.learning.metrics import Value, judge
from astrid_pipeline.learning.retrain import judge_challenger

AREA = pd.Series([1.0, 1.0], index=["a", "b"])


def truth(*rows):
    names = ["image_id", "x", "y", "snr", "label", "kind", "length", "angle"]
    return pd.DataFrame(rows, columns=names).assign(usable=True)


def found(*rows):
    return pd.DataFrame(rows, columns=["image_id", "x", "y", "score", "class"])


TRUTH = truth(
    ("a", 10, 10, 20, "transient", "supernova", np.nan, np.nan),
    ("a", 40, 10, 20, "moving", "trail", 12.0, 0.0),
    ("a", 70, 10, 20, "variable", "agn", np.nan, np.nan),
    ("b", 10, 10, 4, "transient", "supernova", np.nan, np.nan),
    ("b", 60, 60, np.nan, "artefact", "ghost", 20.0, np.nan),
    ("b", 10, 90, np.nan, "artefact", "satellite_trail", 100.0, 0.0),
    ("b", 90, 10, np.nan, "artefact", "dipole", 0.7, 1.0),
)


def test_point_trail_or_artefact():
    seen = found(
        ("a", 10, 10, 0.9, "variable"),  # a point taken for one
        ("a", 40, 10, 0.9, "transient"),  # a trail taken for a point
        ("b", 30, 30, 0.8, "moving"),  # a candidate that is nothing, taken for a trail
        ("b", 61, 60, 0.2, "transient"),  # under the threshold
    )
    candidates = pd.DataFrame(
        {"image_id": ["a", "b", "b", "b"], "x": [10, 30, 61, 10.5], "y": [10, 30.5, 60, 10], "score": 6.0}
    )
    table = kinds.types(judge(seen, TRUTH, AREA), judge(candidates, TRUTH, AREA, min_snr=0.0), 0.5)
    expected = pd.DataFrame(
        [[1, 0, 1], [1, 0, 0], [0, 1, 1]], index=list(kinds.TYPES), columns=list(kinds.TYPES)
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert kinds.share_right(table) == pytest.approx(2 / 5)


def test_artefacts_pass_where_something_false_lies_on_any_part_of_them():
    def passed(*rows):
        out = kinds.artefacts(judge(found(*rows), TRUTH, AREA, min_snr=3.0), TRUTH, 0.5)
        assert list(out["count"]) == [1, 1, 1]
        assert ((out["low"] <= out["rejected"]) & (out["rejected"] <= out["high"])).all()
        return set(out.loc[out["passed"] > 0, "kind"])

    assert passed(("b", 45.5, 60, 0.9, "transient")) == {"ghost"}  # 4.5 px off its rim
    assert passed(("b", 44.5, 60, 0.9, "transient")) == set()
    assert passed(("b", 55, 93, 0.9, "transient")) == {"satellite_trail"}  # 45 px along it, 3 beside
    assert passed(("b", 67, 90, 0.9, "transient")) == set()
    assert passed(("b", 92, 10, 0.9, "moving")) == {"dipole"}
    assert passed(("b", 92, 10, 0.4, "moving")) == set()
    assert passed(("a", 92, 10, 0.9, "moving")) == set()  # another image
    near = truth(("b", 91, 10, 1.0, "transient", "supernova", np.nan, np.nan))
    both = pd.concat([TRUTH, near], ignore_index=True)
    judged = judge(found(("b", 91, 10, 0.9, "transient")), both, AREA, min_snr=3.0)
    assert kinds.artefacts(judged, both, 0.5)["passed"].sum() == 0  # a true change, too faint to be asked for


def test_recall_by_class_counts_what_is_asked_for():
    seen = found(
        ("a", 10, 10, 0.9, "variable"), ("a", 40, 10, 0.4, "moving"), ("b", 10, 10, 0.9, "transient")
    )
    table = kinds.recall_by_class(judge(seen, TRUTH, AREA), 0.5).set_index("label")
    assert list(table["truths"]) == [1, 1, 1]  # the one of S/N 4 is not asked for
    assert list(table["found"]) == [1, 0, 0]
    assert table.loc["transient", "high"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("low", "recall", "promoted", "why"),
    [
        (0.91, 0.90, True, "no class fell"),
        (0.89, 0.99, False, "not better"),
        (0.91, 0.50, False, "moving from 0.90 to 0.50"),
    ],
)
def test_a_challenger_has_to_be_better_and_no_class_may_fall(low, recall, promoted, why):
    def evaluation(ap, share):
        rows = [
            ("transient", 0.9, 0.95),
            ("variable", float("nan"), float("nan")),
            ("moving", share, share + 0.1),
        ]
        by_class = pd.DataFrame(rows, columns=["label", "recall", "high"])
        return SimpleNamespace(best={"ap": ap}, by_class=by_class)

    champion = evaluation(Value(0.90, 0.88, 0.92), 0.90)
    verdict, reason = judge_challenger(evaluation(Value(0.95, low, 0.97), recall), champion)
    assert verdict is promoted
    assert why in reason


def test_looking_load_and_rank():
    rows = [("a", 10, 10, 0.9, "transient"), ("a", 90, 90, 0.8, "transient"), ("a", 40, 10, 0.7, "moving"),
            ("a", 90, 50, 0.6, "moving"), ("a", 70, 10, 0.5, "variable")]  # fmt: skip
    judged = judge(found(*rows), TRUTH, AREA)
    # 47 candidates that are nothing, and the three that are real.
    places = pd.DataFrame(
        {
            "image_id": "a",
            "x": [10, 40, 70, *np.arange(47)],
            "y": [10, 10, 10, *np.full(47, 70)],
            "score": 6.0,
        }
    )
    candidates = judge(places, TRUTH, AREA, min_snr=0.0)
    assert kinds.looking_load(judged, candidates) == pytest.approx(5 / 50)
    assert kinds.looking_load(judged, candidates, lost=0.34) == pytest.approx(3 / 50)
    # Where real ones are a tenth as frequent: three and two tenths are shown, of 47 and a bit.
    assert kinds.looking_load(judged, candidates, real_weight=0.1) == pytest.approx(2.3 / 47.3)
    table = kinds.recall_at_rank(judged, (1, 2, 3, 5))
    np.testing.assert_allclose(table["recall"], [1 / 3, 1 / 3, 2 / 3, 1])
    nothing = judge(found(), TRUTH, AREA)
    assert np.isnan(kinds.looking_load(nothing, candidates))
