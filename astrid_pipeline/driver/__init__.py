"""Running the pipeline from a terminal: the planner says what is ready, worker processes run it through Dagster."""

from __future__ import annotations

from astrid_pipeline.driver.demo import demo
from astrid_pipeline.driver.runner import Runner, RunResult, execute
from astrid_pipeline.driver.survey import (
    Survey,
    backfill,
    forget_partition,
    ingest,
    list_fields,
    open_products,
    run,
)
from astrid_pipeline.resources.catalogue import open_catalogue

__all__ = [
    "RunResult",
    "Runner",
    "Survey",
    "backfill",
    "demo",
    "execute",
    "forget_partition",
    "ingest",
    "list_fields",
    "open_catalogue",
    "open_products",
    "run",
]
