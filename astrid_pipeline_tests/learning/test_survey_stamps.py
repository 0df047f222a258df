"""Stamps as surveys make them: what is found in a plain difference, whose it is, and that all follows from the seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.survey_stamps import detections, survey_stamps
from astrid_pipeline.simulation.survey_difference import PlainDifference


def difference(peaks: dict[tuple[int, int], tuple[float, float]]) -> PlainDifference:
    """A score of nothing but single pixels: (x, y) to (score, flux)."""
    score, flux = np.zeros((64, 64)), np.zeros((64, 64))
    for (x, y), (height, light) in peaks.items():
        score[y, x], flux[y, x] = height, light
    return PlainDifference(score, score, score, flux)


def change(x: float, y: float, flux: float, *, snr: float = 20.0, kind: str = "point", length: float = 0.0):
    return {
        "x": x, "y": y, "flux": flux, "snr": snr, "kind": kind, "class": kind, "length": length, "angle": 0.0,
    }  # fmt: skip


def test_a_detection_is_real_where_the_measured_flux_is_that_of_a_change_beside_it():
    made = difference(
        {
            (20, 20): (9, 95),  # the change itself, faded to 95 of 100
            (40, 20): (30, 400),  # a residual four times the change under it
            (20, 40): (-8, -100),  # fading
            (26, 40): (7, 50),  # a piece of that one, or not
            (40, 40): (6, 60),  # nothing was there
            (50, 50): (4.9, 50),  # under the threshold
            (4, 30): (50, 500),  # at the edge
            (50, 30): (6, 60),  # of a change too faint to be told
            (50, 12): (8, 30),  # a trail, of which a point's filter sees 30 %
        }
    )
    truth = pd.DataFrame(
        [
            change(20.4, 20.2, 100),
            change(40, 21, 100),
            change(20, 41, -110),
            change(50, 30, 60, snr=3),
            change(53, 12, 100, kind="moving", length=8),
        ]
    )
    found = detections(made, truth).set_index(["x", "y"])
    expected = {
        (20, 20): 1,
        (40, 20): None,
        (20, 40): 1,
        (26, 40): None,
        (40, 40): 0,
        (50, 30): None,
        (50, 12): 1,
    }
    assert set(found.index) == set(expected)
    for place, real in expected.items():
        value = found.loc[place, "real"]
        assert np.isnan(value) if real is None else value == real
    assert found.loc[(40, 40), "label"] == "bogus"
    assert found.loc[(50, 12), "label"] == "moving"
    assert (np.diff(found["score"]) <= 0).all()
    # Without any change all is bogus.
    assert (detections(made, truth.iloc[:0])["real"] == 0).all()


def test_stamps_follow_from_the_seed_and_hold_both_kinds():
    stamps, table = survey_stamps(3, 5, shape=(192, 192))
    again, same = survey_stamps(3, 5, shape=(192, 192))
    pd.testing.assert_frame_equal(table, same)
    assert all(np.array_equal(a.difference, b.difference) for a, b in zip(stamps, again, strict=True))
    assert len(stamps) == len(table)
    assert table["real"].nunique() == 2
    assert table["image_id"].nunique() == 3
    assert (table["label"] == "bogus").equals(~table["real"])
    # Two others of the same number are other skies.
    other = survey_stamps(1, 5, split="else", shape=(192, 192))[1]
    assert not set(other["image_id"]) & set(table["image_id"])
    with pytest.raises(ModelError, match="0 pairs"):
        survey_stamps(0)
