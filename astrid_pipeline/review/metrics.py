"""Figures for Prometheus: what the catalogue and Dagster's own tables say at the time of asking.

All of it is counted from tables, so that any number of serving processes tell the same and a restart loses nothing.
What can shrink (a night is made again, Dagster forgets old runs) is a gauge; only people's decisions, which are never
removed, are a counter.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from astrid_pipeline import __version__
from astrid_pipeline.errors import AstridError
from astrid_pipeline.review.context import Context, Here, Reader
from astrid_pipeline.services import gpus, postgres

#: Who scrapes more often than this, seconds, gets the same answer: the tables are counted for it.
KEPT = 5.0
#: Latencies are those of at most so many steps (and runs), the latest, of the last day: an index leads to them.
LATEST = 2000
QUANTILES = (0.5, 0.9, 0.99)

_Row = Mapping[str, Any]

_FIELDS = """
SELECT f.name AS field, coalesce(p.exposures, 0) AS exposures, coalesce(p.unreadable, 0) AS unreadable,
       coalesce(d.nights, 0) AS nights, coalesce(d.candidates, 0) AS candidates,
       coalesce(d.detections, 0) AS detections, d.latest
FROM fields f
LEFT JOIN (SELECT field_id, sum(exposures) AS exposures, sum(unreadable) AS unreadable
           FROM preprocess_runs WHERE status = 'success' GROUP BY field_id) p ON p.field_id = f.id
LEFT JOIN (SELECT field_id, count(DISTINCT night) AS nights, sum(candidates) AS candidates,
                  sum(detections) AS detections, extract(epoch FROM max(finished_at)) AS latest
           FROM difference_runs WHERE status = 'success' GROUP BY field_id) d ON d.field_id = f.id
ORDER BY f.name"""
#: As the page's queue counts: detections that are there, without what was put in.
_QUEUE = """
SELECT state, count(*) AS n FROM sources
WHERE present AND NOT injected AND score IS NOT NULL GROUP BY state"""
_LABELS = """
SELECT coalesce(verdict, 'withdrawn') AS verdict, count(*) AS n FROM validation_events GROUP BY 1 ORDER BY 1"""
_RUNS = "SELECT pipeline_name AS job, status, count(*) AS n FROM runs GROUP BY 1, 2 ORDER BY 1, 2"
_WAITING = """
SELECT extract(epoch FROM (now() AT TIME ZONE 'utc') - min(create_timestamp)) AS seconds
FROM runs WHERE status = 'QUEUED'"""
_RUN_SECONDS = """
SELECT job, count(*) AS n, percentile_cont(cast(:q AS float8[])) WITHIN GROUP (ORDER BY seconds) AS quantiles,
       percentile_cont(cast(:q AS float8[])) WITHIN GROUP (ORDER BY waited) AS waits
FROM (SELECT pipeline_name AS job, end_time - start_time AS seconds,
             start_time - extract(epoch FROM create_timestamp) AS waited, end_time
      FROM runs WHERE status = 'SUCCESS' AND start_time IS NOT NULL AND end_time IS NOT NULL
      ORDER BY update_timestamp DESC LIMIT :latest) latest
WHERE end_time > extract(epoch FROM now()) - 86400 GROUP BY job ORDER BY job"""
_STAGES = """
SELECT step_key AS stage, percentile_cont(cast(:q AS float8[])) WITHIN GROUP (ORDER BY seconds) AS quantiles
FROM (SELECT ended.step_key, extract(epoch FROM ended.timestamp - begun.timestamp) AS seconds
      FROM (SELECT run_id, step_key, timestamp FROM event_logs WHERE dagster_event_type = 'STEP_SUCCESS'
            ORDER BY id DESC LIMIT :latest) ended
      JOIN event_logs begun ON begun.run_id = ended.run_id AND begun.step_key = ended.step_key
           AND begun.dagster_event_type = 'STEP_START'
      WHERE ended.timestamp > (now() AT TIME ZONE 'utc') - interval '1 day') steps
GROUP BY step_key ORDER BY step_key"""
_OUTCOMES = """
SELECT stage, outcome, count(*) AS n
FROM (SELECT step_key AS stage, CASE dagster_event_type WHEN 'STEP_SUCCESS' THEN 'success'
             WHEN 'STEP_FAILURE' THEN 'failure' ELSE 'retry' END AS outcome, timestamp
      FROM event_logs WHERE dagster_event_type IN ('STEP_SUCCESS', 'STEP_FAILURE', 'STEP_UP_FOR_RETRY')
      ORDER BY id DESC LIMIT :latest) steps
WHERE timestamp > (now() AT TIME ZONE 'utc') - interval '1 day' GROUP BY 1, 2 ORDER BY 1, 2"""


def gauge(name: str, what: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    """Return an empty gauge `astrid_<name>`."""
    return GaugeMetricFamily(f"astrid_{name}", what, labels=list(labels))


class Figures(Collector):
    """Collects AstrID's figures anew for each scrape.

    A part that does not answer has `astrid_up{part=…}` 0 and no figures: zeros would look like an empty survey.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._dagster: Engine | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of the catalogue, of Dagster, and of the GPUs."""
        up = gauge("up", "1 where a part answers", ("part",))
        parts: tuple[tuple[str, Callable[[], list[Metric]]], ...] = (
            ("catalogue", self._of_catalogue),
            ("dagster", self._of_dagster),
        )
        for part, figures in parts:
            try:
                found = figures()
            except (AstridError, SQLAlchemyError):
                up.add_metric([part], 0)
                continue
            up.add_metric([part], 1)
            yield from found
        yield up
        version = gauge("build_info", "always 1; the label tells the version", ("version",))
        version.add_metric([__version__], 1)
        yield version
        yield from _of_gpus(gpus.read())

    def _of_catalogue(self) -> list[Metric]:
        with self._context.catalog.reading("count for the metrics") as connection:
            fields = _rows(connection, _FIELDS)
            queue, labels = _rows(connection, _QUEUE), _rows(connection, _LABELS)
        told = (
            ("exposures", "exposures", "exposures in the nights that are made"),
            ("exposures_unreadable", "unreadable", "of those, exposures that could not be read"),
            ("nights", "nights", "nights whose difference images are made"),
            ("candidates", "candidates", "candidates of the nights that are made"),
            ("detections", "detections", "detections of the nights that are made"),
            ("last_night_timestamp_seconds", "latest", "when a night was last made, Unix time"),
        )
        out: list[Metric] = []
        for name, column, what in told:
            metric = gauge(name, what, ("field",))
            for row in fields:
                if row[column] is not None:
                    metric.add_metric([row["field"]], float(row[column]))
            out.append(metric)
        waiting = gauge("review_queue", "detections by state of their review", ("state",))
        for row in queue:
            waiting.add_metric([row["state"]], row["n"])
        decided = CounterMetricFamily("astrid_labels", "decisions of people", labels=["verdict"])
        for row in labels:
            decided.add_metric([row["verdict"]], row["n"])
        return [*out, waiting, decided]

    def _of_dagster(self) -> list[Metric]:
        if self._dagster is None:
            url = postgres.database_url("dagster", self._context.settings)
            self._dagster = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with self._dagster.connect() as connection:
            limits = {"q": list(QUANTILES), "latest": LATEST}
            runs, oldest = _rows(connection, _RUNS), _rows(connection, _WAITING)[0]["seconds"]
            jobs = _rows(connection, _RUN_SECONDS, **limits)
            stages = _rows(connection, _STAGES, **limits)
            outcomes = _rows(connection, _OUTCOMES, latest=LATEST)
        counted = gauge("runs", "Dagster runs that are kept, by what became of them", ("job", "status"))
        for row in runs:
            counted.add_metric([row["job"], row["status"].lower()], row["n"])
        queue = gauge("run_queue", "runs that wait or go on", ("status",))
        for status in ("QUEUED", "STARTING", "STARTED"):
            queue.add_metric([status.lower()], sum(row["n"] for row in runs if row["status"] == status))
        wait = gauge(
            "run_queue_oldest_seconds", "how long the run waits that waits longest; 0 where none does"
        )
        wait.add_metric([], max(0.0, float(oldest or 0.0)))
        seconds = gauge(
            "run_seconds", "quantiles over runs of the last day, start to end", ("job", "quantile")
        )
        waits = gauge(
            "run_wait_seconds", "quantiles over runs of the last day, made to start", ("job", "quantile")
        )
        for row in jobs:
            _quantiles(seconds, row["job"], row["quantiles"])
            _quantiles(waits, row["job"], row["waits"])
        stage = gauge("stage_seconds", "quantiles over steps of the last day", ("stage", "quantile"))
        for row in stages:
            _quantiles(stage, row["stage"], row["quantiles"])
        steps = gauge("stage_outcomes", "steps of the last day by what became of them", ("stage", "outcome"))
        for row in outcomes:
            steps.add_metric([row["stage"], row["outcome"]], row["n"])
        return [counted, queue, wait, seconds, waits, stage, steps]


def _of_gpus(cards: Iterable[gpus.Card]) -> Iterator[Metric]:
    """Yield what the cards tell; the families are there without values where there is no card."""
    told = (
        ("gpu_watts", "power that a GPU draws now", lambda card: card.watts),
        ("gpu_memory_used_bytes", "memory in use on a GPU", lambda card: card.memory_used),
        ("gpu_memory_bytes", "memory of a GPU", lambda card: card.memory_total),
        ("gpu_busy_ratio", "share of the time that a GPU computes", lambda card: card.busy),
    )
    cards = list(cards)
    for name, what, value in told:
        metric = gauge(name, what, ("gpu", "name"))
        for card in cards:
            if math.isfinite(value(card)):
                metric.add_metric([str(card.index), card.name], value(card))
        yield metric


def _rows(connection: Connection, query: str, **values: Any) -> list[_Row]:
    return [dict(row) for row in connection.execute(text(query), values).mappings()]


def _quantiles(metric: GaugeMetricFamily, name: str, values: Iterable[float | None]) -> None:
    for quantile, value in zip(QUANTILES, values, strict=True):
        if value is not None:
            metric.add_metric([name, str(quantile)], max(0.0, float(value)))


class Exposition:
    """The figures as text, in the format that the scraper asks for; kept for `KEPT` seconds."""

    def __init__(self, context: Context) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Figures(context))
        ProcessCollector(registry=self._registry)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, bytes]] = {}

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the figures and their content type."""
        encode, kind = choose_encoder(accept)
        with self._lock:
            at, body = self._kept.get(kind, (-math.inf, b""))
            if time.monotonic() - at > KEPT:
                body = encode(self._registry)
                self._kept[kind] = (time.monotonic(), body)
        return body, kind


router = APIRouter()


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
def metrics(request: Request, here: Here, who: Reader) -> Response:
    """Return the figures that Prometheus scrapes: exposures, nights, latencies, queues, failures, labels, GPUs."""
    state = request.app.state
    if not hasattr(state, "exposition"):
        state.exposition = Exposition(here)
    body, kind = state.exposition.render(request.headers.get("accept", ""))
    return Response(body, media_type=kind)
