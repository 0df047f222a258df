"""What AstrID costs on this machine, for `scale.py` to reckon with: seconds, bytes, rows, operations.

Small nights of some frame sizes go through Dagster, one process and thread, PostgreSQL and an S3 server beside it.
`scale_limits` measures what bounds many of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from astrid_pipeline_tests.night.small_survey import FOUNDERS, night_of

#: True changes a megapixel: Rubin's, some 10,000 in the 3.2 gigapixels of a visit, and many.
SPARSE, DENSE = {"transients": 2.0, "variables": 0.5, "movers": 0.5}, {"transients": 60.0}
#: By field: side of the frames, exposures of each judged night, what changes. Together they tell the shares of a run,
#: an exposure, a megapixel and a detection apart. The first night of the first field comes with a cold process.
NIGHTS: dict[str, tuple[int, tuple[int, ...], dict[str, float]]] = {
    "scale-cold": (512, (1,), SPARSE),
    "scale-512": (512, (1, 4), SPARSE),
    "scale-1024": (1024, (1, 4), SPARSE),
    "scale-dense": (1024, (1, 3), DENSE),
    "scale-2048": (2048, (1, 3), SPARSE),
}
Fields = dict[str, tuple[int, tuple[int, ...], dict[str, float]]]


def write_busy_field(
    folder: Path, name: str, nights: tuple[int, ...], size: int, ra: float, changes: dict[str, float]
) -> None:
    """Write a field's frames: a night of references, then nights of `nights` frames in which sources have changed."""
    from astropy.wcs import WCS

    from astrid_pipeline.simulation.pairs import simulate_pair
    from astrid_pipeline_tests.assets.test_folder_nights import write_light

    folder.mkdir(parents=True)
    rng = np.random.default_rng(size)
    wcs = WCS(naxis=2)
    middle = (size + 1) / 2
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [ra, 20.0], [middle, middle], [-1 / 3600, 1 / 3600]
    pair = simulate_pair(rng, (size, size), psf="none", variance="none", **changes)
    for number, count in enumerate((FOUNDERS, *nights)):
        frame = pair.science if number else pair.reference
        for k in range(count):
            noise = rng.normal(0, float(np.sqrt(np.median(frame.data))), frame.data.shape)
            path = folder / f"{name}-{number:03d}-{k}.fits"
            write_light(path, frame.data + noise, f"{night_of(number)}T03:{k:02d}:00", wcs, OBJECT=name)


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count what is sent to S3 by operation, tries that failed included."""
    from astrid_pipeline.resources.s3 import R2Resource

    counts: Counter[str] = Counter()
    original = R2Resource.get_client

    def note(request: Any, event_name: str = "", **_: Any) -> None:
        counts[event_name.rpartition(".")[2]] += 1

    def get_client(self: R2Resource) -> Any:
        client = original(self)
        client.meta.events.register("before-send.s3", note)
        return client

    R2Resource.get_client = get_client  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        R2Resource.get_client = original  # type: ignore[method-assign]


def _query(database: str, text: str) -> list[Any]:
    import sqlalchemy

    from astrid_pipeline.services import postgres

    engine = sqlalchemy.create_engine(postgres.database_url(database))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("select pg_stat_force_next_flush()"))
        rows = list(connection.execute(sqlalchemy.text(text)).all())
    engine.dispose()
    return rows


def io_counts() -> Counter[str]:
    """Return what PostgreSQL has asked of the disk since it was made: reads, writes and syncs, log included."""
    sums = "sum(reads), sum(writes) + sum(extends), sum(fsyncs), sum(write_bytes) + sum(extend_bytes)"
    rows = _query("astrid", f"select {sums} from pg_stat_io")
    names = ("reads", "writes", "fsyncs", "bytes_written")
    counts = Counter({name: int(value or 0) for name, value in zip(names, rows[0], strict=True)})
    counts["connections"] = int(_query("astrid", "select sum(sessions) from pg_stat_database")[0][0])
    counts["transactions"] = int(_query("astrid", "select sum(xact_commit) from pg_stat_database")[0][0])
    return counts


def table_sizes(database: str) -> dict[str, dict[str, int]]:
    """Return rows, and bytes with indices, of each table that has any."""
    names = [
        row[0] for row in _query(database, "select tablename from pg_tables where schemaname = 'public'")
    ]
    out = {}
    for name in names:
        rows, size = _query(
            database, f'select (select count(*) from "{name}"), pg_total_relation_size(\'"{name}"\')'
        )[0]
        if rows:
            out[name] = {"rows": int(rows), "bytes": int(size)}
    return out


class Spending(threading.Thread):
    """Notes this process's processor time, so that what it spent between two moments can be told."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.looks = [(time.time(), time.process_time())]

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.02):
            self.looks.append((time.time(), time.process_time()))

    def between(self, begin: float, end: float) -> float:
        """Return the processor seconds spent between two times."""
        at, spent = np.array([*self.looks, (time.time(), time.process_time())]).T
        return float(np.interp(end, at, spent) - np.interp(begin, at, spent))


def steps_of(run_id: str, spending: Spending) -> dict[str, Any]:
    """Return processor seconds by step, wall seconds of the run, and its events, from Dagster's log."""
    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance

    with dagster_instance() as instance:
        (run,) = instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))
        records = instance.get_records_for_run(run_id, limit=10000).records
    begun: dict[str, float] = {}
    steps: dict[str, float] = {}
    for record in records:
        entry = record.event_log_entry
        kind = None if entry.dagster_event is None else entry.dagster_event.event_type
        if kind == dg.DagsterEventType.STEP_START:
            begun[str(entry.step_key)] = entry.timestamp
        elif kind == dg.DagsterEventType.STEP_SUCCESS:
            steps[str(entry.step_key)] = spending.between(begun[str(entry.step_key)], entry.timestamp)
    assert run.start_time is not None
    assert run.end_time is not None
    return {
        "steps": {name: round(value, 3) for name, value in steps.items()},
        "run_seconds": round(run.end_time - run.start_time, 3),
        "events": len(records),
    }


def measure_night(folder: Path, fields: Fields) -> dict[str, Any]:
    """Make all nights of some fields; return each judged night's run, and what it left in store and tables."""
    from astrid_pipeline import driver
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline_tests.benchmarks.nights import sizes as database_sizes

    runs: list[dict[str, Any]] = []
    with counted_requests() as counts:
        for number, (name, (size, nights, changes)) in enumerate(fields.items()):
            ra = 20.0 + 10 * number
            write_busy_field(folder / name, name, nights, size, ra, changes)
            driver.open_catalogue().add_field(Field(name, ra, 20.0, 0.3, archive=f"folder:{folder / name}"))
            survey = driver.Survey([driver.open_catalogue().field(name)])
            tried: set[str] = set()
            while steps := [step for step in survey.ready(tried) if step.run_key not in tried]:
                for step in steps:
                    tried.add(step.run_key)
                    counts.clear()
                    io, before = io_counts(), database_sizes()
                    spending, spent = Spending(), time.process_time()
                    spending.start()
                    result = driver.execute(step)
                    spent = time.process_time() - spent
                    assert result.error is None, result.error
                    after = database_sizes()
                    # Before anything else is asked of the store.
                    requests = dict(counts)
                    spending.over.set()
                    if step.job != "process_night":
                        continue
                    table = survey.products.table("night_summary", step.partition)
                    runs.append(
                        {
                            "field": name,
                            "exposures": step.exposures,
                            "megapixels": step.exposures * size**2 / 1e6,
                            **steps_of(result.run_id, spending),
                            "wall_seconds": round(result.seconds, 3),
                            "processor_seconds": round(spent, 3),
                            "candidates": int(table["candidates"].sum()),
                            "detections": int(table["detections"].sum()),
                            "requests": requests,
                            "database_bytes": {key: after[key] - before[key] for key in after},
                            "disk": dict(io_counts() - io),
                        }
                    )
                    print(step.partition, f"{result.seconds:.1f} s, {spent:.1f} s of a core", flush=True)
    return {"runs": runs, "store": _stored(open_store(), fields), "tables": table_sizes("astrid")}


def _stored(store: Any, fields: Fields) -> list[dict[str, Any]]:
    """Return objects and bytes of each product of each judged night."""
    out: list[dict[str, Any]] = []
    entries = [(entry.key.split("/"), entry.size) for entry in store.list()]
    for name, (size, nights, _) in fields.items():
        for number, exposures in enumerate(nights, 1):
            row: dict[str, Any] = {
                "field": name,
                "exposures": exposures,
                "megapixels": exposures * size**2 / 1e6,
            }
            products: dict[str, dict[str, int]] = {}
            for parts, length in entries:
                if name in parts and any(part.startswith(night_of(number)) for part in parts):
                    kept = products.setdefault(parts[0], {"objects": 0, "bytes": 0})
                    kept["objects"] += 1
                    kept["bytes"] += length
            out.append({**row, "products": products})
    return out


def machine() -> str:
    """Return what this was measured on, in words."""
    import psutil

    model = "processor unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    memory = psutil.virtual_memory().total / 1e9
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GB, Python {sys.version.split()[0]}"


def commit() -> str:
    """Return the commit that was measured."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
