"""Stopping a run: what Dagster then says of it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid

import dagster as dg

from astrid_pipeline.driver import runner
from astrid_pipeline.driver.runner import RUN_KEY_TAG, _made_by_another, _noting_a_stop
from astrid_pipeline.night.plan import Step


def test_a_run_stopped_by_ctrl_c_does_not_go_on_for_ever_on_the_page() -> None:
    @dg.op
    def interrupted() -> None:
        raise KeyboardInterrupt

    @dg.job
    def night() -> None:
        interrupted()

    run_id = str(uuid.uuid4())
    with dg.DagsterInstance.ephemeral() as instance:
        with contextlib.suppress(KeyboardInterrupt), _noting_a_stop(instance, run_id):
            night.execute_in_process(instance=instance, run_id=run_id, raise_on_error=False)
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.is_finished, run.status


def test_what_another_run_is_making_is_not_made_twice(monkeypatch) -> None:
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.test_utils import create_run_for_test

    step = Step.on("process_night", "m31|2026-01-02", ["a", "b"])

    def run(
        instance: dg.DagsterInstance, status: dg.DagsterRunStatus, key: str = step.run_key
    ) -> dg.DagsterRun:
        return create_run_for_test(instance, job_name=step.job, status=status, tags={RUN_KEY_TAG: key})

    with dg.DagsterInstance.ephemeral() as instance:
        assert _made_by_another(instance, step) is None
        # One of other exposures, and one that failed, do not count.
        run(instance, dg.DagsterRunStatus.STARTED, "process_night:m31|2026-01-02@other")
        run(instance, dg.DagsterRunStatus.FAILURE)
        assert _made_by_another(instance, step) is None
        queued = run(instance, dg.DagsterRunStatus.NOT_STARTED)
        assert _made_by_another(instance, step) is None
        assert instance.get_run_by_id(queued.run_id).status == dg.DagsterRunStatus.CANCELED
        going = run(instance, dg.DagsterRunStatus.STARTED)

        def succeed(_: float) -> None:
            event = DagsterEvent(DagsterEventType.RUN_SUCCESS.value, step.job)
            instance.report_dagster_event(event, going.run_id)

        monkeypatch.setattr(runner.time, "sleep", succeed)
        assert _made_by_another(instance, step) == going.run_id
        other = run(instance, dg.DagsterRunStatus.STARTED)
        monkeypatch.setattr(runner.time, "sleep", lambda _: instance.report_run_failed(other))
        assert _made_by_another(instance, step) is None


def test_a_run_in_a_worker_waits_for_its_pool(tmp_path) -> None:
    """As `astrid backfill` runs it: in process, without daemon or queue, and yet one on the GPU at a time."""
    freed: list[float] = []

    @dg.op(pool="gpu")
    def judged() -> None:
        assert freed, "it began while another run had the only slot"

    @dg.job(executor_def=dg.in_process_executor)
    def night() -> None:
        judged()

    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        assert storage.claim_concurrency_slot("gpu", "another-run", "judged").is_claimed

        def free() -> None:
            freed.append(time.monotonic())
            storage.free_concurrency_slots_for_run("another-run")

        later = threading.Timer(1.0, free)
        later.start()
        assert night.execute_in_process(instance=instance).success
        later.join()
