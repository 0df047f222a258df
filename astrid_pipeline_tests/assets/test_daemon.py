"""Automation with a real daemon: nights make themselves, also when the daemon is killed in the middle of a tick."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

import dagster as dg
import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archive_server.holdings import make_fits
from astrid_pipeline_tests.assets.live import live

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]

RA, DEC = 150.0, 20.0


def add(holdings: Holdings, night: int, number: int = 0) -> None:
    """Add an exposure that is large enough to be differenced."""
    name, mjd = f"ilive{night}{number}q", 60000.2 + night + 0.01 * number
    row = holdings.add(name, RA, DEC, mjd, "F160W", release=60000.0 + 0.1 * len(holdings.rows))
    uri = row["dataURL"]
    content = make_fits(name, RA, DEC, mjd, "F160W", size=192)
    holdings.files[uri] = partial(bytes, content)
    for product in holdings.products[row["obsid"]]:
        if product["dataURI"] == uri:
            product["size"] = len(content)


def test_nights_make_themselves_and_a_killed_daemon_doubles_nothing(home):
    from astrid_pipeline import driver
    from astrid_pipeline.services.dagster_home import dagster_instance

    holdings = Holdings()
    for number in range(3):
        add(holdings, 0, number)
    add(holdings, 1)
    with ArchiveServer(holdings) as server, dagster_instance() as instance:
        archive = f"mast:HST?server={server.url}"
        driver.open_catalogue().add_field(Field("live", RA, DEC, 0.1, archive=archive, poll_minutes=0.02))
        products = driver.open_products()

        def runs(job: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return instance.get_runs(dg.RunsFilter(job_name=job, statuses=list(statuses) or None))

        def done(job: str) -> Counter:
            return Counter(
                run.tags.get("dagster/partition", "") for run in runs(job, dg.DagsterRunStatus.SUCCESS)
            )

        with live(home, "astrid_pipeline_tests.assets.quick_definitions") as dagster:
            dagster.switch_on(["new_observations", "automation"])
            # The archive takes its time, so that the daemon can be killed while a tick waits for it.
            server.misbehave("slow", "/invoke", 3, value=2.0)
            dagster.start("daemon")
            dagster.wait_for("a question to the archive", lambda: server.count("COUNT_BIG"))
            dagster.kill("daemon")
            dagster.start("daemon")
            first, second = "2023-02-25", "2023-02-26"
            dagster.wait_for("the night", lambda: products.nights("night_summary", "live") == [second])
            dagster.wait_for("the end of its run", lambda: done("process_night"))
            # Killed once more, in any tick, with runs about.
            dagster.kill("daemon")
            add(holdings, 1, 1)
            dagster.start("daemon")
            wanted = {f"live|{second}": 2}
            dagster.wait_for("the night with a new exposure", lambda: done("process_night") == wanted)
            assert done("calibrate_night") == {f"live|{first}": 1}
            assert done("make_references") == {"live": 1}
            assert len(products.table("observations", f"live|{second}")) == 2
            # The summary follows by automation; a schedule's would come before it, so that is switched on last.
            dagster.wait_for(
                "the summary by automation",
                lambda: [
                    run
                    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
                    if dg.AssetKey("survey_summary") in (run.asset_selection or ())
                    and "dagster/schedule_name" not in run.tags
                ],
            )
            dagster.switch_on(schedules=["nightly_summary"])
            dagster.wait_for(
                "the schedule's run",
                lambda: [
                    run
                    for run in runs("summarise_survey", dg.DagsterRunStatus.SUCCESS)
                    if run.tags.get("dagster/schedule_name") == "nightly_summary"
                ],
            )
            # Nothing is asked for again once all is made.
            before = {run.run_id for run in runs("process_night")}
            time.sleep(8)
            assert {run.run_id for run in runs("process_night")} == before
        keys = Counter(run.tags.get("dagster/run_key") for run in instance.get_runs())
        assert all(count == 1 for key, count in keys.items() if key), keys
