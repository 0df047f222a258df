"""What every answer has: the security headers, and an ETag where it is data; and what no route is asked."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from astrid_pipeline.review import problems

#: Bodies of requests are small: the largest is a note of 4000 characters.
LARGEST_BODY = 1 << 20
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Polite:
    """Refuse what no route can take, set the security headers, and answer `If-None-Match`.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` runs each request in a task of its own and takes longer than most of
    the routes behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        await (_refusal(scope) or self._app)(scope, receive, answer.send)


def _refusal(scope: Scope) -> ASGIApp | None:
    if "\x00" in scope["path"] or b"\x00" in unquote_to_bytes(scope["query_string"]):
        return problems.response(422, "text cannot hold NUL")
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdigit() or int(length) > LARGEST_BODY:
        return problems.response(413, f"a request has at most {LARGEST_BODY} bytes")
    return None


class _Answer:
    """Sends one answer on: at once, or whole where its tag must stand before it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            data = headers.get("content-type", "").split(";")[0] in ("application/json", "image/png")
            if data and message["status"] == 200 and self._scope["method"] == "GET":
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(self._parts)
            if self._tag(self._start, body):
                body = b""
            await self._send(self._start)
            message = {"type": "http.response.body", "body": body}
            self._start = None
        await self._send(message)

    def _tag(self, start: Message, body: bytes) -> bool:
        """Set the tag; where the client has this body already, make the answer a 304 and return true."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = MutableHeaders(scope=start)
        headers["ETag"] = tag
        headers.setdefault("Cache-Control", "private, no-cache")
        given = Headers(scope=self._scope).get("if-none-match", "").split(",")
        if tag not in [value.strip().removeprefix("W/") for value in given]:
            return False
        for name in ("content-length", "content-type"):
            del headers[name]
        start["status"] = 304
        return True
