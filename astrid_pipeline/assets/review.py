"""What people look at: stamps of everything a night holds, and the light curves of its field's objects."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

from typing import Any

import dagster as dg
import pandas as pd

from astrid_pipeline.assets.common import CPU_TAGS, OWNERS, number, preview
from astrid_pipeline.partitions import FIELD_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.frames import Frames
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.versions import code_version


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="review",
    owners=OWNERS,
    kinds={"numpy", "parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "review"},
    io_manager_key="folders",
    code_version=code_version("night/stamps.py"),
)
def stamps(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    difference_images: Frames,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
) -> Any:
    """Cut-outs of every candidate and detection for the vetting page: science, reference, difference, score.

    In units of the noise, north up, at one scale: `stamps.npy` (half floats) and `stamps.parquet`, which says where.
    """
    from astrid_pipeline.catalog.sources import reviewable
    from astrid_pipeline.night.stamps import STAMPS, write_stamps

    places = reviewable(candidates, detections)
    if not len(places):
        places = STAMPS.empty()
    with scratch_folder(store.open()) as folder:
        table = write_stamps(folder, difference_images, places[["exposure_id", "x", "y"]])
        yield dg.Output(
            folder,
            metadata={
                "stamps": len(table),
                "pixel_scale": number(table["pixel_scale"].median(), 4),
                "masked_percent": number(100 * table["masked"].mean(), 2),
                "table": preview(table, ["exposure_id", "x", "y", "north", "masked"]),
            },
        )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    deps=["detections"],
    group_name="review",
    owners=OWNERS,
    kinds={"postgres"},
    op_tags=CPU_TAGS,
    tags={"stage": "review"},
    code_version=code_version("night/light_curves.py", "imaging/photometry.py"),
)
def light_curves(
    context: dg.AssetExecutionContext,
    catalogue: CatalogueResource,
    products: ProductsResource,
    difference_images: Frames,
) -> dg.MaterializeResult:
    """Forced photometry, in the catalogue, of all objects of the field on this night, seen or not.

    Objects that are new this night are measured on all other nights of the field as well, so that every object has
    a flux or an upper limit for every night that its place was observed. Moving objects have tracks instead.
    """
    from astrid_pipeline.catalog.objects import objects_of_field, replace_points
    from astrid_pipeline.night.light_curves import measure_night, nights_to_measure

    part = FieldNight.of(context)
    kept, catalog = products.open(), catalogue.open()
    objects = objects_of_field(catalog, part.field)
    nights = {*kept.nights("difference_images", part.field), part.night}
    points = 0
    for night, ids in nights_to_measure(objects, sorted(nights), part.night).items():
        now = night == part.night
        frames = difference_images if now else kept.frames("difference_images", part.field, night)
        measured = measure_night(frames, objects[objects["id"].isin(ids)])
        points += replace_points(catalog, part.field, night, measured, None if now else ids.tolist())
        context.log.info(f"{night}: {len(measured)} points of {len(ids)} objects")
    return dg.MaterializeResult(
        metadata={"objects": len(objects), "points": points, "nights": len(nights)},
    )
