"""`astrid dev`: everything comes up, and nothing is left when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest

from astrid_pipeline.errors import ServiceError
from astrid_pipeline.services import dev
from astrid_pipeline.services.health import answers
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

ROOT = str(Path(__file__).parents[2])


def living(mark: str) -> list[int]:
    """Return the processes whose arguments or environment name `mark`; zombies are dead."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if mark in " ".join(process.cmdline()) or mark in process.environ().get("ASTRID_HOME", ""):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


PROGRAM = "import sys; from astrid_pipeline.services.dev import run_dev; sys.exit(run_dev())"


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.mlflow
def test_everything_comes_up_and_a_signal_ends_all_of_it(tmp_path: Path) -> None:
    ports = free_port(), free_port(), free_port()
    pages = f"http://127.0.0.1:{ports[0]}/server_info", f"http://127.0.0.1:{ports[1]}/health"
    pages = (*pages, f"http://127.0.0.1:{ports[2]}/sign-in")
    with home() as own:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DAGSTER_"))}
        environment |= {
            "ASTRID_HOME": str(own.home),
            "ASTRID_DAGSTER_PORT": str(ports[0]),
            "ASTRID_MLFLOW_PORT": str(ports[1]),
            "ASTRID_REVIEW_PORT": str(ports[2]),
            "PYTHONPATH": ROOT,
        }
        log = tmp_path / "log"
        with log.open("w") as stream:
            launcher = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env=environment,
                cwd=tmp_path,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # As under `nohup … &`: an inherited SIGINT that is ignored must not keep it from ending.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
        try:
            deadline = time.monotonic() + 300
            while "Ctrl-C ends all of it" not in log.read_text() and time.monotonic() < deadline:
                assert launcher.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            assert all(answers(page) for page in pages), log.read_text()[-3000:]
            assert str(own.home / "store") in log.read_text()
            running = living(str(own.home))
            assert len(running) > 5, "the launcher, PostgreSQL, Dagster's processes and MLflow's"
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(120) == 0, log.read_text()[-3000:]
        finally:
            launcher.kill()
            launcher.wait()
        left = [psutil.Process(pid).cmdline() for pid in living(str(own.home))]
        assert left == []
        assert all(is_free(port) for port in ports)
        assert not (own.postgres_folder / "postmaster.pid").exists()


def test_a_port_that_is_taken_is_said_and_nothing_is_started() -> None:
    with home() as own, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = own.model_copy(update={"dagster_port": taken.getsockname()[1]})
        with pytest.raises(ServiceError, match="ASTRID_DAGSTER_PORT") as caught:
            dev.run_dev(settings, output=StringIO())
        assert str(os.getpid()) in str(caught.value), "who has the port"
        assert not own.postgres_folder.exists()


def start(source: str, tmp_path: Path) -> dev.Service:
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    command = [sys.executable, "-u", "-c", textwrap.dedent(source)]
    service = dev.Service("probe", "Probe", command, environment, "http://127.0.0.1:9", "http://127.0.0.1:9")
    dev._start(service, StringIO())
    return service


STUBBORN = """
    import signal, subprocess, sys, time
    from pathlib import Path
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])
    Path("up").touch()
    time.sleep(600)
"""


def test_what_ignores_signals_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "STOP_LIMIT", 0.5)
    monkeypatch.setattr(dev, "TERM_LIMIT", 0.5)
    service = start(STUBBORN, tmp_path)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    assert len(dev._members([service])) == 2
    dev.end([service])
    assert dev._members([service]) == []
    assert service.process is not None
    assert service.process.returncode == -signal.SIGKILL


def test_children_of_a_service_that_died_are_ended(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    service = start(source, tmp_path)
    assert service.process is not None
    service.process.wait()
    assert len(dev._members([service])) == 1
    dev.end([service])
    assert dev._members([service]) == []


def test_a_service_that_does_not_come_up_is_said(tmp_path: Path) -> None:
    service = start("import sys; sys.exit(7)", tmp_path)
    with pytest.raises(ServiceError, match="ended with code 7"):
        dev._await_answer(service, threading.Event())


def test_the_services_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {ROOT!r})
from io import StringIO
from astrid_pipeline.services import dev
import os
environment = dict(os.environ, DAGSTER_HOME={str(tmp_path)!r})
service = dev.Service("p", "P", [sys.executable, "-c", "import time; time.sleep(600)"], environment, "", "")
dev._start(service, StringIO())
print(service.process.pid, flush=True)
time.sleep(600)
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    assert psutil.pid_exists(pid)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
