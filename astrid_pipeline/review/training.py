"""Training datasets through the API, under `/api/v1` and at the root."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text

from astrid_pipeline.catalog import access
from astrid_pipeline.review.api import RESPONSES
from astrid_pipeline.review.context import Context, Here, Labeller, Reader, tidy
from astrid_pipeline.review.problems import Problem
from astrid_pipeline.review.schemas import Id, Listing, Name

router = APIRouter(prefix="/training/datasets", tags=["training"], responses=RESPONSES)


class Collect(BaseModel):
    """What to collect; the last 180 days by default."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    survey_ids: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(default=[], max_length=1000)
    start: dt.date | None = None
    end: dt.date | None = None
    confidence_threshold: float = Field(default=0.7, ge=0, le=1, allow_inf_nan=False)
    max_samples: int = Field(default=10_000, ge=1, le=200_000)


@router.post("/collect", status_code=201)
def collect(here: Here, me: Labeller, wanted: Collect) -> dict[str, Any]:
    """Collect labelled detections into a dataset; 422 with the reasons where it is not fit to learn from."""
    # Here, as below: it brings torch along, and a server that is started anew in the night has to be back at once.
    from astrid_pipeline.review import collect as collecting

    end = wanted.end or dt.datetime.now(dt.UTC).date()
    start = wanted.start or end - dt.timedelta(days=min(180, end.toordinal() - 1))
    asked = collecting.Collection(
        wanted.name, start, end, tuple(wanted.survey_ids), wanted.confidence_threshold, wanted.max_samples
    )
    try:
        made = collecting.collect(here.catalog, here.store, asked, me.who)
    except collecting.RefusedError as error:
        access.audit(here.catalog, me.who, "dataset refused", {"name": wanted.name, "why": error.what})
        raise
    access.audit(
        here.catalog, me.who, "collect dataset", {"name": wanted.name, "samples": made["total_samples"]}
    )
    return tidy(made)


def _rows(here: Context, query: str, **values: Any) -> list[dict[str, Any]]:
    with here.catalog.reading("list training datasets") as connection:
        return [tidy(dict(row)) for row in connection.execute(text(query), values).mappings()]


@router.get("")
def datasets(here: Here, me: Reader) -> list[dict[str, Any]]:
    """List the datasets, the latest first."""
    return _rows(here, "SELECT * FROM training_datasets ORDER BY created_at DESC, id DESC LIMIT 1000")


def _dataset(here: Context, dataset_id: int) -> dict[str, Any]:
    found = _rows(here, "SELECT * FROM training_datasets WHERE id = :id", id=dataset_id)
    if not found:
        raise Problem(404, f"there is no dataset {dataset_id}", "see /training/datasets")
    return found[0]


@router.get("/{dataset_id}")
def dataset(here: Here, me: Reader, dataset_id: Id) -> dict[str, Any]:
    """Return one dataset."""
    return _dataset(here, dataset_id)


@router.post("/{dataset_id}/log", status_code=201)
def log(here: Here, me: Labeller, dataset_id: Id) -> dict[str, Any]:
    """Log a dataset to MLflow, once more: where MLflow did not answer when it was collected."""
    from astrid_pipeline.review import collect as collecting

    name = str(_dataset(here, dataset_id)["name"])
    run = collecting.log_again(here.store, dataset_id, name)
    access.audit(here.catalog, me.who, "log dataset", {"name": name, "mlflow_run_id": run})
    return {"mlflow_run_id": run}


@router.get("/{dataset_id}/samples")
def samples(
    here: Here,
    me: Reader,
    dataset_id: Id,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listing:
    """List a dataset's samples in the order of their ids."""
    _dataset(here, dataset_id)
    found = _rows(
        here,
        "SELECT * FROM training_samples WHERE dataset_id = :id AND id > :after ORDER BY id LIMIT :limit",
        id=dataset_id,
        after=after,
        limit=limit,
    )
    return Listing(items=found, next=str(found[-1]["id"]) if len(found) == limit else None)


@router.get("/{dataset_id}/quality")
def quality(here: Here, me: Reader, dataset_id: Id) -> list[dict[str, Any]]:
    """Return the checks that the dataset passed, with their figures."""
    checks: list[dict[str, Any]] = _dataset(here, dataset_id)["collection_params"].get("quality", [])
    return checks
