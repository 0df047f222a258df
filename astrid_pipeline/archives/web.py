"""Asking servers that may be slow, busy or broken: time-outs on every request, and patience that grows."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from astrid_pipeline import __version__
from astrid_pipeline.errors import AstridError, ServiceError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Statuses that say "later": time-out, too early, too many requests, and whatever a server does to itself.
LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask again.

    Attributes
    ----------
    tries:
        Requests in all. Six with pauses that double from one second are half a minute: enough for a hiccup, little
        enough that a server that is down is reported and not besieged.
    first, longest:
        Seconds of the first pause and of the longest.
    connect, read:
        Seconds to wait for a connection, and for the next byte.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 60.0
    connect: float = 10.0
    read: float = 90.0

    def pause(self, attempt: int, asked: float | None = None) -> float:
        """Return the seconds before try `attempt` + 1: doubled each time, a quarter of it at random.

        Parameters
        ----------
        asked:
            What the server asked for (Retry-After); never waited for longer than `longest`.
        """
        wanted = min(self.longest, self.first * 2.0 ** (attempt - 1))
        wanted *= random.uniform(0.75, 1.0)  # clients that failed together must not come back together
        return min(self.longest, max(wanted, asked or 0.0))


#: For a sensor's tick, which is cut off after 60 s: the next tick is the next try.
BRIEF = Patience(tries=2, first=1.0, longest=5.0, connect=5.0, read=20.0)


class BadAnswerError(Exception):
    """A reply with a good status that is not what was asked for: a web page, half a table, another file."""


class _TimedAdapter(HTTPAdapter):
    """Gives every request a time-out that has none: `requests` would wait for ever."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        super().__init__(pool_maxsize=8)

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """Send with a time-out."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (self.patience.connect, self.patience.read)
        return super().send(request, *args, **kwargs)


def prepare(session: requests.Session, patience: Patience) -> requests.Session:
    """Give a session (also one that a client library owns) time-outs, and AstrID's name; return it."""
    for scheme in ("https://", "http://"):
        session.mount(scheme, _TimedAdapter(patience))
    agent = str(session.headers.get("User-Agent", ""))
    if "AstrID" not in agent:
        session.headers["User-Agent"] = f"AstrID/{__version__} {agent}".strip()
    return session


def open_session(patience: Patience | None = None) -> requests.Session:
    """Return a session with time-outs."""
    return prepare(requests.Session(), patience or Patience())


def persist(
    ask: Callable[[], T],
    what: str,
    where: str,
    patience: Patience | None = None,
    *,
    remedy: str = "try again later, or look at the archive's status page",
) -> T:
    """Return `ask()`, asked again after a growing pause while the server does not answer properly.

    Parameters
    ----------
    what:
        What is asked for, for messages ("count the observations of m31").
    where:
        The server.

    Raises
    ------
    ServiceError
        What came back, of whom, after how many tries. It is `permanent` where asking again cannot help (refused,
        unknown), and an `AstridError` from within is passed on as it is.
    """
    patience = patience or Patience()
    for attempt in range(1, patience.tries + 1):
        try:
            return ask()
        except (
            requests.RequestException,
            TimeoutError,
            BadAnswerError,
            json.JSONDecodeError,
            OSError,
        ) as error:
            reason, again, asked = _judge(error)
            if not again:
                raise _failure(
                    f"cannot {what}: {reason}", where, _remedy_for(error, remedy), permanent=True
                ) from error
            if attempt == patience.tries:
                tries = f"{attempt} tries" if attempt > 1 else "one try"
                raise _failure(
                    f"cannot {what}: {reason}, after {tries}", where, remedy, permanent=False
                ) from error
            pause = patience.pause(attempt, asked)
            log.info(
                "%s: %s; asking again in %.1f s (%d of %d)", where, reason, pause, attempt, patience.tries
            )
            time.sleep(pause)
    raise AssertionError("unreachable")


def _failure(what: str, where: str, remedy: str, *, permanent: bool) -> AstridError:
    error = ServiceError(what, where=where, remedy=remedy)
    error.permanent = permanent
    return error


def _judge(error: Exception) -> tuple[str, bool, float | None]:
    """Return what happened in words, whether asking again can help, and the pause that the server asked for."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return (
            f"status {status} {error.response.reason or ''}".strip(),
            status in LATER,
            _retry_after(error.response),
        )
    if isinstance(error, requests.exceptions.MissingSchema | requests.exceptions.InvalidURL):
        return f"the address is not one ({error})", False, None
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time", True, None
    if isinstance(error, requests.Timeout | TimeoutError):
        return "no answer in time", True, None
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke in mid-answer", True, None
    if isinstance(error, json.JSONDecodeError):
        return "the answer is not JSON (a web page, or cut off)", True, None
    if isinstance(error, requests.ConnectionError):
        return "no connection, or it was reset", True, None
    if isinstance(error, BadAnswerError):
        return str(error), True, None
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        # A full or read-only disk here is no fault of the server's.
        return f"{error.strerror or error}", False, None
    return " ".join(f"{type(error).__name__}: {error}".split()), True, None


def _remedy_for(error: Exception, remedy: str) -> str:
    status = (
        error.response.status_code
        if isinstance(error, requests.HTTPError) and error.response is not None
        else 0
    )
    if status in (401, 403):
        return "it is not public: set MAST_API_TOKEN to a token of someone who may read it, or wait for its release"
    if status in (404, 410):
        return "the archive has it no longer: list the archive again"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return "look at the disk's free space and the folder's permissions"
    return remedy


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds of a Retry-After header, which may be a date."""
    text = response.headers.get("Retry-After")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, (when - dt.datetime.now(dt.UTC)).total_seconds())
    return None
