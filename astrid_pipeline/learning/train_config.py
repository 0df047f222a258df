"""How a network is trained, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrid_pipeline.errors import ConfigError

MODES: tuple[str, ...] = ("quick", "full", "custom")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes
    ----------
    network, options:
        ``unet`` or ``unetpp``, and what to build it with (`unet.build_network`).
    steps:
        Optimiser steps; the learning rate's one cycle (Smith & Topin 2019) is laid over them.
    batch, crop:
        Crops a step and their side, a multiple of 16 px.
    learning_rate, weight_decay, warm_up:
        AdamW's; the share of steps in which the rate rises.
    mask_weight:
        The mask's share of the loss beside the heat maps'.
    validate_every, validate_images:
        Steps between validations, and how many images of the validation set are used.
    checkpoint_every:
        Steps between checkpoints.
    patience:
        Validations without a better average precision before the training stops; 0 for never. One cycle improves
        most in its last third, so the default only stops a training that has gone wrong.
    limit_images:
        Use only so many images of the training set; 0 for all.
    seed:
        Of weights, crops and dropout: the same seed on the same machine gives the same network.
    precision:
        ``auto`` (bfloat16 where it is faster), ``float32`` or ``bfloat16``.
    """

    network: str = "unet"
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 2000
    batch: int = 8
    crop: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    warm_up: float = 0.25
    mask_weight: float = 0.5
    validate_every: int = 250
    validate_images: int = 12
    checkpoint_every: int = 100
    patience: int = 6
    limit_images: int = 0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 1,
            "batch": self.batch < 1,
            "crop": self.crop < 32 or self.crop % 16,
            "learning_rate": not self.learning_rate > 0,
            "warm_up": not 0 < self.warm_up < 1,
            "validate_every": self.validate_every < 1,
            "checkpoint_every": self.checkpoint_every < 1,
            "precision": self.precision not in ("auto", "float32", "bfloat16"),
            "network": self.network not in ("unet", "unetpp"),
        }
        for name, bad in wrong.items():
            if bad:
                raise ConfigError(f"{name} cannot be {getattr(self, name)!r}", where="training settings")

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a tracker or a file."""
        return {**dataclasses.asdict(self), "options": dict(self.options)}


def config_for(mode: str, config: TrainConfig | None = None) -> TrainConfig:
    """Return the settings of a mode: ``full`` as they are, ``custom`` as handed over, ``quick`` cut to a check.

    Quick is 3 epochs of 20 samples of 64²: enough to see that data, training and saving work, not to detect.

    Raises
    ------
    ConfigError
        If there is no such mode, or custom comes without settings.
    """
    if mode not in MODES:
        raise ConfigError(f"no training mode is called {mode!r}", remedy=f"choose one of {', '.join(MODES)}")
    if mode == "custom" and config is None:
        raise ConfigError("mode custom needs its settings", remedy="hand over a TrainConfig")
    base = config or TrainConfig()
    if mode != "quick":
        return base
    batch = 4
    steps = 3 * 20 // batch
    return base.replace(
        steps=steps,
        batch=batch,
        crop=64,
        validate_every=steps,
        validate_images=1,
        checkpoint_every=steps,
        limit_images=20,
    )


@dataclass(frozen=True)
class TrainingResult:
    """What a training left.

    Attributes
    ----------
    weights:
        File with the best network by validation (`weights.load_network`).
    history:
        One row a validation: step, loss, heat_loss, mask_loss, valid_loss, valid_ap, valid_iou, learning_rate,
        seconds.
    best:
        That row of `history` whose network was kept.
    steps, stopped_early, resumed_from:
        Steps done in all, whether it stopped before the last, and the step it went on from (0: from the start).
    seconds, joules, energy_source:
        Of this run; the source is ``rapl`` or ``estimated``, with ``+nvml`` where GPUs were counted.
    data_hash, device, parameters, config:
        What it was trained on, where, its size and settings.
    waited:
        Seconds of this run in which the network waited for crops; the first process's where there are several.
    """

    weights: Path
    history: list[dict[str, float]]
    best: dict[str, float]
    steps: int
    stopped_early: bool
    resumed_from: int
    seconds: float
    joules: float
    energy_source: str
    data_hash: str
    device: str
    parameters: int
    config: TrainConfig
    waited: float = 0.0
