"""Several processes that train one network: torch's DistributedDataParallel, each with its share of every batch.

Losses and batch normalisation are taken over the whole batch, wherever its crops are, so that the network is that of
one process with the same batch to within rounding (dropout, which every process draws for itself, apart).
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException

from astrid_pipeline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from astrid_pipeline.learning.train_config import TrainingResult

T = TypeVar("T")
Progress = Callable[[int, int, dict[str, float]], None]

#: Longest that a process waits for another: the first alone validates and writes meanwhile.
PATIENCE = dt.timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this is; the first writes, validates and tells."""

    number: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0


def current() -> Rank:
    """Return this process's rank: (0, 1) where it trains alone."""
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank()


class _Total(torch.autograd.Function):
    """The sum over all processes. Each computes the whole loss from it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Total.apply(gradients[0])


def total(value: Tensor) -> Tensor:
    """Return the sum of `value` over all processes, with its gradient; `value` itself where there is one."""
    return value if current().world == 1 else _Total.apply(value)


def agree(value: T) -> T:
    """Return the first process's `value` in all of them."""
    if current().world == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


class WholeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the crops of all processes: `torch.nn.SyncBatchNorm`, which wants GPUs, elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, C, H, W) normalised by mean and variance of all processes' values, while training."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        counts, sums = torch.split(total(torch.cat([count, values.sum(dim=(0, 2, 3))])), [1, values.shape[1]])
        mean = sums / counts
        # About the mean of all: the difference of large squares would lose what little there is between them.
        away = values - mean[:, None, None]
        variance = total((away**2).sum(dim=(0, 2, 3))) / counts
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * counts / (counts - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (away * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def over_whole_batches(network: nn.Module, device: torch.device) -> nn.Module:
    """Return `network` with batch normalisation over all processes; names and values of its parameters stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = WholeBatchNorm2d(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return network


def in_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Return what is called to train `network` in all processes: itself where there is one."""
    if current().world == 1:
        return network
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids)


def check_processes(processes: int, device: torch.device, batch: int) -> None:
    """Raise `ConfigError` if so many processes cannot share a batch, or the GPUs."""
    if processes < 1 or batch % processes:
        raise ConfigError(
            f"a batch of {batch} crops cannot be shared by {processes} processes",
            where="training settings",
            remedy="choose a number of processes that divides the batch",
        )
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"{processes} processes, and {torch.cuda.device_count()} GPUs",
            where="training settings",
            remedy="start one process a GPU, or train on the device cpu",
        )


def train_in_processes(
    processes: int, arguments: Mapping[str, Any], device: torch.device, progress: Progress | None
) -> TrainingResult:
    """Call `train.train` with `arguments` in so many processes on this machine; return what the first made.

    Raises
    ------
    AstridError
        What `train` raised.
    ModelError
        If a process was killed; what its last checkpoint holds is gone on from.
    """
    context = torch.multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    result: list[TrainingResult] = []
    errors: list[BaseException] = []

    def listen() -> None:
        while not told.empty():
            kind, what = told.get()
            if kind == "progress" and progress is not None:
                progress(*what)
            elif kind == "done":
                result.append(what)
            elif kind == "error":
                errors.append(what)

    with tempfile.TemporaryDirectory(prefix="astrid-ranks-") as folder:
        threads = max(1, torch.get_num_threads() // processes)
        given = (processes, Path(folder) / "meeting", dict(arguments), device.type, threads, told)
        started = torch.multiprocessing.start_processes(
            _train, given, nprocs=processes, join=False, start_method="spawn"
        )
        try:
            while not started.join(timeout=0.1):
                listen()
        except ProcessException as error:
            listen()
            if errors:
                raise errors[0] from error
            raise ModelError(
                f"a process that trained ended: {str(error).strip().splitlines()[-1]}",
                where="training",
                remedy="run it again: it goes on from its last checkpoint",
            ) from error
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        listen()
    return result[0]


def _train(
    number: int,
    processes: int,
    meeting: Path,
    arguments: dict[str, Any],
    device: str,
    threads: int,
    told: Any,
) -> None:
    """Be one of the processes: meet the others through a file, and train."""
    from astrid_pipeline.errors import AstridError
    from astrid_pipeline.learning.train import train

    torch.set_num_threads(threads)
    where = torch.device("cuda", number) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=processes,
        timeout=PATIENCE,
    )
    try:
        result = train(**arguments, device=where, progress=lambda *figures: told.put(("progress", figures)))
        if number == 0:
            told.put(("done", result))
    except AstridError as error:
        told.put(("error", error))
        raise
    finally:
        dist.destroy_process_group()
