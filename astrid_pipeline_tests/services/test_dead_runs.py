"""Runs whose process is gone are ended on the books, and no others."""

from __future__ import annotations

import socket
import subprocess
import sys

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.test_utils import create_run_for_test

from astrid_pipeline.services.dead_runs import (
    HOST_TAG,
    PROCESS_TAG,
    _since_boot,
    correct,
    end_dead_runs,
    is_forgotten,
    is_made,
    note_success,
    this_process,
)

HERE = socket.gethostname()
BY_FILE = '{"host": "localhost", "socket": "/tmp/code"}'


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as made:
        yield made


def started(instance, **tags: str) -> dg.DagsterRun:
    run = create_run_for_test(
        instance, job_name="process_night", status=dg.DagsterRunStatus.STARTED, tags=tags
    )
    return run


def gone() -> tuple[int, float]:
    """Return number and start of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    number, began = process.pid, _since_boot(process.pid)
    process.kill()
    process.communicate()
    return number, began


def test_only_what_died_on_this_machine_is_ended(instance):
    number, began = gone()
    dead = started(instance, **{PROCESS_TAG: f"{HERE}:{number}:{began:.2f}"})
    # Its number was given to another process since: this one.
    reused = started(instance, **{PROCESS_TAG: f"{HERE}:{psutil.Process().pid}:{began - 10:.2f}"})
    alive = started(instance, **{PROCESS_TAG: this_process()})
    elsewhere = started(instance, **{PROCESS_TAG: f"other-{HERE}:{number}:{began:.2f}"})
    unknown = started(instance)
    assert {run.run_id for run in end_dead_runs(instance)} == {dead.run_id, reused.run_id}
    for run in (dead, reused):
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    for run in (alive, elsewhere, unknown):
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED
    assert end_dead_runs(instance) == []


def test_a_launched_run_is_known_by_the_process_that_its_log_names(instance):
    number, _ = gone()

    def launched(pid: int, host: str = HERE, info: str = BY_FILE) -> dg.DagsterRun:
        run = started(instance, **{HOST_TAG: host, ".dagster/grpc_info": info})
        instance.report_engine_event("Started process for run", run, EngineEventData.in_process(pid))
        return run

    dead = launched(number)
    alive = launched(psutil.Process().pid)
    # Whoever launches it may be in another container; the code server's own counts.
    served = launched(number, host="another", info='{"host": "127.0.0.1", "port": 4000}')
    # In a container, numbers are others'.
    elsewhere = launched(number, info='{"host": "code.invalid", "port": 4000}')
    other = launched(number, host="another")
    assert {run.run_id for run in end_dead_runs(instance)} == {dead.run_id, served.run_id}
    for run in (alive, elsewhere, other):
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_clock_that_was_set_kills_no_run(instance, monkeypatch):
    """By a clock that was put back, or forward, every process seems to have begun after its run."""
    running = started(instance, **{PROCESS_TAG: this_process()})
    launched = started(instance, **{HOST_TAG: HERE, ".dagster/grpc_info": BY_FILE})
    instance.report_engine_event("Started", launched, EngineEventData.in_process(psutil.Process().pid))
    began = psutil.Process.create_time
    for jump in (86400.0, -86400.0):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, jump=jump: began(self) + jump)
        assert end_dead_runs(instance) == []
    assert instance.get_run_by_id(running.run_id).status == dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize(("has", "forgotten"), [(True, False), (False, True), (None, False)])
def test_a_run_elsewhere_is_asked_for_at_its_code_server(instance, monkeypatch, has, forgotten):
    """A server that answers and does not have the run has lost it; one that is silent may come back with it."""
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionResult
    from dagster._serdes import serialize_value

    def can_cancel(self, request, timeout):
        if has is None:
            raise DagsterUserCodeUnreachableError("no answer")
        return serialize_value(CanCancelExecutionResult(can_cancel=has))

    monkeypatch.setattr(DagsterGrpcClient, "can_cancel_execution", can_cancel)
    run = started(instance, **{".dagster/grpc_info": '{"host": "code.invalid", "port": 4000}'})
    assert is_forgotten(run) == forgotten
    assert not is_forgotten(started(instance))


def test_the_slots_of_a_dead_run_are_free_again(instance):
    number, began = gone()
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    dead = started(instance, **{PROCESS_TAG: f"{HERE}:{number}:{began:.2f}"})
    assert storage.claim_concurrency_slot("gpu", dead.run_id, "detections").is_claimed
    other = started(instance)
    assert not storage.claim_concurrency_slot("gpu", other.run_id, "detections").is_claimed
    end_dead_runs(instance)
    # Steps that wait ask again and again.
    assert storage.claim_concurrency_slot("gpu", other.run_id, "detections").is_claimed


def test_a_run_all_of_whose_steps_were_made_is_not_a_failure(instance):
    """Its process was killed after the last step had ended, here or with a worker, and before it could say so."""

    @dg.op
    def first():
        return 1

    @dg.op
    def second(value):
        if "fail" in dg.OpExecutionContext.get().run.tags:
            raise ValueError

    @dg.job
    def chain():
        second(first())

    for tags, made in (({}, True), ({"fail": "yes"}, False)):
        result = chain.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
        assert is_made(instance, run) == made
        if made:
            instance.report_run_failed(run, "its process is gone")
        assert instance.get_run_by_id(run.run_id).is_failure
        assert correct(instance, run.run_id) == made
        assert instance.get_run_by_id(run.run_id).is_success == made
        assert not correct(instance, run.run_id)
    lost = started(instance)
    assert not is_made(instance, lost)
    note_success(instance, lost)
    assert instance.get_run_by_id(lost.run_id).status == dg.DagsterRunStatus.SUCCESS
