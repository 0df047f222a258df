"""What people look at: stamps of all that a night holds, light curves of its objects, known sources among them."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline.assets.common import CPU_TAGS, GPU_POOL, GPU_TAGS, OWNERS, number, picture, preview
from astrid_pipeline.partitions import FIELD_NIGHTS, FIELD_OF_NIGHT, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.frames import Frames
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.step_failures import tried_again
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
@tried_again
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
    code_version=code_version("night/light_curves.py", "imaging/photometry.py", "learning/object_types.py"),
)
@tried_again
def light_curves(
    context: dg.AssetExecutionContext,
    catalogue: CatalogueResource,
    products: ProductsResource,
    difference_images: Frames,
) -> dg.MaterializeResult:
    """Forced photometry, in the catalogue, of all objects of the field on this night, seen or not.

    Objects that are new this night are measured on all other nights of the field as well, so that every object has
    a flux or an upper limit for every night that its place was observed. Moving objects have tracks instead.
    Objects of three epochs or more get their type from all of them: supernova, variable, or something that moved on.
    """
    from astrid_pipeline.catalog.object_types import curves_of_field, keep_types
    from astrid_pipeline.catalog.objects import objects_of_field, replace_points
    from astrid_pipeline.learning.object_types import LEAST_EPOCHS, classify_objects
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
        points += replace_points(catalog, part.field, night, measured, ids.tolist())
        context.log.info(f"{night}: {len(measured)} points of {len(ids)} objects")
    types = classify_objects(*curves_of_field(catalog, part.field))
    keep_types(catalog, types)
    judged = types[types["epochs"] >= LEAST_EPOCHS]
    return dg.MaterializeResult(
        metadata={
            "objects": len(objects),
            "points": points,
            "nights": len(nights),
            "of_three_epochs": len(judged),
            **{f"type_{name}": int(count) for name, count in judged["type"].value_counts().items()},
            "type_not_known": int(judged["type"].isna().sum()),
        },
    )


class GoldConfig(dg.Config):
    """How many known sources are mixed into the queue."""

    most: int = Field(
        default=10,
        ge=0,
        description="known transients, and as many known artefacts, a night at most; 0: none",
    )
    seed: int = Field(default=0, description="with the exposure's name it fixes what is put where")


@dg.asset(
    ins={"reference_images": dg.AssetIn(partition_mapping=FIELD_OF_NIGHT)},
    partitions_def=FIELD_NIGHTS,
    group_name="review",
    owners=OWNERS,
    kinds={"numpy", "parquet", "postgres"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags={"stage": "review"},
    io_manager_key="folders",
    output_required=False,
    code_version=code_version("night/gold.py", "night/stamps.py", "imaging", "learning"),
)
@tried_again
def gold_standard(
    context: dg.AssetExecutionContext,
    config: GoldConfig,
    detector: DetectorResource,
    store: StoreResource,
    catalogue: CatalogueResource,
    products: ProductsResource,
    calibrated_frames: Frames,
    reference_images: Frames,
    difference_images: Frames,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
) -> Any:
    """Known transients and artefacts, from a copy of one frame, mixed into the queue to measure who labels.

    On the exposure with the most usable pixels. On the page they look like the night's own sources; what they are is
    told after the verdict, and the scan report tells each person's completeness and purity.
    """
    from astrid_pipeline.catalog.gold import keep_gold
    from astrid_pipeline.catalog.objects import replace_points
    from astrid_pipeline.night.differences import meta_of, pair_up
    from astrid_pipeline.night.gold import make_gold, number_of_gold
    from astrid_pipeline.night.light_curves import measure_known
    from astrid_pipeline.night.samples import exposure_rng
    from astrid_pipeline.report import stamps_png

    part = FieldNight.of(context)
    wanted = number_of_gold(len(detections), config.most)
    metas = {key: meta_of(difference_images, key) for key in difference_images}
    if not wanted or not metas:
        return
    exposure = max(sorted(metas), key=lambda key: int(metas[key].get("good_pixels") or 0))
    pair = pair_up(calibrated_frames, reference_images, part.night)[exposure]()
    found = pd.concat([t[t.exposure_id == exposure][["x", "y"]] for t in (candidates, detections)])
    made = make_gold(
        pair.science,
        pair.reference,
        difference_images[exposure],
        found,
        exposure_rng(config.seed, f"gold:{exposure}"),
        detector.champion(),
        transients=wanted,
        artefacts=wanted,
        device=detector.device,
    )
    catalog, kept = catalogue.open(), products.open()
    objects = keep_gold(catalog, part.field, part.night, made.candidates, made.detections)
    nights = [night for night in kept.nights("difference_images", part.field) if night < part.night]
    points = measure_known(
        objects,
        {night: kept.frames("difference_images", part.field, night) for night in nights},
        part.night,
        made.difference,
    )
    for night, measured in points.items():
        replace_points(catalog, part.field, night, measured, objects["id"].tolist())
    with scratch_folder(store.open()) as folder:
        made.write(folder)
        table = made.table
        best = table.iloc[-1] if len(table) else None
        yield dg.Output(
            folder,
            metadata={
                "exposure": exposure,
                "transients": int((table.truth == "real").sum()),
                "artefacts": int((table.truth == "bogus").sum()),
                "artefacts_taken_for_real": int(((table.truth == "bogus") & table.score.notna()).sum()),
                "table": preview(table, ["exposure_id", "x", "y", "truth", "kind", "snr", "score"]),
                **(
                    {
                        "picture": picture(
                            stamps_png(made.difference, best.x, best.y), f"{best.truth}: {best.kind}"
                        )
                    }
                    if best is not None
                    else {}
                ),
            },
        )
