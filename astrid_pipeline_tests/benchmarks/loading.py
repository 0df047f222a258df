"""How long a training waits for its crops: `python -m astrid_pipeline_tests.benchmarks.loading`.

Measured: what one core loads (crops drawn, turned, their targets rendered, from mapped shards), what a step of the
U-Net takes here, and the share of a real training in which it waited, with crops drawn in turn and ahead of time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

#: Share of the time that a consumer may wait.
GOAL = 0.1


def measure(folder: Path, images: int, steps: int, threads: int) -> dict[str, Any]:
    """Return what loading and a step cost, and what was waited."""
    import torch

    from astrid_pipeline.learning.data import build_shards
    from astrid_pipeline.learning.loader import draw_batch
    from astrid_pipeline.learning.shards import ShardSet
    from astrid_pipeline.learning.train import train
    from astrid_pipeline.learning.train_config import TrainConfig
    from astrid_pipeline_tests.benchmarks.scale_measure import commit, machine

    torch.set_num_threads(threads)
    build_shards(folder / "train", images, 0, workers=threads)
    build_shards(folder / "valid", 1, 0, split="valid")
    shards, valid = ShardSet(folder / "train"), ShardSet(folder / "valid")
    config = TrainConfig(steps=steps, validate_every=steps, validate_images=1, checkpoint_every=steps)
    pixels = config.batch * config.crop**2 / 1e6
    for step in range(20):
        draw_batch(shards, config, step)
    begin, count = time.process_time(), 200
    for step in range(count):
        draw_batch(shards, config, step)
    loading = (time.process_time() - begin) / count
    out: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "threads": threads,
        "batch": f"{config.batch} × {config.crop}²",
        "megapixels_a_second_loaded_by_a_core": round(pixels / loading, 1),
        "core_milliseconds_a_batch": round(1e3 * loading, 2),
        "trainings": [],
    }
    for loaders in (0, 1):
        result = train(
            shards, valid, "custom", config, out=folder / f"out{loaders}", device="cpu", loaders=loaders
        )
        # The history's clock leaves out the validation, which comes after the last step.
        stepping = float(result.history[-1]["seconds"])
        out["trainings"].append(
            {
                "loaders": loaders,
                "steps": result.steps,
                "milliseconds_a_step": round(1e3 * stepping / result.steps, 1),
                "megapixels_a_second_trained": round(pixels * result.steps / stepping, 3),
                "waited_share": round(result.waited / stepping, 4),
            }
        )
    return out


def main() -> None:
    """Measure; print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("loading.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        found = measure(Path(folder), options.images, options.steps, options.threads)
    options.output.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
    assert all(training["waited_share"] <= GOAL for training in found["trainings"])


if __name__ == "__main__":
    main()
