"""A proxy before an S3 server that is slow, answers with errors, or cuts what it sends."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Fault:
    """One fault, for the next `times` requests of `method` whose address holds `path` (-1: all).

    `kind`: ``slow`` (waits `value` seconds), ``status`` (answers `value`), ``cut`` (closes after half of the body),
    ``flip`` (one bit of the body is another).
    """

    kind: str
    path: str = ""
    times: int = -1
    value: float = 0.0
    method: str = ""


@dataclass
class Proxy:
    """A running proxy: `endpoint` is its address; `faults` may be changed at any time; `met` counts by kind."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def misbehave(
        self, kind: str, path: str = "", times: int = -1, value: float = 0.0, method: str = ""
    ) -> None:
        """Add a fault."""
        with self.lock:
            self.faults.append(Fault(kind, path, times, value, method))

    def behave(self) -> None:
        """Take all faults away."""
        with self.lock:
            self.faults.clear()
            self.met.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        """Return the fault that a request meets, and count it."""
        with self.lock:
            for found in self.faults:
                if found.times != 0 and found.path in path and found.method in ("", method):
                    found.times -= 1
                    self.met[found.kind] = self.met.get(found.kind, 0) + 1
                    return found
        return None


@contextmanager
def faulty(upstream: str) -> Iterator[Proxy]:
    """Run a proxy before the server at the address `upstream`."""
    target = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = made.fault_of(self.command, self.path)
            if fault is not None and fault.kind == "status":
                self.send_response(int(fault.value))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.value)
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            # The Host header is signed: it goes on as it came.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "date",
                    "server",
                    "content-length",
                ):
                    self.send_header(name, value)
            promised = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", promised or "0")
            self.end_headers()
            cut = fault is not None and fault.kind == "cut"
            if fault is not None and fault.kind == "flip" and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
            with contextlib.suppress(ConnectionError):  # a client that has had enough
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
