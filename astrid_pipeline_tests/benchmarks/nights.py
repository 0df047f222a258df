"""What a field-night costs besides its pixels, and how quick the Dagster page stays: `python -m … .benchmarks.nights`.

Parts, in this order: `empty` (backfills of fields whose nights have no exposures, and runs of empty nights), `small`
(backfills of fields of 256² frames, one a night, or of alert packets with `--alerts`), `log` (what the runs took, and
what of that was no asset's work), `resume` (the same again, with nothing to do), `page` (the GraphQL queries that the
page itself makes, timed in Chromium), `fill` (materializations of the other nights up to `--of`, recorded
without runs, so that the page is measured at full size), `page_full` (the page again).
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from astrid_pipeline_tests.night.small_survey import FIRST, night_of, write_field

PARTS = ("empty", "small", "log", "resume", "page", "fill", "page_full")
#: Pages of a person on call.
PAGES = {
    "assets": "/asset-groups",
    "partitions": "/assets/night_summary?view=partitions",
    "overview": "/assets/night_summary?view=overview",
    "runs": "/runs",
    "automation": "/automation",
    "job": "/locations/astrid_pipeline.definitions/jobs/process_night",
}


def names(count: int) -> list[str]:
    """Return the fields' names."""
    return [f"bench-{number}" for number in range(count)]


def add_fields(folder: Path, fields: int, nights: int, alerts: bool) -> None:
    """Write the fields' frames, or alert packets, and watch the fields."""
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.driver import open_catalogue

    for number, name in enumerate(names(fields)):
        ra, mine = 20.0 + 10 * number, folder / name
        if not mine.exists():
            write_packets(mine, nights, ra) if alerts else write_field(mine, name, nights, ra=ra)
        kind = "alerts" if alerts else "folder"
        open_catalogue().add_field(Field(name, ra, 20.0, 0.3, archive=f"{kind}:{mine}"))


def write_packets(folder: Path, nights: int, ra: float) -> None:
    """Write two alert packets a night, of a source in noise, as a broker would leave them."""
    import io

    from fastavro import writer

    from astrid_pipeline_tests.archives.test_alert_packets import fits_bytes, ztf_schema

    rng = np.random.default_rng(round(ra))
    axis = np.arange(63) - 31
    star = 40 * np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / 4)
    folder.mkdir(parents=True)
    for number in range(nights):
        records = []
        for k in range(2):
            cuts = [rng.normal(size=(63, 63)) + share * star for share in (1.0, 0.0, 1.0)]
            science, template, difference = (fits_bytes(cut.astype(np.float32)) for cut in cuts)
            jd = 2400000.5 + (FIRST - dt.date(1858, 11, 17)).days + number + 0.2
            records.append(
                {
                    "objectId": f"ZTF25{k}",
                    "candid": 1000 * number + k,
                    "candidate": {
                        "jd": jd, "fid": 1, "isdiffpos": "t", "ra": ra + 0.01 * k, "dec": 20.0, "magpsf": 18.0,
                        "rb": 0.9, "drb": 0.95, "drbversion": "d6",
                    },
                    "cutoutScience": {"fileName": "s", "stampData": science},
                    "cutoutTemplate": {"fileName": "t", "stampData": template},
                    "cutoutDifference": {"fileName": "d", "stampData": difference},
                }
            )  # fmt: skip
        buffer = io.BytesIO()
        writer(buffer, ztf_schema(), records)
        (folder / f"{night_of(number)}.avro").write_bytes(buffer.getvalue())


def measure_empty(folder: Path, of: int) -> dict[str, Any]:
    """Backfill `of` nights a field in which the archive has nothing; then run single nights without exposures."""
    from astrid_pipeline import driver
    from astrid_pipeline.night.plan import Step

    first = FIRST + dt.timedelta(days=-of)
    seconds = []
    for name in names(5):
        begin = time.perf_counter()
        results = driver.backfill(name, first.isoformat(), (FIRST - dt.timedelta(days=1)).isoformat(), 1)
        seconds.append(time.perf_counter() - begin)
        assert results == []
    # What a night costs that someone asks for although it is empty: a run in a warm process.
    empty = Step.on("calibrate_night", f"{names(1)[0]}|{(FIRST - dt.timedelta(days=9)).isoformat()}", ())
    driver.execute(empty)
    runs = [driver.execute(empty).seconds for _ in range(10)]
    return {
        "nights": of * 5,
        "backfill_of_a_field_seconds": np.round(seconds, 3).tolist(),
        "seconds_a_night": round(sum(seconds) / (5 * of), 6),
        "run_of_an_empty_night_seconds": round(float(np.median(runs)), 3),
        "job": empty.job,
    }


def measure_small(fields: int, workers: int) -> dict[str, Any]:
    """Make all nights of all fields; return what they cost by the clock, and what of that is no asset's work."""
    from astrid_pipeline import driver

    before, begin, results = sizes(), time.perf_counter(), []
    for name in names(fields):
        results += driver.backfill(name, None, None, workers)
    wall, after = time.perf_counter() - begin, sizes()
    nights = [r for r in results if r.step.job in ("process_night", "take_alerts") and not r.error]
    return {
        "made_now": len(nights),
        "failed": len([r for r in results if r.error]),
        "workers": workers,
        "wall_seconds": round(wall, 1),
        "database_bytes_a_night": {k: round((after[k] - before[k]) / max(len(nights), 1)) for k in after},
    }


def measure_log() -> dict[str, Any]:
    """Read from Dagster's log what each night's run took, and what of that was no asset's work."""
    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance

    out: dict[str, Any] = {}
    with dagster_instance() as instance:
        for job in ("process_night", "take_alerts"):
            whole, work = [], []
            wanted = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS])
            for run in instance.get_run_records(wanted):
                starts: dict[str, float] = {}
                inside, last = 0.0, 0.0
                for record in instance.get_records_for_run(run.dagster_run.run_id, limit=5000).records:
                    entry = record.event_log_entry
                    kind = None if entry.dagster_event is None else entry.dagster_event.event_type
                    if kind == dg.DagsterEventType.STEP_START:
                        starts[str(entry.step_key)] = entry.timestamp
                    elif kind == dg.DagsterEventType.STEP_SUCCESS:
                        inside += entry.timestamp - starts[str(entry.step_key)]
                    last = max(last, entry.timestamp)
                whole.append(last - run.create_timestamp.timestamp())
                work.append(inside)
            if whole:
                out[job] = {
                    "field_nights": len(whole),
                    "seconds_a_night": _summary(whole),
                    "of_that_in_assets": _summary(work),
                    "of_that_beside_assets": _summary([w - i for w, i in zip(whole, work, strict=True)]),
                }
    return out


def measure_resume(fields: int) -> dict[str, Any]:
    """Look again at fields that are made: what a resumed backfill costs before its first run."""
    from astrid_pipeline import driver

    seconds, nights = [], 0
    for name in names(fields):
        begin = time.perf_counter()
        survey = driver.Survey([driver.open_catalogue().field(name)])
        assert survey.ready() == []
        seconds.append(time.perf_counter() - begin)
        nights += len(survey.listings[0].nights)
    return {"nights": nights, "seconds_a_night": round(sum(seconds) / nights, 5)}


def fill(fields: int, of: int) -> dict[str, Any]:
    """Record materializations of every nightly asset for all nights that have none, `of` nights a field."""
    import dagster as dg

    from astrid_pipeline.jobs import NIGHT_ASSETS
    from astrid_pipeline.services.dagster_home import dagster_instance

    before, begin, count = sizes(), time.perf_counter(), 0
    with dagster_instance() as instance:
        for asset in ("observations", "calibrated_frames", *NIGHT_ASSETS):
            key = dg.AssetKey(asset)
            made = set(instance.get_materialized_partitions(key))
            for name in names(fields):
                for number in range(of):
                    partition = f"{name}|{(FIRST + dt.timedelta(days=number - of + 600)).isoformat()}"
                    if partition not in made:
                        instance.report_runless_asset_event(
                            dg.AssetMaterialization(asset_key=key, partition=partition)
                        )
                        count += 1
    after = sizes()
    return {
        "events": count,
        "seconds": round(time.perf_counter() - begin, 1),
        "database_bytes_an_event": round((after["dagster"] - before["dagster"]) / max(count, 1)),
    }


def sizes() -> dict[str, int]:
    """Return the bytes of Dagster's database and of the catalogue."""
    import sqlalchemy

    from astrid_pipeline.services import postgres

    out = {}
    for name in ("dagster", "astrid"):
        engine = sqlalchemy.create_engine(postgres.database_url(name))
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("select pg_stat_force_next_flush()"))
            out[name] = int(
                connection.execute(
                    sqlalchemy.text("select pg_database_size(current_database())")
                ).scalar_one()
            )
        engine.dispose()
    return out


@contextmanager
def webserver(home: Path) -> Iterator[str]:
    """Run Dagster's webserver on a home."""
    from astrid_pipeline.services.health import answers
    from astrid_pipeline_tests.s3_servers import free_port

    port = free_port()
    command = [sys.executable, "-m", "dagster_webserver", "-m", "astrid_pipeline.definitions"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "DAGSTER_HOME": str(home / "dagster"), "PYTHONPATH": str(root)}
    server = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env=environment,
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(f"http://127.0.0.1:{port}/server_info"):
            assert server.poll() is None
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure_page(home: Path, shots: Path | None) -> dict[str, Any]:
    """Open the pages of a person on call twice, and time each GraphQL query that they make, the second time."""
    import psutil
    from playwright.sync_api import sync_playwright

    from astrid_pipeline_tests.support import CHROMIUM_ARGS, find_chromium

    out: dict[str, Any] = {}
    with webserver(home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_ARGS))
        page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
        page.set_default_timeout(180_000)
        times: dict[str, list[float]] = {}

        def note(request: Any) -> None:
            if "/graphql" in request.url and request.method == "POST":
                # `responseEnd` counts from the request's start, ms.
                name = str((request.post_data_json or {}).get("operationName"))
                times.setdefault(name, []).append(float(request.timing["responseEnd"]))

        page.on("requestfinished", note)
        for name, path in PAGES.items():
            for _ in range(2):
                times.clear()
                begin = time.perf_counter()
                # A slow machine may take half a second to the page's first query.
                with page.expect_request_finished(lambda request: "/graphql" in request.url):
                    page.goto(address + path)
                page.wait_for_load_state("networkidle")
                shown = time.perf_counter() - begin
            slowest = sorted(((max(v), k) for k, v in times.items()), reverse=True)[:4]
            out[name] = {
                "shown_seconds": round(shown - 0.5, 2),  # "idle" is half a second without requests
                "queries": sum(map(len, times.values())),
                "slowest_ms": {k: round(v) for v, k in slowest},
            }
            if shots is not None:
                shots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(shots / f"{name}.png"))
        browser.close()
        mine = [
            p
            for p in psutil.process_iter(["cmdline"])
            if str(address.rsplit(":", 1)[1]) in (p.info["cmdline"] or [])
        ]
        out["webserver_megabytes"] = round(sum(p.memory_info().rss for p in mine) / 1e6)
    return out


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "median": round(float(np.median(values)), 3),
        "p95": round(float(np.percentile(values, 95)), 3),
        "mean": round(float(np.mean(values)), 3),
    }


def main() -> None:
    """Measure what is asked for; print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--fields", type=int, default=5)
    parser.add_argument("--nights", type=int, default=42, help="nights with frames, a field")
    parser.add_argument("--of", type=int, default=1000, help="nights in all, a field")
    parser.add_argument("--empty", type=int, default=1000, help="empty nights before those, a field")
    parser.add_argument("--alerts", action="store_true", help="nights of alert packets instead of frames")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--home", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the pages")
    parser.add_argument("--output", type=Path, default=Path("nights.json"))
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="bench-"))
    os.environ["ASTRID_HOME"] = str(home)
    before = max(options.of - 600, options.empty)
    os.environ["ASTRID_FIRST_NIGHT"] = (FIRST - dt.timedelta(days=before)).isoformat()
    os.environ["DAGSTER_HOME"] = str(home / "dagster")
    from astrid_pipeline.services import postgres
    from astrid_pipeline.settings import get_settings, reset_settings

    reset_settings()
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    measures = {
        "empty": lambda: measure_empty(home / "data", options.empty),
        "small": lambda: measure_small(options.fields, options.workers),
        "log": measure_log,
        "resume": lambda: measure_resume(options.fields),
        "page": lambda: measure_page(home, options.shots),
        "fill": lambda: fill(options.fields, options.of),
        "page_full": lambda: measure_page(home, options.shots),
    }
    try:
        add_fields(home / "data", options.fields, options.nights, options.alerts)
        for part in options.parts:
            begin = sizes()
            found[part] = {**measures[part](), "database_bytes_before": begin, "database_bytes": sizes()}
            print(part, json.dumps(found[part], indent=1), flush=True)
            options.output.write_text(json.dumps(found, indent=1))
    finally:
        postgres.stop(get_settings())
        if options.home is None:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
