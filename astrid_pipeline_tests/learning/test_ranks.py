"""Several processes train the network that one would, go on after a kill, and only the first of them writes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn

from astrid_pipeline.errors import ConfigError, ModelError
from astrid_pipeline.learning import ranks
from astrid_pipeline.learning.loader import Loader, draw_batch
from astrid_pipeline.learning.ranks import Rank
from astrid_pipeline.learning.train import train
from astrid_pipeline.learning.train_config import TrainConfig
from astrid_pipeline.learning.weights import load_network
from astrid_pipeline_tests.learning.helpers import toy_set

SMALL = TrainConfig(
    options={"widths": [4, 8, 8], "dropout": 0.0},
    steps=8,
    batch=4,
    crop=32,
    validate_every=4,
    validate_images=1,
    checkpoint_every=2,
    seed=3,
    precision="float32",
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return toy_set(folder / "train", range(4)), toy_set(folder / "valid", range(100, 102))


@pytest.fixture(scope="module")
def alone(sets, tmp_path_factory):
    return train(*sets, "custom", SMALL, out=tmp_path_factory.mktemp("alone"))


def _largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max() / (1 + y.double().abs().max())) for x, y in pairs)


def test_two_processes_train_the_network_of_one(sets, alone, tmp_path):
    both = train(*sets, "custom", SMALL, out=tmp_path, processes=2)
    for key in ("loss", "heat_loss", "mask_loss", "valid_loss"):
        assert np.allclose([row[key] for row in both.history], [row[key] for row in alone.history], rtol=1e-4)
    # Adam divides by the gradient's own size, so that rounding in a gradient near 0 becomes a step: some 1e-4 here,
    # where the weights have moved by 1e-2 since they were drawn.
    assert _largest_difference(load_network(both.weights), load_network(alone.weights)) < 1e-3
    assert both.steps == alone.steps == 8
    assert both.joules > 0
    assert both.device == "2 × cpu"
    # Nothing of the second process lies about.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.safetensors"]


def _kill_at(step: int):
    def tell(done, total, figures):
        if done == step:
            (child, *_) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            os.kill(child.pid, signal.SIGKILL)

    return tell


def test_a_killed_process_ends_all_and_the_same_network_comes_of_going_on(sets, tmp_path):
    # Seconds of work, so that the kill comes in their middle.
    config = SMALL.replace(
        options={"widths": [4, 8, 8], "dropout": 0.1}, steps=40, crop=96, validate_every=20
    )
    whole = train(*sets, "custom", config, out=tmp_path / "whole", processes=2)
    with pytest.raises(ModelError, match="SIGKILL"):
        train(*sets, "custom", config, out=tmp_path / "killed", processes=2, progress=_kill_at(4))
    left = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
    # What two processes have begun, one does not go on with: its dropout would be another's.
    resumed = train(*sets, "custom", config, out=tmp_path / "killed", processes=2)
    assert resumed.resumed_from > 0
    same = _largest_difference(load_network(whole.weights), load_network(resumed.weights))
    assert same == 0, "the same seed gives the same network, killed or not, dropout too"


def test_what_goes_wrong_in_a_process_is_told_as_it_is(sets, tmp_path):
    with pytest.raises(ModelError, match="crops of 4096 px do not fit"):
        train(*sets, "custom", SMALL.replace(crop=4096), out=tmp_path, processes=2)


@pytest.mark.parametrize("processes", [0, 3])
def test_a_batch_that_cannot_be_shared_is_refused(sets, tmp_path, processes):
    with pytest.raises(ConfigError, match=r"batch of 4 .* by \d processes"):
        train(*sets, "custom", SMALL, out=tmp_path, processes=processes)


def test_the_shares_of_a_batch_are_the_batch(sets):
    whole = draw_batch(sets[0], SMALL, 5)
    shares = [draw_batch(sets[0], SMALL, 5, Rank(number, 2)) for number in range(2)]
    for part, *split in zip(whole, *shares, strict=True):
        assert torch.equal(part[0::2], split[0])
        assert torch.equal(part[1::2], split[1])


def test_crops_loaded_ahead_are_those_drawn_in_turn(sets):
    ahead = Loader(sets[0], SMALL, 3, torch.device("cpu"), Rank(), loaders=2)
    for step in range(3, 8):
        wanted = draw_batch(sets[0], SMALL, step)
        assert all(torch.equal(a, b) for a, b in zip(next(ahead), wanted, strict=True))
    with pytest.raises(StopIteration):
        next(ahead)
    assert ahead.waited > 0


def _normalise(number: int, meeting: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    values = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 5 + 100
    share = values[number::2].clone().requires_grad_()
    norm = ranks.over_whole_batches(nn.Sequential(nn.BatchNorm2d(3)), torch.device("cpu"))
    weight = torch.arange(6 * 60.0).reshape(6, 3, 4, 5).sin()[number::2]
    answer = norm(share)
    ranks.total((answer * weight).sum() ** 2 / 100).backward()
    torch.save((answer.detach(), share.grad, norm.state_dict()), out / f"{number}.pt")
    dist.destroy_process_group()


def test_batch_normalisation_over_processes_is_torchs_over_the_whole_batch(tmp_path):
    torch.multiprocessing.start_processes(
        _normalise, (tmp_path / "meeting", tmp_path), nprocs=2, start_method="spawn"
    )
    values = (torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 5 + 100).requires_grad_()
    norm = nn.BatchNorm2d(3)
    answer = norm(values)
    weight = torch.arange(6 * 60.0).reshape(6, 3, 4, 5).sin()
    # Each process squares its own share's sum, and each computes all of the loss: its gradient counts twice.
    (2 * sum((answer * weight)[n::2].sum() ** 2 / 100 for n in range(2))).backward()
    for number in range(2):
        theirs, gradient, state = torch.load(tmp_path / f"{number}.pt")
        assert torch.allclose(theirs, answer[number::2], atol=2e-5)
        assert torch.allclose(gradient, values.grad[number::2], rtol=1e-3, atol=1e-4)
        for name, value in norm.state_dict().items():
            assert torch.allclose(state[f"0.{name}"].double(), value.double(), rtol=1e-5)
