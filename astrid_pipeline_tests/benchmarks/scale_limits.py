"""What bounds a night beside its pixels: rows into the catalogue, Dagster's events and runs, long listings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline_tests.benchmarks.scale_measure import (
    NIGHTS,
    counted_requests,
    measure_night,
    table_sizes,
)
from astrid_pipeline_tests.night.small_survey import night_of, write_field
from astrid_pipeline_tests.s3_servers import S3Server

#: A field that has frames in its first night, and none in those whose runs are counted.
EMPTY = "scale-empty"


def _insert(name: str, observations: bytes, candidates: bytes, detections: bytes, nights: int) -> list[float]:
    """Write a field's nights into the catalogue; return the seconds of each."""
    import io

    from astrid_pipeline import driver

    tables = [pd.read_parquet(io.BytesIO(part)) for part in (observations, candidates, detections)]
    catalogue, seconds = driver.open_catalogue(), []
    for number in range(nights):
        # Another sky each night: what costs is new objects, not the same few again.
        moved = [t.copy() for t in tables]
        for table in moved:
            table["exposure_id"] = f"{name}-{number}-" + table["exposure_id"].astype(str)
        for table in moved[1:]:
            table["dec"] += 0.01 * (number + 1)
        begin = time.perf_counter()
        catalogue.replace_partition(
            name, night_of(100 + number), observations=moved[0], candidates=moved[1], detections=moved[2],
            run_id="bench", pixel_scale=1.0,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure_catalogue(
    folder: Path, field: str, counts: tuple[int, ...] = (300, 3000, 30000), nights: int = 2
) -> dict[str, Any]:
    """Write nights of many detections, made of a field's rows at new places, by one process and by two."""
    import io

    from astrid_pipeline import driver
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.catalog import sky

    products, catalogue = driver.open_products(), driver.open_catalogue()
    if field not in {known.name for known in catalogue.fields()}:
        measure_night(folder, {field: NIGHTS[field]})
    partition = f"{field}|{night_of(1)}"
    observations, candidates, detections = (
        products.table(name, partition) for name in ("observations", "candidates", "detections")
    )
    rng = np.random.default_rng(0)
    out: list[dict[str, Any]] = []
    for count in counts:
        parts = []
        for table, wanted in ((candidates, count * len(candidates) // len(detections)), (detections, count)):
            many = table.sample(wanted, replace=True, random_state=1).reset_index(drop=True)
            # As dense as Rubin's: some 10,000 in the 9.6 square degrees of a visit.
            side = np.sqrt(count / 1000)
            many["ra"], many["dec"] = 100 + rng.uniform(0, side, wanted), rng.uniform(0, side, wanted)
            many["hpx29"] = sky.hpx29(many["ra"].to_numpy(), many["dec"].to_numpy())
            for column, prefix in (("candidate_id", "c"), ("detection_id", "d")):
                if column in many:
                    many[column] = [f"{prefix}{number}" for number in range(wanted)]
            parts.append(many)
        packed = []
        for table in (observations, *parts):
            buffer = io.BytesIO()
            table.to_parquet(buffer)
            packed.append(buffer.getvalue())
        for processes in (1, 2):
            names = [f"rows-{count}-{processes}-{number}" for number in range(processes)]
            for number, name in enumerate(names):
                catalogue.add_field(Field(name, 100.0, float(10 * number), 0.3, archive="folder:/nowhere"))
            before = table_sizes("astrid")
            begin = time.perf_counter()
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                futures = [pool.submit(_insert, name, *packed, nights) for name in names]
                seconds = [s for future in futures for s in future.result()]
            wall, after = time.perf_counter() - begin, table_sizes("astrid")
            out.append(
                {
                    "detections_a_night": count,
                    "candidates_a_night": len(parts[0]),
                    "processes": processes,
                    "seconds_a_night": round(float(np.median(seconds)), 3),
                    "detections_a_second": round(processes**2 * count * nights / sum(seconds)),
                    "wall_seconds": round(wall, 2),
                    "bytes_a_detection": round(
                        sum(after[k]["bytes"] - before.get(k, {"bytes": 0})["bytes"] for k in after)
                        / (count * nights * processes)
                    ),
                }
            )
            print(out[-1], flush=True)
    return {"inserts": out, "tables": table_sizes("astrid")}


def _events(count: int) -> float:
    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance

    with dagster_instance() as instance:
        begin = time.perf_counter()
        for number in range(count):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(asset_key="detections", partition=f"{EMPTY}|{night_of(400 + number)}")
            )
        return time.perf_counter() - begin


def measure_dagster(home: Path, launched: int = 12) -> dict[str, Any]:
    """Return events a second, seconds of an empty run in a warm process, and how fast the daemon starts runs."""
    from astrid_pipeline import driver
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.night.plan import Step

    write_field(home / "data" / EMPTY, EMPTY, 1)
    field = Field(EMPTY, 150.0, 20.0, 0.3, archive=f"folder:{home / 'data' / EMPTY}")
    driver.open_catalogue().add_field(field)
    driver.list_fields([field])
    out: dict[str, Any] = {"events_a_second": {}}
    _events(20)
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(_events, [20] * processes))
            begin = time.perf_counter()
            list(pool.map(_events, [300] * processes))
            out["events_a_second"][processes] = round(300 * processes / (time.perf_counter() - begin))
    step = Step.on("calibrate_night", f"{EMPTY}|{night_of(90)}", ())
    driver.execute(step)
    out["empty_run_in_a_warm_process_seconds"] = round(
        float(np.median([driver.execute(step).seconds for _ in range(10)])), 3
    )
    out["process_start_core_seconds"] = process_start()
    out["through_the_daemon"] = _launch(home, launched)
    return out


def process_start(times: int = 3) -> float:
    """Return the processor seconds that a new process takes until it knows the definitions, as each run's does."""
    spent = []
    for _ in range(times):
        before = os.times()
        subprocess.run([sys.executable, "-c", "import astrid_pipeline.definitions"], check=True)
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return round(float(np.median(spent)), 2)


def _launch(home: Path, count: int) -> dict[str, Any]:
    """Queue empty runs and let the daemon start them, as many at once as it likes; return what came of it."""
    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline_tests.assets.live import live
    from astrid_pipeline_tests.stack.runs import _LAUNCH

    with live(home) as dagster, dagster_instance() as instance:
        where = {
            "repositoryName": "__repository__",
            "repositoryLocationName": dagster.location(),
            "jobName": "calibrate_night",
        }
        begin, wanted = time.time(), []
        for number in range(count):
            tag = {"key": "dagster/partition", "value": f"{EMPTY}|{night_of(50 + number)}"}
            tags = [tag, *_dimensions(50 + number)]
            answer = dagster.ask(_LAUNCH, params={"selector": where, "executionMetadata": {"tags": tags}})
            wanted.append(answer["launchRun"]["run"]["runId"])
        queued = time.time() - begin
        dagster.start("daemon")

        def records() -> list[dg.RunRecord]:
            return list(instance.get_run_records(dg.RunsFilter(run_ids=wanted)))

        dagster.wait_for("the runs", lambda: all(r.dagster_run.is_finished for r in records()), 900)
        found = records()
    starts = sorted(float(r.start_time or 0) for r in found)
    lasted = [float(r.end_time or 0) - float(r.start_time or 0) for r in found]
    return {
        "runs": count,
        "at_once": os.environ.get("ASTRID_WORKERS", ""),
        "queued_a_second": round(count / queued, 2),
        "succeeded": sum(r.dagster_run.is_success for r in found),
        "runs_a_minute": round(60 * (count - 1) / (starts[-1] - starts[0]), 1),
        "seconds_from_start_to_end": round(float(np.median(lasted)), 2),
    }


def measure_sensor(home: Path, fields: int = 60) -> dict[str, Any]:
    """Return what a look of the sensor `new_observations` costs a field in which nothing is new: folders, all made.

    The first look finds out that there is nothing to do; the second knows.
    """
    import dagster as dg

    from astrid_pipeline import driver, sensors
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.resources.catalogue import CatalogueResource
    from astrid_pipeline.resources.products import ProductsResource
    from astrid_pipeline.resources.store import StoreResource
    from astrid_pipeline.services.dagster_home import dagster_instance

    catalogue, cursor = driver.open_catalogue(), None
    for number in range(fields):
        folder = home / "data" / f"quiet-{number}"
        folder.mkdir(parents=True)
        catalogue.add_field(Field(folder.name, 1.0 * number, -30.0, 0.3, archive=f"folder:{folder}"))
    out: dict[str, Any] = {"fields": len(catalogue.fields()), "milliseconds_a_field": []}
    with dagster_instance() as instance:
        for _ in range(3):
            given = {"catalogue": CatalogueResource(), "products": ProductsResource(store=StoreResource())}
            begin = time.perf_counter()
            with dg.build_sensor_context(instance=instance, cursor=cursor, resources=given) as context:
                result = sensors.new_observations(context)
            seconds, cursor = time.perf_counter() - begin, result.cursor
            assert "to be looked at in the next tick" not in str(cursor)
            out["milliseconds_a_field"].append(round(1e3 * seconds / out["fields"], 1))
    return out


def _dimensions(number: int) -> list[dict[str, str]]:
    return [
        {"key": "dagster/partition/field", "value": EMPTY},
        {"key": "dagster/partition/night", "value": night_of(number)},
    ]


def measure_listing(
    server: S3Server, folder: Path, counts: tuple[int, ...] = (1000, 10000, 50000)
) -> list[Any]:
    """Return how long it takes to list prefixes of many objects: a folder, and an S3 server."""
    from astrid_pipeline.resources.store import LocalStore

    out: list[Any] = []
    assert server.folder is not None
    tops = (folder / "listing", server.folder / "sky" / "listing")
    # All of them before the first is listed: rclone remembers for minutes what is in a folder.
    for count in counts:
        for top in tops:
            where = top / f"n{count}"
            where.mkdir(parents=True)
            for number in range(count):
                (where / f"{number:07d}.parquet").touch()
    with counted_requests() as requests:
        stores = {"folder": LocalStore(tops[0]), "s3": server.store("listing")}
        for count in counts:
            row: dict[str, Any] = {"objects": count}
            for name, store in stores.items():
                requests.clear()
                begin = time.perf_counter()
                assert len(store.list(f"n{count}")) == count
                row[f"{name}_seconds"] = round(time.perf_counter() - begin, 3)
            row["list_requests"] = requests["ListObjectsV2"]
            out.append(row)
            print(row, flush=True)
    return out
