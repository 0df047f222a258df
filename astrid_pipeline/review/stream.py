"""Live updates as server-sent events: labels and nights, from the catalogue's own record of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from astrid_pipeline.review.api import RESPONSES
from astrid_pipeline.review.context import Context, Here, Reader, tidy

router = APIRouter(prefix="/api/v1", responses=RESPONSES)
#: Seconds between two looks; a person notices nothing shorter, and a hundred pages make a hundred looks a second.
PERIOD = 1.0
#: Looks without news after which a comment keeps proxies from closing the connection.
QUIET = 15

_LABELS = (
    "SELECT e.id, s.id AS source_id, s.state, e.who, e.verdict, e.class FROM validation_events e "
    "JOIN sources s ON s.key = e.source_key WHERE e.id > :after ORDER BY e.id LIMIT 500"
)
_NIGHTS = (
    "SELECT r.id, f.name AS field, r.night, r.candidates, r.detections, r.dagster_run_id FROM difference_runs r "
    "JOIN fields f ON f.id = r.field_id WHERE r.id > :after AND r.status = 'success' ORDER BY r.id LIMIT 100"
)


def _ends(here: Context) -> tuple[int, int]:
    query = text(
        "SELECT (SELECT coalesce(max(id), 0) FROM validation_events), "
        "(SELECT coalesce(max(id), 0) FROM difference_runs)"
    )
    with here.catalog.reading("follow events") as connection:
        label, night = connection.execute(query).one()
    return int(label), int(night)


def _news(here: Context, label: int, night: int) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    with here.catalog.reading("follow events") as connection:
        for name, query, after in (("label", _LABELS, label), ("night", _NIGHTS, night)):
            rows = connection.execute(text(query), {"after": after}).mappings()
            found += [(name, tidy(dict(row))) for row in rows]
    return found


@router.get(
    "/events",
    tags=["events"],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def events(
    request: Request,
    here: Here,
    me: Reader,
    last_event_id: Annotated[str, Header(pattern=r"^[0-9]{1,18}-[0-9]{1,18}$")] = "0-0",
) -> StreamingResponse:
    """Stream labels and nights as they are made; `Last-Event-ID` goes on after an interruption."""
    label, night = (int(part) for part in last_event_id.split("-"))
    if last_event_id == "0-0":
        label, night = await run_in_threadpool(_ends, here)

    async def lines() -> AsyncIterator[str]:
        nonlocal label, night
        yield f"id: {label}-{night}\nevent: hello\ndata: {{}}\n\n"
        quiet = 0
        while not (request.app.state.ending or await request.is_disconnected()):
            quiet += 1
            for name, row in await run_in_threadpool(_news, here, label, night):
                label, night = (row["id"], night) if name == "label" else (label, row["id"])
                yield f"id: {label}-{night}\nevent: {name}\ndata: {json.dumps(row)}\n\n"
                quiet = 0
            if quiet >= QUIET:
                yield ": still here\n\n"
                quiet = 0
            await asyncio.sleep(PERIOD)

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
