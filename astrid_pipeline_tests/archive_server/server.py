"""The HTTP side of the local archive: routes, ranges, faults, and a log of what was asked."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from astrid_pipeline_tests.archive_server.faults import Fault, Faults, spoil
from astrid_pipeline_tests.archive_server.holdings import Holdings
from astrid_pipeline_tests.archive_server.images import Images
from astrid_pipeline_tests.archive_server.mast import Answer, Mast


class ArchiveServer:
    """A server on a free port of this machine; use it with `with`.

    Also a plain HTTP proxy (`HTTP_PROXY`), and with a certificate one for HTTPS (`HTTPS_PROXY`), for addresses that
    clients have hard-wired.

    Parameters
    ----------
    holdings:
        What it has; empty if not given.
    port:
        0 for any free port.
    ranges:
        Whether parts of files can be asked for.
    certificate:
        File with a key and a certificate (see `certificates`), for hosts reached through the proxy.
    """

    def __init__(
        self,
        holdings: Holdings | None = None,
        *,
        port: int = 0,
        ranges: bool = True,
        certificate: Path | None = None,
    ) -> None:
        self.certificate = certificate
        self.holdings = holdings or Holdings()
        self.faults = Faults()
        self.mast = Mast(self.holdings)
        self.images = Images()
        self.ranges = ranges
        self.requests: list[str] = []
        self.busy = 0
        self.busiest = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"archive": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Address without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ArchiveServer:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def misbehave(self, kind: str, path: str = "", times: int = 1, value: float = 0.0, **more: Any) -> None:
        """Spoil the next `times` requests whose address or body holds `path`; see `Fault`."""
        self.faults.add(Fault(kind, path, times, value, **more))

    def count(self, text: str) -> int:
        """Return how many requests so far had `text` in their line or body."""
        with self._lock:
            return sum(text in line for line in self.requests)

    def note(self, line: str) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(line)

    def enter(self, step: int) -> None:
        """Count requests that are answered at the same time."""
        with self._lock:
            self.busy += step
            self.busiest = max(self.busiest, self.busy)

    def answer(self, method: str, address: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Return the reply to a request, before any fault."""
        parts = urlsplit(address)
        found = self.mast.answer(method, parts.path, parts.query, body, headers)
        if found is None:
            found = self.images.answer(parts.path, parts.query, self.url)
        return found or Answer(b"not found", "text/plain", 404)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body, sent apart, wait 40 ms for one another
    archive: ArchiveServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the tests look at `requests`."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._reply("")

    def do_HEAD(self) -> None:
        """Answer a HEAD: the headers alone."""
        self._reply("")

    def do_CONNECT(self) -> None:
        """Be the host that a client wants to reach through this proxy, with a certificate of our own."""
        if self.archive.certificate is None:
            self.send_error(501, "no certificate")
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.archive.certificate)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_POST(self) -> None:
        """Answer a POST."""
        self._reply(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def _reply(self, body: str) -> None:
        line = unquote(f"{self.command} {self.path} {body}")
        self.archive.note(line)
        self.archive.enter(1)
        try:
            fault = self.archive.faults.take(self.command, line)
            answer = self.archive.answer(self.command, self.path, body, dict(self.headers))
            self._send(answer, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.archive.enter(-1)

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        kind = "" if fault is None else fault.kind
        content, status, headers = answer.body, answer.status, dict(answer.headers)
        if fault is not None and kind == "slow":
            time.sleep(fault.value)
        elif fault is not None and kind == "status":
            status, content, headers = int(fault.value), b"try again later", {}
            if fault.retry_after is not None:
                headers["Retry-After"] = fault.retry_after
        elif fault is not None:
            content = spoil(fault, content)
        if answer.kind == "application/fits" and self.archive.ranges and status == 200 and kind != "html":
            headers["Accept-Ranges"] = "bytes"
            wanted = self.headers.get("Range", "")
            same = self.headers.get("If-Range") in (None, headers.get("ETag"))
            if wanted.startswith("bytes=") and same:
                first = int(wanted.removeprefix("bytes=").split("-")[0])
                if first >= len(content):
                    status, content = 416, b""
                else:
                    headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                    status, content = 206, content[first:]
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if kind == "html" else answer.kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("reset", "truncated"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if kind == "reset":
                # Closing with nothing to linger for sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            # Only the file objects hold the socket open besides the server.
            self.connection.shutdown(socket.SHUT_RDWR) if kind == "truncated" else self.connection.close()
            return
        self.wfile.write(content)
