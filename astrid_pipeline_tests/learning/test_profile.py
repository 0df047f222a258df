"""Profiles: a known distortion of scores is undone on other sky, none is left alone, and the frame chooses its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from astrid_pipeline.cli.app import app
from astrid_pipeline.errors import ConfigError, ModelError
from astrid_pipeline.imaging import find_candidates
from astrid_pipeline.learning import ShardSet, detect, load_model
from astrid_pipeline.learning.calibration import Calibrator, choose, fit, logit, sigmoid
from astrid_pipeline.learning.data import build_shards
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.matching import FALSE, NEITHER, RIGHT
from astrid_pipeline.learning.profile import (
    IDENTITY,
    SurveyProfile,
    expected_threshold,
    fit_profile,
    judge_profile,
    sky_of,
    survey_peaks,
)
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.learning.helpers import toy_difference, toy_set
from astrid_pipeline_tests.services.homes import home

#: A detector whose score is the network's heat itself.
PLAIN = Detector(nn.Identity(), "plain", "1", Calibrator("temperature", np.array([1.0, 0.0])), threshold=0.5)
#: What the survey makes of it: too sure, and of false ones more than of real ones.
TRUE = Calibrator("beta", np.array([0.8, 1.4, -2.0]))


def _peaks(seed: int, count: int = 6000, truth: Calibrator = TRUE, pieces: int = 20) -> pd.DataFrame:
    """Peaks whose score, mapped by `truth`, is the chance that they are real."""
    rng = np.random.default_rng(seed)
    heat = sigmoid(rng.normal(-1.5, 3, count))
    verdict = np.where(rng.random(count) < truth(logit(heat)), RIGHT, FALSE)
    verdict[rng.random(count) < 0.02] = NEITHER
    piece = [f"f/{k}" for k in rng.integers(pieces, size=count)]
    return pd.DataFrame({"unet_raw": heat, "verdict": verdict, "piece": piece})


def _asked(peaks: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    wanted = peaks[peaks.verdict == RIGHT].piece.value_counts()
    return wanted, pd.Series(1.0, index=wanted.index)


def test_a_beta_map_is_found_again_and_rises_everywhere() -> None:
    peaks = _peaks(1, 60_000)
    peaks = peaks[peaks.verdict != NEITHER]
    z = logit(peaks.unet_raw)
    found = fit("beta", z, peaks.verdict == RIGHT)
    np.testing.assert_allclose(found(z), TRUE(z), atol=0.02)
    assert (np.diff(found(np.linspace(-14, 14, 2000))) > 0).all()
    again = Calibrator.from_tensors(found.tensors("x."), "x.")
    np.testing.assert_array_equal(again(z), found(z))
    # With slopes of one it leaves p as it is.
    np.testing.assert_allclose(Calibrator("beta", np.array([1.0, 1.0, 0.0]))(z), sigmoid(z), atol=1e-12)


def test_splits_by_chance_are_what_they_were() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=400)
    y = rng.random(400) < sigmoid(0.5 * z - 1)
    fold = np.empty(400, int)
    fold[np.random.default_rng(0).permutation(400)] = np.arange(400) % 5
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]
    assert choose(z, y).kind == choose(z, y, splits=splits).kind == "platt"


def test_a_survey_s_distortion_is_undone_on_sky_that_nothing_was_fitted_to() -> None:
    peaks = _peaks(2)
    verdict = judge_profile(PLAIN, peaks, *_asked(peaks))
    assert verdict.better
    assert verdict.before["ece"].value > 0.1
    assert verdict.after["ece"].value < 0.03
    assert verdict.after["ece"].high < verdict.before["ece"].low
    assert verdict.after["precision"].value == pytest.approx(0.985, abs=0.012)
    assert verdict.before["precision"].high < verdict.after["precision"].low
    made = fit_profile(PLAIN, peaks, name="toy", instruments=["Cam"])
    assert made.facts["kind"] == "beta"
    other = _peaks(3, 40_000)
    kept = made(other.unet_raw) >= made.threshold
    clear = (other.verdict != NEITHER).to_numpy()
    assert (other.verdict == RIGHT)[kept & clear].mean() == pytest.approx(0.985, abs=0.01)


def test_scores_that_mean_what_they_say_are_left_alone() -> None:
    kinds = [
        fit_profile(PLAIN, _peaks(seed, 1500, IDENTITY), name="good", instruments=["Cam"]).facts["kind"]
        for seed in range(8)
    ]
    assert kinds.count("none") >= 4
    peaks = _peaks(4, 1500, IDENTITY)
    verdict = judge_profile(PLAIN, peaks, *_asked(peaks))
    assert not verdict.better
    assert "not better beyond the interval" in verdict.reason
    # One piece of sky, nothing to try it on: nothing is changed.
    alone = fit_profile(PLAIN, _peaks(5, pieces=1), name="alone", instruments=["Cam"])
    assert alone.facts["kind"] == "none"
    with pytest.raises(ModelError, match="one piece of sky"):
        judge_profile(PLAIN, _peaks(5, pieces=1), *_asked(_peaks(5, pieces=1)))


def test_what_is_the_same_in_all_nights_of_a_place_does_not_count_as_often() -> None:
    """Each piece of sky has its own shift of all its scores: rows of the same piece must not judge one another."""
    rng = np.random.default_rng(6)
    shift = rng.normal(0, 2, 12)
    piece = np.repeat(np.arange(12), 150)
    z = rng.normal(0, 2, len(piece))
    real = rng.random(len(piece)) < sigmoid(z + shift[piece])
    peaks = pd.DataFrame(
        {"unet_raw": sigmoid(z), "verdict": np.where(real, RIGHT, FALSE), "piece": piece.astype(str)}
    )
    verdict = judge_profile(PLAIN, peaks, *_asked(peaks))
    assert not verdict.better
    by_row = judge_profile(PLAIN, peaks.assign(piece=np.arange(len(peaks)).astype(str)), *_asked(peaks))
    assert by_row.gain["log_loss"].high - by_row.gain["log_loss"].low < 0.5 * (
        verdict.gain["log_loss"].high - verdict.gain["log_loss"].low
    )


def test_too_few_of_a_kind_are_refused() -> None:
    with pytest.raises(ModelError, match="too few to fit a profile"):
        fit_profile(PLAIN, _peaks(1, 30), name="few", instruments=["Cam"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300))
def test_the_expected_threshold_is_where_the_mean_above_it_falls_to_the_target(seed: int, count: int) -> None:
    p = np.random.default_rng(seed).random(count) ** 0.05
    least = expected_threshold(p, precision=0.95)
    if p.max() >= 0.95:
        assert p[p >= least].mean() >= 0.95
        lower = p[p < least]
        assert not len(lower) or p[p >= lower.max()].mean() < 0.95
    else:
        assert least == 0.95


@pytest.mark.parametrize(("name", "instruments"), [("a b", ("x",)), ("", ("x",)), ("a", ())])
def test_a_profile_has_a_name_and_an_instrument(name: str, instruments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        SurveyProfile(name, instruments, IDENTITY, 0.5)


def test_the_frame_chooses_the_profile_and_its_name_stands_on_every_detection(tmp_path: Path) -> None:
    profile = SurveyProfile(
        "toy-cam", ("TOYCAM*",), Calibrator("platt", np.array([0.5, -1.0])), 0.3, {"real": 9}
    )
    packaged = load_model()
    packaged.replace(profiles=(profile,)).save(tmp_path / "d.safetensors")
    detector = load_model(tmp_path / "d.safetensors")
    (kept,) = detector.profiles
    assert (kept.name, kept.instruments, kept.threshold, dict(kept.facts)) == (
        "toy-cam",
        ("TOYCAM*",),
        0.3,
        {"real": 9},
    )
    found = {}
    for instrument in ("ToyCam 2", "another", ""):
        difference, _ = toy_difference(5, (128, 128), instrument=instrument)
        candidates = find_candidates(difference)
        found[instrument] = detect(difference, candidates, detector, threshold=0.0, passes=0)
        assert len(found[instrument])
    versions = {name: set(table["model_version"]) for name, table in found.items()}
    plain_version = packaged.version
    assert versions == {
        "ToyCam 2": {f"{plain_version}+toy-cam"},
        "another": {plain_version},
        "": {plain_version},
    }
    plain = found["another"].sort_values("candidate_id").score
    mapped = found["ToyCam 2"].sort_values("candidate_id").score
    np.testing.assert_allclose(np.sort(mapped), np.sort(profile(plain)), atol=1e-6)
    used = detector.for_survey({"instrument": "toycam 2"})
    assert used.threshold == 0.3
    assert used is detector.for_survey({"instrument": "TOYCAM"})
    assert used.for_survey({"instrument": "TOYCAM"}) is used
    assert used.inference_network is detector.inference_network
    with pytest.raises(ValueError, match="in use for toy-cam"):
        used.save(tmp_path / "e.safetensors")
    # It was fitted to this score: a detector whose score is made otherwise has no such profile.
    assert detector.replace(correction=None).profiles == ()
    assert detector.replace(version="2").profiles == detector.profiles


def test_tiles_that_overlap_are_one_piece_of_sky(tmp_path: Path) -> None:
    shards = toy_set(tmp_path, range(5), (96, 96))
    shards.images["sky"] = ["video/0-96", "video/96-192", "video/96-250", "a/b/0-0", "simulated-7"]
    assert sky_of(shards).tolist() == ["video/0-1", "video/1-2", "video/1-2", "a/b/0-0", "simulated-7"]


@pytest.fixture(scope="module")
def skies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skies")
    build_shards(folder, 10, seed=5, shape=(192, 192), split="profile", changes=250.0)
    return folder


def test_peaks_of_a_survey_know_what_could_be_found(skies: Path) -> None:
    shards = ShardSet(skies)
    peaks, wanted, area = survey_peaks(load_model(), shards)
    assert peaks.piece.nunique() <= 10
    truth = shards.truth
    assert wanted.sum() == (truth.usable & (truth.snr >= 4) & (truth.label != "artefact")).sum()
    assert area.sum() == pytest.approx(shards.megapixels)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with home() as settings:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        monkeypatch.setenv("ASTRID_HOME", str(settings.home))
        reset_settings()
        yield
    reset_settings()


@pytest.mark.mlflow
def test_the_command_carries_the_champion_on_if_the_profile_is_better(
    skies: Path, own: None, tmp_path: Path
) -> None:
    from astrid_pipeline.resources.detector import DETECTOR, DetectorResource
    from astrid_pipeline.resources.tracking import CHAMPION, Tracking

    # A champion whose scores are far too low: its injections must say so.
    low = load_model().replace(ensemble=None, calibrator=Calibrator("platt", np.array([0.4, -4.0])))
    low.save(tmp_path / "low.safetensors")
    tracking = Tracking()
    with tracking.attempt("low") as attempt:
        tracking.register(
            DETECTOR, {"low.safetensors": tmp_path / "low.safetensors"}, attempt.run_id, alias=CHAMPION,
            tags={"source": "labels", "dataset": "spring"},
        )  # fmt: skip
    command = ["train", "--profile", "toy", "--skies", str(skies), "--instrument", "TOY*", "--json"]
    ran = CliRunner().invoke(app, [*command, "--promote", "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["better"]
    assert told["promoted"] == f"{DETECTOR} version 2"
    assert told["figures"]["after_log_loss"] < told["figures"]["before_log_loss"]
    champion = DetectorResource(tracking=tracking).champion()
    assert champion.version == f"{DETECTOR}-2"
    assert champion.for_survey({"instrument": "Toy 1"}).version == f"{DETECTOR}-2+toy"
    found = tracking.find(DETECTOR)
    assert found is not None
    assert found.tags["source"] == "labels"  # the loop must know still what it has learned from
    assert found.tags["profile"] == "toy"
    # A profile of that name takes the place of the one before.
    file = str(tmp_path / "out" / "detector.safetensors")
    again = CliRunner().invoke(app, [*command[:-1], "--model", file, "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert [p.name for p in load_model(tmp_path / "again" / "detector.safetensors").profiles] == ["toy"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--profile", "x"],
        ["--profile", "x", "--skies", "a", "--field", "b"],
        ["--profile", "x", "--skies", "a"],
        ["--instrument", "VIRCAM"],
        ["--profile", "x", "--skies", "a", "--instrument", "I", "--model", "m", "--promote"],
    ],
)
def test_what_does_not_go_together_is_said(arguments: list[str], tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["train", *arguments, "-o", str(tmp_path)])
    assert ran.exit_code != 0
    assert isinstance(ran.exception, ConfigError) or "profile" in ran.output
