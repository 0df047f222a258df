"""Crops of labelled images on their way into a training: drawn by seed and step alone, ahead of their turn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.ranks import Rank
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.train_config import TrainConfig

Batch = tuple[Tensor, Tensor, Tensor, Tensor]

#: Batches that each loading process keeps ready.
AHEAD = 4
#: Most processes that load for one GPU; `python -m astrid_pipeline_tests.benchmarks.loading` measures what each gives.
MOST_LOADERS = 8


def draw_batch(shards: ShardSet, config: TrainConfig, step: int, rank: Rank | None = None) -> Batch:
    """Return the crops of a step: planes (N, 4, s, s), heat, mask and weight.

    They depend on the seed and the step alone, so a training that goes on sees what it would have seen. Each crop
    is turned and mirrored at random; the split was made before, by sky. With `rank`, only that process's share of them.

    Raises
    ------
    ModelError
        If crops do not fit into the images.
    """
    rank = rank or Rank()
    rng = np.random.default_rng([config.seed, 1, step])
    count = min(config.limit_images or len(shards), len(shards))
    height, width = shards.shape
    if min(height, width) < config.crop:
        raise ModelError(f"crops of {config.crop} px do not fit into images of {height} × {width}")
    parts: list[list[npt.NDArray[np.float32]]] = [[], [], [], []]
    for number in range(config.batch):
        index = int(rng.integers(count))
        y0 = int(rng.integers(height - config.crop + 1))
        x0 = int(rng.integers(width - config.crop + 1))
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        if number % rank.world != rank.number:
            continue
        planes, target = shards.crop(index, y0, x0, config.crop)
        for part, array in zip(parts, (planes, target.heat, target.mask, target.weight), strict=True):
            array = array[..., ::-1] if mirror else array
            part.append(np.rot90(array, turns, axes=(-2, -1)))
    stacked = [torch.from_numpy(np.ascontiguousarray(np.stack(part))) for part in parts]
    return stacked[0], stacked[1], stacked[2], stacked[3]


class _Steps(Dataset[Batch]):
    """The batches of all steps, by step."""

    def __init__(self, shards: ShardSet, config: TrainConfig, rank: Rank) -> None:
        self.shards, self.config, self.rank = shards, config, rank

    def __getitem__(self, step: int) -> Batch:
        return draw_batch(self.shards, self.config, step, self.rank)


def loaders_for(device: torch.device, world: int = 1) -> int:
    """Return how many processes load: none beside a processor, which they would only take it from; else by cores."""
    if device.type != "cuda":
        return 0
    return max(1, min(MOST_LOADERS, (os.cpu_count() or 1) // world - 1))


class Loader:
    """The batches of a training from `start` on, each ready before it is wanted where there are loading processes.

    Attributes
    ----------
    waited:
        Seconds that the training has waited for batches so far.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: TrainConfig,
        start: int,
        device: torch.device,
        rank: Rank,
        loaders: int | None = None,
    ) -> None:
        count = loaders_for(device, rank.world) if loaders is None else loaders
        more: dict[str, Any] = {}
        if count:
            # spawn: the parent may have threads (torch, Dagster), which a fork would copy half way.
            more = {
                "multiprocessing_context": "spawn",
                "prefetch_factor": AHEAD,
                "worker_init_fn": _one_thread,
            }
        self.waited = 0.0
        self._batches: Iterator[Batch] = iter(
            DataLoader(
                _Steps(shards, config, rank),
                batch_size=None,
                sampler=range(start, config.steps),
                num_workers=count,
                pin_memory=device.type == "cuda",
                **more,
            )
        )

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return batch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
