"""Runs whose process is gone: ended on Dagster's books, so that they neither hold slots nor seem to go on for ever.

Dagster's daemon cannot ask after a process that was killed together with what watched over it (a power cut, the
machine's memory killer, `kill -9`). Each run of AstrID says which process of which machine works on it; on that machine
it can be told whether the process still lives.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

#: The page hides tags of this prefix.
#: Tag of a run that a worker of `astrid backfill` executes: `host:pid:start of the process`.
PROCESS_TAG = ".dagster/astrid_process"
#: Tag of a run that was launched from the page or by a sensor: the machine on which its process will be.
HOST_TAG = ".dagster/astrid_host"

_GRPC_TAG = ".dagster/grpc_info"
#: Seconds by which the clock of a process' start and that of its first event may differ.
_SLACK = 2.0
#: Two processes of one number do not begin within this time, seconds; the kernel counts in hundredths.
_TICK = 0.05


def this_process() -> str:
    """Return what names this process: a number alone would be given to another one day."""
    return f"{socket.gethostname()}:{os.getpid()}:{_since_boot(os.getpid()):.2f}"


def _since_boot(pid: int) -> float | None:
    """Return when a process began, in seconds that no change of the clock touches; None where there is none.

    The wall clock may be set while a run is under way, and with it what it says of the beginning of every process.
    """
    import psutil

    try:
        if not psutil.LINUX:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
        # After the name, which may hold anything: the state, …, and as the 20th the ticks since the machine's start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None


def _began_before(pid: int, moment: float) -> bool:
    """Tell whether a process was there at a moment (seconds since 1970), by the clock as it is now."""
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() <= moment + _SLACK)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # there is one; of another user, it is not ours to judge


def is_dead(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Tell whether a run goes on by the books while its process, on this machine, is gone.

    Where that cannot be known (a run on another machine, in a container, not begun yet), it is not dead.
    """
    if tag := run.tags.get(PROCESS_TAG):
        host, number, began = tag.rsplit(":", 2)
        if host != socket.gethostname():
            return False
        now = _since_boot(int(number))
        return now is None or abs(now - float(began)) > _TICK
    server = _server(run.tags)
    if server.get("socket"):
        if run.tags.get(HOST_TAG) != socket.gethostname():
            return False
    elif not _is_this_machine(str(server.get("host", ""))):
        return False
    from dagster import DagsterEventType

    for record in instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT).records:
        event = record.event_log_entry.dagster_event
        data = None if event is None else event.engine_event_data
        told = None if data is None else data.metadata.get("pid")
        if told is not None and str(told.value).isdigit():
            pid = int(str(told.value))
            if _since_boot(pid) is None:
                return True
            # Younger than the run: another process has its number, or the clock was set. Its server knows.
            young = not _began_before(pid, record.event_log_entry.timestamp)
            return young and _has(server, run.run_id) is False
    return False


def _server(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return how the code server is reached whose child the run is: `socket`, or `host` and `port`."""
    try:
        found = json.loads(tags.get(_GRPC_TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_this_machine(host: str) -> bool:
    """Tell whether a name or address is one of this machine (or container, which has processes of its own)."""
    import psutil

    try:
        address = socket.gethostbyname(host) if host else ""
    except OSError:
        return False
    own = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    return address.startswith("127.") or address in own


def is_served(run: DagsterRun) -> bool:
    """Tell whether the code server of a run answers, so that it can be launched there again; True if it had none."""
    from dagster._grpc.client import DagsterGrpcClient

    server = _server(run.tags)
    if not server.get("host") or not server.get("port"):
        return True
    client = DagsterGrpcClient(host=server["host"], port=server["port"], use_ssl=bool(server.get("use_ssl")))
    return bool(client.health_check_query() == "SERVING")


def is_forgotten(run: DagsterRun) -> bool:
    """Tell whether the code server that a run was launched on, elsewhere, answers but does not have it any more."""
    server = _server(run.tags)
    if not server.get("port") or _is_this_machine(str(server.get("host", ""))):
        return False
    return _has(server, run.run_id) is False


def _has(server: Mapping[str, Any], run_id: str) -> bool | None:
    """Ask a code server whether it has a run; None if it does not answer: it may be starting again, with the run."""
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    client = DagsterGrpcClient(
        host=server.get("host") or "localhost",
        port=server.get("port"),
        socket=server.get("socket"),
        use_ssl=bool(server.get("use_ssl")),
    )
    try:
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=10)
    except DagsterUserCodeUnreachableError:
        return None
    return bool(deserialize_value(answer, CanCancelExecutionResult).can_cancel)


def is_made(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Tell whether all steps of a run have succeeded, whatever became of the process that watched over them."""
    from dagster._core.execution.stats import StepEventStatus

    if not run.execution_plan_snapshot_id:
        return False
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    made = {
        stats.step_key
        for stats in instance.get_run_step_stats(run.run_id)
        if stats.status == StepEventStatus.SUCCESS
    }
    return set(plan.step_keys_to_execute) <= made


def note_success(instance: DagsterInstance, run: DagsterRun) -> None:
    """Note in Dagster that a run has succeeded, where its own process was killed before it could."""
    from dagster import DagsterEvent, DagsterEventType

    event = DagsterEvent(
        event_type_value=DagsterEventType.RUN_SUCCESS.value,
        job_name=run.job_name,
        message="All steps were made; the process that watched over them is gone.",
    )
    instance.report_dagster_event(event, run_id=run.run_id)


def correct(instance: DagsterInstance, run_id: str) -> bool:
    """Note a run as a success that was noted as a failure although all of it was made; return whether it was so.

    A run's process can be killed while its last step goes on with a Celery worker, or just after it.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or not run.is_failure or not is_made(instance, run):
        return False
    note_success(instance, run)
    return True


def end_dead_runs(instance: DagsterInstance) -> list[DagsterRun]:
    """Note as failed the runs whose process is gone, free what they held, and return them."""
    from dagster import DagsterRunStatus, RunsFilter

    going = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    ended = []
    for run in instance.get_runs(RunsFilter(statuses=going)):
        if not is_dead(instance, run):
            continue
        instance.report_run_failed(
            run, "the process that worked on this is gone (killed, out of memory, or the machine stopped)"
        )
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run)
    return ended
