"""What is made when something is new or has gone wrong: exposures in an archive, files in an inbox, failed runs.

What a person on call must know stands in each tick's message, in words.
"""

# No `from __future__ import annotations` here: Dagster reads the resources in the signature at definition.
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from astrid_pipeline.archives.base import Archive, Field, open_archive
from astrid_pipeline.errors import AstridError
from astrid_pipeline.jobs import STEP_JOBS
from astrid_pipeline.night.inbox import Inbox, mirror
from astrid_pipeline.night.plan import Listing, Step, ready_steps
from astrid_pipeline.night.polling import PollState
from astrid_pipeline.night.retries import MAX_RETRIES, RETRY_TAG, FailedRun, judge
from astrid_pipeline.partitions import FIELDS, INSTRUMENTS
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.products import Products, ProductsResource
from astrid_pipeline.resources.store import open_store
from astrid_pipeline.services.dead_runs import correct, end_dead_runs
from astrid_pipeline.settings import get_settings, load_settings

#: Runs a tick may ask for. A tick is cut off after 60 s; this many are asked for in one or two.
MAX_RUNS_PER_TICK = 25
#: Seconds after which a tick looks at no further field: the rest comes first at the next one.
TICK_SECONDS = 35.0
#: Days that `failed_partitions` looks back.
FAILURES_DAYS = 7.0

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dg.sensor(
    jobs=list(STEP_JOBS),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Asks each field's archive for new exposures, at the field's own pace, and requests the runs that are "
    "ready: masters, calibration, references, nights. A run key names the exposures it rests on, so nothing is done "
    "twice, and a night to which exposures have come is done again, alone. An archive that does not answer is asked "
    "more and more seldom; which, why, and when next stands in the tick's message.",
)
def new_observations(
    context: dg.SensorEvaluationContext, catalogue: CatalogueResource, products: ProductsResource
) -> dg.SensorResult:
    """Ask the planner what is ready in every field; Dagster leaves out run keys that it has seen."""
    kept, state, started = products.open(), PollState.of(context.cursor), time.time()
    steps: dict[str, Step] = {}
    fields: set[str] = set()
    instruments: set[str] = set()
    late = 0
    watched = state.order(catalogue.open().fields())
    for number, field in enumerate(watched):
        if time.time() - started > TICK_SECONDS:
            late = len(watched) - number
            break
        try:
            archive = open_archive(field.archive, in_tick=True)
            _poll(archive, field, state)
            listing = Listing.of(archive, field)
            signature = _signature(context.instance, listing)
            settled = state.is_settled(field, signature, time.time())
            found = [] if settled else _steps(context.instance, archive, listing, kept)
            if not found and not settled:
                state.settle(field, signature, time.time())
        except AstridError as error:
            # The other fields' archives may answer. One that is silent is counted when it was due, not at each tick.
            if state.due(field, time.time()):
                state.silent(field, time.time(), error)
            continue
        fields.add(field.name)
        instruments |= listing.instruments
        steps |= {step.run_key: step for step in found}
    new = _not_asked_for(context.instance, steps.values(), MAX_RUNS_PER_TICK)
    requests = [
        dg.RunRequest(
            run_key=step.run_key,
            job_name=step.job,
            partition_key=step.partition,
            tags={"astrid/field": step.partition.rpartition("|")[0] or step.partition},
        )
        for step in new
    ]
    now = time.time()
    words = [
        f"{_count(len(new), 'run')} requested" if new else f"nothing new in {_count(len(watched), 'field')}"
    ]
    words += state.report(now)
    words += [f"{_count(late, 'field')} to be looked at in the next tick"] if late else []
    words += [] if new or not state.waiting(now) else [state.waiting(now)]
    message = "; ".join(words)
    context.log.warning(message) if state.report(now) else context.log.info(message)
    return dg.SensorResult(
        run_requests=requests or None,
        skip_reason=None if requests else dg.SkipReason(message),
        dynamic_partitions_requests=_additions(context.instance, fields, instruments),
        cursor=state.cursor(message),
    )


def _poll(archive: Archive, field: Field, state: PollState) -> None:
    """Ask an archive behind a network what is new, if it is due; a folder is simply looked at."""
    refresh = getattr(archive, "refresh", None)
    if field.archive.partition(":")[0] in ("folder", "simulated") or refresh is None:
        state.answered(field, time.time())
    elif state.due(field, time.time()):
        try:
            refresh(field)
        except AstridError as error:
            # What is listed already can be made meanwhile.
            state.silent(field, time.time(), error)
        else:
            state.answered(field, time.time(), unfinished=getattr(archive, "unfinished", 0))


def _signature(instance: dg.DagsterInstance, listing: Listing) -> str:
    """Return what stands for a field's exposures and for the runs that there were of it.

    Looking through a thousand nights takes seconds; while this stays the same it need not be done at each tick.
    """
    tag = {"astrid/field": listing.field.name}
    counts = [
        instance.get_runs_count(dg.RunsFilter(tags=tag)),
        instance.get_runs_count(dg.RunsFilter(tags=tag, statuses=_FINISHED)),
    ]
    digest = hashlib.sha256(repr((listing.field, counts)).encode())
    for night, records in listing.nights.items():
        digest.update(f"{night}:{','.join(sorted(record.exposure_id for record in records))};".encode())
    return digest.hexdigest()[:16]


def _steps(instance: dg.DagsterInstance, archive: Archive, listing: Listing, kept: Products) -> list[Step]:
    """Return the ready steps; references that a finished run could not make are not waited for."""
    steps = ready_steps(archive, listing, kept)
    tried = {step.run_key for step in steps if step.job == "make_references" and _finished(instance, step)}
    return ready_steps(archive, listing, kept, tried) if tried else steps


def _finished(instance: dg.DagsterInstance, step: Step) -> bool:
    filters = dg.RunsFilter(tags={"dagster/run_key": step.run_key}, statuses=_FINISHED)
    return instance.get_runs_count(filters) > 0


def _not_asked_for(instance: dg.DagsterInstance, steps: Iterable[Step], limit: int) -> list[Step]:
    """Return the steps that no run was asked for yet, as many as a tick may ask for.

    Dagster would leave out the others itself, but only after they had taken up the tick's places.
    """
    out: list[Step] = []
    for step in steps:
        if len(out) == limit:
            break
        if instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": step.run_key})) == 0:
            out.append(step)
    return out


def _additions(instance: dg.DagsterInstance, fields: set[str], instruments: set[str]) -> list:
    return [
        definition.build_add_request(sorted(new))
        for definition, names in ((FIELDS, fields), (INSTRUMENTS, instruments))
        if (new := names - set(instance.get_dynamic_partitions(str(definition.name))))
    ]


@dg.sensor(
    name="inbox",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Watches a folder or bucket prefix (ASTRID_INBOX) for new FITS files. A file is taken when it has not "
    "changed between two looks and is whole; what it shows becomes a field by its position, whose nights "
    "`new_observations` then makes. Files still being written, and files that are no good with the reason, stand in "
    "the tick's message.",
)
def inbox(context: dg.SensorEvaluationContext, catalogue: CatalogueResource) -> dg.SensorResult:
    """Copy complete files into the home's `received` folder, and watch the fields that they show."""
    settings = get_settings()
    if not settings.inbox:
        return dg.SensorResult(skip_reason="no inbox is set (ASTRID_INBOX)")
    seen = json.loads(context.cursor or "{}")
    received = settings.home / "received"
    received.mkdir(parents=True, exist_ok=True)
    try:
        source = Path(settings.inbox)
        if settings.inbox.startswith("s3://"):
            source = settings.home / "inbox"
            source.mkdir(parents=True, exist_ok=True)
            bucket = open_store(load_settings(store=settings.inbox))
            seen["objects"] = mirror(bucket, source, seen.get("objects", {}))
        found, seen["files"] = Inbox(source, received).look(seen.get("files", {}))
        names: set[str] = set()
        if found.taken:
            archive = open_archive(f"folder:{received}")
            known = {field.name for field in catalogue.open().fields()}
            for field in archive.fields():
                if field.name not in known:
                    catalogue.open().add_field(field)
                    names.add(field.name)
    except AstridError as error:
        return dg.SensorResult(skip_reason=f"the inbox cannot be looked at: {error}", cursor=context.cursor)
    seen.pop("says", None)
    message = str(found) + (f"; new fields: {', '.join(sorted(names))}" if names else "")
    context.log.info(message)
    return dg.SensorResult(
        skip_reason=message,
        dynamic_partitions_requests=_additions(context.instance, names, set()),
        cursor=json.dumps({"says": message, **seen}, ensure_ascii=False),
    )


@dg.sensor(
    jobs=list(STEP_JOBS),
    minimum_interval_seconds=120,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Looks at the failed runs of the last week. What may go better (an archive or database that did not "
    f"answer, a process that died) is tried again, {MAX_RETRIES} times, after 10, 20 and 40 minutes; what stays as it "
    "is (a damaged file, a missing keyword) is listed in the tick's message with its reason and remedy.",
)
def failed_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request another run of what is worth it, and say what is not."""
    now = time.time()
    dead = end_dead_runs(context.instance)
    records = _records(context.instance, now)
    failed = [
        _failed(context.instance, record)
        for record in records
        if record.dagster_run.status == dg.DagsterRunStatus.FAILURE
    ]
    done: dict[tuple[str, str], float] = {}
    for record in records:
        if record.dagster_run.status != dg.DagsterRunStatus.FAILURE:
            key = (record.dagster_run.job_name, record.dagster_run.tags.get("dagster/partition", ""))
            done[key] = max(done.get(key, 0.0), record.create_timestamp.timestamp())
    verdicts = judge(failed, done, now)
    requests = [
        dg.RunRequest(
            run_key=f"retry:{run.run_id}",
            job_name=run.job,
            partition_key=run.partition or None,
            tags={RETRY_TAG: str(run.retry + 1), "astrid/retry_of": run.run_id},
        )
        for run in verdicts.now[:MAX_RUNS_PER_TICK]
    ]
    words = [f"{_count(len(requests), 'run')} tried again"] if requests else []
    words += [f"{_count(len(dead), 'run')} ended whose process was gone"] if dead else []
    words += [
        f"{_name(run)}: tried again in {max(1, round((due - now) / 60))} min ({run.message})"
        for run, due in verdicts.later.items()
    ]
    words += [f"{_name(run)}: {why}: {run.message}" for run, why in verdicts.never.items()]
    message = "; ".join(words) or "no run has failed that was not made since"
    if verdicts.never:
        context.log.warning(message)
    # As the cursor too: the page shows cursors at sight, messages on a click.
    return dg.SensorResult(
        run_requests=requests or None,
        skip_reason=None if requests else dg.SkipReason(message),
        cursor=message,
    )


@dg.run_failure_sensor(
    name="made_after_all",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="A run whose process was killed when all its steps had been made has made what it was to make: it is "
    "noted as a success. Dagster itself has no step to try again there, and would leave it as a failure.",
)
def made_after_all(context: dg.RunFailureSensorContext) -> None:
    """Note a failed run as a success where nothing of it is missing."""
    correct(context.instance, context.dagster_run.run_id)


def _records(instance: dg.DagsterInstance, now: float) -> list[dg.RunRecord]:
    import datetime as dt

    since = dt.datetime.fromtimestamp(now - FAILURES_DAYS * 86400, dt.UTC)
    out: list[dg.RunRecord] = []
    for job in STEP_JOBS:
        out += instance.get_run_records(dg.RunsFilter(job_name=job.name, updated_after=since), limit=500)
    return out


def _failed(instance: dg.DagsterInstance, record: dg.RunRecord) -> FailedRun:
    run = record.dagster_run
    error, message, permanent = "", "the process died, or was ended", None
    for entry in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = entry.event_log_entry.dagster_event
        if event is None:
            continue
        told = event.step_failure_data.user_failure_data
        if told is not None and "permanent" in told.metadata:
            # What AstrID itself says of it (`step_failures.as_failure`).
            error, message = str(told.metadata["error"].value), " ".join(str(told.description).split())
            permanent = bool(told.metadata["permanent"].value)
            continue
        failure = event.step_failure_data.error
        while failure is not None and failure.cause is not None:
            failure = failure.cause
        if failure is not None:
            error, permanent = failure.cls_name or "", None
            message = " ".join(str(failure.message).split()).removeprefix(f"astrid_pipeline.errors.{error}: ")
    return FailedRun(
        run_id=run.run_id,
        job=run.job_name,
        partition=run.tags.get("dagster/partition", ""),
        failed_at=float(record.end_time or record.update_timestamp.timestamp()),
        retry=int(run.tags.get(RETRY_TAG, "0")),
        error=error,
        message=message[:300],
        permanent=permanent,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _name(run: FailedRun) -> str:
    return f"{run.job} of {run.partition.replace('|', ', ')}"


#: What follows its inputs by declaration; the nights themselves are `new_observations`' business, whose runs hold a
#: whole night's chain.
automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.assets("reference_images", "survey_summary"),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Remakes the survey's summary when a night was made, and references that an older AstrID made.",
)

ALL = (new_observations, inbox, failed_partitions, made_after_all, automation)
