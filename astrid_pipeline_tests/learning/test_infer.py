"""Detections, with a network whose answer is known: the score plane itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.candidates import find_candidates
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.learning.calibration import Calibrator
from astrid_pipeline.learning.channels import squeeze_score
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.infer import detect
from astrid_pipeline.learning.peaks import find_peaks, join, one_a_candidate
from astrid_pipeline.learning.schema import CLASSES, DETECTIONS
from astrid_pipeline_tests.learning.helpers import toy_difference


class ScoreNetwork(nn.Module):
    """Says transient where S_corr is over 4, with a mask where it is over 3; dropout shakes what it sees."""

    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        score = self.dropout(image[:, 3:4])
        heat = 6 * (score - float(squeeze_score(4.0)))
        none = torch.full_like(heat, -12.0)
        return torch.cat([heat, none, none, 6 * (score - float(squeeze_score(3.0)))], dim=1)


@pytest.fixture
def detector():
    return Detector(
        ScoreNetwork().eval(), "score", "3", Calibrator("platt", np.array([1.0, 0.0])), threshold=0.5
    )


def test_every_source_is_found_once_and_measured(detector):
    difference, truth = toy_difference(11, (128, 160), sources=8, snr=(12, 40))
    candidates = find_candidates(difference)
    found = detect(difference, candidates, detector)
    assert list(found.columns) == DETECTIONS.names
    far = np.hypot(
        found["x"].to_numpy()[:, None] - truth["x"].to_numpy(),
        found["y"].to_numpy()[:, None] - truth["y"].to_numpy(),
    )
    assert (far.min(axis=0) < 1.0).all()
    assert ((far < 3).sum(axis=0) == 1).all()
    best = found.iloc[far.argmin(axis=0)]
    np.testing.assert_allclose(best["flux"], truth["flux"], rtol=0.35)
    np.testing.assert_allclose(best["snr"], truth["snr"], rtol=0.35)
    assert (best["origin"] == "candidate").all()
    assert (best["hpx29"] > 2**53).all()
    assert (found["class"] == "transient").all()
    np.testing.assert_allclose(found[[f"p_{c}" for c in CLASSES]].sum(axis=1), 1)
    joined = candidates.set_index("candidate_id").loc[
        found.loc[found["origin"] == "candidate", "candidate_id"]
    ]
    mine = found[found["origin"] == "candidate"].set_index("candidate_id")
    pd.testing.assert_frame_equal(mine[joined.columns], joined)  # all digits of HEALPix indices too
    assert (found["model_name"] == "score").all()
    assert (found["model_version"] == "3").all()
    assert found["detection_id"].is_unique
    assert found["score"].is_monotonic_decreasing
    # The mask is where the score is over 3: its area grows with the source.
    order = np.argsort(truth["snr"].to_numpy())
    assert best["mask_area"].iloc[order[-1]] > best["mask_area"].iloc[order[0]] > 5


def test_score_is_the_calibrated_heat(detector):
    difference, _ = toy_difference(12, sources=3)
    candidates = find_candidates(difference)
    plain = detect(difference, candidates, detector)
    soft = detect(
        difference, candidates, detector.replace(calibrator=Calibrator("platt", np.array([0.5, 0.0])))
    )
    z = np.log(plain["score"] / (1 - plain["score"]))
    np.testing.assert_allclose(soft["score"], 1 / (1 + np.exp(-0.5 * z)), rtol=1e-4)


def test_a_peak_without_a_candidate_is_measured_where_it_stands(detector):
    difference, truth = toy_difference(13, sources=4, snr=(15, 40))
    candidates = find_candidates(difference)
    found = detect(difference, candidates.iloc[:0], detector)
    assert len(found) >= 4
    assert (found["origin"] == "network").all()
    far = np.hypot(
        found["x"].to_numpy()[:, None] - truth["x"].to_numpy(),
        found["y"].to_numpy()[:, None] - truth["y"].to_numpy(),
    )
    best = found.iloc[far.argmin(axis=0)]
    assert (far.min(axis=0) < 1).all()
    np.testing.assert_allclose(best["flux"], truth["flux"], rtol=0.35)
    np.testing.assert_allclose(best["snr"], truth["snr"], rtol=0.35)
    assert (best["exposure_id"] == "toy-13").all()
    assert (best["mjd"] == 61000.0).all()
    assert best["elongation"].isna().all()


def test_nothing_there_gives_an_empty_table_of_the_schema(detector):
    difference, _ = toy_difference(14, sources=0)
    quiet = difference.replace(score=difference.score * 0.1)
    found = detect(quiet, find_candidates(quiet), detector)
    assert len(found) == 0
    assert list(found.columns) == DETECTIONS.names


def test_no_detection_on_unusable_pixels(detector):
    difference, truth = toy_difference(15, sources=1, snr=(39, 40))
    mask = difference.mask.copy()
    x, y = round(truth.x[0]), round(truth.y[0])
    mask[y - 4 : y + 5, x - 4 : x + 5] = int(Mask.SATURATED)
    masked = difference.replace(mask=mask)
    found = detect(masked, find_candidates(masked), detector)
    assert not (np.hypot(found["x"] - x, found["y"] - y) < 4).any()


def test_the_threshold_and_its_default(detector):
    difference, _ = toy_difference(16, sources=8, snr=(4, 12))
    candidates = find_candidates(difference)
    every = detect(difference, candidates, detector, threshold=0.0, passes=0)
    some = detect(difference, candidates, detector, passes=0)
    assert len(every) > len(some) > 0
    assert some["score"].min() >= 0.5
    assert (
        len(detect(difference, candidates, detector, threshold=0.9, passes=0))
        == (every["score"] >= 0.9).sum()
    )


def test_uncertainty_is_the_spread_under_dropout_and_repeats(detector):
    difference, _ = toy_difference(17, sources=4, snr=(15, 40))
    candidates = find_candidates(difference)
    state = torch.get_rng_state()
    first, second = (detect(difference, candidates, detector, passes=12) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    # The plane is dropped with probability .3 and else scaled by 1/.7, so a sure source answers about 0 or 1.
    sure = first[first["snr"] > 12]
    assert sure["uncertainty"].between(0.3, 0.6).all()
    assert detect(difference, candidates, detector, passes=0)["uncertainty"].isna().all()
    assert not detector.inference_network.dropout.training


def test_a_network_that_answers_nonsense_stops_inference(detector):
    class Broken(ScoreNetwork):
        def forward(self, image):
            return super().forward(image) * float("nan")

    difference, _ = toy_difference(18)
    with pytest.raises(ModelError, match="not finite"):
        detect(difference, find_candidates(difference), detector.replace(network=Broken().eval()))


def test_peaks_are_refined_to_a_part_of_a_pixel():
    yy, xx = np.mgrid[:32, :40]
    p = np.zeros((4, 32, 40), np.float32)
    p[0] = 0.9 * np.exp(-((xx - 20.3) ** 2 + (yy - 14.8) ** 2) / (2 * 1.5**2))
    p[3] = p[0] > 0.45
    peaks = find_peaks(p, np.zeros((32, 40), bool), 0.05)
    assert len(peaks) == 1
    assert peaks.x[0] == pytest.approx(20.3, abs=0.02)
    assert peaks.y[0] == pytest.approx(14.8, abs=0.02)
    assert peaks.mask_area[0] == (p[0] > 0.45).sum()


def test_a_plateau_is_one_peak_and_neighbours_two_pixels_off_are_one():
    p = np.zeros((4, 32, 40), np.float32)
    p[0, 10:12, 10:12] = 1.0
    p[1, 20, 30], p[1, 20, 38] = 0.8, 0.7
    peaks = find_peaks(p, np.zeros((32, 40), bool), 0.05)
    assert len(peaks) == 3
    assert peaks.unet_raw.is_monotonic_decreasing


def test_a_trail_is_one_peak_and_its_neighbour_another():
    p = np.zeros((4, 40, 60), np.float32)
    moving, transient = CLASSES.index("moving"), CLASSES.index("transient")
    p[moving, 20, [20, 26, 32]] = 0.5, 0.9, 0.4
    p[3, 19:22, 14:38] = 1.0
    p[transient, 30, [10, 16]] = 0.8, 0.7  # two stars whose light touches stay two
    p[3, 29:32, 8:19] = 1.0
    peaks = find_peaks(p, np.zeros((40, 60), bool), 0.05)
    assert sorted(zip(peaks.y.round(), peaks.x.round(), strict=True)) == [(20, 26), (30, 10), (30, 16)]


def drawn(*lines, shape=(100, 100), significance=8.0):
    """A significance image of noise with bright lines in it, each (x, y, length, angle in degrees)."""
    image = np.random.default_rng(5).normal(0, 1, shape)
    for x, y, length, angle in lines:
        step = np.linspace(-length / 2, length / 2, int(4 * length))
        rows = np.rint(y + step * np.sin(np.deg2rad(angle))).astype(int)
        image[rows, np.rint(x + step * np.cos(np.deg2rad(angle))).astype(int)] = significance
    return image


def test_a_peak_on_a_trail_is_joined_with_it():
    peaks = pd.DataFrame({"x": [50.0, 50.0], "y": [57.0, 66.0]})
    candidates = pd.DataFrame({"x": [50.5], "y": [50.0], "trail": [20.0], "angle": [90.0], "sign": [1]})
    score = drawn((50.5, 50.0, 20.0, 90.0))
    assert join(peaks, candidates, score).tolist() == [0, -1]
    assert join(peaks, candidates.assign(angle=0.0), score).tolist() == [-1, -1]
    assert join(peaks, candidates.assign(trail=5.0), score).tolist() == [-1, -1]
    assert join(peaks, candidates.assign(sign=-1), -score).tolist() == [0, -1]
    assert join(peaks, candidates, -score).tolist() == [-1, -1]


def test_what_is_masked_on_a_trail_counts_neither_way():
    peaks = pd.DataFrame({"x": [50.0], "y": [59.0]})
    candidates = pd.DataFrame({"x": [50.5], "y": [50.0], "trail": [20.0], "angle": [90.0], "sign": [1]})
    score = drawn((50.5, 50.0, 20.0, 90.0))
    score[52:57] = np.nan
    assert join(peaks, candidates, score).tolist() == [0]
    score[:] = np.nan
    assert join(peaks, candidates, score).tolist() == [-1]


def test_a_change_beside_crossing_artefacts_keeps_its_own_place():
    # A bad column that a satellite crosses is one region, whose axis runs between the two.
    score = drawn((30.0, 50.0, 90.0, 90.0), (50.0, 50.0, 80.0, 0.0))
    candidates = pd.DataFrame({"x": [30.0], "y": [50.0], "trail": [100.0], "angle": [45.0], "sign": [1]})
    peaks = pd.DataFrame({"x": [51.0, 60.0], "y": [71.0, 80.0]})  # both on that axis, on empty sky
    joined = join(peaks, candidates, score)
    assert joined.tolist() == [-1, -1]
    keep, joined = one_a_candidate(peaks, candidates, joined, score)
    assert keep.all()
    assert joined.tolist() == [-1, -1]
    # On the satellite's own line the second is a bead of the first, as before.
    trail = candidates.assign(angle=0.0)
    peaks = pd.DataFrame({"x": [60.0, 70.0], "y": [50.0, 50.5]})
    keep, joined = one_a_candidate(peaks, trail, join(peaks, trail, score), score)
    assert keep.tolist() == [True, False]
    assert joined[0] == 0


def test_beads_on_a_trail_are_one_detection():
    candidates = pd.DataFrame(
        {
            "x": [50.0, 80.0, 44.0],
            "y": [50.0, 20.0, 50.5],
            "trail": [20.0, 0.0, 0.0],
            "angle": [0.0, 0.0, 0.0],
            "sign": [1, 1, 1],
        }
    )
    score = drawn((50.0, 50.0, 22.0, 0.0))
    # By falling heat: a bead at the trail's end, its middle, a star on it with its own candidate, one off it.
    peaks = pd.DataFrame({"x": [59.0, 50.5, 44.0, 50.0, 80.2], "y": [51.0, 50.0, 50.5, 58.0, 20.0]})
    keep, joined = one_a_candidate(peaks, candidates, join(peaks, candidates, score), score)
    assert list(keep) == [True, False, True, True, True]
    assert list(joined[keep]) == [0, 2, -1, 1]


def test_the_nearest_pair_is_joined_first_and_each_once():
    peaks = pd.DataFrame({"x": [10.0, 12.0, 50.0], "y": [10.0, 10.0, 50.0]})
    candidates = pd.DataFrame({"x": [11.8, 90.0], "y": [10.0, 90.0]})
    assert join(peaks, candidates, np.zeros((100, 100))).tolist() == [-1, 0, -1]
    assert join(peaks, candidates.iloc[:0], np.zeros((100, 100))).tolist() == [-1, -1, -1]
