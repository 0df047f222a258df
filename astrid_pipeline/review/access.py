"""Who is asking: an API key, somebody signed in, or the lone user of this machine; and what they may do.

A request of a browser that changes something must come from the page itself: `Sec-Fetch-Site` or `Origin` tell, and the
session's cookie is SameSite=Strict. Keys travel in the `Authorization` header, which no other site can make a browser
send. In single-user mode the `Host` must be this machine's name, so that no foreign name that resolves to it gets in.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from astrid_pipeline.catalog import Catalog, access
from astrid_pipeline.review.problems import Problem

COOKIE = "astrid_session"
#: A night's work and the day after it.
SESSION_SECONDS = 24 * 3600
LOOPBACK = ("127.0.0.1", "::1", "localhost", "testclient")
#: Requests a second that one identity may make on the long run, and at once: a scanner's verdict takes five.
RATE, BURST = 50.0, 300.0
#: A key or a session that was good is taken for good so many seconds more: a scanner's verdict and the looks after it
#: ask the catalogue once. So long, and no longer, a key that was just revoked still works.
KEPT = 5.0
#: Sign-ins that fail, a minute and address.
SIGN_IN_RATE, SIGN_IN_BURST = 5 / 60, 5.0


@dataclass(frozen=True)
class Identity:
    """Who it is and what they may do; `how` is `key`, `session` or `single-user`."""

    who: str
    scopes: tuple[str, ...]
    how: str

    def may(self, scope: str) -> bool:
        """Tell whether the scope is held."""
        return scope in self.scopes or "admin" in self.scopes


class Buckets:
    """Token buckets by name: `take` tells whether one more is allowed now, and else in how many seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Take one token; return 0, or the seconds to wait."""
        with self._lock:
            now = self._clock()
            if len(self._levels) > 10_000:
                # Buckets that are full again say nothing.
                full = self._burst / self._rate
                self._levels = {k: v for k, v in self._levels.items() if now - v[1] < full}
            level, at = self._levels.get(name, (self._burst, now))
            level = min(self._burst, level + (now - at) * self._rate)
            if level < 1.0:
                self._levels[name] = (level, now)
                return (1.0 - level) / self._rate
            self._levels[name] = (level - 1.0, now)
            return 0.0


class Gate:
    """Decides on every request.

    A good key or session is looked up anew after `KEPT` seconds (each process for itself); a bad one, every time.
    """

    def __init__(self, catalog: Catalog, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._clock = catalog, clock
        self._signer = URLSafeTimedSerializer(secret(home), salt="astrid-session")
        self._requests = Buckets(RATE, BURST)
        self._sign_ins = Buckets(SIGN_IN_RATE, SIGN_IN_BURST)
        self._open: tuple[float, bool] = (-1e9, False)
        self._known: dict[bytes, tuple[float, Identity]] = {}

    def single_user(self) -> bool:
        """Tell whether nobody has a key or a password, looked up anew every two seconds."""
        at, answer = self._open
        if time.monotonic() - at > 2.0:
            answer = not access.anybody(self._catalog)
            self._open = (time.monotonic(), answer)
        return answer

    def identify(self, request: Request) -> Identity | None:
        """Return who asks, or None. Raises `Problem` for a key that is not good."""
        known = self.remembered(request)
        if known is not None:
            return known
        header = request.headers.get("authorization", "")
        if header:
            kind, _, key = header.partition(" ")
            found = access.check_key(self._catalog, key.strip()) if kind.lower() == "bearer" else None
            if found is None:
                raise Problem(401, "this key is not good", "make one with `astrid key create`")
            return self._remember(request, Identity(f"key:{found[0]}", tuple(found[1]), "key"))
        cookie = request.cookies.get(COOKIE)
        if cookie:
            try:
                who = str(self._signer.loads(cookie, max_age=SESSION_SECONDS))
            except BadSignature:
                who = ""
            scopes = access.person_scopes(self._catalog, who) if who else None
            if scopes is not None:
                return self._remember(request, Identity(who, tuple(scopes), "session"))
        local = request.client is not None and request.client.host in LOOPBACK
        if local and self.single_user() and _host(request) in (*LOOPBACK, "testserver"):
            return Identity(_user(), access.SCOPES, "single-user")
        return None

    def remembered(self, request: Request) -> Identity | None:
        """Return who asks, if their key or session was good a moment ago; asks nothing of the catalogue."""
        kept = self._known.get(_shown(request))
        return kept[1] if kept is not None and self._clock() < kept[0] else None

    def _remember(self, request: Request, identity: Identity) -> Identity:
        now = self._clock()
        if len(self._known) > 10_000:
            self._known = {shown: kept for shown, kept in self._known.items() if now < kept[0]}
        self._known[_shown(request)] = (now + KEPT, identity)
        return identity

    def require(self, request: Request, scope: str) -> Identity:
        """Return who asks if they may; count the request.

        Raises
        ------
        Problem
            401 for nobody, 403 without the scope or from another site, 429 for too many requests.
        """
        identity = self.identify(request)
        if identity is None:
            address = request.client.host if request.client else "?"
            self._limit(self._requests, f"nobody:{address}")
            raise Problem(401, "sign in, or send an API key", "`Authorization: Bearer astrid_…`")
        self._limit(self._requests, identity.who)
        if identity.how != "key" and request.method not in ("GET", "HEAD", "OPTIONS"):
            _same_site(request)
        if not identity.may(scope):
            raise Problem(403, f"this needs the scope {scope}", "ask who gave you the key")
        return identity

    def sign_in(self, request: Request, name: str, password: str) -> str:
        """Return the session's cookie. Raises `Problem`, 401 or 429, alike for unknown names and wrong passwords."""
        _same_site(request)
        address = request.client.host if request.client else "?"
        self._limit(self._sign_ins, address)
        if access.check_password(self._catalog, name, password) is None:
            # As it was typed, shortened: some type their password there, which no log may hold whole.
            access.audit(self._catalog, "nobody", "sign in refused", {"name": name[:3], "address": address})
            raise Problem(401, "name or password is wrong", "try again, or ask for a new password")
        access.audit(self._catalog, name, "sign in", {})
        return str(self._signer.dumps(name))

    @staticmethod
    def _limit(buckets: Buckets, name: str) -> None:
        wait = buckets.take(name)
        if wait > 0:
            raise Problem(
                429, "too many requests", "wait a little", headers={"Retry-After": str(int(wait) + 1)}
            )


def _shown(request: Request) -> bytes:
    """Return what a request shows to be let in, as a digest: the key itself is kept nowhere."""
    header = request.headers.get("authorization")
    shown = f"header {header}" if header else f"cookie {request.cookies.get(COOKIE, '')}"
    return hashlib.sha256(shown.encode("utf-8", "replace")).digest()


def _same_site(request: Request) -> None:
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        # A browser's own word, which no page can change. Its Origin is `null` where a form is sent from a page that
        # names no referrer, as ours.
        foreign = site not in ("same-origin", "none")
    elif origin is not None:
        try:
            foreign = urlsplit(origin).netloc != request.headers.get("host", "")
        except ValueError:
            foreign = True
    else:
        foreign = False
    if foreign:
        raise Problem(403, "this request comes from another site", "use the page itself, or an API key")


def _host(request: Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "local"


def secret(home: Path) -> str:
    """Return the secret that sessions and addresses are signed with; made once, readable by its owner only."""
    path = home / "review-secret"
    home.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return path.read_text()
