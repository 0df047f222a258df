"""When the loop from labels to a better detector turns: its jobs, and the sensor that starts them."""

# No `from __future__ import annotations` here: Dagster reads the resources in the signature at definition.
import json
from typing import Any

import dagster as dg

from astrid_pipeline.catalog import loop
from astrid_pipeline.errors import AstridError
from astrid_pipeline.partitions import FIELD_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DETECTOR
from astrid_pipeline.resources.tracking import Tracking
from astrid_pipeline.settings import get_settings

learn_from_labels = dg.define_asset_job(
    "learn_from_labels",
    selection=dg.AssetSelection.assets("labelled_peaks", "label_challenger", "label_verdict"),
    description="Collect people's labels, correct the champion by them, promote the corrected one if it is better.",
)
rescore_night = dg.define_asset_job(
    "rescore_night",
    selection=dg.AssetSelection.assets(
        "detections", "alerts", "stamps", "light_curves", "gold_standard", "night_summary"
    ),
    partitions_def=FIELD_NIGHTS,
    description="Judge a field's night anew with the present champion; frames and candidates stay as they are, and so "
    "do people's labels.",
)
JOBS = (learn_from_labels, rescore_night)

_UNFINISHED = [
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
]


@dg.sensor(
    jobs=[learn_from_labels, rescore_night],
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Counts the labels given since the last turn. From ASTRID_LEARN_AFTER on, a dataset is "
    "collected, the champion corrected by it, both judged on labels that they were fitted without, and the better one "
    "promoted; the latest night of every field is then judged anew. `astrid review hold`, or the button in the scan "
    "report, holds all of it.",
)
def new_labels(
    context: dg.SensorEvaluationContext, catalogue: CatalogueResource, tracking: Tracking
) -> dg.SensorResult:
    """Request a turn of the loop where enough is new, and nights to be judged anew where the champion is new."""
    state: dict[str, Any] = json.loads(context.cursor or "{}")
    try:
        catalog = catalogue.open()
        held = loop.held(catalog)
        count, last = loop.new_labels(catalog, int(state.get("after", 0)))
        champion = tracking.find(DETECTOR)
    except AstridError as error:
        return dg.SensorResult(skip_reason=f"the labels cannot be counted: {error}", cursor=context.cursor)
    requests: list[dg.RunRequest] = []
    words: list[str] = []
    least = get_settings().learn_after
    busy = context.instance.get_runs_count(
        dg.RunsFilter(job_name=learn_from_labels.name, statuses=_UNFINISHED)
    )
    if held is not None:
        words.append(f"{count} new labels; {held}")
    elif busy:
        words.append(f"{count} new labels; the turn before is still at work")
    elif least and count >= least:
        requests.append(
            dg.RunRequest(
                run_key=f"labels:{last}",
                job_name=learn_from_labels.name,
                run_config={"ops": {"labelled_peaks": {"config": {"name": f"labels-{last}"}}}},
                tags={"astrid/labels": str(count)},
            )
        )
        state["after"] = last
        words.append(f"a challenger from {count} new labels")
    else:
        words.append(f"{count} new labels of {least}" if least else f"{count} new labels; the loop is off")
    version = None if champion is None else champion.version
    if champion is not None and state.get("champion", version) != version:
        nights = catalog.nights().groupby("field")["night"].max()
        parts = [FieldNight(str(field), str(night)) for field, night in nights.items()]
        requests += [
            dg.RunRequest(
                run_key=f"rescore:{version}:{part.key}",
                job_name=rescore_night.name,
                partition_key=part.key,
                tags={"astrid/field": part.field},
            )
            for part in parts
        ]
        words.append(f"{DETECTOR} {version} is champion: {len(parts)} nights to be judged anew")
    if version is not None:
        state["champion"] = version
    message = "; ".join(words)
    context.log.info(message)
    return dg.SensorResult(
        run_requests=requests or None,
        skip_reason=None if requests else dg.SkipReason(message),
        cursor=json.dumps({**state, "says": message}, ensure_ascii=False),
    )


SENSORS = (new_labels,)
