"""Worker processes that run jobs through Dagster, recorded in the instance that the page shows.

A worker is a process of its own, so that two nights use two cores and a crash costs one run.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from astrid_pipeline.errors import AstridError
from astrid_pipeline.night.plan import Step

log = logging.getLogger(__name__)

#: Seconds between two looks of a worker whether the process that started it still lives.
PARENT_SECONDS = 1.0
#: Seconds between two looks at another run that is making the same.
OTHERS_SECONDS = 1.0
#: Dagster's tag of what a sensor has asked for.
RUN_KEY_TAG = "dagster/run_key"


@dataclass(frozen=True)
class RunResult:
    """What became of one run: `error` is None where it succeeded; `bad_checks` are asset checks that failed."""

    step: Step
    run_id: str
    seconds: float
    error: str | None = None
    bad_checks: tuple[str, ...] = ()
    peak_megabytes: float = 0.0


def execute(
    step: Step, run_config: dict[str, Any] | None = None, tags: Mapping[str, str] | None = None
) -> RunResult:
    """Run one step in this process, recorded in the Dagster instance of this home; `tags` are added to the run's."""
    import dagster as dg

    from astrid_pipeline.definitions import defs
    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline.services.dead_runs import PROCESS_TAG, this_process

    started = time.perf_counter()
    field, _, night = step.partition.rpartition("|") if "|" in step.partition else (step.partition, "", "")
    config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **(run_config or {})}
    run_id = str(uuid.uuid4())
    with dagster_instance() as instance, _noting_a_stop(instance, run_id):
        if (other := _made_by_another(instance, step)) is not None:
            return RunResult(step, other, time.perf_counter() - started)
        result = defs.resolve_job_def(step.job).execute_in_process(
            instance=instance,
            run_id=run_id,
            partition_key=step.partition or None,
            run_config=config,
            tags={
                "astrid/field": field or "-",
                "astrid/night": night or "-",
                # By it the sensor `new_observations` knows that this need not be asked for.
                RUN_KEY_TAG: step.run_key,
                PROCESS_TAG: this_process(),
                **(tags or {}),
            },
            raise_on_error=False,
        )
        failures = [
            f"{event.step_key}: {_reason(event.step_failure_data)}"
            for event in result.all_events
            if event.event_type == dg.DagsterEventType.STEP_FAILURE
        ]
        bad = tuple(
            f"{e.asset_key.to_user_string()}: {e.check_name}"
            + (f" — {e.description}" if e.description else "")
            for e in result.get_asset_check_evaluations()
            if not e.passed
        )
    return RunResult(
        step=step,
        run_id=result.run_id,
        seconds=time.perf_counter() - started,
        error=None
        if result.success
        else "; ".join(failures) or "the run failed: see its log on the Dagster page",
        bad_checks=bad,
        peak_megabytes=_peak_megabytes(),
    )


def _made_by_another(instance: Any, step: Step) -> str | None:
    """Return the id of another run that has made just this meanwhile, None where it is to be made here.

    A run that waits in the queue is taken over: it is cancelled. One that is under way is waited for.
    """
    import dagster as dg

    same = {RUN_KEY_TAG: step.run_key}
    if not step.digest:
        return None
    waiting = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
    for run in instance.get_runs(dg.RunsFilter(tags=same, statuses=waiting)):
        instance.report_run_canceled(run, message="a backfill makes this now")
    going = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    others = instance.get_runs(dg.RunsFilter(tags=same, statuses=going))
    while unfinished := [r for r in others if not instance.get_run_by_id(r.run_id).is_finished]:
        from astrid_pipeline.services.dead_runs import end_dead_runs

        end_dead_runs(instance)
        log.info("%s: waiting for run %s, which is making it", step.partition, unfinished[0].run_id[:8])
        time.sleep(OTHERS_SECONDS)
    made = [r for r in others if instance.get_run_by_id(r.run_id).is_success]
    return made[0].run_id if made else None


@contextmanager
def _noting_a_stop(instance: Any, run_id: str) -> Iterator[None]:
    """Where the work inside is stopped by Ctrl-C, note so of the run: on the page it would go on for ever."""
    try:
        yield
    except KeyboardInterrupt:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_canceled(run, message="stopped by Ctrl-C")
        raise


def _reason(failure: Any) -> str:
    """Return the most telling line of a step's failure: what the step said, else the innermost error."""
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return "unknown" if error is None else " ".join(str(error.message).split())


def _peak_megabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start_worker(parent: int) -> None:
    # Ctrl-C reaches the whole terminal group: the parent ends the workers, in order. What it sends them stops the
    # run as Ctrl-C would, so that Dagster notes it as stopped and not as going on for ever.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(parent,), daemon=True, name="parent").start()


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone: killed outright, it could not end its workers.

    What the worker was at is made again by the next backfill; the store holds nothing that is half.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def note_dead_runs() -> None:
    """Note in Dagster the runs of this machine whose process is gone."""
    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline.services.dead_runs import end_dead_runs

    with dagster_instance() as instance:
        for run in end_dead_runs(instance):
            partition = run.tags.get("dagster/partition", "").replace("|", " ")
            log.warning("%s of %s had died: it is made again if it is still wanted", run.job_name, partition)


class Runner:
    """Worker processes that run steps through Dagster, side by side.

    Parameters
    ----------
    workers:
        How many at once.
    tags:
        Added to each run's tags.
    """

    def __init__(self, workers: int, tags: Mapping[str, str] | None = None) -> None:
        # Each worker computes on one core; more threads than cores only get in each other's way.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))
        self._workers = workers
        self._tags = dict(tags or {})
        # What a killed backfill has left would hold the slots that this one's steps wait for.
        note_dead_runs()
        self._pool = self._fresh_pool()

    def _fresh_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(),),
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        # Ctrl-C, or Dagster's interruption of a run: no mistake of the code's, and nobody waits for the rest.
        if kind is not None and not issubclass(kind, Exception):
            for worker in multiprocessing.active_children():
                worker.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        steps: Iterable[Step],
        done: Callable[[RunResult], Any],
        run_config: dict[str, Any] | None = None,
    ) -> list[RunResult]:
        """Run steps that do not rest on one another; `done` is called as each ends.

        A worker that dies (killed, out of memory) costs the runs that were in it: they are told as failed, and
        the others go on in new workers.
        """
        waiting = list(steps)
        results: list[RunResult] = []
        running: dict[Future[RunResult], tuple[Step, float]] = {}
        while waiting or running:
            while waiting and len(running) < self._workers:
                step = waiting.pop(0)
                running[self._pool.submit(execute, step, run_config, self._tags)] = (
                    step,
                    time.perf_counter(),
                )
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step, started = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = RunResult(
                        step,
                        "",
                        time.perf_counter() - started,
                        "the worker process died (killed, or out of memory)",
                    )
                except AstridError as error:
                    result = RunResult(step, "", time.perf_counter() - started, str(error))
                results.append(result)
                done(result)
            if any(r.error and "worker process died" in r.error for r in results[-len(finished) :]):
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._fresh_pool()
                note_dead_runs()
        return results
