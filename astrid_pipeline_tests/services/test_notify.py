"""Alerts: what a webhook and a mail server get, and what is said where they do not take it."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.services.notify import alert
from astrid_pipeline.settings import load_settings
from astrid_pipeline_tests.s3_servers import free_port


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted; answers with the server's `status`."""

    server: Any

    def do_POST(self) -> None:
        """Take one message."""
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client needs to hand over a message."""

    server: Any

    def handle(self) -> None:
        """Talk to one client."""
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().decode():
            word = line[:4].upper().strip()
            if word == "QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            if word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (part := self.rfile.readline().decode()) != ".\r\n":
                    lines.append(part)
                self.server.got.append("".join(lines))
            refused = word == "RCPT" and "nobody" in line
            self.wfile.write(b"550 no such user\r\n" if refused else b"250 fine\r\n")


@pytest.fixture
def hook() -> Iterator[Any]:
    yield from _served(ThreadingHTTPServer(("127.0.0.1", 0), Hook))


@pytest.fixture
def mail() -> Iterator[Any]:
    yield from _served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail))


def _served(server: Any) -> Iterator[Any]:
    server.got, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def address(server: Any, scheme: str) -> str:
    return f"{scheme}://127.0.0.1:{server.server_address[1]}"


def test_both_are_told(hook, mail):
    settings = load_settings(
        alert_webhook=address(hook, "http"), alert_email="ada@example.org", smtp=address(mail, "smtp")
    )
    assert alert("AstrID: 2 things", "archives: m31\ndisk: full", settings) == ["webhook", "e-mail"]
    assert hook.got == [
        {"text": "AstrID: 2 things\narchives: m31\ndisk: full", "subject": "AstrID: 2 things"}
    ]
    assert "To: ada@example.org" in mail.got[0]
    assert "Subject: AstrID: 2 things" in mail.got[0]
    assert "disk: full" in mail.got[0]


def test_nothing_set_tells_nobody():
    assert alert("a", "b", load_settings()) == []


def test_one_that_fails_keeps_the_other_from_nothing(hook, mail):
    hook.status = 500
    settings = load_settings(
        alert_webhook=address(hook, "http"), alert_email="ada@example.org", smtp=address(mail, "smtp")
    )
    with pytest.raises(ServiceError, match="did not take the alert: HTTP Error 500"):
        alert("a", "b", settings)
    assert len(mail.got) == 1


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"alert_webhook": f"http://127.0.0.1:{free_port()}"}, "did not take the alert"),
        ({"alert_webhook": "file:///etc/passwd"}, "is no web address"),
        ({"alert_email": "ada@example.org"}, "there is no mail server"),
        (
            {"alert_email": "ada@example.org", "smtp": f"smtp://127.0.0.1:{free_port()}"},
            "mail server did not",
        ),
    ],
)
def test_what_does_not_go_out_is_said(values, error):
    with pytest.raises((ServiceError, ConfigError), match=error) as caught:
        alert("a", "b", load_settings(**values))
    assert caught.value.remedy


def test_an_address_that_is_none_is_not_repeated():
    # Whoever has the address may write there, and errors are logged.
    with pytest.raises(ServiceError, match="InvalidURL") as caught:
        alert("a", "b", load_settings(alert_webhook="http://127.0.0.1:1/tok en"))
    assert "tok" not in str(caught.value)


def test_a_receiver_that_the_server_does_not_know_is_said(mail):
    settings = load_settings(alert_email="nobody@example.org", smtp=address(mail, "smtp"))
    with pytest.raises(ServiceError, match="no such user"):
        alert("a", "b", settings)
