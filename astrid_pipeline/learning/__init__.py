"""How models learn to tell changes from artefacts, and what they then say of a difference image.

In the order of the data: `channels` (what a network sees), `targets` (what it should answer), `shards` and `data`
(labelled images on disk), `unet` and `unetpp`, `train`, `second_stage` (`calibration`, `real_bogus`, `classical`,
`ensemble`), `detector` (all of them in one file), `infer` (detections), `evaluate`, `workflow` (all of it from
nothing). No Dagster and no database in here.

`channels`, `train` and `evaluate` are functions of the modules of the same names: import them from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrid_pipeline.learning.data import build_shards, shards_from_differences
    from astrid_pipeline.learning.detector import Detector, load_model
    from astrid_pipeline.learning.evaluate import Evaluation
    from astrid_pipeline.learning.infer import detect
    from astrid_pipeline.learning.schema import DETECTIONS
    from astrid_pipeline.learning.shards import ShardSet
    from astrid_pipeline.learning.train_config import TrainConfig, TrainingResult
    from astrid_pipeline.learning.workflow import TrainingOutcome, run_training

# Imported when first used: torch takes seconds, and most of AstrID can do without it.
_WHERE = {
    "build_shards": "data",
    "shards_from_differences": "data",
    "Detector": "detector",
    "load_model": "detector",
    "Evaluation": "evaluate",
    "DETECTIONS": "schema",
    "detect": "infer",
    "ShardSet": "shards",
    "TrainConfig": "train_config",
    "TrainingResult": "train_config",
    "TrainingOutcome": "workflow",
    "run_training": "workflow",
}

__all__ = [
    "DETECTIONS",
    "Detector",
    "Evaluation",
    "ShardSet",
    "TrainConfig",
    "TrainingOutcome",
    "TrainingResult",
    "build_shards",
    "detect",
    "load_model",
    "run_training",
    "shards_from_differences",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
