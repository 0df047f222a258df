"""Services, runs and steps killed outright in the middle of work, one after the other, on the stack as it runs.

Each comes back as docker compose would bring it back. After each: the night is there once, whole and readable; no row
is double, no slot is held, and where a run failed its page says why.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from sqlalchemy import text

from astrid_pipeline_tests.stack import runs
from astrid_pipeline_tests.stack.compose import kill_process
from astrid_pipeline_tests.stack.conftest import LONG, SIZE, Production

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.s3]

STEP = "calibrated_frames"
#: What is killed, each with a night of its own.
NIGHT_OF = {
    name: 2 + number
    for number, name in enumerate(
        ("step", "run", "late", "worker-cpu", "postgres", "redis", "s3", "daemon", "code")
    )
}


def begin(production: Production, name: str) -> str:
    """Start a long night and return the run's id when its second step is at work."""
    stack = production.stack
    run = runs.launch(stack, "calibrate_night", production.partition(NIGHT_OF[name]))
    stack.wait_for("the step", lambda: runs.began(stack, run, STEP))
    return run


def whole(production: Production, name: str, run: str) -> str:
    """Wait for the end, check that the night is there once and whole; return what the pages of all runs say."""
    from astrid_pipeline import driver
    from astrid_pipeline.services.dagster_home import dagster_instance

    stack, partition = production.stack, production.partition(NIGHT_OF[name])
    how = stack.wait_for("the end of the run and its retries", lambda: runs.ended(stack, run))
    tried = runs.family(stack, run)
    said = "\n".join(runs.told(stack, entry["runId"]) for entry in tried)
    assert how == "SUCCESS", said
    assert len(tried) <= 3, "Dagster retries twice"
    frames = driver.open_products().frames(STEP, *partition.split("|"))
    assert len(frames) == LONG
    for exposure in frames:
        assert frames[exposure].data.shape == (SIZE, SIZE)  # read from the store, its digest checked
    with driver.open_catalogue().engine.connect() as connection:
        rows = connection.execute(
            text("select count(*), count(distinct exposure_id) from observations")
        ).one()
    assert rows[0] == rows[1]
    with dagster_instance() as instance:
        for pool in ("gpu", "archive"):
            assert instance.event_log_storage.get_concurrency_info(pool).active_slot_count == 0
    return said


def kill_service(production: Production, name: str) -> None:
    """Kill a service and wait until docker's policy has brought it back."""
    stack = production.stack
    before = stack.restarts.get(name, 0)
    stack.kill(name)
    stack.wait_for("its restart", lambda: stack.restarts.get(name, 0) == before + 1)
    stack.wait_for("its health", lambda: stack.healthy(name))


def test_the_process_of_a_step(production):
    run = begin(production, "step")
    kill_process(runs.process_of(production.stack, run, STEP))
    said = whole(production, "step", run)
    # On the page of the run that failed: what happened, and what comes of it.
    assert "the process that worked on this is gone" in said
    assert "the run is tried again from this step" in said
    first, second = runs.family(production.stack, run)
    assert (first["status"], second["status"]) == ("FAILURE", "SUCCESS")
    # What was made before is not made again.
    begun = {
        e["stepKey"] for e in runs.events(production.stack, second["runId"]) if e["eventType"] == "STEP_START"
    }
    assert begun == {STEP}


def test_the_process_of_a_run(production):
    run = begin(production, "run")
    kill_process(runs.process_of(production.stack, run))
    said = whole(production, "run", run)
    assert "SIGKILL" in said


def test_the_process_of_a_run_whose_step_ends_before_anybody_looks(production):
    """Nothing is left to be tried again: Dagster would leave the run as a failure."""
    stack = production.stack
    run = begin(production, "late")
    daemon = stack.processes["daemon"].pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        kill_process(runs.process_of(stack, run))
        stack.wait_for("the end of the step", lambda: not runs.began(stack, run, STEP))
    finally:
        os.kill(daemon, signal.SIGCONT)
    whole(production, "late", run)
    (only,) = runs.family(stack, run)
    assert "All steps were made" in str(runs.events(stack, run))
    assert only["status"] == "SUCCESS"


def test_a_worker_with_its_whole_container(production):
    run = begin(production, "worker-cpu")
    kill_service(production, "worker-cpu")
    said = whole(production, "worker-cpu", run)
    assert "the worker cpu@" in said
    assert "is gone" in said


@pytest.mark.parametrize("names", [("redis",), ("s3",), ("daemon", "webserver"), ("code",)], ids="+".join)
def test_a_service(production, names):
    run = begin(production, names[0])
    for name in names:
        kill_service(production, name)
    whole(production, names[0], run)


def test_the_database_with_people_at_work(production, judged_night):
    """No verdict that was acknowledged is lost, and none is there twice."""
    from astrid_pipeline import driver
    from astrid_pipeline.catalog import labels
    from astrid_pipeline.errors import ServiceError

    catalogue = driver.open_catalogue()
    with catalogue.engine.connect() as connection:
        source = connection.execute(text("select min(id) from sources")).scalar_one()
    over, sent, refused = threading.Event(), [], 0

    def judge() -> None:
        nonlocal refused
        number = 0
        while not over.is_set():
            token = f"verdict-{number}"
            try:
                labels.record(catalogue, source, who="scanner", verdict="real", token=token)
            except ServiceError:
                refused += 1  # sent again with the same token, as the page does
                time.sleep(0.05)
                continue
            sent.append(token)
            number += 1

    scanner = threading.Thread(target=judge)
    run = begin(production, "postgres")
    scanner.start()
    try:
        time.sleep(0.5)
        kill_service(production, "postgres")
        time.sleep(0.5)
    finally:
        over.set()
        scanner.join()
    assert refused, "the server was away while verdicts were sent"
    with catalogue.engine.connect() as connection:
        kept = (
            connection.execute(text("select token from validation_events where who = 'scanner'"))
            .scalars()
            .all()
        )
    assert sorted(kept) == sorted(sent)
    whole(production, "postgres", run)


def test_the_tracking_server_while_its_model_is_wanted(production, judged_night):
    """MLflow is killed as the step that asks it for the champion begins."""
    from astrid_pipeline import driver

    stack, partition = production.stack, production.partition(1)
    run = runs.launch(stack, "process_night", partition, assets=["detections"])
    stack.wait_for("its start", lambda: runs.status(stack, run) == "STARTED")
    kill_service(production, "mlflow")
    assert stack.wait_for("the end", lambda: runs.ended(stack, run)) == "SUCCESS", runs.told(stack, run)
    assert len(driver.open_products().table("detections", partition)) >= 0
