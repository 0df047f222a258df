"""The REST API, `/api/v1`: sources, objects, labels, what the nights hold."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

import pandas as pd
from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy import text

from astrid_pipeline.catalog import access, gold, labels, objects, queue
from astrid_pipeline.review.context import Admin, Context, Here, Labeller, Reader, tidy
from astrid_pipeline.review.problems import Problem
from astrid_pipeline.review.schemas import (
    Id,
    Label,
    Listing,
    Name,
    NewLabel,
    Paged,
    PagedQuery,
    Queue,
    QueueQuery,
    Saved,
    Text,
    Undo,
)
from astrid_pipeline.review.stamps import plane_png, sprite_png, stamp_fits

_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
#: What any route may answer beside its own.
RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"description": "nobody is signed in, or the key is not good", **_PROBLEM},
    403: {"description": "the scope is missing", **_PROBLEM},
    404: {"description": "there is none", **_PROBLEM},
    422: {"description": "the request is not as described", **_PROBLEM},
    429: {"description": "too many requests", **_PROBLEM},
    503: {"description": "a service does not answer", **_PROBLEM},
}
router = APIRouter(prefix="/api/v1", responses=RESPONSES)
Plane = Literal["all", "science", "reference", "difference", "score"]
Stretch = Literal["asinh", "linear", "zscale"]


def filter_from(query: Queue, kind: queue.Kind, who: str, gold: bool = False) -> queue.Filter:
    """Return the catalogue's filter of query parameters; only the page's holds what was put in (`gold`)."""
    values = query.model_dump(exclude={"limit", "cursor", "kind"})
    return queue.Filter(**values, kind=kind, who=who, gold=gold)


def _list(here: Context, who: str, query: Paged, kind: queue.Kind) -> Listing:
    if query.sort == "worth" and query.cursor is None:
        here.teacher.refresh(query.night)
    page = queue.list_sources(here.catalog, filter_from(query, kind, who), query.limit, query.cursor)
    return Listing(items=[tidy(row) for row in page.rows], next=page.next)


def source_of(here: Context, source_id: int) -> dict[str, Any]:
    """Return a source. Raises `Problem` 404."""
    found = queue.get_source(here.catalog, source_id)
    if found is None:
        raise no_source(source_id)
    return found


def no_source(source_id: int) -> Problem:
    """Return what is answered where there is no such source."""
    return Problem(404, f"there is no source {source_id}", "see /api/v1/detections")


def seen_by(
    here: Context, source: dict[str, Any], who: str, history: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return a source as one person may see it: whether it is an injection is told once they have labelled it.

    `history` are its label events, where they were looked up already.
    """
    events = labels.history(here.catalog, source["key"]) if history is None else history
    given = any(e["who"] == who and e["verdict"] for e in events)
    return source if given else {k: v for k, v in source.items() if k not in ("injected", "truth")}


def _told(event: dict[str, Any], to: str) -> dict[str, Any]:
    """Return a label event; of others' what was put in is not told: the reader may be asked about it next."""
    mine = event["who"] == to
    return tidy({k: v for k, v in event.items() if mine or k not in ("injected", "truth")})


@router.get("/detections", tags=["sources"])
def detections(here: Here, me: Reader, query: PagedQuery) -> Listing:
    """List what the model holds for real."""
    return _list(here, me.who, query, "detections")


@router.get("/candidates", tags=["sources"])
def candidates(here: Here, me: Reader, query: PagedQuery) -> Listing:
    """List detections and the candidates that the model passed over (their `score` is null)."""
    return _list(here, me.who, query, "all")


@router.get("/detections/{source_id}", tags=["sources"])
def detection(here: Here, me: Reader, source_id: Id) -> dict[str, Any]:
    """Return one source with everything that is known of it."""
    return tidy(seen_by(here, source_of(here, source_id), me.who))


@router.get(
    "/detections/{source_id}/stamp.png",
    tags=["cut-outs"],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def stamp_png(
    here: Here, me: Reader, source_id: Id, plane: Plane = "all", stretch: Stretch = "asinh"
) -> Response:
    """Return the cut-outs, north up: science, reference, difference, score side by side, or one of them."""
    source = queue.stamp_of(here.catalog, source_id)
    if source is None:
        raise no_source(source_id)
    stamp = here.stamps.get(source)
    png = sprite_png(stamp, stretch) if plane == "all" else plane_png(stamp, plane, stretch)
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/detections/{source_id}/stamp.fits",
    tags=["cut-outs"],
    response_class=Response,
    responses={200: {"content": {"application/fits": {}}}},
)
def stamp_as_fits(here: Here, me: Reader, source_id: Id) -> Response:
    """Return the cut-outs as FITS, one extension each, as the frame has them, in units of the noise."""
    source = source_of(here, source_id)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", source["key"])
    headers = {"Content-Disposition": f'attachment; filename="{name}.fits"'}
    return Response(
        stamp_fits(here.stamps.get(source), source), media_type="application/fits", headers=headers
    )


@router.get("/detections/{source_id}/labels", tags=["labels"])
def labels_of(here: Here, me: Reader, source_id: Id) -> list[dict[str, Any]]:
    """Return all label events of a source, oldest first; `undone` ones are still there."""
    history = labels.history(here.catalog, source_of(here, source_id)["key"])
    return [_told(event, me.who) for event in history]


@router.post("/detections/{source_id}/labels", tags=["labels"], status_code=201)
def add_label(here: Here, me: Labeller, source_id: Id, new: NewLabel) -> Label:
    """Keep a verdict. The answer says whether this was an injection."""
    event = labels.record(here.catalog, source_id, who=me.who, **new.model_dump())
    return Label(**event)


@router.post("/labels/{label_id}/undo", tags=["labels"], status_code=201)
def undo_label(here: Here, me: Labeller, label_id: Id, undo: Undo) -> Label:
    """Withdraw one's own verdict; both events stay in the record."""
    return Label(**labels.undo(here.catalog, label_id, who=me.who, token=undo.token))


@router.get("/labels", tags=["labels"])
def all_labels(
    here: Here,
    me: Reader,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    who: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listing:
    """List label events in the order they were made."""
    found = labels.events(here.catalog, after=after, who=who, limit=limit)
    following = str(found[-1]["id"]) if len(found) == limit else None
    return Listing(items=[_told(event, me.who) for event in found], next=following)


@router.get("/scanners", tags=["labels"])
def scanners(here: Here, me: Reader) -> list[dict[str, Any]]:
    """Return each person's completeness and purity on what was put in, with 68 % intervals."""
    return [tidy(row) for row in gold.scanners(here.catalog).to_dict(orient="records")]


@router.get("/progress", tags=["labels"])
def progress(here: Here, me: Reader, query: QueueQuery) -> dict[str, int]:
    """Return how many detections a filter holds, and in which state they are."""
    return queue.progress(here.catalog, filter_from(query, "detections", me.who))


@router.get("/filters", tags=["labels"])
def filters(here: Here, me: Reader) -> dict[str, dict[str, Any]]:
    """Return one's saved filters by name."""
    return access.saved_filters(here.catalog, me.who)


@router.put("/filters/{name}", tags=["labels"], status_code=204, response_class=Response)
def save_filter(here: Here, me: Labeller, name: Name, query: Saved) -> None:
    """Save a filter under a name."""
    wanted = query.model_dump(mode="json", exclude_none=True)
    access.save_filter(here.catalog, me.who, name, wanted)
    access.audit(here.catalog, me.who, "save filter", {"name": name, "filter": wanted})


@router.delete("/filters/{name}", tags=["labels"], status_code=204, response_class=Response)
def forget_filter(here: Here, me: Labeller, name: Name) -> None:
    """Forget a saved filter."""
    if not access.forget_filter(here.catalog, me.who, name):
        raise Problem(404, f"there is no filter {name}", "see /api/v1/filters")
    access.audit(here.catalog, me.who, "forget filter", {"name": name})


# -- objects ---------------------------------------------------------------------------------------------------------


def _rows(here: Context, what: str, query: str, **values: Any) -> list[dict[str, Any]]:
    with here.catalog.reading(what) as connection:
        return [tidy(dict(row)) for row in connection.execute(text(query), values).mappings()]


def object_of(here: Context, name: str) -> dict[str, Any]:
    """Return an object. Raises `Problem` 404."""
    found = _rows(
        here,
        "look up an object",
        "SELECT o.*, f.name AS field FROM objects o JOIN fields f ON f.id = o.field_id WHERE o.name = :name"
        " AND o.kind <> 'injected'",
        name=name,
    )
    if not found:
        raise Problem(404, f"there is no object {name}", "see /api/v1/objects")
    return found[0]


@router.get("/objects", tags=["objects"])
def list_objects(
    here: Here,
    me: Reader,
    field: Text | None = None,
    kind: Literal["stationary", "moving"] | None = None,
    min_detections: Annotated[int, Query(ge=1, le=10**6)] = 1,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listing:
    """List objects in the order of their ids."""
    found = _rows(
        here,
        "list objects",
        "SELECT o.*, f.name AS field FROM objects o JOIN fields f ON f.id = o.field_id WHERE o.id > :after "
        "AND o.kind <> 'injected' "
        "AND (cast(:field AS text) IS NULL OR f.name = :field) AND (cast(:kind AS text) IS NULL OR o.kind = :kind) "
        "AND o.detections >= :least ORDER BY o.id LIMIT :limit",
        after=after,
        field=field,
        kind=kind,
        least=min_detections,
        limit=limit,
    )
    return Listing(items=found, next=str(found[-1]["id"]) if len(found) == limit else None)


@router.get("/objects/{name}", tags=["objects"])
def one_object(here: Here, me: Reader, name: Name) -> dict[str, Any]:
    """Return an object with its sources and, of a moving one, its tracks."""
    found = object_of(here, name)
    sources = queue.list_sources(
        here.catalog, queue.Filter(object=name, kind="all", sort="mjd", descending=False), 1000
    )
    tracks = _rows(
        here, "list tracks", "SELECT * FROM tracks WHERE object_id = :id ORDER BY mjd", id=found["id"]
    )
    return {**found, "sources": [tidy(row) for row in sources.rows], "tracks": tracks}


@router.get("/objects/{name}/light-curve", tags=["objects"])
def light_curve(here: Here, me: Reader, name: Name) -> list[dict[str, Any]]:
    """Return the forced photometry of an object: fluxes, magnitudes, upper limits."""
    curve = objects.light_curve(here.catalog, object_of(here, name)["id"])
    return [tidy(row) for row in curve.astype(object).where(curve.notna(), None).to_dict(orient="records")]


# -- nights ----------------------------------------------------------------------------------------------------------


@router.get("/observations", tags=["nights"])
def observations(
    here: Here,
    me: Reader,
    field: Text | None = None,
    night: dt.date | None = None,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listing:
    """List exposures in the order of their ids."""
    found = _rows(
        here,
        "list observations",
        "SELECT o.*, f.name AS field FROM observations o JOIN fields f ON f.id = o.field_id WHERE o.id > :after "
        "AND (cast(:field AS text) IS NULL OR f.name = :field) AND (cast(:night AS date) IS NULL OR o.night = :night)"
        " ORDER BY o.id LIMIT :limit",
        after=after,
        field=field,
        night=night,
        limit=limit,
    )
    # Where a file lies on this machine is nobody's business outside.
    items = [{k: v for k, v in row.items() if k != "path"} for row in found]
    return Listing(items=items, next=str(found[-1]["id"]) if len(found) == limit else None)


@router.get("/difference-runs", tags=["nights"])
def difference_runs(here: Here, me: Reader, field: Text | None = None) -> list[dict[str, Any]]:
    """Return what each field and night holds, and the Dagster run that made it."""
    table: pd.DataFrame = here.catalog.nights(field)
    return [tidy(row) for row in table.to_dict(orient="records")]


@router.get("/models", tags=["nights"])
def models(here: Here, me: Reader) -> list[dict[str, Any]]:
    """Return the versions of models that have judged nights, and how many detections they made."""
    return _rows(
        here,
        "list models",
        "SELECT m.name, m.version, m.first_used_at, count(r.id) AS runs, coalesce(sum(r.detections), 0)::bigint AS"
        " detections FROM models m LEFT JOIN model_runs r ON r.model_id = m.id AND r.status = 'success'"
        " GROUP BY m.id ORDER BY m.id",
    )


@router.get("/audit", tags=["audit"])
def audit(
    here: Here,
    me: Admin,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listing:
    """List who did what beside labelling, oldest first (scope `admin`)."""
    found = _rows(
        here,
        "read the audit trail",
        "SELECT id, at, who, action, what FROM audit_log WHERE id > :after ORDER BY id LIMIT :limit",
        after=after,
        limit=limit,
    )
    return Listing(items=found, next=str(found[-1]["id"]) if len(found) == limit else None)


@router.get("/fields", tags=["nights"])
def fields(here: Here, me: Reader) -> list[dict[str, Any]]:
    """Return the fields that are watched."""
    from dataclasses import asdict

    return [tidy(asdict(field)) for field in here.catalog.fields()]
