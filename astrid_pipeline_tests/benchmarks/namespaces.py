"""Two machines share a backfill, and one of them dies: `python -m astrid_pipeline_tests.benchmarks.namespaces`.

The machines are network namespaces with host names of their own, each with a Celery worker; the services of
docker-compose.yml run outside, at an address that both reach by a cable of their own. In the middle of the backfill one
machine is taken away: its processes are killed and its cable is cut. All nights must be there, each once. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from astrid_pipeline_tests.stack import runs
from astrid_pipeline_tests.stack.compose import Stack
from astrid_pipeline_tests.stack.conftest import FIELD, VARIABLES

BRIDGE, NET = "astrid-br", "10.88.7"
MACHINES = ("astrid-a", "astrid-b")


def sh(*words: str, check: bool = True) -> bool:
    """Run a command; return whether it went well."""
    return subprocess.run(words, check=check, capture_output=not check).returncode == 0


def build_network() -> None:
    """Make a bridge with an address of this machine, and two namespaces with a cable each."""
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    sh("ip", "addr", "add", f"{NET}.1/24", "dev", BRIDGE)
    sh("ip", "link", "set", BRIDGE, "up")
    for number, name in enumerate(MACHINES):
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", f"{name}-o", "type", "veth", "peer", "name", f"{name}-i")
        sh("ip", "link", "set", f"{name}-o", "master", BRIDGE)
        sh("ip", "link", "set", f"{name}-o", "up")
        sh("ip", "link", "set", f"{name}-i", "netns", name)
        sh("ip", "-n", name, "addr", "add", f"{NET}.{number + 2}/24", "dev", f"{name}-i")
        sh("ip", "-n", name, "link", "set", f"{name}-i", "up")
        sh("ip", "-n", name, "link", "set", "lo", "up")


def remove_network() -> None:
    """Take away what `build_network` made."""
    for name in MACHINES:
        sh("ip", "netns", "del", name, check=False)
        sh("ip", "link", "del", f"{name}-o", check=False)
    sh("ip", "link", "del", BRIDGE, check=False)


class Machine:
    """A namespace with a worker in it that serves both queues."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        command = [word.replace("--queues=cpu", "--queues=cpu,gpu") for word in stack.command("worker-cpu")]
        # Its own network, and its own host name: that is what the services see of a machine.
        inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]
        with (stack.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", name, *inside],
                env=stack.environment("worker-cpu"),
                cwd=stack.folder / "home",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def die(self, stack: Stack) -> None:
        """Cut the cable and kill everything, at once."""
        sh("ip", "link", "set", f"{self.name}-o", "down")
        stack._end(self.process)


def write_frames(folder: Path, nights: int, exposures: int, size: int) -> None:
    """Write a field's frames: `nights` nights after the reference's, with `exposures` in all."""
    from astrid_pipeline_tests.night.small_survey import write_field

    each = exposures // nights
    write_field(
        folder, FIELD, nights + 1, size=size, frames={0: 3, **dict.fromkeys(range(1, nights + 1), each)}
    )


def measure(stack: Stack, nights: int, exposures: int, size: int) -> dict[str, Any]:
    """Backfill the nights with both machines, take one away in the middle, and look at what is there."""
    from sqlalchemy import text

    from astrid_pipeline import driver
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline_tests.night.small_survey import night_of

    frames = stack.folder / "frames"
    write_frames(frames, nights, exposures, size)
    driver.open_catalogue().add_field(Field(FIELD, 150.0, 20.0, 0.3, archive=f"folder:{frames}"))
    runs.add_partition(stack, "fields", FIELD)
    machines = {name: Machine(stack, name) for name in MACHINES}
    begin = time.perf_counter()
    partitions = [f"{FIELD}|{night_of(number)}" for number in range(1, nights + 1)]
    launched = {partition: runs.launch(stack, "calibrate_night", partition) for partition in partitions}
    products = driver.open_products()

    def made() -> int:
        return len(products.nights("calibrated_frames", FIELD))

    stack.wait_for("half of the nights", lambda: made() >= nights // 2, 3600)
    at = made()
    machines[MACHINES[1]].die(stack)
    stack.wait_for("all nights", lambda: made() == nights, 3600)
    stack.wait_for(
        "the ends of the runs", lambda: all(runs.ended(stack, run) for run in launched.values()), 600
    )
    wall = time.perf_counter() - begin
    where: Counter[str] = Counter()
    tries: Counter[int] = Counter()
    ends: Counter[str] = Counter()
    for run in launched.values():
        family = runs.family(stack, run)
        tries[len(family)] += 1
        ends[family[-1]["status"]] += 1
        for entry in family:
            where.update(worker.split("@")[1] for step, worker in runs.workers(stack, entry["runId"]).items())
    kept: Counter[str] = Counter()
    for partition in partitions:
        stored = products.frames("calibrated_frames", *partition.split("|"))
        kept.update(list(stored))
        for name in stored:
            assert stored[name].data.shape == (size, size)  # its digest is checked
    with driver.open_catalogue().engine.connect() as connection:
        rows = connection.execute(
            text("select count(*), count(distinct exposure_id) from observations")
        ).one()
    for machine in machines.values():
        stack._end(machine.process)
    assert set(kept.values()) == {1}, "each exposure is there once"
    assert len(kept) == exposures
    assert rows[0] == rows[1]
    return {
        "field_nights": nights,
        "exposures": exposures,
        "made_when_one_machine_died": at,
        "steps_on_each_machine": dict(where),
        "runs_that_needed_so_many_tries": dict(tries),
        "runs_ended": dict(ends),
        "wall_seconds": round(wall, 1),
    }


def main() -> None:
    """Measure; print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--exposures", type=int, default=200)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--output", type=Path, default=Path("namespaces.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nsp-", dir="/tmp"))
    folder.chmod(0o755)
    remove_network()
    build_network()
    stack = Stack(folder, {**VARIABLES, "ASTRID_WORKERS": "2"}, profiles=("s3",), address=f"{NET}.1")
    try:
        # The machines' workers are the only ones.
        stack.up(*(name for name in stack.services if not name.startswith("worker") and name != "review"))
        wanted = stack.environment("code")
        os.environ.update(
            {k: v for k, v in wanted.items() if k.startswith(("ASTRID_", "AWS_", "MLFLOW_", "DAGSTER_HOME"))}
        )
        found = measure(stack, options.nights, options.exposures, options.size)
        options.output.write_text(json.dumps(found, indent=1))
        print(json.dumps(found, indent=1))
    finally:
        stack.down()
        remove_network()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
