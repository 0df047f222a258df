"""Injections, and what is learned from: labelled tiles by field and night, and the named dataset over them."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import hashlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline.assets.common import (
    CPU_TAGS,
    GPU_POOL,
    GPU_TAGS,
    OWNERS,
    number,
    outcome_metadata,
    picture,
    preview,
    table_metadata,
)
from astrid_pipeline.learning.dataset import DATASET
from astrid_pipeline.night.injections import INJECTIONS
from astrid_pipeline.partitions import FIELD_NIGHTS, FIELD_OF_NIGHT, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.frames import Frames
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


class InjectionConfig(dg.Config):
    """How many transients are put into copies of the night's frames."""

    exposures_per_filter: int = Field(default=1, ge=0, description="exposures a filter that get injections")
    per_megapixel: float = Field(default=60.0, gt=0, description="injections a megapixel, S/N 3 to 50")
    others_per_megapixel: float = Field(
        default=30.0, ge=0, description="variable stars, faded sources and moving objects a megapixel"
    )
    seed: int = Field(default=0, description="with the exposure's name it fixes every injection")


@dg.multi_asset(
    outs={
        "injections": dg.AssetOut(
            io_manager_key="tables",
            description="Transients put into copies of the night's frames, and what was found of them again: "
            "the night's completeness, flux bias and pulls.",
            group_name="evaluation",
            owners=OWNERS,
            kinds={"parquet"},
            tags={"stage": "inject"},
            metadata=table_metadata(INJECTIONS),
            code_version=code_version(
                "night/injections.py", "night/injected_objects.py", "night/samples.py", "imaging", "learning"
            ),
        ),
        "training_samples": dg.AssetOut(
            io_manager_key="folders",
            is_required=False,
            description="Labelled tiles of the night's differences to learn from: memory-mapped planes, labels, "
            "and truth as Parquet. What was found before the injections counts neither way.",
            group_name="learning",
            owners=OWNERS,
            kinds={"numpy", "parquet"},
            tags={"stage": "samples"},
            code_version=code_version("night/samples.py", "learning/data.py", "learning/shards.py"),
        ),
    },
    ins={"reference_images": dg.AssetIn(partition_mapping=FIELD_OF_NIGHT)},
    partitions_def=FIELD_NIGHTS,
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
)
@tried_again
def injected_night(
    context: dg.AssetExecutionContext,
    config: InjectionConfig,
    detector: DetectorResource,
    store: StoreResource,
    calibrated_frames: Frames,
    reference_images: Frames,
    difference_images: Frames,
    detections: pd.DataFrame,
) -> Iterator[dg.Output]:
    """Inject, difference, look, and keep both the verdict and the labelled tiles."""
    from astrid_pipeline.night.injections import completeness, flux_statistics
    from astrid_pipeline.night.samples import inject_night
    from astrid_pipeline.report.plots import completeness_png

    part = FieldNight.of(context)
    with scratch_folder(store.open()) as folder:
        made = inject_night(
            calibrated_frames,
            reference_images,
            difference_images,
            detections,
            detector.champion(),
            part.night,
            folder,
            per_filter=config.exposures_per_filter,
            per_megapixel=config.per_megapixel,
            others_per_megapixel=config.others_per_megapixel,
            field=part.field,
            seed=config.seed,
            device=detector.device,
            progress=context.log.info,
        )
        statistics = flux_statistics(made.truth)
        yield dg.Output(
            made.truth,
            output_name="injections",
            metadata={
                **outcome_metadata(made.outcome),
                "injected": len(made.truth),
                "found": int(made.truth.found.sum()),
                "detected": int(made.truth.detected.sum()),
                "objects": int(made.truth.object_id.nunique()),
                "objects_detected": int(made.truth.object_id[made.truth.detected].nunique()),
                "flux_bias_percent": number(100 * statistics["flux_bias"], 2),
                "pull_width": number(statistics["pull_width"], 3),
                "picture": picture(
                    completeness_png({"all": completeness(made.truth)}, title=part.key), "completeness"
                ),
            },
        )
        if made.manifest:
            yield dg.Output(
                folder,
                output_name="training_samples",
                metadata={
                    "tiles": int(made.manifest["images"]),
                    "hash": str(made.manifest["hash"]),
                    "source": "injected",
                },
            )


class DatasetConfig(dg.Config):
    """Which samples make up a training dataset."""

    name: str = Field(default="nights", description="name of the dataset")
    seed: int = Field(
        default=0, description="of the split: a piece of sky falls into one split whatever the night"
    )


@dg.asset(
    deps=[dg.AssetDep("training_samples", partition_mapping=dg.AllPartitionMapping())],
    group_name="learning",
    owners=OWNERS,
    kinds={"parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "dataset"},
    metadata=table_metadata(DATASET),
    io_manager_key="tables",
    code_version=code_version("learning/dataset.py"),
)
@tried_again
def training_dataset(
    context: dg.AssetExecutionContext,
    config: DatasetConfig,
    products: ProductsResource,
    catalogue: CatalogueResource,
) -> dg.MaterializeResult[pd.DataFrame]:
    """The named manifest over all nights' samples: a row a tile, with its split and provenance.

    Splits are by piece of sky, over all nights, before any augmentation: what a network is tested on, it has
    not seen in any other night.
    """
    from astrid_pipeline.learning.dataset import collect

    kept = products.open()
    folders: dict[str, Path] = {
        key: kept.folder("training_samples", key) for key in kept.partitions("training_samples")
    }
    table = collect(config.name, folders, seed=config.seed)
    shares = table.split.value_counts()
    truths = [label for label in ("transient", "variable", "moving") if label in table]
    catalogue.open().record_dataset(
        config.name,
        total_samples=len(table),
        anomaly_ratio=float((table[truths].sum(axis=1) > 0).mean()) if len(table) else None,
        content_hash=hashlib.sha256("".join(sorted(table.set_hash)).encode()).hexdigest(),
        collection_params={"seed": config.seed, "nights": sorted(folders)},
        description="labelled tiles of the nights, injections among them",
    )
    return dg.MaterializeResult(
        value=table,
        metadata={
            "name": config.name,
            "tiles": len(table),
            "nights": table.partition.nunique(),
            **{f"tiles_{split}": int(count) for split, count in sorted(shares.items())},
            **{f"truth_{label}": int(table[label].sum()) for label in ("transient", "variable", "moving")},
            "hash": str(table.set_hash.str.cat()[:64]) if len(table) else "",
            "table": preview(table, ["partition", "sky", "split", "transient", "seeing", "usable_fraction"]),
        },
    )
