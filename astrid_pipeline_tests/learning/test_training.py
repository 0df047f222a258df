from __future__ import annotations

import numpy as np
import pytest
import torch

from astrid_pipeline.errors import ConfigError, ModelError
from astrid_pipeline.learning import train as training
from astrid_pipeline.learning.loader import draw_batch
from astrid_pipeline.learning.network import predict
from astrid_pipeline.learning.train import learning_rate, train
from astrid_pipeline.learning.train_config import TrainConfig, config_for
from astrid_pipeline.learning.weights import load_network
from astrid_pipeline_tests.learning.helpers import toy_set

SMALL = TrainConfig(
    options={"widths": [4, 8, 8], "dropout": 0.1},
    steps=12,
    batch=2,
    crop=32,
    validate_every=6,
    validate_images=1,
    checkpoint_every=4,
    seed=3,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return toy_set(folder / "train", range(4)), toy_set(folder / "valid", range(100, 102))


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_same_seed_same_network_and_another_seed_another(sets, tmp_path):
    first = load_network(train(*sets, "custom", SMALL, out=tmp_path / "a").weights)
    second = load_network(train(*sets, "custom", SMALL, out=tmp_path / "b").weights)
    third = load_network(train(*sets, "custom", SMALL.replace(seed=4), out=tmp_path / "c").weights)
    assert _same(first, second)
    assert not _same(first, third)


@pytest.mark.parametrize("killed_at", [1, 4, 7, 11])
def test_a_killed_training_goes_on_to_the_very_same_network(sets, tmp_path, killed_at):
    whole = train(*sets, "custom", SMALL, out=tmp_path / "whole")

    def kill(step, total, figures):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*sets, "custom", SMALL, out=tmp_path / "killed", progress=kill)
    resumed = train(*sets, "custom", SMALL, out=tmp_path / "killed")
    # A checkpoint is written before the progress is told, every 4 steps.
    assert resumed.resumed_from == killed_at // 4 * 4
    assert _same(load_network(whole.weights), load_network(resumed.weights))
    assert [row["valid_loss"] for row in whole.history] == [row["valid_loss"] for row in resumed.history]
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in resumed.history]
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


def test_a_checkpoint_of_other_settings_is_not_taken_up(sets, tmp_path):
    def kill(step, total, figures):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*sets, "custom", SMALL, out=tmp_path, progress=kill)
    assert (tmp_path / "checkpoint.pt").exists()
    assert train(*sets, "custom", SMALL.replace(learning_rate=1e-3), out=tmp_path).resumed_from == 0


def test_a_damaged_checkpoint_is_named(sets, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(ModelError, match="checkpoint"):
        train(*sets, "custom", SMALL, out=tmp_path)
    assert train(*sets, "custom", SMALL, out=tmp_path, resume=False).resumed_from == 0


def test_a_checkpoint_cannot_run_code(sets, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"key": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError):
        train(*sets, "custom", SMALL, out=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_early_stopping_keeps_the_best(sets, tmp_path):
    # A rate that high makes nothing better after the first look.
    config = SMALL.replace(steps=40, validate_every=2, patience=3, learning_rate=0.5, warm_up=0.01)
    result = train(*sets, "custom", config, out=tmp_path)
    if result.stopped_early:
        assert result.steps < 40
        assert result.steps - result.best["step"] == 6
    assert result.best["valid_ap"] == max(row["valid_ap"] for row in result.history)


def test_patience_stops_a_training_that_gets_no_better(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "astrid_pipeline.learning.validate.validate_network",
        lambda *_: {"valid_loss": 1.0, "valid_ap": 0.5, "valid_iou": 0.0},
    )
    config = SMALL.replace(steps=100, validate_every=2, patience=3)
    result = train(*sets, "custom", config, out=tmp_path)
    assert (result.steps, result.stopped_early, result.best["step"]) == (8, True, 2)


def test_quick_mode_is_3_epochs_of_20_samples(sets, tmp_path):
    config = config_for("quick")
    assert config.steps * config.batch == 60
    result = train(*sets, "quick", TrainConfig(options=SMALL.options), out=tmp_path)
    assert result.steps == 15
    assert result.weights.exists()
    assert np.isfinite(result.best["valid_loss"])
    assert result.joules > 0
    assert result.energy_source


@pytest.mark.parametrize(("mode", "config"), [("fast", None), ("custom", None)])
def test_wrong_modes(mode, config):
    with pytest.raises(ConfigError):
        config_for(mode, config)


@pytest.mark.parametrize("change", [{"steps": 0}, {"crop": 40}, {"learning_rate": 0.0}, {"network": "vgg"}])
def test_wrong_settings(change):
    with pytest.raises(ConfigError):
        TrainConfig(**change)


def test_the_rate_rises_to_its_peak_and_falls():
    config = TrainConfig(steps=100, warm_up=0.25, learning_rate=1e-2)
    rates = [learning_rate(i, config) for i in range(100)]
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates[25] == pytest.approx(1e-2)
    assert np.argmax(rates) == 25
    assert rates[-1] < 1e-4
    assert all(np.diff(rates[:25]) > 0)
    assert all(np.diff(rates[26:]) < 0)


def test_crops_turn_image_and_target_together(sets):
    planes, heat, mask, weight = draw_batch(sets[0], SMALL.replace(batch=64), 0)
    assert planes.shape == (64, 4, 32, 32)
    # At each source's pixel the score plane stands out, however the crop was turned.
    n, _, y, x = torch.nonzero((heat == 1) & (weight[:, None] > 0), as_tuple=True)
    assert len(n) > 10
    score = planes[n, 3, y, x]
    assert (score > 0.8).float().mean() > 0.95  # asinh(5/2)/1.5 = 1.1
    assert (mask[n, y, x] == 1).all()
    # Unusable pixels are zero in all planes and count nothing.
    assert ((planes == 0).all(dim=1) <= (weight == 0)).all()


def test_a_loss_that_diverges_is_an_error(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "heat_loss", lambda logits, *_: logits.sum() * float("nan"))
    with pytest.raises(ModelError, match="step 0"):
        train(*sets, "custom", SMALL, out=tmp_path)


@pytest.mark.slow
def test_a_small_network_learns_a_small_set_by_heart(tmp_path):
    few = toy_set(tmp_path / "few", range(2), (64, 64), sources=4, snr=(10, 40))
    config = TrainConfig(
        options={"widths": [8, 16, 32], "dropout": 0.0},
        steps=220,
        batch=4,
        crop=64,
        learning_rate=1e-2,
        validate_every=110,
        checkpoint_every=1000,
        seed=1,
    )
    result = train(few, few, "custom", config, out=tmp_path)
    assert result.best["valid_ap"] > 0.95
    assert result.best["valid_iou"] > 0.6
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    network = load_network(result.weights)
    for index in range(2):
        heat = predict(network, few.planes(index))[:-1]
        for row in few.truth_of(index).itertuples():
            if row.usable:
                near = heat[:, round(row.y) - 1 : round(row.y) + 2, round(row.x) - 1 : round(row.x) + 2]
                assert near.max() > 0.3
