"""``python -m astrid_pipeline.learning.build OUT``: a detector from nothing; `astrid train` does the same in colour."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from astrid_pipeline.errors import AstridError
from astrid_pipeline.learning.train_config import MODES
from astrid_pipeline.learning.workflow import run_training


class _Lines:
    """Prints a line when a stage begins, ends, or every half minute."""

    def __init__(self) -> None:
        self.stage, self.last = "", 0.0

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        if stage == self.stage and done < total and now - self.last < 30:
            return
        self.stage, self.last = stage, now
        shown = {"loss", "valid_loss", "valid_ap", "valid_iou", "ap", "precision", "recall", "false_per_mpix"}
        text = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if k in shown)
        print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}  {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m astrid_pipeline.learning.build", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for data, checkpoint and models")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--images", type=int, help="training images (full: 400)")
    parser.add_argument("--steps", type=int, help="optimiser steps (full: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that train together, one a GPU")
    parser.add_argument("--network", choices=("unet", "unetpp"), default="unet")
    parser.add_argument("--device")
    parser.add_argument("--version", help="what the model calls itself")
    a = parser.parse_args(arguments)
    try:
        outcome = run_training(
            a.mode,
            a.out,
            seed=a.seed,
            n_images=a.images,
            steps=a.steps,
            workers=a.workers,
            network=a.network,
            device=a.device,
            version=a.version,
            report=_Lines(),
            processes=a.processes,
        )
    except AstridError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name, path in outcome.files.items():
        print(f"{name}: {path}")
    print("  ".join(f"{stage} {spent:.0f} s" for stage, spent in outcome.seconds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
