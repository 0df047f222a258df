"""A year of a hundred fields in Dagster, and how quick its page is then: `python -m … .benchmarks.year`.

A few field-nights are made for real and their log is pruned as `daily_pruning` does. The rows of one (runs, tags,
events) are then copied inside PostgreSQL for all other field-nights, each with its own run and partition, until the
database is as full as after the year: what is measured is Dagster's own queries on as many rows as it would have.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from astrid_pipeline_tests.benchmarks.nights import add_fields, measure_page, measure_small, sizes
from astrid_pipeline_tests.night.small_survey import FIRST

#: Field-nights copied in one statement.
CHUNK = 5000
#: The copied runs' tables, and the column that ties a row to its run.
TABLES = ("runs", "run_tags", "event_logs")


def watched(count: int) -> list[str]:
    """Return the names of the fields that are only copied."""
    return [f"year-{number}" for number in range(count)]


def columns_of(connection: Any, table: str) -> dict[str, str]:
    """Return a table's columns, without its own number, and their types."""
    from sqlalchemy import text

    rows = connection.execute(
        text("select column_name, data_type from information_schema.columns where table_name = :table"),
        {"table": table},
    )
    return {name: kind for name, kind in rows if name != "id"}


def copied(name: str, kind: str, pattern: tuple[str, str, str]) -> str:
    """Return the SQL of a column's value in a copy: the pattern's run, partition, field and night replaced."""
    if kind not in ("text", "character varying"):
        return f'o."{name}"'
    run, field, night = pattern
    value = f'o."{name}"'
    for old, new in (
        (run, "f.run_id"),
        (f"{field}|{night}", "f.field || '|' || f.night"),
        (f'"{field}"', "'\"' || f.field || '\"'"),
        (f'"{night}"', "'\"' || f.night || '\"'"),
    ):
        value = f"replace({value}, '{old}', {new})"
    # Tags hold a field or a night alone.
    return f"case o.\"{name}\" when '{field}' then f.field when '{night}' then f.night else {value} end"


def copy_run(connection: Any, run: str, pattern: tuple[str, str], targets: Iterable[tuple[str, str]]) -> None:
    """Copy a run's rows for other field-nights.

    Parameters
    ----------
    pattern:
        Its field and night.
    targets:
        The others' fields and nights.
    """
    from sqlalchemy import text

    pairs = list(targets)
    connection.execute(text("drop table if exists fresh"))
    connection.execute(
        text(
            "create temp table fresh as select field, night, gen_random_uuid()::text as run_id "
            "from unnest(cast(:fields as text[]), cast(:nights as text[])) as t(field, night)"
        ),
        {"fields": [f for f, _ in pairs], "nights": [n for _, n in pairs]},
    )
    for table in TABLES:
        columns = columns_of(connection, table)
        names = ", ".join(f'"{name}"' for name in columns)
        values = ", ".join(copied(name, kind, (run, *pattern)) for name, kind in columns.items())
        statement = (
            f"insert into {table} ({names}) select {values} from {table} o, fresh f where o.run_id = :run"
        )
        # The driver takes a percent sign for a parameter's.
        connection.exec_driver_sql(statement.replace("%", "%%").replace(":run", "%(run)s"), {"run": run})
    # By these Dagster finds a materialization by the parts of its partition.
    connection.execute(
        text(
            "insert into asset_event_tags (asset_key, key, value, event_id, event_timestamp) "
            "select e.asset_key, t.key, case t.value when :field then f.field when :night then f.night "
            "else t.value end, e.id, t.event_timestamp from fresh f join event_logs e using (run_id) "
            "join event_logs o on o.run_id = :run and o.asset_key = e.asset_key "
            "and o.dagster_event_type = e.dagster_event_type "
            "join asset_event_tags t on t.event_id = o.id"
        ),
        {"run": run, "field": pattern[0], "night": pattern[1]},
    )


def fill(fields: int, nights: int) -> dict[str, Any]:
    """Prune the log of what was made, and copy a field-night for `nights` nights of `fields` more fields."""
    import dagster as dg
    from sqlalchemy import create_engine, text

    from astrid_pipeline.services import postgres
    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline.services.retention import prune

    begin = time.perf_counter()
    with dagster_instance() as instance:
        prune(instance, 1.0, time.time() + 10 * 86400)
        made = instance.get_runs(dg.RunsFilter(job_name="process_night"), limit=1)[0]
        field, night = made.tags["dagster/partition"].split("|")
        runs = [
            run.run_id
            for run in instance.get_runs(dg.RunsFilter(tags={"dagster/partition": f"{field}|{night}"}))
        ]
        instance.add_dynamic_partitions("fields", watched(fields))
    days = [(FIRST + dt.timedelta(days=day - nights + 60)).isoformat() for day in range(nights)]
    targets = [(name, day) for day in days for name in watched(fields)]
    engine = create_engine(postgres.database_url("dagster"))
    with engine.begin() as connection:
        for run in runs:
            for start in range(0, len(targets), CHUNK):
                copy_run(connection, run, (field, night), targets[start : start + CHUNK])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
        rows = {
            table: int(connection.execute(text(f"select count(*) from {table}")).scalar_one())
            for table in (*TABLES, "asset_event_tags")
        }
    engine.dispose()
    return {
        "field_nights": len(targets),
        "runs_a_field_night": len(runs),
        "rows": rows,
        "database_megabytes": round(sizes()["dagster"] / 1e6),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """Measure; print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fields", type=int, default=100)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--home", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the pages")
    parser.add_argument("--output", type=Path, default=Path("year.json"))
    options = parser.parse_args()
    # Short: a PostgreSQL socket lies in it.
    home = options.home or Path(tempfile.mkdtemp(prefix="year-"))
    os.environ["ASTRID_HOME"] = str(home)
    os.environ["DAGSTER_HOME"] = str(home / "dagster")
    os.environ["ASTRID_FIRST_NIGHT"] = (FIRST - dt.timedelta(days=options.nights)).isoformat()
    from astrid_pipeline.services import postgres
    from astrid_pipeline.settings import get_settings, reset_settings

    reset_settings()
    try:
        add_fields(home / "data", 1, 3, alerts=False)
        found: dict[str, Any] = {"small": measure_small(1, 1)}
        found["page_empty"] = measure_page(home, None)
        found["fill"] = fill(options.fields, options.nights)
        print(json.dumps(found, indent=1), flush=True)
        found["page"] = measure_page(home, options.shots)
        options.output.write_text(json.dumps(found, indent=1))
        print(json.dumps(found["page"], indent=1))
    finally:
        postgres.stop(get_settings())
        if options.home is None:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
