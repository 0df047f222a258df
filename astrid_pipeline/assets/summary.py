"""The night in numbers and one picture."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import json

import dagster as dg
import pandas as pd

from astrid_pipeline.archives.base import open_archive
from astrid_pipeline.assets.common import CPU_TAGS, OWNERS, number, picture, preview, table_metadata
from astrid_pipeline.night.summary import NIGHT_SUMMARY
from astrid_pipeline.partitions import FIELD_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.frames import Frames
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="evaluation",
    owners=OWNERS,
    kinds={"parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "summary"},
    metadata=table_metadata(NIGHT_SUMMARY),
    io_manager_key="tables",
    code_version=code_version("night/summary.py", "night/injections.py", "night/injected_objects.py"),
)
@tried_again
def night_summary(
    context: dg.AssetExecutionContext,
    catalogue: CatalogueResource,
    observations: pd.DataFrame,
    difference_images: Frames,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
    injections: pd.DataFrame,
) -> dg.MaterializeResult[pd.DataFrame]:
    """What the night holds, how good it was, what was found, and how much of what was put in was found again."""
    from astrid_pipeline.night.differences import meta_of
    from astrid_pipeline.night.summary import summarise
    from astrid_pipeline.report.plots import completeness_png

    part = FieldNight.of(context)
    field = catalogue.open().field(part.field)
    table = summarise(
        part.field,
        part.night,
        observations,
        {key: meta_of(difference_images, key) for key in difference_images},
        candidates,
        detections,
        injections,
        open_archive(field.archive).truth(field, part.night),
    )
    shown = [
        "filter",
        "exposures",
        "seeing",
        "depth",
        "score_sigma",
        "candidates",
        "detections",
        "injected",
        "recovered",
        "false_alarms",
    ]
    metadata = {
        "exposures": int(table.exposures.sum()),
        "detections": int(table.detections.sum()),
        "recovered_percent": number(100 * table.recovered.sum() / max(int(table.injected.sum()), 1), 1),
        "table": preview(table, shown),
    }
    if len(table):
        bins = {row["filter"]: json.loads(row["completeness"]) for _, row in table.iterrows()}
        metadata["picture"] = picture(completeness_png(bins, title=part.key), "completeness")
    return dg.MaterializeResult(value=table, metadata=metadata)
