"""The loop from labels to a better model, as the catalogue knows it: what is new, what was made of it, who holds it.

Holding is an entry of the audit trail, and the latest one counts: who holds the loop, since when and why is kept.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from astrid_pipeline.catalog import access
from astrid_pipeline.catalog.review_models import AuditEntry

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

#: What the loop's trainings are called in `training_runs`.
MODEL = "astrid-detector"
_HOLD, _RELEASE = "hold the loop", "release the loop"


@dataclass(frozen=True)
class Hold:
    """Somebody holds the loop."""

    who: str
    since: dt.datetime
    why: str

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"{self.who} holds it since {self.since:%Y-%m-%d %H:%M} UTC{why}"


def hold(catalog: Catalog, who: str, why: str = "") -> None:
    """Let nothing be trained or promoted by itself until `release`."""
    access.audit(catalog, who, _HOLD, {"why": why})


def release(catalog: Catalog, who: str) -> None:
    """Let the loop go on."""
    access.audit(catalog, who, _RELEASE, {})


def held(catalog: Catalog) -> Hold | None:
    """Return who holds the loop, or None."""
    with catalog.reading("see whether the loop is held") as connection:
        row = connection.execute(
            select(AuditEntry.who, AuditEntry.at, AuditEntry.action, AuditEntry.what)
            .where(AuditEntry.action.in_((_HOLD, _RELEASE)))
            .order_by(AuditEntry.id.desc())
            .limit(1)
        ).one_or_none()
    if row is None or row.action == _RELEASE:
        return None
    return Hold(row.who, row.at.astimezone(dt.UTC), str(row.what.get("why") or ""))


def new_labels(catalog: Catalog, after: int = 0) -> tuple[int, int]:
    """Return how many sources got a standing verdict of real or bogus after an event, and the last event's id.

    What was put in to measure the scanners teaches nothing and does not count.
    """
    query = text(
        "SELECT count(DISTINCT e.source_key) FILTER (WHERE e.verdict IN ('real', 'bogus') AND NOT e.injected "
        "AND NOT EXISTS (SELECT 1 FROM validation_events u WHERE u.undoes = e.id)), coalesce(max(e.id), :after) "
        "FROM validation_events e WHERE e.id > :after"
    )
    with catalog.reading("count new labels") as connection:
        count, last = connection.execute(query, {"after": after}).one()
    return int(count), int(last)


def labels_since(catalog: Catalog, since: dt.datetime | None) -> int:
    """Return how many sources got a standing verdict of real or bogus since a time, or ever."""
    query = text(
        "SELECT coalesce(max(id), 0) FROM validation_events WHERE cast(:since AS timestamptz) IS NOT NULL "
        "AND at < :since"
    )
    with catalog.reading("count new labels") as connection:
        after = connection.scalar(query, {"since": since})
    return new_labels(catalog, int(after or 0))[0]


def label_shares(catalog: Catalog, start: dt.date, end: dt.date) -> dict[str, int]:
    """Return how many sources of some nights people agree on, by `real` and `bogus`."""
    query = text(
        "SELECT state, count(*) FROM sources WHERE present AND NOT injected AND state IN ('real', 'bogus') "
        "AND night BETWEEN :start AND :end GROUP BY state"
    )
    with catalog.reading("count labels") as connection:
        counts = {str(state): int(n) for state, n in connection.execute(query, {"start": start, "end": end})}
    return {"real": counts.get("real", 0), "bogus": counts.get("bogus", 0)}


def turns(catalog: Catalog, since: dt.datetime | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """Return the loop's turns, the latest first: when, on which dataset, what came of it (`status`) and why."""
    query = text(
        "SELECT r.id, r.started_at, r.completed_at, r.status, r.model_version, r.mlflow_run_id, r.dagster_run_id, "
        "d.name AS dataset, d.total_samples, r.training_params, r.performance_metrics, "
        "r.performance_metrics ->> 'reason' AS reason FROM training_runs r "
        "LEFT JOIN training_datasets d ON d.id = r.dataset_id "
        "WHERE r.model = :model AND (cast(:since AS timestamptz) IS NULL OR r.started_at >= :since) "
        "ORDER BY r.id DESC LIMIT :limit"
    )
    with catalog.reading("list the loop's turns") as connection:
        rows = connection.execute(query, {"model": MODEL, "since": since, "limit": limit}).mappings()
        return [dict(row) for row in rows]
