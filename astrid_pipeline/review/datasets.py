"""The page of training datasets: what there is, how good it is, and a form that collects one more."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from astrid_pipeline.errors import AstridError
from astrid_pipeline.review import training
from astrid_pipeline.review.access import Identity
from astrid_pipeline.review.context import Context, context_of
from astrid_pipeline.review.page import _render

router = APIRouter(include_in_schema=False)
#: Datasets that the page shows; the API lists all.
SHOWN = 50


def _page(
    here: Context, me: Identity, asked: dict[str, str], wrong: str | None, status: int = 200
) -> Response:
    rows = training.datasets(here, me)[:SHOWN]
    today = dt.datetime.now(dt.UTC).date()
    return _render(
        "datasets.html",
        status,
        me=me,
        rows=[{**row, **row["collection_params"], "id": row["id"], "name": row["name"]} for row in rows],
        asked={"start": str(today - dt.timedelta(days=180)), "end": str(today), **asked},
        wrong=wrong,
    )


@router.get("/review/datasets")
def datasets(request: Request) -> Response:
    """Show the datasets, the latest first."""
    here = context_of(request)
    if here.gate.identify(request) is None:
        return RedirectResponse("/sign-in", 303)
    return _page(here, here.gate.require(request, "read"), {}, None)


@router.post("/review/datasets")
async def collect(request: Request) -> Response:
    """Collect a dataset as the form says; what is refused is shown with its reason."""
    here = context_of(request)
    me = await run_in_threadpool(here.gate.require, request, "label")
    given = parse_qs((await request.body())[:4096].decode("utf-8", "replace"))
    asked = {name: values[0] for name, values in given.items()}
    return await run_in_threadpool(_collected, here, me, asked)


def _collected(here: Context, me: Identity, asked: dict[str, str]) -> Response:
    values: dict[str, Any] = {name: value for name, value in asked.items() if value}
    try:
        training.collect(here, me, training.Collect(**values))
    except ValidationError as error:
        first = error.errors()[0]
        return _page(here, me, asked, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 422)
    except AstridError as error:
        return _page(here, me, asked, f"{error.what}; {error.remedy}" if error.remedy else error.what, 422)
    return RedirectResponse("/review/datasets", 303)
