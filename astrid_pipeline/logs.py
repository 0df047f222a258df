"""Logs as JSON lines: what happened when, in which field, night and exposure; for programs that gather logs.

`ASTRID_LOG_JSON` names the file that all processes append to. Each line is written by one call in append mode, so that
lines of several processes do not mix, and a file that was moved away (logrotate) is made anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from astrid_pipeline.settings import Settings, get_settings

_NOTHING: Mapping[str, str] = MappingProxyType({})
#: What the thread works at: set by `about`, and by the run whose step it executes.
_about: ContextVar[Mapping[str, str]] = ContextVar("astrid_about", default=_NOTHING)
_of_run: ContextVar[Mapping[str, str]] = ContextVar("astrid_run", default=_NOTHING)

#: Variables that hold a secret and are read by libraries, not through the settings.
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MAST_API_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
#: A shorter text is in many words by chance, and no secret.
_SHORTEST_SECRET = 6


@contextlib.contextmanager
def about(**what: str) -> Iterator[None]:
    """Let the log lines of this block say what they are about: `field`, `night`, `exposure`, `stage`."""
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


def secrets(settings: Settings) -> list[str]:
    """Return the texts that must not be seen: passwords, keys, addresses that are a key themselves; longest first."""
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    if settings.alert_webhook is not None:
        found.add(settings.alert_webhook.get_secret_value())
    for address in (settings.database_url, settings.smtp):
        password = urlsplit(address.get_secret_value()).password if address is not None else None
        found |= {password or "", unquote(password or "")}
    tracking = urlsplit(settings.mlflow_tracking_uri or "").password
    found.add(tracking or "")
    return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    `time` (UTC), `level`, `logger`, `message`; where known `field`, `night`, `exposure`, `stage`, `run`, `job`, `step`,
    `event` (Dagster's), `error` (a traceback). Secrets of the settings are blotted out wherever they stand.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._secrets = secrets(settings)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        meta = getattr(record, "dagster_meta", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": (meta or {}).get("orig_message") or record.getMessage(),
            **_of_run.get(),
            **of_meta(meta),
            **_about.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        for secret in self._secrets:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")
        return text


def of_meta(meta: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a record of a Dagster run says about itself: run, job, step, event, field and night."""
    if not meta:
        return {}
    tags = meta.get("job_tags") or {}
    found = {
        "run": meta.get("run_id"),
        "job": meta.get("job_name"),
        "step": meta.get("step_key"),
        "field": tags.get("dagster/partition/field"),
        "night": tags.get("dagster/partition/night"),
    }
    event = meta.get("dagster_event")
    if event is not None:
        found["event"] = event.event_type_value
    whole = tags.get("dagster/partition", "")
    if found["field"] is None and "|" in whole:
        found["field"], _, found["night"] = whole.partition("|")
    elif found["field"] is None and whole:
        found["field"] = whole
    return {name: str(value) for name, value in found.items() if value}


class JsonLines(logging.Handler):
    """Appends records to a file, or to standard error (`-`), as `JsonFormatter` writes them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.where = settings.log_json
        self.setFormatter(JsonFormatter(settings))
        if self.where != "-":
            Path(self.where).parent.mkdir(parents=True, exist_ok=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            line = (self.format(record) + "\n").encode(errors="replace")
            if self.where == "-":
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
                return
            descriptor = os.open(self.where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except Exception:  # noqa: BLE001  a log that cannot be written must not end the work; logging says it once
            self.handleError(record)


class RunHandler(logging.Handler):
    """What `dagster.yaml` adds to the log of every run: the lines, and what later lines of the thread are about."""

    def __init__(self) -> None:
        super().__init__()
        settings = get_settings()
        self._lines = JsonLines(settings) if settings.log_json else None

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on."""
        known = of_meta(getattr(record, "dagster_meta", None))
        known.pop("event", None)
        _of_run.set(known)
        if self._lines is not None:
            self._lines.emit(record)


def start(settings: Settings) -> None:
    """Let this process append its log to the file that the settings name; nothing where they name none."""
    root = logging.getLogger()
    if not settings.log_json or any(
        isinstance(handler, JsonLines) and handler.where == settings.log_json for handler in root.handlers
    ):
        return
    root.addHandler(JsonLines(settings))
    logging.getLogger("astrid_pipeline").setLevel(logging.INFO)
