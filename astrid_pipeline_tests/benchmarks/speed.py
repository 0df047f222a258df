"""Core-seconds and peak memory of one subtraction, in a process of its own.

Run as ``python -m astrid_pipeline_tests.benchmarks.speed FILE`` on frames that `measure` wrote; prints JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def measure(side: int, seed: int = 0, case: str = "varpsf", repeat: int = 3) -> dict[str, Any]:
    """Return the figures of a pair of side² pixels, on one core."""
    from astrid_pipeline.simulation import CASES, simulate_pair
    from astrid_pipeline_tests.benchmarks.methods import ready

    pair = simulate_pair(np.random.default_rng(seed), (side, side), **CASES[case])
    frames = [ready(frame, psf=True) for frame in (pair.science, pair.reference)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.pickle"
        path.write_bytes(pickle.dumps(frames))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(path), str(repeat)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return {"side": side, "case": case, **json.loads(done.stdout.splitlines()[-1])}


def _peak() -> int:
    """Return the most memory this process has held since the last reset, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell VmHWM")


def main(path: str, repeat: int) -> None:
    """Time `subtract` on the frames of a file, and its peak above the imports (inputs and outputs included)."""
    import torch

    torch.set_num_threads(1)
    from astrid_pipeline.imaging import PSF, Frame, subtract
    from astrid_pipeline.imaging.subtract import engine, pipeline, zogy  # noqa: F401  # imports are not counted

    # A tiny subtraction loads what torch and scipy load on first use.
    warm = Frame(
        np.random.default_rng(0).normal(0, 1, (64, 64)),
        np.ones((64, 64)),
        psf=PSF(np.full((1, 3, 3), 1 / 9)),
        meta={"sky_subtracted": True, "zero_point": 1.0},
    )
    subtract(warm, warm, device="cpu")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    science, reference = pickle.loads(Path(path).read_bytes())
    Path("/proc/self/clear_refs").write_text("5")
    pixels = science.data.size
    inner: list[float] = []
    filter_tiles = pipeline.filter_tiles

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        result = filter_tiles(*arguments)
        inner.append(time.process_time() - started)
        return result

    pipeline.filter_tiles = timed  # type: ignore[assignment]
    whole = []
    peak = 0
    for _ in range(repeat):
        started = time.process_time()
        difference = subtract(science, reference, device="cpu")
        whole.append(time.process_time() - started)
        peak = max(peak, _peak())
        del difference
    print(
        json.dumps(
            {
                "subtract_core_seconds_per_megapixel": min(whole) / (pixels / 2**20),
                "filters_core_seconds_per_megapixel": min(inner) / (pixels / 2**20),
                "peak_bytes_per_pixel": (peak - before) / pixels,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
