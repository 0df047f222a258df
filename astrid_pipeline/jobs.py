"""Jobs: the runs that people, sensors and schedules start. One run holds one kind of partition.

The order is: `ingest` (observations) → `make_masters` → `calibrate` → `make_references` → `process_night` →
`retrain`. A night's chain runs in one process: its frames pass through the store, and starting a process for
each step would cost more than the steps. `backfill_field` walks this order for many nights, in one run.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import dagster as dg

from astrid_pipeline.assets.common import CPU_TAGS
from astrid_pipeline.backfills import backfill_field
from astrid_pipeline.partitions import FIELD_NIGHTS, FIELDS, INSTRUMENT_NIGHTS
from astrid_pipeline.step_failures import tried_again


@dg.failure_hook(name="say_why")
def say_why(context: dg.HookContext) -> None:
    """Say in one line of the run's log, below all traces, why a step failed and whether trying again can help."""
    from astrid_pipeline.errors import AstridError

    error: BaseException | None = context.op_exception
    while error is not None and not isinstance(error, AstridError) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, dg.Failure):
        text, again = str(error.description), error.allow_retries
    else:
        again = isinstance(error, AstridError) and not error.permanent
        if not isinstance(error, AstridError):
            text = f"{type(error).__name__}: {text} (a defect, or the machine: see the trace)"
    what = (
        "may go better: failed_partitions tries it again"
        if again
        else "trying again cannot help until this is mended"
    )
    context.log.error(f"WHY {context.op.name} was not made: {text} — {what}")


NIGHT_ASSETS = (
    "difference_images",
    "candidates",
    "detections",
    "alerts",
    "stamps",
    "light_curves",
    "gold_standard",
    "injections",
    "training_samples",
    "night_summary",
)
#: Tags that the queue counts (dagster.yaml, `AstridRunCoordinator`): runs that do little else than fetch, and runs that
#: compute on a GPU from end to end. They wait in the queue, where other runs may pass them by; in a pool, they would
#: wait with a place taken.
FETCHES = {"astrid/archive": "any"}
TRAINS = {"astrid/gpu": "whole"}
MODEL_ASSETS = ("training_dataset", "unet", "real_bogus", "classical", "ensemble", "evaluation")

ingest = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets("observations"),
    partitions_def=FIELD_NIGHTS,
    hooks={say_why},
    description="Fetch the exposures of a field and night from its archive.",
    tags={"stage": "ingest", **FETCHES},
)
make_masters = dg.define_asset_job(
    "make_masters",
    selection=dg.AssetSelection.assets("master_calibrations"),
    partitions_def=INSTRUMENT_NIGHTS,
    hooks={say_why},
    description="Build master bias, dark and flats of an instrument and night.",
)
calibrate_night = dg.define_asset_job(
    "calibrate_night",
    selection=dg.AssetSelection.assets("observations", "calibrated_frames"),
    partitions_def=FIELD_NIGHTS,
    hooks={say_why},
    description="Fetch and calibrate a field's night, without differencing: what references are made of.",
)
make_references = dg.define_asset_job(
    "make_references",
    selection=dg.AssetSelection.assets("reference_images"),
    partitions_def=FIELDS,
    hooks={say_why},
    description="Coadd a field's good earlier frames into references, versioned by filter and first night.",
)
process_night = dg.define_asset_job(
    "process_night",
    selection=dg.AssetSelection.assets("observations", "calibrated_frames", *NIGHT_ASSETS),
    partitions_def=FIELD_NIGHTS,
    hooks={say_why},
    description="Take a field's night from raw exposures to detections, alerts, training samples and summary.",
)
take_alerts = dg.define_asset_job(
    "take_alerts",
    selection=dg.AssetSelection.assets("survey_alerts", "alert_stamps"),
    partitions_def=FIELD_NIGHTS,
    hooks={say_why},
    description="Take a night of another survey's alert packets: candidates with their cut-outs, scores, light curves. "
    "For fields whose archive is alerts:PATH.",
)
retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets(*MODEL_ASSETS),
    description="Collect the training dataset, train the models, evaluate them on nights they have not seen.",
    tags=TRAINS,
)

summarise_survey = dg.define_asset_job(
    "summarise_survey",
    selection=dg.AssetSelection.assets("survey_summary"),
    description="Put all nights of all fields into one table.",
)
fetch_reference = dg.define_asset_job(
    "fetch_reference",
    selection=dg.AssetSelection.assets("reference_dataset"),
    description="Fetch a sky survey's image of a place, as the API's ingest/reference-dataset asks for it.",
    tags=FETCHES,
)
check_health = dg.define_asset_job(
    "check_health",
    selection=dg.AssetSelection.assets("data_health"),
    description="Look whether archives answer, nights are made, raw files are whole and disks have room.",
)


@dg.op(tags=dict(CPU_TAGS), out=dg.Out(dg.Nothing))
@tried_again
def prune(context: dg.OpExecutionContext) -> None:
    """Remove from Dagster's log what is older than ASTRID_KEEP_LOG_DAYS and nothing needs, and unused copies."""
    from astrid_pipeline.resources import copies
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.resources.garbage import OLDEST_RUN_DAYS
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.services.retention import prune as prune_log_of
    from astrid_pipeline.settings import get_settings

    days = get_settings().keep_log_days
    pruned = prune_log_of(context.instance, days)
    context.log.info(
        f"removed of runs older than {days:g} days: {pruned.rows} lines, and what {pruned.outputs} runs had printed; "
        "their products, checks and failures stay"
    )
    fields = {field.name for field in open_catalogue().fields()}
    count, size = copies.prune(open_store(), fields, OLDEST_RUN_DAYS)
    context.log.info(f"removed of this machine's copies of products: {count}, {size / 1e6:.1f} MB")


@dg.job(
    tags={"stage": "upkeep"},
    description="Keep Dagster's log small: of old runs, what was made, its checks and failures stay, and every other "
    "line goes. ASTRID_KEEP_LOG_DAYS says how old.",
)
def prune_log():
    """Remove old lines from Dagster's log."""
    prune()


#: The jobs that `night.plan` asks for.
STEP_JOBS = (make_masters, calibrate_night, make_references, process_night, take_alerts)
ALL = (
    *(ingest, make_masters, calibrate_night, make_references, process_night, take_alerts, backfill_field),
    *(retrain, summarise_survey, check_health, fetch_reference, prune_log),
)
