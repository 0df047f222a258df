"""Nights made in processes of their own, in which something is spoiled: `python -m … JOB PARTITION MEGABYTES`.

Prints `READY` when all is imported, waits for a line, makes the night, and prints what became of it as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from astrid_pipeline_tests.stack.conftest import WITHOUT_INJECTIONS

ROOT = Path(__file__).parents[2]


class Night:
    """A process that makes one night when it is told to."""

    def __init__(
        self, partition: str, job: str = "process_night", megabytes: int = 0, **environment: str
    ) -> None:
        command = [sys.executable, "-m", __name__, job, partition, str(megabytes)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ready(self) -> Night:
        """Wait until it has imported everything."""
        assert self.process.stdout is not None
        assert any(line == "READY\n" for line in self.process.stdout)
        return self

    def go(self) -> None:
        """Let it make the night."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for its end and return `error` and `run_id`."""
        out, _ = self.process.communicate(timeout=240)
        return dict(json.loads(out.splitlines()[-1]))


def main(job: str, partition: str, megabytes: str) -> None:
    """Make a night as said above, with so many megabytes of address space more than before (0: without bound)."""
    import PIL.Image
    import torch

    from astrid_pipeline import driver
    from astrid_pipeline.definitions import defs
    from astrid_pipeline.night.plan import Step

    defs.resolve_job_def(job)
    PIL.Image.init()
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # its threads are there
    driver.open_products().nights("reference_images", "small")
    print("READY", flush=True)
    sys.stdin.readline()
    if int(megabytes):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(megabytes) * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    config = WITHOUT_INJECTIONS if job == "process_night" else None
    result = driver.execute(Step.on(job, partition, ()), config)
    print(json.dumps({"error": result.error, "run_id": result.run_id}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
