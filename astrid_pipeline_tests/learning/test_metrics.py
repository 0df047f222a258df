from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from astrid_pipeline.learning.matching import FALSE, NEITHER, RIGHT, average_precision, match
from astrid_pipeline.learning.metrics import bootstrap, figures_of, judge, recall_by_snr, snr_at_half, wilson


def _truth(*rows, image="a"):
    names = ["x", "y", "snr", "label", "usable", "length", "angle"]
    table = pd.DataFrame([(*row, np.nan, np.nan)[:7] for row in rows], columns=names)
    return table.assign(image_id=image, kind=table["label"])


def _found(*rows, image="a"):
    return pd.DataFrame(rows, columns=["x", "y", "score"]).assign(image_id=image)


def test_the_surest_chooses_first_and_a_second_is_false():
    truth = _truth((10, 10, 20, "transient", True))
    found = _found((11, 10, 0.5), (10, 12, 0.9), (30, 30, 0.8))
    verdict, which = match(found, truth)
    assert verdict.tolist() == [FALSE, RIGHT, FALSE]
    assert which.tolist() == [-1, 0, -1]


def test_faint_and_masked_truth_counts_neither_way():
    truth = _truth(
        (10, 10, 3, "transient", True), (50, 50, 20, "variable", False), (80, 80, 9, "artefact", True)
    )
    found = _found((10, 10, 0.9), (50, 51, 0.9), (80, 80, 0.9), (10.5, 10, 0.8))
    assert match(found, truth)[0].tolist() == [NEITHER, NEITHER, FALSE, NEITHER]


def test_an_ignored_neighbour_hides_nothing():
    truth = _truth((10, 10, 3, "transient", True), (12, 10, 20, "transient", True))
    assert match(_found((10.4, 10, 0.9)), truth)[0].tolist() == [RIGHT]


def test_a_trail_is_found_anywhere_along_it():
    trail = _truth((50, 50, 20, "moving", True, 20.0, np.pi / 2))
    assert match(_found((50, 58, 1.0)), trail)[0].tolist() == [RIGHT]
    assert match(_found((58, 50, 1.0)), trail)[0].tolist() == [FALSE]
    star = _truth((50, 50, 20, "transient", True, 20.0, np.pi / 2))
    assert match(_found((50, 58, 1.0)), star)[0].tolist() == [FALSE]


def test_nothing_found_or_nothing_there():
    assert match(_found(), _truth((1, 1, 9, "transient", True)))[0].tolist() == []
    assert match(_found((1, 1, 0.5)), _truth())[0].tolist() == [FALSE]


def _slow_pairs(found, truth, min_snr):
    """The same matching, said as plainly as can be."""
    rows = [(i, r) for i, r in enumerate(truth.itertuples()) if r.label != "artefact"]
    verdict, used = {}, set()
    for i in sorted(range(len(found)), key=lambda i: (-found["score"][i], i)):

        def far(r):
            return np.hypot(found["x"][i] - r.x, found["y"][i] - r.y)  # noqa: B023 - used at once

        open_ = [(far(r), j) for j, r in rows if j not in used and r.snr >= min_snr and r.usable]
        closed = [far(r) for j, r in rows if not (r.snr >= min_snr and r.usable)]
        if open_ and min(open_)[0] <= 3:
            verdict[i] = RIGHT
            used.add(min(open_)[1])
        else:
            verdict[i] = NEITHER if closed and min(closed) <= 3 else FALSE
    return [verdict[i] for i in range(len(found))]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_matching_agrees_with_its_slow_twin(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["transient", "variable", "artefact"], 12)
    truth = _truth(*((*rng.uniform(0, 20, 2), rng.uniform(2, 12), k, rng.random() < 0.8) for k in kinds))
    found = _found(*((*rng.uniform(0, 20, 2), rng.random()) for _ in range(15)))
    assert match(found, truth)[0].tolist() == _slow_pairs(found, truth, 5.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_average_precision_is_scikit_learns_where_all_truths_are_listed(seed, n):
    rng = np.random.default_rng(seed)
    score = np.round(rng.random(n), 1)  # with ties
    right = rng.random(n) < 0.5
    right[0] = True
    got = average_precision(score, right.astype(int), int(right.sum()))
    assert got == pytest.approx(average_precision_score(right, score))


def test_truths_never_found_lower_average_precision():
    assert average_precision([0.9, 0.8], [1, 1], 2) == 1
    assert average_precision([0.9, 0.8], [1, 1], 4) == 0.5
    assert average_precision([0.9, 0.8, 0.7], [1, NEITHER, 1], 2) == 1
    assert average_precision([], [], 3) == 0
    assert np.isnan(average_precision([0.5], [0], 0))


def test_figures_of_a_known_case():
    # Two images of half a megapixel; at .5: 3 right of 4 asked for, 1 false; the false one is the surest of all.
    truth = pd.concat(
        [
            _truth((10, 10, 20, "transient", True), (50, 50, 8, "variable", True), image="a"),
            _truth(
                (10, 10, 7, "moving", True),
                (90, 90, 10, "transient", True),
                (30, 30, 4, "transient", True),
                image="b",
            ),
        ]
    )
    found = pd.concat(
        [
            _found((10, 11, 0.9), (50, 50, 0.8), (70, 70, 0.95), image="a"),
            _found((10, 10, 0.7), (90, 90, 0.2), (30, 30, 0.99), image="b"),
        ]
    )
    area = pd.Series([0.5, 0.5], index=["a", "b"])
    figures = figures_of(judge(found, truth, area), 0.5, resamples=50)
    value = {name: each.value for name, each in figures.items()}
    assert value["precision"] == 0.75
    assert value["recall"] == 0.75
    assert value["f1"] == pytest.approx(0.75)
    assert value["false_per_mpix"] == 1
    assert value["precision_at_1_per_mpix"] == pytest.approx(0.75 / 1.75)
    assert value["false_per_mpix_at_recall_90"] == 1
    assert value["ap"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5) / 4)
    assert value["position_error"] == 0
    assert figures["precision"].low <= 0.75 <= figures["precision"].high


def test_images_without_detections_count():
    area = pd.Series([1.0, 1.0], index=["a", "b"])
    truth = pd.concat([_truth((1, 1, 9, "transient", True), image=i) for i in "ab"])
    figures = figures_of(judge(_found((1, 1, 0.9), image="a"), truth, area), 0.5, resamples=2)
    assert figures["recall"].value == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        values = rng.normal(3, 1, 40)
        got = bootstrap(lambda c, v=values: float(np.average(v, weights=c)), 40, seed=trial)
        inside += got.low <= 3 <= got.high
    assert 0.88 < inside / 200 < 0.99


def test_recall_by_snr_and_where_half_is_found():
    rng = np.random.default_rng(0)
    snr = rng.uniform(3, 12, 3000)
    seen = rng.random(3000) < 1 / (1 + np.exp(-8 * (np.log(snr) - np.log(5.5))))
    place = np.arange(3000) * 10.0
    truth = _truth(*((x, 0.0, s, "transient", True) for x, s in zip(place, snr, strict=True)))
    found = _found(*((x, 0.0, 0.9) for x in place[seen]))
    judged = judge(found, truth, pd.Series([1.0], index=["a"]), min_snr=3)
    assert snr_at_half(judged, 0.5) == pytest.approx(5.5, abs=0.15)
    table = recall_by_snr(judged, 0.5, edges=(3, 5, 12))
    for row, (low, high) in zip(table.itertuples(), [(3, 5), (5, 12)], strict=True):
        inside = (snr >= low) & (snr < high)
        assert (row.truths, row.found) == (inside.sum(), (inside & seen).sum())
        assert row.low < row.recall < row.high


def test_wilson():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.490, abs=0.002), pytest.approx(0.943, abs=0.002))
    assert np.isnan(wilson(0, 0)[0])
