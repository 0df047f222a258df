"""What is made by the clock, in the observatory's local time (ASTRID_SITE)."""

# No `from __future__ import annotations` here: Dagster reads the resources in the signature at definition.
import dagster as dg

from astrid_pipeline.jobs import check_health, make_references, prune_log, retrain, summarise_survey
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.settings import get_settings

_ZONE = get_settings().timezone
_OFF = dg.DefaultScheduleStatus.STOPPED

nightly_retrain = dg.ScheduleDefinition(
    name="nightly_retrain",
    job=retrain,
    cron_schedule=get_settings().retrain_at,
    execution_timezone=_ZONE,
    description="Trains on what the nights so far have given, and evaluates. At noon at the observatory, when the "
    "night's frames are treated; ASTRID_RETRAIN_AT sets another time. Off until switched on.",
    default_status=_OFF,
)
nightly_summary = dg.ScheduleDefinition(
    name="nightly_summary",
    job=summarise_survey,
    cron_schedule="0 9 * * *",
    execution_timezone=_ZONE,
    description="Puts all nights of all fields into one table each morning at 9 at the observatory.",
    default_status=_OFF,
)
daily_health = dg.ScheduleDefinition(
    name="daily_health",
    job=check_health,
    cron_schedule="30 9 * * *",
    execution_timezone=_ZONE,
    description="Looks each morning whether archives answer, nights are made, raw files are whole (a sample), disks "
    "have room, and the images and labels of the last 7 days are as good as before. What is wrong fails a check of the "
    "asset data_health, in words, and goes out by ASTRID_ALERT_WEBHOOK and ASTRID_ALERT_EMAIL.",
    default_status=_OFF,
)


@dg.schedule(
    name="weekly_references",
    job=make_references,
    cron_schedule="0 15 * * 1",
    execution_timezone=_ZONE,
    default_status=_OFF,
    description="Refreshes the references of every field on Monday afternoons: new versions where enough frames have "
    "come, survey images that could not be had before. What is made already by the same code is taken over.",
)
def weekly_references(
    context: dg.ScheduleEvaluationContext, catalogue: CatalogueResource, products: ProductsResource
) -> dg.SkipReason | list[dg.RunRequest]:
    """Ask for the references of every field that has calibrated frames."""
    week = context.scheduled_execution_time.strftime("%G-W%V")
    kept = products.open()
    names = [
        field.name for field in catalogue.open().fields() if kept.nights("calibrated_frames", field.name)
    ]
    if not names:
        return dg.SkipReason("no field has calibrated frames yet")
    return [
        dg.RunRequest(run_key=f"weekly:{name}:{week}", partition_key=name, tags={"astrid/field": name})
        for name in names
    ]


daily_pruning = dg.ScheduleDefinition(
    name="daily_pruning",
    job=prune_log,
    cron_schedule="0 11 * * *",
    execution_timezone=_ZONE,
    description="Takes old lines out of Dagster's log each morning at 11; what was made, its checks and failures stay. "
    "ASTRID_KEEP_LOG_DAYS says how old.",
    default_status=_OFF,
)

ALL = (nightly_retrain, nightly_summary, weekly_references, daily_health, daily_pruning)
