"""Another survey's alerts as candidates of a field and night, and their cut-outs for the vetting page."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import math
from typing import Any

import dagster as dg
import pandas as pd

from astrid_pipeline.archives.base import OBSERVATIONS, open_archive
from astrid_pipeline.assets.common import (
    ARCHIVE_POOL,
    CPU_TAGS,
    GPU_TAGS,
    OWNERS,
    number,
    preview,
    table_metadata,
)
from astrid_pipeline.night.survey_alerts import SURVEY_ALERTS
from astrid_pipeline.partitions import FIELD_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.inference_log import Inference, log_inference
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


def _packets(catalogue: CatalogueResource, part: FieldNight) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return the field, its records of the night, and their packets by id."""
    from astrid_pipeline.errors import ConfigError

    field = catalogue.open().field(part.field)
    archive = open_archive(field.archive)
    if not getattr(archive, "gives_packets", False):
        raise ConfigError(
            f"its archive {field.archive} gives frames, not alert packets",
            where=part.field,
            remedy="run process_night for it, or give it an archive alerts:PATH",
        )
    records = [
        r
        for r in archive.exposures(field)
        if r.night == part.night and (not field.filters or r.filter in field.filters)
    ]
    return field, records, archive.packets(records)  # type: ignore[attr-defined]


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="finds",
    owners=OWNERS,
    kinds={"avro", "parquet"},
    pool=ARCHIVE_POOL,
    op_tags=GPU_TAGS,
    tags={"stage": "detect"},
    metadata=table_metadata(SURVEY_ALERTS),
    io_manager_key="tables",
    code_version=code_version(
        "night/survey_alerts.py", "learning/alert_model.py", "archives/alert_packets.py"
    ),
)
@tried_again
def survey_alerts(
    context: dg.AssetExecutionContext, catalogue: CatalogueResource, detector: DetectorResource
) -> dg.MaterializeResult[pd.DataFrame]:
    """Alerts of another survey (ZTF, Rubin, …) as candidates, scored by the alert model; the surest are detections.

    The survey's own scores and the known objects it found stay with each; its history becomes light curves. What
    people say of them on the vetting page corrects the model's probabilities from the next night on.
    """
    from astrid_pipeline.catalog.alerts import add_history, corrected, places_of_night
    from astrid_pipeline.catalog.objects import replace_points
    from astrid_pipeline.learning.alert_model import load_alert_model, load_alert_network
    from astrid_pipeline.learning.energy import EnergyMeter
    from astrid_pipeline.night.survey_alerts import as_candidates, history_points, take_alerts

    part = FieldNight.of(context)
    field, records, packets = _packets(catalogue, part)
    catalog = catalogue.open()
    model, verdicts = corrected(catalog, load_alert_model())
    with EnergyMeter() as meter:
        table, features = take_alerts(packets, model, load_alert_network(), detector.device)
    candidates, detections = as_candidates(table, features, packets, model)
    problems = table.set_index("alert_id")["problem"]
    rows = [{**vars(r), "path": None, "problem": problems.get(r.exposure_id)} for r in records]
    catalog.replace_partition(
        part.field,
        part.night,
        observations=OBSERVATIONS.conform(pd.DataFrame(rows)),
        candidates=candidates,
        detections=detections,
        run_id=context.run_id,
    )
    places = places_of_night(catalog, part.field, part.night).dropna(subset=["object_id"])
    objects = {str(key): int(value) for key, value in zip(places.exposure_id, places.object_id, strict=True)}
    points = history_points(packets, objects, field.site_longitude)
    added = replace_points(catalog, part.field, part.night, points.pop(part.night, pd.DataFrame()))
    added += add_history(catalog, part.field, points)
    logged = log_inference(
        Inference(
            model.name,
            model.version,
            meter.joules,
            meter.seconds,
            meter.source,
            math.nan,  # cut-outs, not frames
            len(table),
            len(detections),
        )
    )
    if logged.problem:
        context.log.warning(f"the joules of these alerts are not in MLflow: {logged.problem}")
    return dg.MaterializeResult(
        value=table,
        metadata={
            "alerts": len(table),
            "detections": len(detections),
            "joules": number(meter.joules, 1),
            "energy_source": meter.source,
            **logged.as_metadata(),
            "not_scored": int(table["problem"].notna().sum()),
            "known_objects": int(table["known_object"].notna().sum()),
            "light_curve_points": added,
            "model": f"{model.name} {model.version}",
            "corrected_by_verdicts": verdicts,
            "archive": field.archive,
            "survey_agreement": number(
                table[["real_probability", "survey_score"]].corr(method="spearman").iloc[0, 1], 3
            ),
            "table": preview(
                table.sort_values("real_probability", ascending=False),
                ["alert_id", "mag", "snr", "real_probability", "survey_score", "known_object", "problem"],
            ),
        },
    )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    deps=["survey_alerts"],
    group_name="review",
    owners=OWNERS,
    kinds={"numpy", "parquet"},
    op_tags=CPU_TAGS,
    tags={"stage": "review"},
    io_manager_key="folders",
    code_version=code_version("night/survey_alerts.py", "learning/stamps.py"),
)
@tried_again
def alert_stamps(
    context: dg.AssetExecutionContext, store: StoreResource, catalogue: CatalogueResource
) -> Any:
    """The three cut-outs of every alert for the vetting page, and the difference filtered, in units of the noise."""
    from astrid_pipeline.catalog.alerts import places_of_night
    from astrid_pipeline.night.survey_alerts import write_alert_stamps

    part = FieldNight.of(context)
    _, _, packets = _packets(catalogue, part)
    places = places_of_night(catalogue.open(), part.field, part.night)
    with scratch_folder(store.open()) as folder:
        table = write_alert_stamps(folder, packets, places[places["exposure_id"].isin(packets)])
        yield dg.Output(folder, metadata={"stamps": len(table), "alerts": len(packets)})
