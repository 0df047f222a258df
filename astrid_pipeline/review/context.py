"""What every route needs: the catalogue, the stamps, the gate, the settings; and who is asking."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from astrid_pipeline.catalog import Catalog
from astrid_pipeline.review.access import Gate, Identity
from astrid_pipeline.review.runs import Runs
from astrid_pipeline.review.stamps import StampStore
from astrid_pipeline.review.teach import Teacher
from astrid_pipeline.settings import Settings


@dataclass(frozen=True)
class Context:
    """The parts that an application works with."""

    settings: Settings
    catalog: Catalog
    stamps: StampStore
    gate: Gate
    store: Any
    runs: Runs
    teacher: Teacher


def context_of(request: Request) -> Context:
    """Return the application's parts."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


async def _allowed(request: Request, scope: str) -> Identity:
    gate = context_of(request).gate
    if gate.remembered(request) is not None:
        # Decided without the catalogue: to send it to a thread takes longer.
        return gate.require(request, scope)
    return await run_in_threadpool(gate.require, request, scope)


async def reader(request: Request) -> Identity:
    """Return who asks; they may read."""
    return await _allowed(request, "read")


async def labeller(request: Request) -> Identity:
    """Return who asks; they may label."""
    return await _allowed(request, "label")


async def ingester(request: Request) -> Identity:
    """Return who asks; they may start runs."""
    return await _allowed(request, "ingest")


async def administrator(request: Request) -> Identity:
    """Return who asks; they may see what others did."""
    return await _allowed(request, "admin")


async def _here(request: Request) -> Context:
    # Not a plain function: those are sent to a thread each, which takes longer than this.
    return context_of(request)


Here = Annotated[Context, Depends(_here)]
Reader = Annotated[Identity, Depends(reader)]
Labeller = Annotated[Identity, Depends(labeller)]
Ingester = Annotated[Identity, Depends(ingester)]
Admin = Annotated[Identity, Depends(administrator)]


def tidy(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row as JSON takes it: not-a-number as null, dates as text."""
    return {str(name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat() if value == value else None
    if isinstance(value, Mapping):
        return tidy(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
