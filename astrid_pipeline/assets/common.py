"""What every asset says about itself in the same way: owners, kinds, schema, pictures, numbers, problems."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from astrid_pipeline.night.outcome import Outcome, Problem
from astrid_pipeline.resources.pictures import keep_picture
from astrid_pipeline.tables import TableSchema

#: Key of the asset metadata under which the IO manager finds the schema of a table asset.
SCHEMA_KEY = "astrid/schema"
OWNERS = ["team:astrid"]
#: A picture is for a look: at this size a page with several of them opens at once.
PICTURE_BYTES = 150_000
#: The page shows markdown in place up to 1,000 characters; longer text hides behind a click.
MARKDOWN_LENGTH = 980

#: Steps that want a GPU: one at a time each (pool), the queue of GPU workers (Celery), a GPU (Kubernetes).
GPU_POOL = "gpu"
GPU_TAGS: Mapping[str, Any] = {
    "dagster-celery/queue": "gpu",
    "dagster-k8s/config": {
        "container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    },
}
CPU_TAGS: Mapping[str, Any] = {"dagster-celery/queue": "cpu"}
ARCHIVE_POOL = "archive"


def table_metadata(schema: TableSchema) -> dict[str, Any]:
    """Return definition metadata that declares a table asset's columns on the Dagster page."""
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(
                    c.name, c.kind, description=f"{c.description} [{c.unit}]" if c.unit else c.description
                )
                for c in schema.columns
            ]
        ),
        SCHEMA_KEY: schema,
    }


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """Keep a PNG and return metadata that shows it in place on the Dagster page."""
    return dg.MetadataValue.md(f"![{alt}]({keep_picture(png)})")


def number(value: Any, digits: int = 4) -> Any:
    """Return a number as Dagster takes it, rounded; not-a-number becomes the word `unknown`."""
    if value is None:
        return "unknown"
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    value = float(value)
    return round(value, digits) if math.isfinite(value) else "unknown"


def median_of(metas: Iterable[Mapping[str, Any]], key: str) -> float:
    """Return the median of one number over the meta of several products; NaN where none has it."""
    values = [float(m[key]) for m in metas if m.get(key) is not None and np.isfinite(float(m[key]))]
    return float(np.median(values)) if values else float("nan")


def problems_metadata(problems: Iterable[Problem]) -> dict[str, Any]:
    """Return what could not be treated, and why, as a table; nothing where all went well."""
    records = [
        dg.TableRecord(
            {"exposure": p.exposure_id, "what": p.what, "try again": "no" if p.permanent else "yes"}
        )
        for p in problems
    ]
    if not records:
        return {}
    columns = [dg.TableColumn(name, "string") for name in ("exposure", "what", "try again")]
    return {"problems": dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns=columns))}


def outcome_metadata(outcome: Outcome[Any]) -> dict[str, Any]:
    """Return how many exposures were treated, in what time, and what went wrong."""
    return {
        "exposures": len(outcome.products),
        "failed": len(outcome.problems),
        "seconds": number(sum(outcome.seconds.values()), 2),
        **problems_metadata(outcome.problems),
    }


def preview(table: pd.DataFrame, columns: list[str], rows: int = 10) -> dg.MarkdownMetadataValue:
    """Return the first rows of a table as markdown, at most `rows` and as many as the page shows in place."""
    head = table[[c for c in columns if c in table.columns]].head(rows)
    lines = ["| " + " | ".join(head.columns) + " |", "|" + "---|" * len(head.columns)]
    length, shown = sum(map(len, lines)) + 40, 0  # 40: line ends and the last line
    for row in head.itertuples(index=False):
        line = "| " + " | ".join(_cell(value) for value in row) + " |"
        length += len(line) + 1
        if shown and length > MARKDOWN_LENGTH:
            break
        lines.append(line)
        shown += 1
    if len(table) > shown:
        lines.append(f"\n… and {len(table) - shown} more")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
