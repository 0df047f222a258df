"""Detections by the champion model, and the alerts that follow from them."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import math
import time

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline import checks
from astrid_pipeline.assets.common import (
    CPU_TAGS,
    GPU_POOL,
    GPU_TAGS,
    OWNERS,
    median_of,
    number,
    outcome_metadata,
    picture,
    preview,
    table_metadata,
)
from astrid_pipeline.learning.schema import DETECTIONS
from astrid_pipeline.night.alerts import ALERTS, MIN_SCORE
from astrid_pipeline.night.differences import MIN_SNR
from astrid_pipeline.partitions import FIELD_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.frames import Frames
from astrid_pipeline.resources.inference_log import Inference, log_inference
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.tables import concat
from astrid_pipeline.versions import code_version


class DetectionConfig(dg.Config):
    """Which finds of the model are kept."""

    min_snr: float = Field(
        default=MIN_SNR,
        description="|S/N| from which a find is kept; below the candidates' threshold, the network's own finds count",
    )


class AlertConfig(dg.Config):
    """Which detections are told to others."""

    min_score: float = Field(
        default=MIN_SCORE, description="probability of being real from which a detection is told"
    )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="finds",
    owners=OWNERS,
    kinds={"torch", "parquet"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags={"stage": "detect"},
    metadata=table_metadata(DETECTIONS),
    io_manager_key="tables",
    code_version=code_version("learning", "night/differences.py", "night/epochs.py"),
    check_specs=checks.DETECTIONS,
    dagster_type=dg.Any,
)
@tried_again
def detections(
    context: dg.AssetExecutionContext,
    config: DetectionConfig,
    detector: DetectorResource,
    catalogue: CatalogueResource,
    observations: pd.DataFrame,
    difference_images: Frames,
    candidates: pd.DataFrame,
) -> dg.MaterializeResult:
    """What the champion model takes for real: score, class, mask area, position, flux, S/N, model version.

    The U-Net looks at whole difference images; its peaks are joined to the candidates, weighed by the
    real/bogus classifier and the anomaly detectors, and written to the catalogue.
    """
    from astrid_pipeline.learning.energy import EnergyMeter
    from astrid_pipeline.night.differences import detect_night, meta_of
    from astrid_pipeline.night.drift import compare_night

    part = FieldNight.of(context)
    started = time.perf_counter()
    model = detector.champion()
    with EnergyMeter() as meter:
        outcome = detect_night(
            difference_images, candidates, model, detector.device, context.log.info, config.min_snr
        )
    table = concat(DETECTIONS, outcome.products.values())
    catalogue.open().replace_partition(
        part.field,
        part.night,
        observations=observations,
        candidates=candidates,
        detections=table,
        run_id=context.run_id,
        pixel_scale=median_of((meta_of(difference_images, key) for key in difference_images), "pixel_scale"),
    )
    metas = [meta_of(difference_images, key) for key in difference_images]
    drift = compare_night(candidates, table, metas, model.facts.get("baseline", {}))
    logged = log_inference(
        Inference(
            model.name,
            model.version,
            meter.joules,
            meter.seconds,
            meter.source,
            sum(float(meta.get("pixels") or math.nan) for meta in metas) / 1e6,
            len(metas),
            len(table),
        )
    )
    if logged.problem:
        context.log.warning(f"the joules of this night are not in MLflow: {logged.problem}")
    return dg.MaterializeResult(
        value=table,
        check_results=list(checks.check_detections(drift)),
        metadata={
            **outcome_metadata(outcome),
            "detections": len(table),
            "model": f"{model.name} {model.version}",
            "device": str(detector.device or "auto"),
            "seconds": number(time.perf_counter() - started, 2),
            "joules": number(meter.joules, 1),
            "joules_an_exposure": number(meter.joules / max(len(difference_images), 1), 2),
            "energy_source": meter.source,
            **logged.as_metadata(),
            "table": preview(
                table.sort_values("score", ascending=False),
                ["detection_id", "ra", "dec", "snr", "score", "class", "flag_names"],
            ),
            **_picture(difference_images, table),
        },
    )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    deps=["light_curves"],
    group_name="finds",
    owners=OWNERS,
    kinds={"avro", "parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "alert"},
    metadata=table_metadata(ALERTS),
    io_manager_key="tables",
    code_version=code_version("night/alerts.py", "night/alert.avsc"),
)
@tried_again
def alerts(
    context: dg.AssetExecutionContext,
    config: AlertConfig,
    store: StoreResource,
    catalogue: CatalogueResource,
    detections: pd.DataFrame,
    difference_images: Frames,
) -> dg.MaterializeResult[pd.DataFrame]:
    """Detections sure enough to be told: a table, and one Avro file a night.

    Each alert has three cut-outs and the object's history: what was measured at its place in the year before, earlier
    detections and upper limits.
    """
    from astrid_pipeline.catalog.alerts import histories
    from astrid_pipeline.night.alerts import HISTORY_DAYS, History, select_alerts, write_packets

    part = FieldNight.of(context)
    table = select_alerts(detections, config.min_score)
    opened = store.open()
    known = {
        alert: History(name, points)
        for alert, (name, points) in histories(catalogue.open(), part.field, part.night, HISTORY_DAYS).items()
    }
    kept = opened.put_bytes(
        f"alert-packets/{part.field}/{part.night}.avro",
        write_packets(table, difference_images, part.field, part.night, known),
    )
    return dg.MaterializeResult(
        value=table,
        metadata={
            "alerts": len(table),
            "earlier_points": sum(len(known[a].points) for a in table["alert_id"] if a in known),
            "min_score": config.min_score,
            "packets": dg.MetadataValue.path(opened.location(kept.key)),
            "table": preview(table, ["alert_id", "ra", "dec", "mag", "snr", "score", "class"]),
            **_stamps(difference_images, table),
        },
    )


def _picture(differences: Frames, table: pd.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    from astrid_pipeline.report import thumb_png

    if not len(differences):
        return {}
    name = (
        str(table.exposure_id.value_counts().sort_index().idxmax()) if len(table) else sorted(differences)[0]
    )
    mine = table[table.exposure_id == name]
    return {"picture": picture(thumb_png(differences[name], mine, title=name), name)}


def _stamps(differences: Frames, table: pd.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    """Show the best alert's cut-outs."""
    from astrid_pipeline.report import stamps_png

    if not len(table):
        return {}
    best = table.sort_values("score").iloc[-1]
    png = stamps_png(differences[best.exposure_id], best.x, best.y)
    return {"best_alert": picture(png, f"science, reference, difference, score of {best.alert_id}")}
