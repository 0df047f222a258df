"""The masks of detections, pixel by pixel, against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.learning.masks import Overlap, mask_of, overlap
from astrid_pipeline.learning.targets import SOURCE_BIT, UNUSABLE_BIT


def _truth(*rows: tuple[float, float, float, bool]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["x", "y", "snr", "usable"])
    return table.assign(label="transient", length=0.0, angle=0.0)


def _found(*places: tuple[float, float]) -> pd.DataFrame:
    table = pd.DataFrame(places, columns=["x", "y"], dtype=float)
    return table.assign(peak_x=table["x"], peak_y=table["y"], score=0.9)


def _square(shape: tuple[int, int], *centres: tuple[int, int], half: int = 1) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    for x, y in centres:
        out[y - half : y + half + 1, x - half : x + half + 1] = 0.9
    return out


def _labels(shape: tuple[int, int], *centres: tuple[int, int], half: int = 1) -> np.ndarray:
    return (_square(shape, *centres, half=half) > 0).astype(np.uint8) * SOURCE_BIT


def test_what_is_marked_where_nothing_is_detected_is_no_mask():
    marked = _square((40, 40), (8, 8), (30, 30))
    truth = _truth((8, 8, 20, True))
    measured = overlap(marked, _labels((40, 40), (8, 8)), truth, _found((8, 8)))
    assert measured == Overlap(inside=9, union=9, network_inside=9, network_union=18)
    assert (measured.iou, measured.network_iou) == (1.0, 0.5)


def test_a_false_detection_and_a_missed_change_count_against_the_masks():
    marked = _square((40, 40), (8, 8), (30, 30))
    labels = _labels((40, 40), (8, 8), (20, 20))
    truth = _truth((8, 8, 20, True), (20, 20, 9, True))
    measured = overlap(marked, labels, truth, _found((8, 8), (30, 30)))
    assert (measured.inside, measured.union) == (9, 27)


@pytest.mark.parametrize(("snr", "usable"), [(3.0, True), (20.0, False)])
@pytest.mark.parametrize("detected", [True, False])
def test_a_change_that_counts_neither_way_has_no_mask_to_find_or_to_miss(snr, usable, detected):
    marked = _square((40, 40), (8, 8), (30, 30), half=2)
    labels = _labels((40, 40), (8, 8), (30, 30))
    truth = _truth((8, 8, 20, True), (30, 30, snr, usable))
    measured = overlap(marked, labels, truth, _found((8, 8), *([(30, 30)] if detected else [])))
    assert (measured.inside, measured.union) == (9, 25)


def test_a_sure_detection_keeps_the_region_that_it_shares_with_an_unsure_one():
    marked = _square((40, 40), (10, 10), half=4)
    labels = _labels((40, 40), (8, 10))
    truth = _truth((8, 10, 20, True), (13, 10, 2, True))
    measured = overlap(marked, labels, truth, _found((8, 10), (13, 10)))
    assert (measured.inside, measured.union) == (9, 81)


def test_unusable_pixels_count_in_no_mask():
    labels = _labels((40, 40), (8, 8))
    labels[:, :8] |= UNUSABLE_BIT
    measured = overlap(_square((40, 40), (8, 8), half=2), labels, _truth((8, 8, 20, True)), _found((8, 8)))
    assert (measured.inside, measured.union) == (6, 15)


def test_nothing_at_all_has_no_overlap():
    empty = overlap(np.zeros((9, 9), np.float32), np.zeros((9, 9), np.uint8), _truth(), _found())
    assert empty == Overlap()
    assert np.isnan(empty.iou)
    assert np.isnan(empty.network_iou)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 17)), max_size=25),
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 17)), max_size=4),
)
def test_each_mask_is_what_a_walk_from_the_peak_reaches(pixels, peaks):
    marked = np.zeros((18, 24), np.float32)
    for x, y in pixels:
        marked[y, x] = 1
    regions, own = mask_of(marked, [x for x, _ in peaks], [y for _, y in peaks])
    expected = np.zeros(marked.shape, bool)
    for (px, py), number in zip(peaks, own, strict=True):
        starts = [(x, y) for x, y in pixels if abs(x - px) <= 1 and abs(y - py) <= 1]
        reached = [_walk(marked, start) for start in starts]
        assert (number == 0) == (not reached)
        if reached:
            mine = {(x, y) for y, x in np.argwhere(regions == number)}
            assert mine in reached
            assert len(mine) == max(len(r) for r in reached)
            for x, y in mine:
                expected[y, x] = True
    assert ((regions > 0) == expected).all()


def _walk(marked: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    seen, left = {start}, [start]
    while left:
        x, y = left.pop()
        for step_x in (-1, 0, 1):
            for step_y in (-1, 0, 1):
                to = (x + step_x, y + step_y)
                inside = 0 <= to[0] < marked.shape[1] and 0 <= to[1] < marked.shape[0]
                if inside and to not in seen and marked[to[1], to[0]] > 0.5:
                    seen.add(to)
                    left.append(to)
    return seen
