"""A backfill that is killed outright and called again: every night is there, once, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline_tests.night.small_survey import night_of, write_field

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]

NIGHTS = 5


def start(home: Path, log: Path, *arguments: str) -> subprocess.Popen:
    """Start `astrid` in a session of its own, so that what it leaves behind is found."""
    environment = {**os.environ, "ASTRID_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"}
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "astrid_pipeline.cli", *arguments],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            lives = os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
            # The embedded PostgreSQL stays up: others of the home may be using it.
            if lives and "postgres" not in process.name():
                found.append(process)
    return found


def wait_until(condition, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def test_killed_in_the_middle_it_goes_on_where_it_was(home, tmp_path):
    import dagster as dg
    from sqlalchemy import text

    from astrid_pipeline import driver
    from astrid_pipeline.services.dagster_home import dagster_instance, gpus

    write_field(tmp_path / "fits", "small", NIGHTS)
    driver.open_catalogue().add_field(Field("small", 150.0, 20.0, 0.3, archive=f"folder:{tmp_path / 'fits'}"))

    def runs(*statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        with dagster_instance() as instance:
            return instance.get_runs(dg.RunsFilter(statuses=list(statuses) or None))

    def judging() -> list[dg.DagsterRun]:
        return [r for r in runs(dg.DagsterRunStatus.STARTED) if r.job_name == "process_night"]

    first = start(home, tmp_path / "first.log", "backfill", "small", "--workers", "2")
    try:
        wait_until(lambda: (tmp_path / "first.log").read_text().count("differenced") >= 1 and judging())
        first.send_signal(signal.SIGKILL)
        first.wait()
        # Its workers notice that nobody waits for them any more.
        wait_until(lambda: not members(first.pid), 60)
    finally:
        for process in members(first.pid):
            process.kill()
    left = judging()
    assert left, "the runs that were under way stand as going on"

    # A slot that a dead run held would be waited for for ever.
    with dagster_instance() as instance:
        held = [instance.event_log_storage.get_concurrency_info(pool) for pool in ("gpu", "archive")]
        assert [pool.slot_count for pool in held] == [gpus() or os.cpu_count(), 2]

    again = start(home, tmp_path / "again.log", "backfill", "small", "--workers", "2")
    assert again.wait(timeout=300) == 0, (tmp_path / "again.log").read_text()
    told = (tmp_path / "again.log").read_text()
    assert f"small: {NIGHTS} nights with exposures" in told
    assert "1 night not judged (2025-01-01)" in told
    products = driver.open_products()
    judged = [night_of(number) for number in range(1, NIGHTS)]
    assert products.nights("night_summary", "small") == judged
    # Each night was made by one run; what had been made before the kill was not made again.
    done = Counter(
        run.tags["dagster/partition"]
        for run in runs(dg.DagsterRunStatus.SUCCESS)
        if run.job_name == "process_night"
    )
    assert done == {f"small|{night}": 1 for night in judged}
    assert {run.run_id for run in left} <= {run.run_id for run in runs(dg.DagsterRunStatus.FAILURE)}
    assert judging() == []
    with dagster_instance() as instance:
        for pool in ("gpu", "archive"):
            assert instance.event_log_storage.get_concurrency_info(pool).active_slot_count == 0
    with driver.open_catalogue().engine.connect() as connection:
        rows = connection.execute(
            text("select count(*), count(distinct exposure_id) from observations")
        ).one()
    assert rows[0] == rows[1]

    # A third call would find nothing to do.
    survey = driver.Survey([driver.open_catalogue().field("small")])
    assert survey.ready() == []
