"""Many nights of a field in one run of the Dagster page: the same walk as `astrid backfill`.

A run a night, launched one by one, would start a process for each, which takes longer than a small night, and could
not make references in between. Here worker processes stay warm, take what is ready, and record each night as a run of
its own, with its partition; this run's log shows how far they are.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.
import time

import dagster as dg
from pydantic import Field

from astrid_pipeline.assets.common import CPU_TAGS
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.step_failures import tried_again

#: Seconds between two lines that say how far it is, besides the line of each night that failed.
SAY_SECONDS = 30.0


class BackfillConfig(dg.Config):
    """Which nights to make."""

    field: str = Field(description="Name of the field, as in `astrid field list`.")
    first_night: str = Field(default="", description="YYYY-MM-DD; empty: the archive's first.")
    last_night: str = Field(default="", description="YYYY-MM-DD, made too; empty: the archive's last.")
    workers: int = Field(default=0, description="Worker processes; 0: as many as ASTRID_WORKERS says.")


@dg.op(tags=dict(CPU_TAGS), out=dg.Out(dg.Nothing))
@tried_again
def backfill(context: dg.OpExecutionContext, config: BackfillConfig):
    """Make all nights of a field within the dates; what is made already is left as it is."""
    from astrid_pipeline import driver
    from astrid_pipeline.driver.runner import RunResult
    from astrid_pipeline.night.plan import Step, total

    for name, night in (("first_night", config.first_night), ("last_night", config.last_night)):
        _check(name, night)
    counts = {"ended": 0, "failed": 0, "frames": 0, "of": 0}
    said = time.monotonic()

    def begin(steps: list[Step]) -> None:
        counts.update(frames=0, of=total(steps))
        kinds = ", ".join(sorted({step.job for step in steps}))
        context.log.info(f"to be done now: {kinds}: {len(steps)} in all, {total(steps)} frames")

    def report(result: RunResult) -> None:
        nonlocal said
        counts["ended"] += 1
        counts["frames"] += result.step.exposures
        where = result.step.partition.replace("|", ", ")
        if result.error:
            counts["failed"] += 1
            context.log.error(f"{result.step.job} of {where}: {result.error}")
        for check in result.bad_checks:
            context.log.warning(f"{result.step.job} of {where}: check failed: {check}")
        if time.monotonic() - said > SAY_SECONDS or counts["frames"] >= counts["of"]:
            said = time.monotonic()
            context.log.info(
                f"{counts['frames']} of these {counts['of']} frames done; runs so far: {counts['ended']}, "
                f"of which {counts['failed'] or 'none'} failed"
            )

    results = driver.backfill(
        config.field,
        config.first_night or None,
        config.last_night or None,
        config.workers or None,
        report,
        begin=begin,
        say=context.log.info,
        tags={"astrid/backfill": context.run_id[:8]},
    )
    failed = [result for result in results if result.error]
    if failed:
        names = ", ".join(result.step.partition.replace("|", " ") for result in failed[:10])
        raise dg.Failure(
            f"{len(failed)} of {len(results)} runs failed: {names}. The others are made; the reasons stand in the log "
            "above, and each night's own run has its whole log. Launched again, this makes only what is missing.",
            allow_retries=False,
        )


def _check(name: str, night: str) -> None:
    import datetime as dt

    try:
        if night:
            dt.date.fromisoformat(night)
    except ValueError as error:
        raise ConfigError(
            f"{night!r} is not a night", where=name, remedy="write the evening's date as YYYY-MM-DD"
        ) from error


@dg.job(
    tags={"stage": "backfill"},
    description="Make many nights of a field: choose it, and its first and last night, in the Launchpad. One run that "
    "walks the whole chain (masters, references, nights) with warm worker processes, and records each night as a run "
    "with its partition. Nights without exposures cost nothing, what is made is left as it is; killed in between, it "
    "goes on where it was when it is launched again. The same as `astrid backfill FIELD --from … --to …`.",
)
def backfill_field():
    """Make many nights of a field in one run."""
    backfill()
