"""The loop from labels to a better detector, as the page and the API show it, and the brake on it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from astrid_pipeline.catalog import loop
from astrid_pipeline.review.api import RESPONSES
from astrid_pipeline.review.context import Context, Here, Labeller, Reader, tidy
from astrid_pipeline.review.schemas import Note

router = APIRouter(prefix="/api/v1/loop", tags=["training"], responses=RESPONSES)
page = APIRouter(include_in_schema=False)


class Brake(BaseModel):
    """Whether the loop is to be held, and why."""

    model_config = ConfigDict(extra="forbid")

    held: bool
    why: Note = Field(default="", description="told to everybody")


class LoopState(BaseModel):
    """How the loop stands."""

    held: bool
    held_by: str | None
    held_since: dt.datetime | None
    why: str | None
    new_labels: int = Field(description="sources labelled since the latest turn began")
    learn_after: int = Field(description="so many begin the next turn; 0: never")
    turns: list[dict[str, Any]] = Field(description="the latest first, with status and reason")


def state(here: Context, limit: int = 20) -> LoopState:
    """Return how the loop stands."""
    hold = loop.held(here.catalog)
    turns = loop.turns(here.catalog, limit=limit)
    count = loop.labels_since(here.catalog, turns[0]["started_at"] if turns else None)
    return LoopState(
        held=hold is not None,
        held_by=hold.who if hold else None,
        held_since=hold.since if hold else None,
        why=hold.why if hold else None,
        new_labels=count,
        learn_after=here.settings.learn_after,
        turns=[tidy(turn) for turn in turns],
    )


def brake(here: Context, who: str, wanted: Brake) -> None:
    """Hold the loop, or let it go on; said twice, it is noted once."""
    if wanted.held:
        loop.hold(here.catalog, who, wanted.why)
    elif loop.held(here.catalog) is not None:
        loop.release(here.catalog, who)


@router.get("")
def get_state(here: Here, me: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> LoopState:
    """Return whether the loop is held, how many labels are new, and what its turns came to."""
    return state(here, limit)


@router.put("/hold")
def put_hold(here: Here, me: Labeller, wanted: Brake) -> LoopState:
    """Hold the loop: nothing is trained or promoted by itself until it is released. Noted in the audit trail."""
    brake(here, me.who, wanted)
    return state(here)


@page.post("/review/loop/{action}")
def press(here: Here, me: Labeller, action: str) -> Response:
    """Do what the report's button says."""
    brake(here, me.who, Brake(held=action == "hold", why="from the scan report"))
    return RedirectResponse("/review/report", 303)
