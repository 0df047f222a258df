"""Two runs of one night at once; a migration of the catalogue that is cut short."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from sqlalchemy import create_engine, inspect, text

from astrid_pipeline.catalog import Catalog, migrate
from astrid_pipeline.services import postgres
from astrid_pipeline_tests.faults.conftest import is_whole
from astrid_pipeline_tests.faults.processes import ROOT, Night
from astrid_pipeline_tests.services.homes import home

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.s3]


def test_two_runs_of_one_night_at_once_leave_one_night(healthy_site):
    """As when a person launches what a sensor has launched already: neither knows of the other."""
    partition = healthy_site.fresh_night()
    both = [Night(partition), Night(partition)]
    for night in both:
        night.ready()
    for night in both:
        night.go()
    results = [night.result() for night in both]
    assert [result["error"] for result in results] == [None, None]
    assert results[0]["run_id"] != results[1]["run_id"]
    is_whole(partition)


#: Migrates, and says so after the last statement, before the transaction is committed.
_MIGRATES = """
import sys, time
from sqlalchemy import create_engine, event
from astrid_pipeline.catalog import migrate
engine = create_engine(sys.argv[1])
@event.listens_for(engine, "after_cursor_execute")
def told(connection, cursor, statement, *rest):
    if statement.lstrip().upper().startswith("CREATE TABLE SOURCES"):
        print("IN THE MIDDLE", flush=True)
        time.sleep(60)
migrate.migrate(engine)
"""


def test_a_migration_that_is_killed_in_its_middle_leaves_nothing_and_the_next_one_ends_it():
    with home() as settings:
        url = postgres.database_url("astrid", settings)
        process = subprocess.Popen(
            [sys.executable, "-c", _MIGRATES, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "IN THE MIDDLE\n"
        process.kill()
        process.wait()
        engine = create_engine(url)
        deadline = time.monotonic() + 20
        while migrate.current(engine) is not None or inspect(engine).get_table_names():
            assert time.monotonic() < deadline, "the server has not taken back what was begun"
            time.sleep(0.1)
        catalogue = Catalog(url)
        try:
            assert migrate.current(engine) == migrate.head()
            with engine.connect() as connection:
                assert connection.execute(text("select count(*) from sources")).scalar_one() == 0
        finally:
            catalogue.close()
            engine.dispose()
