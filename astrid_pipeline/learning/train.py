"""Training a network: on any device, by one process or several, the same by seed, and on again after a kill."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import ranks, weights
from astrid_pipeline.learning.energy import EnergyMeter
from astrid_pipeline.learning.loader import Batch, Loader
from astrid_pipeline.learning.losses import heat_loss, mask_loss
from astrid_pipeline.learning.network import half_precision, pick_device
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.train_config import TrainConfig, TrainingResult, config_for
from astrid_pipeline.learning.unet import build_network, count_parameters

#: Called after each step with the step's number, the steps in all, and the newest figures.
Progress = Callable[[int, int, dict[str, float]], None]

#: Differences of average precision that a dozen validation images cannot tell from none.
_AP_NOISE = 0.01


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the one-cycle rate of a step: cosine from 1/25 of the peak up, then down to 1/10 000 of it."""
    rise = config.warm_up * config.steps
    if step < rise:
        start, stop, share = config.learning_rate / 25, config.learning_rate, step / rise
    else:
        start, stop = config.learning_rate, config.learning_rate / 1e4
        share = (step - rise) / max(config.steps - rise, 1)
    return stop + (start - stop) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _losses(
    network: nn.Module, batch: Batch, config: TrainConfig, device: torch.device, bf16: bool
) -> list[Tensor]:
    planes, heat, mask, weight = (part.to(device, non_blocking=True) for part in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = network(planes.contiguous(memory_format=torch.channels_last))
    first = heat_loss(logits[:, :-1], heat, weight, ranks.total)
    second = mask_loss(logits[:, -1], mask, weight, ranks.total)
    return [first + config.mask_weight * second, first, second]


class _Run:
    """The state of one training, which a checkpoint holds whole."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.rank = config, device, ranks.current()
        network = build_network(config.network, **config.options)
        if self.rank.world > 1:
            network = ranks.over_whole_batches(network, device)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        auto = config.precision == "auto" and half_precision(device)
        self.bf16 = auto or config.precision == "bfloat16"
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.best_state: dict[str, Tensor] = {}
        self.recent: list[list[float]] = []
        self.seconds = 0.0
        self.parallel: nn.Module | None = None

    def advance(self, batch: Batch) -> list[float]:
        """Do one step and return loss, heat loss and mask loss."""
        # Each process drops channels of its own; the first as if it were alone.
        drawn = [self.config.seed, 2, self.step, *([self.rank.number] if self.rank.number else [])]
        torch.manual_seed(int(np.random.SeedSequence(drawn).generate_state(1)[0]))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.network.train()
        if self.parallel is None:
            # Not before its values are what a checkpoint or another network says: they go to all processes.
            self.parallel = ranks.in_parallel(self.network, self.device)
        losses = _losses(self.parallel, batch, self.config, self.device, self.bf16)
        if not torch.isfinite(losses[0]):
            raise ModelError(
                f"the loss became {losses[0].item()} at step {self.step}",
                where="training",
                remedy="lower learning_rate, or look for damaged images in the set",
            )
        self.optimiser.zero_grad(set_to_none=True)
        losses[0].backward()
        # Heat maps' gradients are heavy-tailed: one crop without a source can be a hundred times the usual.
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        return [float(x.detach()) for x in losses]

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Write all of it to `path`, whole or not at all."""
        state = {
            "key": key,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "recent": self.recent,
            "best": self.best,
            "best_state": self.best_state,
            "seconds": self.seconds,
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path, key: dict[str, Any]) -> bool:
        """Take up what `path` holds; return False where it belongs to another training.

        Raises
        ------
        ModelError
            If the checkpoint is damaged.
        """
        try:
            # weights_only: tensors and plain values are read, and no code is run.
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["key"] != key:
                return False
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.recent = state["recent"]
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            remedy = "remove it, or train with resume=False"
            raise ModelError(f"the checkpoint cannot be read: {error}", where=path, remedy=remedy) from error
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.best_state, self.seconds = state["best_state"], state["seconds"]
        return True


def _stale(run: _Run) -> bool:
    """Return whether the last `patience` validations brought nothing better."""
    if not run.config.patience or not run.best:
        return False
    since = [row for row in run.history if row["step"] > run.best["step"]]
    return len(since) >= run.config.patience


def train(
    train_shards: ShardSet,
    valid_shards: ShardSet,
    mode: str = "full",
    config: TrainConfig | None = None,
    *,
    out: Path,
    device: str | torch.device | None = None,
    resume: bool = True,
    initial: nn.Module | None = None,
    progress: Progress | None = None,
    processes: int = 1,
    loaders: int | None = None,
) -> TrainingResult:
    """Train a network and write the best one, by validation, to ``out/network.safetensors``.

    Parameters
    ----------
    train_shards, valid_shards:
        Sets that share no piece of sky.
    mode, config:
        See `train_config.config_for`.
    out:
        Folder for the weights and the checkpoint (``checkpoint.pt``, removed at the end).
    resume:
        Go on from the checkpoint in `out` if it belongs to the same settings and data.
    initial:
        A network of the same make to start from instead of random weights: nights add to what is known.
    processes:
        That share each batch, on this machine: one a GPU. Processes that `torchrun` or another has started, with
        torch's process group made, call this as they are; all need the same `out`.
    loaders:
        Processes that draw crops ahead of time, for each that trains; None: by the device (`loader.loaders_for`). They
        change nothing of the result.

    Raises
    ------
    ConfigError
        If so many processes cannot share the batch, or the GPUs.
    ModelError
        If the loss diverges, a checkpoint is damaged, or a process was killed.
    """
    config = config_for(mode, config)
    where = pick_device(device)
    out.mkdir(parents=True, exist_ok=True)
    rank = ranks.current()
    ranks.check_processes(processes if rank.world == 1 else rank.world, where, config.batch)
    if processes > 1 and rank.world == 1:
        given = {"train_shards": train_shards, "valid_shards": valid_shards, "mode": mode, "config": config}
        given |= {"out": out, "resume": resume, "initial": initial, "loaders": loaders}
        with EnergyMeter() as meter:
            made = ranks.train_in_processes(processes, given, where, progress)
        return dataclasses.replace(made, joules=meter.joules, energy_source=meter.source)
    checkpoint = out / "checkpoint.pt"
    run = _Run(config, where)
    key: dict[str, Any] = {
        "config": weights.canonical(config.as_dict()),
        "data": train_shards.hash,
        "device": where.type,
    }
    if rank.world > 1:
        key["processes"] = rank.world
    if initial is not None:
        key["initial"] = weights.digest(weights.network_tensors(initial))
        try:
            run.network.load_state_dict(initial.state_dict())
        except RuntimeError as error:
            raise ModelError(
                f"the network to start from is another one: {error}",
                where="training",
                remedy="start without it",
            ) from error
    there = ranks.agree(resume and checkpoint.exists())
    resumed = run.step if there and run.load(checkpoint, key) else 0
    if ranks.agree(resumed) != resumed:
        raise ModelError(
            "the processes have not all read the same checkpoint",
            where=checkpoint,
            remedy="give all of them one folder",
        )
    total = config.steps
    figures: dict[str, float] = {}
    before = torch.are_deterministic_algorithms_enabled()
    # warn_only: on a GPU the gradient of the transposed convolutions has no deterministic form in some versions.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with EnergyMeter() as meter:
            stopped = ranks.agree(_stale(run))
            began, earlier = time.perf_counter(), run.seconds
            # Nothing is loaded where nothing is left to do.
            batches = Loader(train_shards, config, total if stopped else run.step, where, rank, loaders)
            while run.step < total and not stopped:
                run.recent.append(run.advance(next(batches)))
                run.seconds = earlier + time.perf_counter() - began
                at_look = run.step % config.validate_every == 0 or run.step == total
                if rank.first:
                    figures["loss"] = float(np.mean([r[0] for r in run.recent[-50:]]))
                    if at_look:
                        figures |= _validate(run, valid_shards, np.mean(run.recent, axis=0).tolist())
                if at_look:
                    run.recent.clear()
                    stopped = ranks.agree(_stale(run))
                if not rank.first:
                    continue
                if run.step % config.checkpoint_every == 0 and run.step < total:
                    run.save(checkpoint, key)
                if progress is not None:
                    progress(run.step, total, dict(figures))
    finally:
        torch.use_deterministic_algorithms(before)
    path = out / "network.safetensors"
    if not rank.first:
        return ranks.agree(cast(TrainingResult, None))
    run.network.load_state_dict(run.best_state)
    facts = {"data_hash": train_shards.hash, "step": run.best["step"], "valid_ap": run.best["valid_ap"]}
    weights.save_network(path, run.network, facts)
    checkpoint.unlink(missing_ok=True)
    return ranks.agree(
        TrainingResult(
            weights=path,
            history=run.history,
            best=run.best,
            steps=run.step,
            stopped_early=stopped and run.step < total,
            resumed_from=resumed,
            seconds=meter.seconds,
            joules=meter.joules,
            energy_source=meter.source,
            data_hash=train_shards.hash,
            device=str(where) if rank.world == 1 else f"{rank.world} × {where.type}",
            parameters=count_parameters(run.network),
            config=config,
            waited=batches.waited,
        )
    )


def _better(row: dict[str, float], best: dict[str, float]) -> bool:
    """Return whether a validation is better than the best so far: by average precision, by the loss where that is even.

    On a dozen images an average precision is good to `_AP_NOISE`; the loss hears every pixel.
    """
    gain = row["valid_ap"] - best["valid_ap"]
    return gain > _AP_NOISE or (gain >= -_AP_NOISE and row["valid_loss"] < best["valid_loss"])


def _validate(run: _Run, shards: ShardSet, means: list[float]) -> dict[str, float]:
    """Append a row to the history, keep the network if it is the best so far, and return the row."""
    from astrid_pipeline.learning.validate import validate_network

    measured = validate_network(run.network, shards, run.config, run.device)
    row = {
        "step": run.step,
        "loss": means[0],
        "heat_loss": means[1],
        "mask_loss": means[2],
        **measured,
        "learning_rate": learning_rate(run.step - 1, run.config),
        "seconds": run.seconds,
    }
    run.history.append(row)
    if not run.best or _better(row, run.best):
        run.best = row
        run.best_state = {name: value.detach().clone() for name, value in run.network.state_dict().items()}
    return row
