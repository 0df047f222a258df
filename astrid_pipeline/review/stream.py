"""Live updates as server-sent events: labels from the catalogue, runs and assets from Dagster's event log.

One task a process looks for news and hands them to all pages that listen: a hundred pages ask the databases no more
often than one does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from astrid_pipeline.errors import AstridError
from astrid_pipeline.review.api import RESPONSES
from astrid_pipeline.review.context import Context, Reader, tidy

_log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", responses=RESPONSES)
#: Seconds between two looks; a person notices nothing shorter.
PERIOD = 1.0
#: Seconds without news after which a comment keeps proxies from closing the connection.
QUIET = 15.0
#: News that a page may be behind before it is let go; it comes back by itself and is told what it missed.
_BEHIND = 1000
#: Numbers are given out before their rows are committed: so many are looked at again, that none is passed over.
_OVERLAP = 100

_LABELS = (
    "SELECT e.id, s.id AS source_id, s.state, e.who, e.verdict, e.class FROM validation_events e "
    "JOIN sources s ON s.key = e.source_key WHERE e.id > :after ORDER BY e.id LIMIT 500"
)


@dataclass(frozen=True)
class News:
    """One thing that happened; `label` and `event` are the numbers up to which all is told, this included."""

    name: str
    row: dict[str, Any]
    label: int
    event: int

    def lines(self) -> str:
        """Return it as the stream has it."""
        return f"id: {self.label}-{self.event}\nevent: {self.name}\ndata: {json.dumps(self.row)}\n\n"


class _Log:
    """One log that grows: where it stands, and what was told of its last entries."""

    def __init__(self, end: Callable[[], int], read: Callable[[int], list[dict[str, Any]]]) -> None:
        self._end, self._read = end, read
        self.at: int | None = None
        self._told: deque[int] = deque(maxlen=10 * _OVERLAP)

    def news(self) -> list[dict[str, Any]]:
        """Return what is new since the last look."""
        if self.at is None:
            self.at = self._end()
            self._told.extend(range(max(0, self.at - _OVERLAP), self.at + 1))
            return []
        found = [row for row in self._read(max(0, self.at - _OVERLAP)) if row["id"] not in self._told]
        self._told.extend(row["id"] for row in found)
        self.at = max([self.at, *(row["id"] for row in found)])
        return found


class Follower:
    """Looks for news while somebody listens, once a `PERIOD` for all who do.

    Attributes
    ----------
    looks:
        How often the databases were asked.
    """

    def __init__(self, here: Context) -> None:
        self._here = here
        self._listeners: set[asyncio.Queue[News | None]] = set()
        self._new: set[asyncio.Queue[News | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._labels = _Log(self._last_label, self._labels_after)
        self._events = _Log(here.runs.last_event, here.runs.events)
        self._silent: dict[str, str] = {}
        self.looks = 0

    def _last_label(self) -> int:
        with self._here.catalog.reading("follow labels") as connection:
            return int(connection.scalar(text("SELECT coalesce(max(id), 0) FROM validation_events")) or 0)

    def _labels_after(self, after: int) -> list[dict[str, Any]]:
        with self._here.catalog.reading("follow labels") as connection:
            return [tidy(dict(r)) for r in connection.execute(text(_LABELS), {"after": after}).mappings()]

    def _look(self) -> list[News]:
        """Ask both logs; one that does not answer is told once, and the other goes on."""
        self.looks += 1
        found: list[News] = []
        for name, log in (("label", self._labels), ("dagster", self._events)):
            try:
                rows = log.news()
            except AstridError as error:
                if name not in self._silent:
                    found.append(self._news("silent", {"log": name, "what": error.what}))
                self._silent[name] = error.what
                continue
            if self._silent.pop(name, None) is not None:
                found.append(self._news("answers", {"log": name}))
            for row in rows:
                kinds = ["label"] if name == "label" else [str(row["kind"])]
                # A night is done when its detections are there: what a scanner waits for.
                if row.get("asset") == "detections" and row.get("partition"):
                    kinds.append("night")
                found += [self._news(kind, _night(row) if kind == "night" else row) for kind in kinds]
        return found

    def _news(self, name: str, row: dict[str, Any]) -> News:
        return News(name, row, self._labels.at or 0, self._events.at or 0)

    async def _follow(self) -> None:
        try:
            await self._follow_while_wanted()
        except Exception:  # noqa: BLE001
            # A fault of ours must not leave pages waiting for ever: they are cut off, and come back.
            _log.exception("the logs cannot be followed")
            for listener in self._listeners:
                listener.put_nowait(None)
        finally:
            # The next who listens begins with what happens then.
            self._labels.at = self._events.at = None

    async def _follow_while_wanted(self) -> None:
        while self._listeners:
            for news in await run_in_threadpool(self._look):
                for listener in list(self._listeners):
                    if listener.qsize() >= _BEHIND:
                        self._listeners.discard(listener)
                        listener.put_nowait(None)
                    else:
                        listener.put_nowait(news)
            # With it a page that is cut off knows from where to go on.
            for listener in self._new:
                listener.put_nowait(self._news("hello", {}))
            self._new.clear()
            await asyncio.sleep(PERIOD)

    async def listen(self, after: tuple[int, int] | None) -> AsyncIterator[News | None]:
        """Give news as they come, and None every now and then, that the listener can look whether it is still wanted.

        Parameters
        ----------
        after:
            Numbers (label, event) that were told before; what happened since comes first. None begins now.
        """
        queue: asyncio.Queue[News | None] = asyncio.Queue()
        self._listeners.add(queue)
        self._new.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        told: set[tuple[str, Any]] = set()
        try:
            if after is not None:
                for news in await run_in_threadpool(self._missed, *after):
                    told.add((news.name, news.row["id"]))
                    yield news
            while True:
                try:
                    # Short: whether the page is gone, or the server ends, is looked at in between.
                    found = await asyncio.wait_for(queue.get(), PERIOD)
                except TimeoutError:
                    yield None
                    continue
                if found is None:
                    return
                if (found.name, found.row.get("id")) not in told:
                    yield found
        finally:
            self._listeners.discard(queue)
            self._new.discard(queue)

    def _missed(self, label: int, event: int) -> list[News]:
        labels = [News("label", row, row["id"], event) for row in self._labels_after(label)]
        label = labels[-1].label if labels else label
        return labels + [
            News(str(row["kind"]), row, label, row["id"]) for row in self._here.runs.events(event)
        ]


def _night(row: dict[str, Any]) -> dict[str, Any]:
    field, _, night = str(row["partition"]).rpartition("|")
    return {**row, "field": field, "night": night, "detections": row["counts"].get("detections")}


@router.get(
    "/events",
    tags=["events"],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def events(
    request: Request,
    me: Reader,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,18}-[0-9]{1,18}$")] = None,
) -> StreamingResponse:
    """Stream labels, runs (started, ended), assets and nights as they come; `Last-Event-ID` goes on after a break.

    Events: `hello` first, then `label`, `run`, `asset`, `night`; `silent` where a database does not answer, `answers`
    where it does again.
    """
    follower: Follower = request.app.state.follower
    parts = None if last_event_id is None else tuple(int(part) for part in last_event_id.split("-"))
    after = None if parts is None else (parts[0], parts[1])

    async def lines() -> AsyncIterator[str]:
        quiet = 0.0
        async for news in follower.listen(after):
            if request.app.state.ending or await request.is_disconnected():
                return
            if news is not None:
                quiet = 0.0
                yield news.lines()
                continue
            quiet += PERIOD
            if quiet >= QUIET:
                quiet = 0.0
                yield ": still here\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
