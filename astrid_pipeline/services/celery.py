"""Steps on Celery's workers: the executor of a run, and the application that the workers serve.

`ASTRID_EXECUTOR=celery` sends each step of a run through Redis (`ASTRID_BROKER_URL`) to the queue that its op names,
`cpu` or `gpu`. A worker is started by

    celery -A astrid_pipeline.services.celery worker --queues gpu --hostname gpu@%h --concurrency 1

A worker that dies loses the step that it was at. Celery's own remedy, to deliver the step anew, would do so for ever
with a step that kills its worker. Here the run ends and says so, Dagster starts it again from that step
(`run_retries` of dagster.yaml), and gives up after two times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
from celery.signals import task_postrun
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster_celery.executor import CeleryExecutor, _submit_task
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.settings import get_settings

if TYPE_CHECKING:
    from celery import Celery

#: The queues that ops name by their tag `dagster-celery/queue`.
QUEUES = ("cpu", "gpu")
#: Seconds between two questions to a worker whether it lives.
ASK_SECONDS = 10.0
#: A worker that gives no sign for so long, seconds, is gone: one that is only busy answers from its main process.
GONE_SECONDS = 60.0
#: Redis may be away for so long, seconds, before the run is given up. It writes each message to disk first.
BROKER_SECONDS = 300.0


def app_settings() -> dict[str, Any]:
    """Return how the Celery application is made, for workers and executor alike.

    Raises
    ------
    ConfigError
        If `ASTRID_BROKER_URL` is not set, or is no address of Redis.
    """
    url = get_settings().broker_url
    text = url.get_secret_value() if url is not None else ""
    if not text.startswith(("redis://", "rediss://")):
        raise ConfigError(
            "ASTRID_EXECUTOR=celery needs a Redis between runs and workers",
            where="ASTRID_BROKER_URL",
            remedy="write redis://host:6379/0",
        )
    return {
        "broker": text,
        "backend": text,
        "config_source": {
            "worker_prefetch_multiplier": 1,
            "worker_disable_prefetch": True,  # a step waits in the queue, where a free worker finds it
            "task_track_started": True,  # says which worker is at it
            "task_acks_late": False,  # a step that kills its worker must not come to the next one
            "result_expires": 86400,
            "accept_content": ["json"],
            "task_default_queue": "cpu",
            "broker_connection_retry_on_startup": True,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_send_task_events": False,
            "worker_hijack_root_logger": False,
            # Within these times a client asks Redis again by itself.
            "broker_transport_options": {"socket_timeout": 10, "socket_connect_timeout": 5},
            "redis_socket_timeout": 10,
            "redis_socket_connect_timeout": 5,
            "redis_retry_on_timeout": True,
            "result_backend_transport_options": {"retry_policy": {"timeout": 5.0}},
        },
    }


class WatchedResult:
    """The result of a step that a worker was sent; it ends with an error where the worker is gone.

    Parameters
    ----------
    result:
        Celery's own result.
    step:
        Name of the step, for the message.
    """

    def __init__(self, result: Any, step: str) -> None:
        self._result, self._step = result, step
        self._asked = self._heard = time.monotonic()
        self._silent_since: float | None = None
        self._error: ServiceError | None = None

    def ready(self) -> bool:
        """Tell whether the step has ended, one way or the other."""
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        now = time.monotonic()
        try:
            if self._result.ready():
                return True
            self._look(now)
            self._silent_since = None
        except (OperationalError, RedisError, OSError) as error:
            self._silent_since = self._silent_since or now
            self._heard = now  # nobody can be heard meanwhile
            if now - self._silent_since > BROKER_SECONDS:
                self._error = ServiceError(
                    f"Redis has not answered for {now - self._silent_since:.0f} s: {error}",
                    where=self._step,
                    remedy="start it; the run is then tried again from this step",
                )
        return self._error is not None

    def _look(self, now: float) -> None:
        """Ask the worker that has the step, now and then, whether it still has it: one started anew has not."""
        if now - self._asked < ASK_SECONDS:
            return
        self._asked = now
        worker = self._worker()
        if worker is None:
            self._look_for_message(now)
            return
        answers = self._result.app.control.inspect([worker], timeout=2.0).query_task(self._result.id)
        if answers and self._result.id in answers.get(worker, {}):
            self._heard = now
            return
        # A worker that does not answer may be busy for a moment. One that answers without the step has just ended it,
        # which shows at the next look, or was killed and started again.
        limit = ASK_SECONDS if answers else GONE_SECONDS
        if now - self._heard > limit and not self._result.ready():
            self._error = ServiceError(
                f"the worker {worker}, which was at this step, is gone (killed, out of memory, or its machine stopped)",
                where=self._step,
                remedy="the run is tried again from this step; look at the worker's log and memory if it happens again",
            )

    def _look_for_message(self, now: float) -> None:
        """Look whether the step still waits: Redis may have handed it to a machine that had just lost its cable."""
        control, task = self._result.app.control, self._result.id
        if is_queued(self._result.app, task) or any(
            (control.inspect(timeout=2.0).query_task(task) or {}).values()
        ):
            self._heard = now
        # Between the queue and the worker's word that it has begun lie moments.
        elif now - self._heard > GONE_SECONDS and not self._result.ready() and self._worker() is None:
            self._error = ServiceError(
                "the message that asks for this step is neither in the queue nor with a worker: the worker that it was "
                "handed to was killed, or its network cut, before it had begun",
                where=self._step,
                remedy="the run is tried again from this step",
            )
            # A worker may find the message after all, when Redis gives up waiting for the first to take it.
            self._result.revoke()

    def _worker(self) -> str | None:
        """Return the worker that has begun the step; None while it waits in the queue."""
        told = self._result.info
        name = told.get("hostname") if isinstance(told, dict) else None
        return None if name is None else str(name)

    def get(self) -> Any:
        """Return the step's events.

        Raises
        ------
        ServiceError
            If the worker is gone.
        """
        from billiard.exceptions import WorkerLostError

        if self._error is not None:
            raise self._error
        try:
            return self._result.get()
        except WorkerLostError as error:
            raise ServiceError(
                f"the process that worked on this is gone: {error}",
                where=self._step,
                remedy="the run is tried again from this step; a process killed by signal 9 mostly had no memory left",
            ) from error

    def revoke(self) -> None:
        """Take the step back from its queue."""
        self._result.revoke()


def is_queued(app: Celery, task: str) -> bool:
    """Tell whether a task's message waits in one of the queues."""
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        # A list for each priority. New messages come at the left: none is passed over while a page is read.
        for name in (channel._q_for_pri(queue, step) for queue in QUEUES for step in channel.priority_steps):
            for start in range(0, channel.client.llen(name), 100):
                page = channel.client.lrange(name, start, start + 99)
                if any(task.encode() in message for message in page):
                    return True
    return False


def _submit(app: Celery, plan_context: Any, step: Any, *more: Any) -> WatchedResult:
    return WatchedResult(_submit_task(app, plan_context, step, *more), step.key)


class AstridCeleryExecutor(CeleryExecutor):
    """dagster-celery's executor, which does not wait for a worker that is gone."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Send the steps out as they become ready, and pass on what happens."""
        from dagster_celery.core_execution_loop import core_celery_execution_loop

        yield from core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=_submit)


@dg.executor(
    name="celery",
    config_schema={"retries": get_retries_config()},
    requirements=multiple_process_executor_requirements(),
)
def celery_executor(context: dg.InitExecutorContext) -> AstridCeleryExecutor:
    """Execute steps on Celery's workers, by the queue that each op names."""
    # Addresses come from the settings here and not from run configuration, which everybody can read on the page.
    return AstridCeleryExecutor(
        retries=RetryMode.from_config(context.executor_config["retries"]),  # type: ignore[arg-type]
        **app_settings(),
    )


def make_worker_app() -> Celery:
    """Return the application that workers serve."""
    # Each worker process computes on cores of its own; more threads than cores only get in each other's way.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    app: Celery = make_app(CeleryExecutor(RetryMode(RetryMode.DISABLED), **app_settings()).app_args())
    task = create_task(app)
    task_postrun.connect(_after_step, sender=task, weak=False, dispatch_uid="astrid-after-step")
    return app


def _after_step(kwargs: Mapping[str, Any], **_: Any) -> None:
    """Look, after a step, whether it was the last one of a run whose own process was killed meanwhile."""
    from dagster._grpc.types import ExecuteStepArgs
    from dagster._serdes import unpack_value

    from astrid_pipeline.services.dead_runs import correct

    told = unpack_value(kwargs["execute_step_args_packed"], as_type=ExecuteStepArgs)
    if told.instance_ref is None:
        return
    with dg.DagsterInstance.from_ref(told.instance_ref) as instance:
        correct(instance, told.run_id)


def is_at_work(run_id: str) -> bool:
    """Tell whether a worker is at a step of a run just now; False where none answers."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    try:
        answers = make_worker_app().control.inspect(timeout=2.0).active() or {}
    except (OperationalError, RedisError, OSError):
        return False
    return any(run_id in str(task) for tasks in answers.values() for task in tasks)


def __getattr__(name: str) -> Any:
    # `celery -A` looks for `app` here. Made only then: the executor must be importable without a broker.
    if name == "app":
        globals()["app"] = made = make_worker_app()
        return made
    raise AttributeError(name)


def main() -> int:
    """Ask the workers of this machine for a sign of life (`python -m …`, the containers' healthcheck)."""
    import socket
    import sys

    names = [f"{queue}@{socket.gethostname()}" for queue in QUEUES]
    # Asked of all, because a machine may have one of them or both.
    answers = make_worker_app().control.inspect(names, timeout=5.0).ping() or {}
    print(", ".join(sorted(answers)) or "no worker of this machine answers", file=sys.stderr)
    return 0 if answers else 1


if __name__ == "__main__":
    raise SystemExit(main())
