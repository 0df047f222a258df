"""A detector from nothing: simulate, train, fit the second stage, evaluate, write. Needs no service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.card import model_card
from astrid_pipeline.learning.data import SURVEY_CHANGES, build_shards
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.evaluate import Evaluation, evaluate
from astrid_pipeline.learning.second_stage import fit_detector
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.train import train
from astrid_pipeline.learning.train_config import MODES, TrainConfig, TrainingResult

#: Called with the stage's name, steps done, steps in all, and figures to show.
Report = Callable[[str, int, int, dict[str, float]], None]

#: Images of the other splits for each training image: a second set for real/bogus, one for calibration and weights,
#: one that is looked at only once, at the end.
_SHARES = {"second": 0.25, "held_out": 0.2, "test": 0.25}

#: Splits whose skies hold `SURVEY_CHANGES` a megapixel: they say how probable, and how good. Others hold more.
_AS_ON_THE_SKY = ("held_out", "test")

#: A full training's images; 400 of 512² are 105 megapixels, some 12 000 changes.
FULL_IMAGES = 400


@dataclass(frozen=True)
class TrainingOutcome:
    """What `run_training` made.

    Attributes
    ----------
    result:
        Of the network's training.
    detector, evaluation:
        The finished detector and its figures on the test split; None in quick mode, whose network is only a check.
    files:
        By name: network, detector, card, evaluation (those that were written).
    manifests:
        By split, how the data were made.
    seconds:
        By stage.
    """

    result: TrainingResult
    detector: Detector | None
    evaluation: Evaluation | None
    files: dict[str, Path]
    manifests: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def run_training(
    mode: str,
    out: Path,
    *,
    seed: int = 0,
    n_images: int | None = None,
    steps: int | None = None,
    workers: int = 1,
    shape: tuple[int, int] = (512, 512),
    network: str = "unet",
    device: str | None = None,
    version: str | None = None,
    report: Report | None = None,
    processes: int = 1,
) -> TrainingOutcome:
    """Make a detector from nothing, in `out`; go on where an earlier call was killed.

    Parameters
    ----------
    mode:
        ``full`` (400 images, 2000 steps), ``custom`` (`n_images` and `steps` as given) or ``quick``: a check that
        data, training and saving work, in a minute or two, whose network finds nothing.
    out:
        Folder; gets ``data/``, ``network.safetensors``, ``detector.safetensors``, ``evaluation.json``,
        ``MODEL_CARD.md``.
    workers:
        Processes that simulate, and threads that train.
    report:
        Called as it goes.
    processes:
        That train the network together, one a GPU (`train.train`).

    Raises
    ------
    ConfigError
        If the mode is not known, custom lacks its numbers, or so many processes cannot share the work.
    ModelError
        If too little could be learned to calibrate a detector.
    """
    if mode not in MODES:
        raise ConfigError(f"no training mode is called {mode!r}", remedy=f"choose one of {', '.join(MODES)}")
    if mode == "custom" and (n_images is None or steps is None):
        raise ConfigError(
            "mode custom needs a number of images and of steps", remedy="give --images and --steps"
        )
    images = n_images or (4 if mode == "quick" else FULL_IMAGES)
    config = TrainConfig(network=network, seed=seed, steps=steps or TrainConfig.steps)
    tell = report or (lambda *_: None)
    torch.set_num_threads(max(1, workers))
    seconds: dict[str, float] = {}
    manifests: dict[str, dict[str, Any]] = {}
    sets: dict[str, ShardSet] = {}
    splits = {"train": images, "held_out": max(1, round(images * _SHARES["held_out"]))}
    if mode != "quick":
        splits |= {name: max(2, round(images * _SHARES[name])) for name in ("second", "test")}
    began = time.perf_counter()
    for split, count in splits.items():
        folder = out / "data" / f"{split}-{count}-{shape[0]}-{seed}"
        manifests[split] = build_shards(
            folder,
            count,
            seed,
            shape,
            workers,
            lambda done, total, split=split: tell(f"data: {split}", done, total, {}),  # type: ignore[misc]
            split=split,
            changes=SURVEY_CHANGES if split in _AS_ON_THE_SKY else None,
        )
        sets[split] = ShardSet(folder)
    seconds["data"] = time.perf_counter() - began
    result = train(
        sets["train"],
        sets["held_out"],
        mode,
        config,
        out=out,
        device=device,
        progress=lambda step, total, figures: tell("training", step, total, figures),
        processes=processes,
    )
    seconds["training"] = result.seconds
    files = {"network": result.weights}
    if mode == "quick":
        return TrainingOutcome(result, None, None, files, manifests, seconds)
    began = time.perf_counter()
    tell("second stage", 0, 1, {})
    detector = fit_detector(
        weights.load_network(result.weights),
        sets["second"],
        sets["held_out"],
        name=f"astrid-{network}",
        version=version or f"{result.data_hash[:8]}-{seed}",
        facts={
            "data": {split: manifest["hash"] for split, manifest in manifests.items()},
            "images": {split: manifest["images"] for split, manifest in manifests.items()},
            "steps": result.steps,
            "seed": seed,
            "joules": round(result.joules),
            "energy_source": result.energy_source,
        },
        seed=seed,
        device=device,
    )
    seconds["second stage"] = time.perf_counter() - began
    tell("second stage", 1, 1, {})
    began = time.perf_counter()
    tell("evaluation", 0, 1, {})
    evaluation = evaluate(detector, sets["test"], device=device, seed=seed)
    seconds["evaluation"] = time.perf_counter() - began
    tell("evaluation", 1, 1, evaluation.flat())
    shown = ("ap", "precision", "recall", "false_per_mpix", "snr_half", "ece", "iou")
    figures = {name: round(value, 4) for name, value in evaluation.flat().items() if name in shown}
    detector = detector.replace(facts={**detector.facts, "figures": figures})
    files["detector"] = out / "detector.safetensors"
    detector.save(files["detector"])
    files["evaluation"] = out / "evaluation.json"
    files["evaluation"].write_text(json.dumps(evaluation.flat(), indent=1))
    files["card"] = out / "MODEL_CARD.md"
    files["card"].write_text(model_card(detector, evaluation, result, manifests))
    return TrainingOutcome(result, detector, evaluation, files, manifests, seconds)
