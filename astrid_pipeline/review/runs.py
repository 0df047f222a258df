"""Dagster as the application sees it: runs are started through its page, and its event log says what they do."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from astrid_pipeline.errors import ServiceError
from astrid_pipeline.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

#: Seconds for the page to answer: a code server that is busy loading takes some.
_PATIENCE = 30
#: Events that tell a person something: steps and their like are for the Dagster page.
_TOLD = (
    "ASSET_MATERIALIZATION",
    "RUN_START",
    "RUN_SUCCESS",
    "RUN_FAILURE",
    "RUN_CANCELED",
)
_RUN_STATES = {
    "RUN_START": "started",
    "RUN_SUCCESS": "success",
    "RUN_FAILURE": "failure",
    "RUN_CANCELED": "canceled",
}


class Runs:
    """Starts runs and reads the event log. The instance is opened when it is first needed: it takes a second.

    Parameters
    ----------
    settings:
        Where Dagster's page and home are.
    instance:
        An open instance to use instead of that of the home.
    """

    def __init__(self, settings: Settings, instance: DagsterInstance | None = None) -> None:
        self._settings = settings
        self._instance = instance
        self._lock = threading.Lock()

    @property
    def instance(self) -> DagsterInstance:
        """The Dagster instance.

        Raises
        ------
        ServiceError
            If its database does not answer.
        """
        with self._lock:
            if self._instance is None:
                from dagster import DagsterInstance

                from astrid_pipeline.services.dagster_home import prepare_dagster_home

                os.environ["DAGSTER_HOME"] = str(prepare_dagster_home(self._settings))
                with _failing("open Dagster's storage", self._settings.dagster_page):
                    self._instance = DagsterInstance.get()
            return self._instance

    def add_field(self, name: str) -> None:
        """Let a field be a partition."""
        from astrid_pipeline.partitions import FIELDS

        with _failing("add a partition", self._settings.dagster_page):
            self.instance.add_dynamic_partitions(str(FIELDS.name), [name])

    def launch(
        self,
        job: str,
        *,
        partition: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start a run of a job and return its id; it waits in Dagster's queue for its turn.

        Parameters
        ----------
        partition:
            Keys by dimension, in the order of the dimensions' names.

        Raises
        ------
        ServiceError
            If Dagster's page does not answer, or does not take the run.
        """
        from dagster_graphql import DagsterGraphQLClient

        given = dict(tags or {})
        if partition:
            given["dagster/partition"] = "|".join(partition[name] for name in sorted(partition))
            given |= {f"dagster/partition/{name}": key for name, key in partition.items()}
        page = urlsplit(self._settings.dagster_page)
        with _failing(f"start the job {job}", self._settings.dagster_page):
            client = DagsterGraphQLClient(
                page.hostname or "",
                port_number=page.port,
                use_https=page.scheme == "https",
                path_prefix=page.path,
                timeout=_PATIENCE,
            )
            return str(client.submit_job_execution(job, run_config=dict(config or {}), tags=given))

    def status(self, run_id: str) -> dict[str, Any] | None:
        """Return what has become of a run: run_id, job, status, partition, started, ended; None if there is none."""
        from dagster import RunsFilter

        with _failing("look up a run", self._settings.dagster_page):
            found = self.instance.get_run_records(RunsFilter(run_ids=[run_id]), limit=1)
        if not found:
            return None
        run = found[0].dagster_run
        return {
            "run_id": run.run_id,
            "job": run.job_name,
            "status": run.status.value,
            "partition": run.tags.get("dagster/partition"),
            "started": found[0].start_time,
            "ended": found[0].end_time,
        }

    def last_event(self) -> int:
        """Return the number of the latest event."""
        with _failing("follow Dagster's event log", self._settings.dagster_page):
            return int(self.instance.event_log_storage.get_maximum_record_id() or 0)

    def events(self, after: int, limit: int = 200) -> list[dict[str, Any]]:
        """Return what happened after an event: runs that began or ended, assets that were made, oldest first.

        Each has `id`, `kind` (run or asset), `run_id`, `job` and `status` or `asset`, `partition`, `at` (seconds) and
        the counts among the materialization's metadata.
        """
        from dagster import DagsterEventType, EventRecordsFilter

        found: dict[int, dict[str, Any]] = {}
        with _failing("follow Dagster's event log", self._settings.dagster_page):
            storage = self.instance.event_log_storage
            for name in _TOLD:
                wanted = EventRecordsFilter(event_type=DagsterEventType[name], after_cursor=after)
                for record in storage.get_event_records(wanted, limit=limit, ascending=True):
                    found[record.storage_id] = _told(record)
        return [found[key] for key in sorted(found)][:limit]


def _told(record: Any) -> dict[str, Any]:
    entry = record.event_log_entry
    event = entry.dagster_event
    common = {"id": record.storage_id, "run_id": entry.run_id, "job": entry.job_name, "at": entry.timestamp}
    name = event.event_type.name
    if name != "ASSET_MATERIALIZATION":
        return {**common, "kind": "run", "status": _RUN_STATES[name]}
    made = event.step_materialization_data.materialization
    counts = {
        key: value.value
        for key, value in made.metadata.items()
        if isinstance(getattr(value, "value", None), int) and not isinstance(value.value, bool)
    }
    return {
        **common,
        "kind": "asset",
        "asset": made.asset_key.to_user_string(),
        "partition": None if made.partition is None else str(made.partition),
        "counts": counts,
    }


class _failing:
    """Turn what Dagster, its page and its database raise into `ServiceError`."""

    def __init__(self, what: str, where: str) -> None:
        self._what, self._where = what, where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from dagster import DagsterError
        from dagster_graphql import DagsterGraphQLClientError
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, DagsterGraphQLClientError | DagsterError | SQLAlchemyError | OSError):
            said = " ".join(str(part) for part in error.args if part)[:300]
            raise ServiceError(
                f"cannot {self._what}: {' '.join(said.split())}",
                where=self._where,
                remedy="start Dagster (`astrid dev`), or set ASTRID_DAGSTER_URL to its page",
            ) from error
