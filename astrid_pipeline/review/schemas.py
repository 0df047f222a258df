"""What the API takes and gives."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: PostgreSQL knows no NUL in text.
Text = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Note = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Id = Annotated[int, Path(ge=1, lt=2**63)]
Degrees = Annotated[float, Field(ge=0, le=360, allow_inf_nan=False)]
Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]

Verdict = Literal["real", "bogus", "unsure"]


class Queue(BaseModel):
    """A filter of the queue, as query parameters."""

    model_config = ConfigDict(extra="forbid")

    field: Text | None = None
    night: dt.date | None = None
    since: dt.date | None = Field(default=None, description="nights from this one on")
    seen: Literal["unseen", "seen", "mine", "not mine", "disputed", "real", "bogus", "unsure", "all"] = "all"
    class_name: Text | None = Field(default=None, description="class by the model or by people")
    filter: Text | None = None
    score_min: Number | None = None
    score_max: Number | None = None
    snr_min: Number | None = None
    object: Text | None = None
    ra: Degrees | None = Field(default=None, description="cone's centre, ICRS degrees")
    dec: Latitude | None = None
    radius: Annotated[float, Field(gt=0, le=36000, allow_inf_nan=False)] | None = Field(
        default=None, description="arcsec"
    )
    per_object: bool = Field(
        default=False,
        description="one row an object: a labelled source of it, else that of the highest score",
    )
    sort: Literal[
        "score",
        "snr",
        "mag",
        "mjd",
        "uncertainty",
        "worth",
        "labels",
        "ra",
        "dec",
        "night",
        "id",
        "filter",
        "class",
        "object",
        "state",
    ] = "score"
    descending: bool = True


class Saved(Queue):
    """A filter as the page keeps it."""

    kind: Literal["detections", "passed", "all"] = "detections"


class Paged(Queue):
    """A filter, and which page of it."""

    limit: int = Field(default=100, ge=1, le=1000)
    cursor: Annotated[str, StringConstraints(max_length=400, pattern=r"^[A-Za-z0-9_-]+$")] | None = Field(
        default=None, description="`next` of the page before"
    )


QueueQuery = Annotated[Queue, Query()]
PagedQuery = Annotated[Paged, Query()]


class Listing(BaseModel):
    """A page of rows; `next` is the cursor of those that follow, null at the end."""

    items: list[dict[str, Any]]
    next: str | None


class NewLabel(BaseModel):
    """A verdict. `token` names the decision: sent twice, it is kept once."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{8,64}$")]
    class_name: Text | None = None
    confidence: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    note: Note | None = None


class Undo(BaseModel):
    """The withdrawal of one's own verdict."""

    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{8,64}$")]


class Label(BaseModel):
    """A label event as it is kept, with what it makes of the source."""

    id: int
    source_id: int
    who: str
    verdict: Verdict | None
    undoes: int | None
    state: str = Field(description="consensus: unseen, real, bogus, unsure, disputed")
    labels: int
    injected: bool = Field(description="true: this was put in, told now that you have labelled")
    truth: Literal["real", "bogus"] | None = Field(description="what is known of it, if it was put in")


class Part(BaseModel):
    """One part of the system as it answered just now."""

    ok: bool
    detail: str
    seconds: float


class Health(BaseModel):
    """Whether every part answers."""

    ok: bool
    parts: dict[str, Part]
