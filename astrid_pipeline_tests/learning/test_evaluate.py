from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.calibration import Calibrator
from astrid_pipeline.learning.card import model_card
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.energy import EnergyMeter
from astrid_pipeline.learning.evaluate import evaluate, score_shards
from astrid_pipeline.learning.matching import RIGHT
from astrid_pipeline.learning.metrics import judge
from astrid_pipeline.learning.second_stage import label_peaks, threshold_for
from astrid_pipeline.learning.train_config import TrainConfig, TrainingResult
from astrid_pipeline_tests.learning.helpers import toy_set
from astrid_pipeline_tests.learning.test_infer import ScoreNetwork


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return toy_set(tmp_path_factory.mktemp("toy"), range(20, 32), (128, 128), sources=6, snr=(5, 40))


@pytest.fixture(scope="module")
def detector():
    return Detector(
        ScoreNetwork().eval(), "score", "3", Calibrator("platt", np.array([1.0, 0.0])), threshold=0.5
    )


def test_figures_are_those_counted_by_hand(shards, detector):
    measured = evaluate(detector, shards, resamples=20)
    peaks, _ = score_shards(detector, shards)
    right = wanted = found_false = 0
    for index in range(len(shards)):
        mine = peaks[(peaks["image_id"] == shards.image_id(index)) & (peaks["score"] >= 0.5)]
        truth = shards.truth_of(index)
        asked = truth[(truth["snr"] >= 6) & truth["usable"]]
        near = np.hypot(
            mine["x"].to_numpy()[:, None] - asked["x"].to_numpy(),
            mine["y"].to_numpy()[:, None] - asked["y"].to_numpy(),
        )
        other = np.hypot(
            mine["x"].to_numpy()[:, None] - truth["x"].to_numpy(),
            mine["y"].to_numpy()[:, None] - truth["y"].to_numpy(),
        )
        right += int((near < 3).any(axis=0).sum())
        wanted += len(asked)
        found_false += int((other > 3).all(axis=1).sum())
    assert measured.best["recall"].value == pytest.approx(right / wanted)
    assert measured.best["false_per_mpix"].value == pytest.approx(
        found_false / shards.megapixels, abs=1 / shards.megapixels
    )
    assert measured.megapixels == pytest.approx(12 * 128 * 127 * 1e-6)
    assert measured.best["recall"].value > 0.9
    assert measured.figures["score_5_sigma"]["recall"].value > 0.9
    assert measured.classes.to_numpy().sum() > 0
    assert (measured.classes[["variable", "moving"]] == 0).all().all()  # this network says transient to all
    assert 0.2 < measured.iou <= 1
    assert all(np.isfinite(v) for v in measured.flat().values())
    assert {"ap", "precision", "recall", "snr_half", "recall_snr_7_10", "score_5_sigma.ap"} <= set(
        measured.flat()
    )


def test_peaks_are_labelled_as_they_are_judged(shards, detector):
    labelled = label_peaks(detector.inference_network, shards, min_snr=6)
    area = pd.Series(1.0, index=shards.images["image_id"])
    place = labelled.drop(columns=["x", "y"]).rename(
        columns={"peak_x": "x", "peak_y": "y", "unet_raw": "score"}
    )
    judged = judge(place[["image_id", "x", "y", "score"]], shards.truth, area, min_snr=6)
    assert (judged.table["verdict"].to_numpy() == labelled["verdict"].to_numpy()).all()
    right = labelled[labelled["verdict"] == RIGHT]
    assert len(right) > 40
    assert (right["truth_distance"] < 3).all()
    assert (right["truth_snr"] >= 6).all()
    assert set(right["truth_label"]) == {"transient", "variable", "moving"}


def test_threshold_is_the_lowest_that_keeps_the_precision():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    verdict = np.array([1, 1, 0, 1, 0])
    assert threshold_for(score, verdict, 0.95) == 0.8
    assert threshold_for(score, verdict, 0.75) == 0.6
    assert threshold_for(score, np.zeros(5, int), 0.9) == 0.5
    # Three right and one false are 6 to 1 where real ones are twice as frequent.
    assert threshold_for(score, verdict, 0.8) == 0.8
    assert threshold_for(score, verdict, 0.8, real_weight=2.0) == 0.6


def test_the_card_says_the_figures(shards, detector):
    measured = evaluate(detector, shards, resamples=10)
    config = TrainConfig(steps=7, seed=5)
    best = {"step": 7.0, "valid_ap": 0.5}
    result = TrainingResult(
        Path("network.safetensors"),
        [best],
        best,
        7,
        False,
        0,
        1.0,
        12.0,
        "estimated",
        "f" * 64,
        "cpu",
        2_100_000,
        config,
    )
    card = model_card(detector, measured, result, {"test": {"images": 12, "shape": [128, 128]}})
    assert str(measured.best["ap"]) in card
    assert "score 3" in card.splitlines()[0]
    assert "estimated" in card
    assert "nan" not in card


def test_an_evaluation_needs_its_candidates(tmp_path, detector):
    from astrid_pipeline.learning.second_stage import fit_real_bogus_on

    small = toy_set(tmp_path, range(2), sources=1)
    with pytest.raises(ModelError):
        fit_real_bogus_on(label_peaks(detector.inference_network, small))


def test_energy_is_counted_or_marked_as_estimated():
    with EnergyMeter() as meter:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert meter.source.split("+")[0] in ("rapl", "estimated")
    assert meter.joules > 0.5
    assert meter.seconds >= 0.2
