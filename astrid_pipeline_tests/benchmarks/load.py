"""A survey's load through Dagster: `python -m astrid_pipeline_tests.benchmarks.load` (2,000 exposures, 500 nights).

Measured: exposures an hour, what a run costs beside its assets' work, by how much PostgreSQL grows a run and what of
that the schedule `daily_pruning` takes back, and memory over the time. Frames are small (512²) on purpose: the
less there is to compute, the more the rest shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from astrid_pipeline_tests.benchmarks.nights import measure_log, sizes
from astrid_pipeline_tests.night.small_survey import FOUNDERS, write_field

#: Seconds between two looks at the memory.
LOOK_SECONDS = 2.0


class Memory(threading.Thread):
    """Looks at the memory of this process's workers, now and then: seconds, and resident megabytes of each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.looks: list[tuple[float, dict[int, float]]] = []

    def run(self) -> None:
        """Look until it is over."""
        begin = time.perf_counter()
        while not self.over.wait(LOOK_SECONDS):
            sizes_now = {}
            for process in psutil.Process().children(recursive=True):
                try:
                    # The pool's helper process and PostgreSQL's are no workers.
                    if "spawn_main" in " ".join(process.cmdline()):
                        sizes_now[process.pid] = process.memory_info().rss / 1e6
                except psutil.Error:
                    continue
            self.looks.append((time.perf_counter() - begin, sizes_now))

    def summary(self) -> dict[str, Any]:
        """Return the median of the workers' largest in each tenth of the time, and by how much it grows an hour."""
        times = np.array([when for when, sizes_now in self.looks if sizes_now])
        largest = np.array([max(sizes_now.values()) for _, sizes_now in self.looks if sizes_now])
        if len(times) < 20:
            return {}
        tenths = [float(np.median(part)) for part in np.array_split(largest, 10)]
        later = times > times[0] + 0.2 * (times[-1] - times[0])
        slope = np.polyfit(times[later] / 3600, largest[later], 1)[0]
        return {
            "largest_worker_megabytes_by_tenths": np.round(tenths).tolist(),
            "growth_megabytes_an_hour_after_the_first_fifth": round(float(slope), 1),
        }


def add_fields(folder: Path, fields: int, nights: int, exposures: int, size: int) -> list[str]:
    """Write fields of `nights` nights each with `exposures` in all, and watch them; return their names."""
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.driver import open_catalogue

    names = [f"load-{number}" for number in range(fields)]
    for number, name in enumerate(names):
        ra, mine = 20.0 + 10 * number, folder / name
        share = np.diff(np.round(np.linspace(0, exposures, nights + 1)).astype(int))
        frames = dict(enumerate(int(count) for count in share))
        frames[0] = max(frames[0], FOUNDERS)
        if not mine.exists():
            write_field(mine, name, nights, size=size, ra=ra, frames=frames)
        open_catalogue().add_field(Field(name, ra, 20.0, 0.3, archive=f"folder:{mine}"))
    return names


def measure(names: list[str], workers: int) -> dict[str, Any]:
    """Make all nights of all fields with warm workers, as `astrid backfill` does; return what it took."""
    from astrid_pipeline import driver

    before, memory = sizes(), Memory()
    memory.start()
    begin = time.perf_counter()
    survey = driver.Survey([driver.open_catalogue().field(name) for name in names])
    with driver.Runner(workers) as runner:
        results = survey.walk(runner, lambda result: None)
    wall = time.perf_counter() - begin
    memory.over.set()
    memory.join()
    after = sizes()
    made = [r for r in results if not r.error]
    treated = sum(r.step.exposures for r in made if r.step.job in ("process_night", "calibrate_night"))
    return {
        "field_nights": sum(len(listing.nights) for listing in survey.listings),
        "exposures": treated,
        "runs": len(results),
        "failed": [f"{r.step.partition}: {r.error}" for r in results if r.error],
        "workers": workers,
        "wall_seconds": round(wall, 1),
        "exposures_an_hour": round(3600 * treated / wall),
        "database_bytes_a_run": {k: round((after[k] - before[k]) / max(len(results), 1)) for k in after},
        "memory": memory.summary(),
    }


def measure_retention() -> dict[str, Any]:
    """Prune the log of all that was just made, as if it were old; return rows a run before and after."""
    from sqlalchemy import create_engine, text

    from astrid_pipeline.services import postgres
    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline.services.retention import prune

    engine = create_engine(postgres.database_url("dagster"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:

        def look() -> tuple[int, int]:
            rows = connection.execute(text("select count(*) from event_logs")).scalar_one()
            connection.execute(text("vacuum full event_logs"))
            size = connection.execute(text("select pg_total_relation_size('event_logs')")).scalar_one()
            return int(rows), int(size)

        runs = int(connection.execute(text("select count(*) from runs")).scalar_one())
        before = look()
        begin = time.perf_counter()
        with dagster_instance() as instance:
            pruned = prune(instance, 1.0, time.time() + 10 * 86400)
        seconds, after = time.perf_counter() - begin, look()
    engine.dispose()
    return {
        "runs": runs,
        "event_rows_a_run": {"whole": round(before[0] / runs, 1), "pruned": round(after[0] / runs, 1)},
        "event_bytes_a_run": {"whole": round(before[1] / runs), "pruned": round(after[1] / runs)},
        "rows_removed": pruned.rows,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure; print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exposures", type=int, default=2000)
    parser.add_argument("--nights", type=int, default=500, help="field-nights in all")
    parser.add_argument("--fields", type=int, default=10)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--home", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("load.json"))
    options = parser.parse_args()
    # Short: a PostgreSQL socket lies in it.
    home = options.home or Path(tempfile.mkdtemp(prefix="load-"))
    os.environ["ASTRID_HOME"] = str(home)
    os.environ["DAGSTER_HOME"] = str(home / "dagster")
    from astrid_pipeline.services import postgres
    from astrid_pipeline.settings import get_settings, reset_settings

    reset_settings()
    try:
        nights = -(-options.nights // options.fields)
        names = add_fields(
            home / "data", options.fields, nights, -(-options.exposures // options.fields), options.size
        )
        found: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.machine()}",
            "size": options.size,
            **measure(names, options.workers),
        }
        found["log"] = measure_log()
        found["retention"] = measure_retention()
        options.output.write_text(json.dumps(found, indent=1))
        print(json.dumps(found, indent=1))
    finally:
        postgres.stop(get_settings())
        if options.home is None:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
