"""Everything a person works with, in one command: PostgreSQL, the Dagster page and daemon, the vetting
page with the API, the MLflow page.

`run_dev` starts them, says where they are, and ends all of them on SIGINT or SIGTERM, however deep their children
go. Each service is a session of its own: what a service leaves behind is found by its session and ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from astrid_pipeline.errors import AstridError, ServiceError
from astrid_pipeline.services import mlflow, postgres
from astrid_pipeline.services.dagster_home import dagster_instance, prepare_dagster_home
from astrid_pipeline.services.health import answers, bare
from astrid_pipeline.settings import Settings, get_settings, settings_environment

#: Seconds for a service to answer its first request: importing it on a busy machine takes most of it.
START_LIMIT = 240.0
#: Seconds for a service to end by itself, and then after SIGTERM.
STOP_LIMIT = 10.0
TERM_LIMIT = 5.0

#: Terminal colour codes, which files and pipes are spared.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Service:
    """One service: how it is started, and the address that answers 200 when it is up."""

    name: str
    title: str
    command: list[str]
    environment: Mapping[str, str]
    url: str
    health: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    ending: bool = False


def services(settings: Settings) -> list[Service]:
    """Return the services of a working session; an MLflow server named in the settings is used as it is."""
    shared = settings_environment(settings)
    home = prepare_dagster_home(settings)
    shared["DAGSTER_HOME"] = str(home)
    shared["PYTHONUNBUFFERED"] = "1"
    # Dagster advises another launcher, which brings nothing here; anything else it warns of is shown.
    quiet = "ignore:Function `dev_command` is superseded"
    shared["PYTHONWARNINGS"] = ",".join(filter(None, [shared.get("PYTHONWARNINGS"), quiet]))
    # The services run in DAGSTER_HOME; the package may lie in the folder that this process was started in.
    package_root = str(Path(__file__).resolve().parents[2])
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, shared.get("PYTHONPATH")]))
    address = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    dagster = f"http://{address}:{settings.dagster_port}"
    command = [sys.executable, "-m", "dagster", "dev", "-m", "astrid_pipeline.definitions"]
    command += ["--host", settings.host, "--port", str(settings.dagster_port), "--log-level", "warning"]
    found = [Service("dagster", "Dagster page", command, shared, dagster, f"{dagster}/server_info")]
    command = [sys.executable, "-m", "astrid_pipeline.review.app"]
    page = f"http://{address}:{settings.review_port}"
    found.append(Service("review", "vetting page", command, shared, page, f"{page}/static/icon.svg"))
    if not settings.mlflow_server:
        command, more = mlflow.server_command(settings)
        page = f"http://{address}:{settings.mlflow_port}"
        found.append(Service("mlflow", "MLflow page", command, {**shared, **more}, page, f"{page}/health"))
    return found


def run_dev(
    settings: Settings | None = None,
    *,
    output: IO[str] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Start everything, wait for SIGINT, SIGTERM or the end of a service, and end everything.

    Must be called in the main thread, which is the one that gets signals.

    Parameters
    ----------
    settings:
        Default: those of this process.
    output:
        Where the services' lines go, each after the name of its service. Default: standard output.
    on_ready:
        Called once all pages answer.

    Returns
    -------
    int
        0 after a signal, 1 if a service ended by itself.

    Raises
    ------
    ServiceError
        If a port is taken, or a service does not come up. Nothing is left running then either.
    """
    settings = settings or get_settings()
    out = output or sys.stdout
    stopping = threading.Event()
    check_port(settings.host, settings.dagster_port, "ASTRID_DAGSTER_PORT")
    check_port(settings.host, settings.review_port, "ASTRID_REVIEW_PORT")
    if not settings.mlflow_server:
        check_port(settings.host, settings.mlflow_port, "ASTRID_MLFLOW_PORT")
    with _signals(stopping):
        say(out, "astrid", "starting; this takes half a minute on the first day")
        started: list[Service] = []
        try:
            _prepare_databases(settings)
            for service in services(settings):
                _start(service, out)
                started.append(service)
            for service in started:
                _await_answer(service, stopping)
            if not stopping.is_set():
                for line in where_things_are(settings, started):
                    say(out, "astrid", line)
                if on_ready is not None:
                    on_ready()
            ended = _await_end(started, stopping)
            if ended is not None:
                say(
                    out,
                    "astrid",
                    f"{ended.name} ended by itself with code {ended.process and ended.process.poll()}",
                )
            return 0 if ended is None else 1
        finally:
            say(out, "astrid", "ending everything")
            # A second signal, while this goes on, ends it at once.
            stopping.clear()
            end(started, hurry=stopping)
            if settings.database_url is None and not postgres.stop_if_idle(settings):
                say(out, "astrid", "PostgreSQL goes on: another process of this home is using it")


def _prepare_databases(settings: Settings) -> None:
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.services.dead_runs import end_dead_runs

    postgres.database_url("dagster", settings)
    # What was under way when the machine stopped would hold the queue's places for ever.
    with dagster_instance() as instance:
        end_dead_runs(instance)
    catalogue = open_catalogue(settings)
    # Kept connections would make the server look used when everything has ended.
    catalogue.close()


def where_things_are(settings: Settings, running: list[Service]) -> list[str]:
    """Return the lines that tell a person where to look."""
    lines = [f"{service.title:<14} {service.url}" for service in running]
    if settings.mlflow_server:
        lines.append(f"{'MLflow page':<14} {bare(settings.mlflow_server)}")
    database = f"embedded PostgreSQL in {settings.postgres_folder}"
    if settings.database_url is not None:
        database = postgres.server_url(settings).render_as_string(hide_password=True)
    lines += [
        f"{'products':<14} {settings.store_url}",
        f"{'database':<14} {database}",
        f"{'logs':<14} {settings.dagster_home / 'logs'}",
        "Ctrl-C ends all of it",
    ]
    return lines


def say(out: IO[str], name: str, line: str) -> None:
    """Write one line after the name of who says it."""
    # The reader of a pipe may be gone; that must not keep the services from being ended.
    with contextlib.suppress(BrokenPipeError, ValueError):
        out.write(f"{name:<8}| {line}\n")
        out.flush()


def check_port(host: str, port: int, variable: str) -> None:
    """Raise `ServiceError` if the port is taken, naming who has it where that can be seen."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except OSError as error:
            raise ServiceError(
                f"port {port} cannot be had: {_holder(port) or error.strerror}",
                where=host,
                remedy=f"end that process, or set {variable} to a free port",
            ) from error


def _holder(port: int) -> str | None:
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.laddr
                and connection.laddr.port == port
                and connection.pid
                and connection.status == "LISTEN"
            ):
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()}) has it"
    except psutil.Error:
        return None  # other users' processes cannot be seen
    return None


@contextlib.contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stopping.set()

    # Set even where they are inherited as ignored (`nohup … &`): the services must be ended all the same.
    before = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reset_signals() -> None:
    """Run in the child before its program: signals as a terminal would give them, and death with the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: a launcher that is killed outright cannot end its services; this signal does.
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _start(service: Service, out: IO[str]) -> None:
    service.process = subprocess.Popen(
        service.command,
        env=dict(service.environment),
        cwd=service.environment["DAGSTER_HOME"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_reset_signals,
    )
    threading.Thread(target=_pass_lines_on, args=(service, out), daemon=True, name=service.name).start()


def _pass_lines_on(service: Service, out: IO[str]) -> None:
    assert service.process is not None  # `_start` made both
    assert service.process.stdout is not None
    coloured = out.isatty()
    for line in service.process.stdout:
        if service.ending:
            continue  # what programs print when they are interrupted is of no use to anyone
        text = line.decode(errors="replace").rstrip()
        say(out, service.name, text if coloured else _COLOURS.sub("", text))


def _await_answer(service: Service, stopping: threading.Event) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not stopping.is_set() and not answers(service.health):
        code = service.process.poll() if service.process else None
        if code is not None or time.monotonic() > deadline:
            what = f"ended with code {code}" if code is not None else f"did not answer in {START_LIMIT:.0f} s"
            raise ServiceError(what, where=service.title, remedy="its last lines above say why")
        stopping.wait(0.3)


def _await_end(running: list[Service], stopping: threading.Event) -> Service | None:
    while not stopping.wait(0.5):
        for service in running:
            if service.process is not None and service.process.poll() is not None:
                return service
    return None


def end(running: list[Service], hurry: threading.Event | None = None) -> None:
    """End services and everything they have started: by SIGINT, then SIGTERM, then SIGKILL."""
    hurry = hurry or threading.Event()
    for service in running:
        service.ending = True
        if service.process is not None and service.process.poll() is None:
            # To the whole group, as a terminal's Ctrl-C goes: told by their parent alone, some take a minute.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGINT)
    _await_all(
        lambda: all(s.process is None or s.process.poll() is not None for s in running), STOP_LIMIT, hurry
    )
    for number, limit in ((signal.SIGTERM, TERM_LIMIT), (signal.SIGKILL, TERM_LIMIT)):
        left = _members(running)
        for process in left:
            with contextlib.suppress(ProcessLookupError, _no_such_process()):
                process.send_signal(number)
        _await_all(lambda: not _members(running), limit, hurry)
    for service in running:
        if service.process is not None:
            service.process.wait()
    if left := _members(running):
        raise AstridError(
            f"these processes could not be ended: {[process.pid for process in left]}",
            remedy="end them by hand",
        )


def _no_such_process() -> type[Exception]:
    import psutil

    error: type[Exception] = psutil.NoSuchProcess
    return error


def _members(running: list[Service]) -> list[Any]:
    """Return all living processes of the services' sessions."""
    import psutil

    sessions = {service.process.pid for service in running if service.process is not None}
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def _await_all(done: Callable[[], bool], limit: float, hurry: threading.Event) -> None:
    deadline = time.monotonic() + limit
    while not done() and time.monotonic() < deadline and not hurry.is_set():
        time.sleep(0.1)
