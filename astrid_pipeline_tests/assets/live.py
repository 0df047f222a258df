"""Dagster as it runs in production: a code server, the daemon and the page, each a process that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from astrid_pipeline.services.dagster_home import prepare_dagster_home
from astrid_pipeline.services.health import answers
from astrid_pipeline_tests.s3_servers import free_port

ROOT = Path(__file__).parents[2]


class Live:
    """The processes of one home.

    Parameters
    ----------
    home:
        ASTRID_HOME.
    module:
        Which definitions to serve.
    """

    def __init__(self, home: Path, module: str = "astrid_pipeline.definitions") -> None:
        self.home = home
        self.module = module
        self.code_port, self.page_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "ASTRID_HOME": str(home),
            "DAGSTER_HOME": str(prepare_dagster_home()),
            "PYTHONPATH": str(ROOT),
        }

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.page_port}"

    def start(self, name: str) -> None:
        """Start `code`, `daemon` or `page`."""
        where = ["--grpc-host", "127.0.0.1", "--grpc-port", str(self.code_port)]
        command = {
            "code": [
                "dagster",
                "api",
                "grpc",
                "-m",
                self.module,
                "-h",
                "127.0.0.1",
                "-p",
                str(self.code_port),
            ],
            "daemon": ["dagster._daemon", "run", *where],
            "page": ["dagster_webserver", *where, "-h", "127.0.0.1", "-p", str(self.page_port)],
        }[name]
        with (self.home / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def serves(self) -> bool:
        """Return whether the code server has loaded the definitions; a page that came before would stay without."""
        from dagster._grpc.client import DagsterGrpcClient

        try:
            return (
                "Not serving" not in DagsterGrpcClient(port=self.code_port, host="127.0.0.1").ping("")["echo"]
            )
        except Exception:  # whatever the client makes of a server that is not there yet
            return False

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the page's answer to a GraphQL query."""
        reply = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        reply.raise_for_status()
        answer = reply.json()
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    def location(self) -> str:
        """Return the name under which the page knows the definitions."""
        found = self.ask(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"
        )
        return str(found["repositoriesOrError"]["nodes"][0]["location"]["name"])

    def switch_on(self, sensors: Sequence[str] = (), schedules: Sequence[str] = ()) -> None:
        """Switch sensors and schedules on, as a person does on the page."""
        at = f'repositoryName: "__repository__", repositoryLocationName: "{self.location()}"'
        for name in sensors:
            found = self.ask(
                f'mutation {{ startSensor(sensorSelector: {{{at}, sensorName: "{name}"}}) {{ __typename }} }}'
            )
            assert found["startSensor"]["__typename"] == "Sensor", found
        for name in schedules:
            found = self.ask(
                f'mutation {{ startSchedule(scheduleSelector: {{{at}, scheduleName: "{name}"}}) {{ __typename }} }}'
            )
            assert found["startSchedule"]["__typename"] == "ScheduleStateResult", found

    def logs(self) -> str:
        """Return the ends of the processes' logs."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-2500:]}" for p in sorted(self.home.glob("*.log")))

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
        """Wait until a condition holds and return its value."""
        deadline = time.monotonic() + seconds
        while True:
            if found := condition():
                return found
            assert time.monotonic() < deadline, f"waited in vain for: {what}\n{self.logs()}"
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended\n{self.logs()}"
            time.sleep(0.5)


@contextmanager
def live(home: Path, module: str = "astrid_pipeline.definitions") -> Iterator[Live]:
    """Run code server and page (the daemon is started by the test), and end everything."""
    running = Live(home, module)
    try:
        running.start("code")
        running.wait_for("the code server", running.serves)
        running.start("page")
        running.wait_for("the page", lambda: answers(f"{running.url}/server_info"))
        yield running
    finally:
        for process in running.processes.values():
            # Runs are children of the code server: its whole session.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
