"""What Dagster's log keeps of old runs: what was made, with which result and why not; not every line on the way.

A night's run writes some two hundred rows into the event log. Deleting a run, as Dagster itself can, would take the
records of its products along, and the night would count as missing. Here those stay, and so does what a failed run
says of its failure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from astrid_pipeline.services import postgres
from astrid_pipeline.settings import get_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

#: Days that the log of a run that succeeded is kept whole; a failed one's is kept so many times as long.
FAILED_LONGER = 3
#: Rows that one statement deletes: others write into the table meanwhile.
_BATCH = 20_000
#: Runs whose printed output is removed at a time.
_RUNS = 1_000

#: Kinds of events that stay: the products, their checks, the beginning and end of runs, and failures.
KEPT = (
    *("ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "STEP_FAILURE"),
    *("PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED"),
)

_DELETE = """
WITH old AS (
    SELECT e.id FROM event_logs e JOIN runs r ON r.run_id = e.run_id
    WHERE e.timestamp < to_timestamp(:before) AT TIME ZONE 'UTC' AND r.status = ANY(:statuses)
      AND (e.dagster_event_type IS NULL OR NOT e.dagster_event_type = ANY(:kept))
    ORDER BY e.id LIMIT :batch
)
DELETE FROM event_logs USING old WHERE event_logs.id = old.id
"""
_STATUSES = "SELECT run_id, status FROM runs WHERE run_id = ANY(:runs)"


@dataclass(frozen=True)
class Pruned:
    """What was removed: rows of the event log, and runs whose printed output went."""

    rows: int = 0
    outputs: int = 0


def prune(instance: DagsterInstance, days: float, now: float | None = None) -> Pruned:
    """Remove from the log what is older than so many days and nothing needs.

    Parameters
    ----------
    days:
        Age of what goes of runs that succeeded; of failed and cancelled ones, three times as much.
    now:
        Seconds since 1970; default the present.

    Raises
    ------
    ServiceError
        If the database does not answer.
    """
    from sqlalchemy import create_engine, text

    now = time.time() if now is None else now
    rows = outputs = 0
    engine = create_engine(postgres.database_url("dagster"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statuses, age in ((["SUCCESS"], days), (["FAILURE", "CANCELED"], FAILED_LONGER * days)):
                values = {"statuses": statuses, "before": now - 86400 * age}
                while removed := connection.execute(
                    text(_DELETE), {**values, "kept": list(KEPT), "batch": _BATCH}
                ).rowcount:
                    rows += removed
            # What steps have printed lies in a folder of each run.
            old = _old_folders(get_settings().dagster_home / "logs", now - 86400 * days)
            for start in range(0, len(old), _RUNS):
                some = dict(old[start : start + _RUNS])
                told = connection.execute(text(_STATUSES), {"runs": list(some)})
                known: dict[str, str] = {row.run_id: row.status for row in told}
                for run_id, changed in some.items():
                    aged = changed < now - 86400 * FAILED_LONGER * days
                    if known.get(run_id) == "SUCCESS" or (run_id in known and aged):
                        instance.compute_log_manager.delete_logs(prefix=[run_id])
                        outputs += 1
    finally:
        engine.dispose()
    return Pruned(rows, outputs)


def _old_folders(top: Path, before: float) -> list[tuple[str, float]]:
    """Return the folders in which nothing was changed since `before`, with when it was."""
    if not top.is_dir():
        return []
    changed = [(path.name, path.stat().st_mtime) for path in top.iterdir() if path.is_dir()]
    return [(name, when) for name, when in changed if when < before]
