"""Data from the simulator through differencing, and a training from nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from astrid_pipeline.errors import ConfigError, ModelError
from astrid_pipeline.learning.build import main
from astrid_pipeline.learning.data import build_shards, image_seed, simulate_difference
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.targets import SOURCE_BIT
from astrid_pipeline.learning.unet import CLASSES
from astrid_pipeline.learning.weights import load_network
from astrid_pipeline.learning.workflow import run_training

SHAPE = (192, 192)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    build_shards(folder, 3, seed=1, shape=SHAPE)
    return ShardSet(folder)


def test_images_hold_what_the_truth_says(made):
    assert len(made) == 3
    assert made.shape == SHAPE
    real = made.truth[made.truth["label"].isin(CLASSES)]
    assert len(real) >= 6
    # Bright changes stand out of the score at the place and with the sign that the truth gives.
    checked = 0
    for index in range(len(made)):
        truth = made.truth_of(index)
        wanted = truth[(truth["label"] == "transient") & truth["usable"] & (truth["snr"] > 15)]
        for row in wanted.itertuples():
            y, x = round(row.y), round(row.x)
            near = made.planes(index)[3, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].astype(float)
            assert (np.sign(row.flux) * near).max() > np.arcsinh(4 / 2) / 1.5
            assert made.labels(index)[max(y, 0), max(x, 0)] & SOURCE_BIT
            checked += 1
    assert checked >= 2
    assert made.images["score_sigma"].between(0.9, 1.1).all()
    assert made.images["sky"].is_unique


def test_a_killed_build_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    monkeypatch.setattr("astrid_pipeline.learning.data.SHARD_IMAGES", 1)

    def kill(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(tmp_path, 3, seed=1, shape=SHAPE, progress=kill)
    steps = []
    build_shards(tmp_path, 3, seed=1, shape=SHAPE, progress=lambda done, total: steps.append(done))
    assert steps == [2, 3]
    again = ShardSet(tmp_path)
    for index in range(3):
        np.testing.assert_array_equal(again.planes(index), made.planes(index))
        np.testing.assert_array_equal(again.labels(index), made.labels(index))


def test_another_set_is_not_mixed_into_a_folder(tmp_path):
    build_shards(tmp_path, 1, seed=1, shape=(128, 128))
    with pytest.raises(ModelError, match="another set"):
        build_shards(tmp_path, 1, seed=2, shape=(128, 128))
    with pytest.raises(ModelError, match="cannot be built"):
        build_shards(tmp_path, 0)


def test_every_kind_of_change_and_artefact_and_case_occurs():
    # The recipe is drawn from the seed before anything is rendered, so small frames show it cheaply.
    cases, kinds = set(), set()
    for i in range(10):
        image = simulate_difference(image_seed(3, "kinds", i), (128, 128))
        cases.add(image.case)
        kinds |= set(image.truth["label"])
    assert {*CLASSES, "artefact"} == kinds
    assert len(cases) >= 2


def test_a_spoiled_sky_shows_artefacts_that_no_mask_covers():
    seen: dict[str, int] = {}
    for i in range(3):
        image = simulate_difference(image_seed(3, "spoiled", i), (192, 192), changes=20.0, spoiled=True)
        assert image.case == "spoiled"
        bad = image.truth[(image.truth["label"] == "artefact") & image.truth["usable"]]
        for kind, count in bad["kind"].value_counts().items():
            seen[str(kind)] = seen.get(str(kind), 0) + int(count)
    assert {"cosmic_ray", "hot_pixel", "bad_column", "ghost", "satellite_trail", "dipole", "edge"} <= set(
        seen
    )
    assert seen["cosmic_ray"] >= 5
    plain = simulate_difference(image_seed(3, "spoiled", 0), (192, 192), changes=20.0)
    assert plain.case != "spoiled"


def test_skies_to_measure_on_hold_as_many_changes_as_asked_for():
    for i in range(2):
        image = simulate_difference(image_seed(3, "sparse", i), (192, 192), changes=400.0)
        real = image.truth[image.truth["label"].isin(CLASSES)]
        expected = 400 * 192**2 / 2**20
        # Each of three kinds is rounded by chance; a crowded frame has no place for the last of them.
        assert expected - 6 <= len(real) <= expected + 3
        # Asked for is 3 to 50; what else is put there, and saturation, change the noise afterwards.
        assert real["snr"].between(2.0, 75.0).all()


@pytest.mark.slow
def test_quick_training_from_nothing(tmp_path):
    told = []
    outcome = run_training(
        "quick", tmp_path, seed=2, n_images=2, shape=(128, 128), report=lambda stage, *_: told.append(stage)
    )
    assert outcome.detector is None  # its network is a check, not a model
    assert set(told) == {"data: train", "data: held_out", "training"}
    load_network(outcome.files["network"])
    assert outcome.result.steps == 15
    # A second call finds its data and repeats the training to the same weights.
    again = run_training("quick", tmp_path, seed=2, n_images=2, shape=(128, 128))
    assert again.result.data_hash == outcome.result.data_hash
    assert [r["valid_loss"] for r in again.result.history] == [
        r["valid_loss"] for r in outcome.result.history
    ]


def test_custom_needs_its_numbers_and_the_command_says_so(tmp_path, capsys):
    with pytest.raises(ConfigError, match="custom"):
        run_training("custom", tmp_path)
    assert main([str(tmp_path), "--mode", "custom"]) == 2
    assert "custom" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_make_the_same_set_and_end_with_their_parent(tmp_path, monkeypatch):
    """A killed parent must leave no process behind, and the number of workers must change nothing."""
    code = (
        "from pathlib import Path; import sys\n"
        "from astrid_pipeline.learning import data\n"
        "data.SHARD_IMAGES = 1\n"
        "if __name__ == '__main__':\n"
        "    data.build_shards(Path(sys.argv[1]), 3, seed=1, shape=(128, 128), workers=2, progress=print)\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "set")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    for _ in range(2):  # "0 3", then a first shard
        parent.stdout.readline()
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.5)
    monkeypatch.setattr("astrid_pipeline.learning.data.SHARD_IMAGES", 1)
    build_shards(tmp_path / "set", 3, seed=1, shape=(128, 128))
    build_shards(tmp_path / "alone", 3, seed=1, shape=(128, 128))
    assert ShardSet(tmp_path / "set").hash == ShardSet(tmp_path / "alone").hash
