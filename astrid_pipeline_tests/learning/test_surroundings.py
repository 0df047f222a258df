"""What lies around a peak: lines, columns, edges and rings of known strength, and a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.learning.surroundings import AXIS, CLIP, DISC, RAY, RAY_STEP, RAYS, RING, SURROUNDINGS
from astrid_pipeline.learning.surroundings import surroundings as measure

SHAPE = (260, 300)
GOOD = np.zeros(SHAPE, bool)


def line(angle: float, x: float, y: float, level: float, width: float = 1.5) -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    across = -(columns - x) * np.sin(angle) + (rows - y) * np.cos(angle)
    return level * (np.abs(across) <= width)


def at(score: np.ndarray, x: float = 150.0, y: float = 130.0, bad: np.ndarray = GOOD) -> dict[str, float]:
    table = measure(score, bad, np.array([x]), np.array([y]))
    assert tuple(table.columns) == SURROUNDINGS
    return {name: float(value) for name, value in table.iloc[0].items()}


@given(st.floats(0, np.pi), st.sampled_from([-1.0, 1.0]))
def test_a_line_through_the_peak_is_seen_whatever_its_direction(angle, sign):
    found = at(sign * line(angle, 150, 130, 3.0, width=2.5))
    assert found["line_both"] > 2.5
    assert found["line_one"] >= found["line_both"]
    assert found["line_opposite"] <= 0.0


def test_beside_a_bright_line_it_stands_against_the_peaks_sign():
    score = line(0.0, 150, 130, 4.0) - line(0.0, 150, 136, 2.0)
    found = at(score, y=136.0)
    assert found["line_both"] == pytest.approx(2.0)
    # A ray that leaves at a small angle meets the bright line on one side only.
    assert found["line_opposite"] <= 0.5
    alone = at(line(0.0, 150, 130, 4.0) - 1.0 * (np.hypot(*(np.indices(SHAPE) - [[[130]], [[150]]])) < 3) * 8)
    assert alone["line_opposite"] == pytest.approx(4.0)


def test_a_point_and_a_bright_neighbour_are_no_line():
    score = np.zeros(SHAPE)
    score[128:133, 148:153] = 20
    score[128:133, 178:183] = 500
    found = at(score)
    assert found["line_both"] == 0.0
    assert found["line_one"] <= CLIP * 5 / ((RAY[1] - RAY[0]) / RAY_STEP)


def test_columns_rows_and_edges():
    column = np.zeros(SHAPE)
    column[:, 150] = 2.0
    found = at(column)
    assert found["line_column"] == pytest.approx(2.0)
    assert found["line_row"] == 0.0
    assert at(line(0.0, 150, 130, 2.0))["line_row"] == pytest.approx(2.0)
    # Where one side lies outside of the frame, the other has to do.
    assert at(line(0.0, 5, 130, 3.0), x=5.0)["line_both"] == pytest.approx(3.0)
    assert at(line(np.pi / 2, 150, 0, 3.0), y=258.0)["line_both"] == pytest.approx(3.0)


def test_a_ring_and_what_is_unusable():
    rows, columns = np.indices(SHAPE)
    radius = np.hypot(columns - 150, rows - 130)
    ring = 1.5 * ((radius >= RING[0]) & (radius <= RING[1]))
    assert at(ring)["ring_mean"] == pytest.approx(1.5)
    assert at(-ring - (radius < 2))["ring_mean"] == pytest.approx(1.5)
    assert at(ring)["ring_rms"] == pytest.approx(1.5)
    bad = (radius <= DISC) & (columns > 150)
    assert at(ring, bad=bad)["bad_near"] == pytest.approx(bad.sum() / (radius <= DISC).sum())
    # What is unusable counts as nothing, whatever is written there.
    wild = np.where(bad | (columns > 155), 1e6, ring)
    assert at(wild, bad=bad | (columns > 155))["ring_mean"] == pytest.approx(1.5)
    assert at(np.full(SHAPE, np.nan))["ring_rms"] == 0.0


def test_many_peaks_are_looked_at_by_and_by(monkeypatch):
    rng = np.random.default_rng(1)
    score, bad = rng.normal(0, 2, SHAPE), rng.random(SHAPE) < 0.05
    x, y = rng.uniform(0, 299, 25), rng.uniform(0, 259, 25)
    whole = measure(score, bad, x, y)
    monkeypatch.setattr("astrid_pipeline.learning.surroundings.CHUNK", 4)
    assert measure(score, bad, x, y).equals(whole)


def test_no_peaks_and_peaks_outside():
    assert len(measure(np.zeros(SHAPE), GOOD, np.zeros(0), np.zeros(0))) == 0
    assert np.isfinite(measure(np.ones(SHAPE), GOOD, np.array([-0.4, 299.4]), np.array([259.4, -0.4]))).all(
        axis=None
    )


def slow(score: np.ndarray, bad: np.ndarray, x: float, y: float) -> dict[str, float]:
    """The same, pixel by pixel."""
    column, row = int(np.rint(x)), int(np.rint(y))

    def inside(dx: int, dy: int) -> bool:
        return 0 <= row + dy < SHAPE[0] and 0 <= column + dx < SHAPE[1]

    def values(offsets: list[tuple[int, int]]) -> list[float]:
        out = []
        for dx, dy in offsets:
            if inside(dx, dy) and not bad[row + dy, column + dx]:
                out.append(float(np.clip(score[row + dy, column + dx], -CLIP, CLIP)))
        return out

    own = -1.0 if not bad[row, column] and score[row, column] < 0 else 1.0

    def mean(offsets: list[tuple[int, int]]) -> float:
        found = values(offsets)
        return own * sum(found) / len(found) if 4 * len(found) >= len(offsets) else np.nan

    weaker, stronger = [], []
    for k in range(RAYS):
        c, s = np.cos(np.pi * k / RAYS), np.sin(np.pi * k / RAYS)
        steps = np.arange(RAY[0], RAY[1], RAY_STEP)
        one = mean([(int(np.rint(t * c)), int(np.rint(t * s))) for t in steps])
        other = mean([(int(np.rint(-t * c)), int(np.rint(-t * s))) for t in steps])
        weaker.append(np.fmin(one, other))
        stronger.append(np.fmax(one, other))
    axis = [int(t) for t in np.arange(AXIS[0], AXIS[1])]
    both = [-t for t in axis] + axis
    reach = int(RING[1])
    grid = range(-reach, reach + 1, 2)
    ring = values([(i, j) for i in grid for j in grid if RING[0] <= np.hypot(i, j) <= RING[1]])
    span = range(-int(DISC), int(DISC) + 1)
    disc = [(i, j) for i in span for j in span if np.hypot(i, j) <= DISC]
    return {
        "line_one": np.nanmax(stronger),
        "line_both": np.nanmax(weaker),
        "line_opposite": np.nanmax(-np.array(stronger)),
        "line_column": np.nan_to_num(mean([(0, t) for t in both])),
        "line_row": np.nan_to_num(mean([(t, 0) for t in both])),
        "ring_mean": own * sum(ring) / max(len(ring), 1),
        "ring_rms": np.sqrt(sum(v**2 for v in ring) / max(len(ring), 1)),
        "bad_near": 1 - len(values(disc)) / sum(inside(i, j) for i, j in disc),
    }


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(0, SHAPE[1] - 1), st.floats(0, SHAPE[0] - 1))
def test_it_is_what_the_slow_way_finds(seed, x, y):
    rng = np.random.default_rng(seed)
    score, bad = rng.normal(0, 3, SHAPE).astype(np.float32), rng.random(SHAPE) < 0.1
    found, expected = at(score, x, y, bad), slow(score, bad, x, y)
    for name in SURROUNDINGS:
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
