"""The ways in which an archive's answers go wrong."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "slow",
    "status",
    "reset",
    "truncated",
    "cut",
    "html",
    "wrong_size",
    "flipped",
    "duplicate_rows",
    "masked",
    "missing_columns",
    "executing",
    "error_envelope",
    "half_json",
)


@dataclass
class Fault:
    """One fault, for the next `times` requests whose address holds `path`.

    Attributes
    ----------
    kind:
        ``slow`` (waits `value` seconds), ``status`` (answers with status `value`), ``reset`` (a TCP reset after half
        of the body), ``truncated`` (closes after half of the promised length), ``cut`` (half of the body, told as if
        whole), ``html`` (a page with status 200), ``wrong_size`` (a whole body with 2880 bytes more),
        ``flipped`` (one bit of the body is another), ``duplicate_rows``, ``masked`` (nulls where values were),
        ``missing_columns`` (fields that old rows lack), ``executing`` (not ready: ask again), ``error_envelope``
        (status 200 that says ERROR), ``half_json``.
    path:
        Part of the address with its query, or of the request's body; empty for every request.
    times:
        How many requests it spoils; -1 for all.
    value:
        Seconds, or the status.
    method:
        Only requests of this method, if given.
    retry_after:
        Seconds for a Retry-After header, with ``status``.
    """

    kind: str
    path: str = ""
    times: int = 1
    value: float = 0.0
    method: str = ""
    retry_after: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is none of {', '.join(KINDS)}")


@dataclass
class Faults:
    """Faults that wait for their request."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        """Let `fault` spoil requests from now on."""
        with self._lock:
            self.waiting.append(fault)

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self.waiting.clear()

    def take(self, method: str, address: str) -> Fault | None:
        """Return the fault for this request, and count it."""
        with self._lock:
            for fault in self.waiting:
                if fault.path in address and fault.method in ("", method):
                    fault.times -= 1
                    if fault.times == 0:
                        self.waiting.remove(fault)
                    return fault
        return None


def spoil(fault: Fault, body: bytes) -> bytes:
    """Return the body as the fault leaves it; connection faults are the server's business."""
    if fault.kind == "html":
        return b"<!DOCTYPE html><html><body><h1>Scheduled maintenance</h1></body></html>"
    if fault.kind == "wrong_size":
        return body + b"\0" * 2880
    if fault.kind == "cut":
        return body[: len(body) // 2]
    if fault.kind == "flipped":
        middle = len(body) - 2880 // 2
        return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if fault.kind == "half_json":
        return body[: len(body) // 2]
    if fault.kind in ("duplicate_rows", "masked", "missing_columns", "executing", "error_envelope"):
        return json.dumps(_spoil_envelope(fault.kind, json.loads(body))).encode()
    return body


def _spoil_envelope(kind: str, answer: dict[str, Any]) -> dict[str, Any]:
    if kind == "executing":
        return {"status": "EXECUTING", "msg": "", "percent complete": 0, "data": [], "fields": []}
    if kind == "error_envelope":
        return {"status": "ERROR", "msg": "Timeout expired", "data": [], "fields": []}
    rows = answer.get("data", [])
    if kind == "duplicate_rows":
        return {**answer, "data": [row for row in rows for _ in range(2)]}
    if kind == "masked":
        spare = ("t_obs_release", "t_exptime", "s_region", "filters", "dataRights", "size", "productType")
        return {**answer, "data": [{**row, **{k: None for k in spare if k in row}} for row in rows]}
    gone = ("dataRights", "intentType", "dataURL", "mtFlag")
    return {
        **answer,
        "fields": [f for f in answer.get("fields", []) if f["name"] not in gone],
        "data": [{k: v for k, v in row.items() if k not in gone} for row in rows],
    }
