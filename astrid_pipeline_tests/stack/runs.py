"""Runs through the Dagster page, as a person starts and watches them: by GraphQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from astrid_pipeline_tests.stack.compose import Stack

_LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_EVENTS = """
query ($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {
  __typename
  ... on MessageEvent { message stepKey eventType timestamp }
  ... on EngineEvent {
    metadataEntries { label ... on TextMetadataEntry { text } } error { message causes { message } }
  }
  ... on ExecutionStepFailureEvent { error { message causes { message } } }
  ... on RunFailureEvent { error { message causes { message } } }
} } } }
"""
_RUNS = """
query ($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status jobName tags { key value } } } } }
"""


def add_partition(stack: Stack, definition: str, key: str) -> None:
    """Add a dynamic partition, as the page's dialog does."""
    answer = stack.ask(
        """mutation ($d: String!, $k: String!, $at: RepositorySelector!) {
             addDynamicPartition(partitionsDefName: $d, partitionKey: $k, repositorySelector: $at) {
               __typename } }""",
        d=definition,
        k=key,
        at=repository(stack),
    )
    assert answer["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess", answer


def start_sensor(stack: Stack, name: str) -> None:
    """Switch a sensor on, as the page's switch does."""
    answer = stack.ask(
        """mutation ($at: SensorSelector!) { startSensor(sensorSelector: $at) { __typename } }""",
        at={**repository(stack), "sensorName": name},
    )
    assert answer["startSensor"]["__typename"] == "Sensor", answer


def repository(stack: Stack) -> dict[str, str]:
    """Return under which names the page knows the definitions."""
    found = stack.ask(
        "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
    )
    (node,) = found["repositoriesOrError"]["nodes"]
    return {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}


def launch(
    stack: Stack, job: str, partition: str = "", config: Any = None, assets: Sequence[str] = ()
) -> str:
    """Launch a job, or some of its assets alone, and return the run's id."""
    told: dict[str, str] = {}
    if partition:
        told["dagster/partition"] = partition
    if "|" in partition:
        told["dagster/partition/field"], told["dagster/partition/night"] = partition.rsplit("|", 1)
    params = {
        "selector": {
            **repository(stack),
            "jobName": job,
            **({"assetSelection": [{"path": [name]} for name in assets]} if assets else {}),
        },
        "runConfigData": config or {},
        "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in told.items()]},
    }
    answer = stack.ask(_LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def status(stack: Stack, run: str) -> str:
    """Return SUCCESS, FAILURE, STARTED …"""
    return str(stack.ask(_STATUS, id=run)["runOrError"]["status"])


def events(stack: Stack, run: str) -> list[dict[str, Any]]:
    """Return a run's event log."""
    return list(stack.ask(_EVENTS, id=run)["logsForRun"]["events"])


def began(stack: Stack, run: str, step: str) -> bool:
    """Return whether a step has begun and not ended."""
    kinds = [e["eventType"] for e in events(stack, run) if e.get("stepKey") == step]
    return "STEP_START" in kinds and not {"STEP_SUCCESS", "STEP_FAILURE"} & set(kinds)


def workers(stack: Stack, run: str) -> dict[str, str]:
    """Return on which Celery worker each step ran."""
    return {
        str(event["stepKey"]): str(entry["text"])
        for event in events(stack, run)
        for entry in event.get("metadataEntries") or []
        if entry["label"] == "Celery worker"
    }


def family(stack: Stack, run: str) -> list[dict[str, Any]]:
    """Return a run and all that were started because it failed, the oldest first."""
    found = stack.ask(_RUNS, filter={"tags": [{"key": "dagster/root_run_id", "value": run}]})
    first = stack.ask(_RUNS, filter={"runIds": [run]})
    return [*first["runsOrError"]["results"], *reversed(found["runsOrError"]["results"])]


def ended(stack: Stack, run: str) -> str:
    """Return how a run, or its last retry, has ended; "" while something of it goes on."""
    runs = family(stack, run)
    if any(r["status"] not in ("SUCCESS", "FAILURE", "CANCELED") for r in runs):
        return ""
    tags = {tag["key"]: tag["value"] for tag in runs[-1]["tags"]}
    # Dagster notes a moment after a failure whether it will try again, and tries some seconds later.
    if runs[-1]["status"] == "FAILURE" and tags.get("dagster/will_retry") != "false":
        return ""
    # Nor has it ended where all was made before it was noted as failed: the sensor `made_after_all` says so.
    if runs[-1]["status"] == "FAILURE" and "No steps needed to be retried" in told(stack, runs[-1]["runId"]):
        return ""
    return str(runs[-1]["status"])


def told(stack: Stack, run: str) -> str:
    """Return what a run's page says of failures: messages and errors, line by line."""
    lines = []
    for event in events(stack, run):
        error = event.get("error") or {}
        causes = [cause["message"] for cause in error.get("causes") or []]
        text = " | ".join(filter(None, [event.get("message"), error.get("message"), *causes]))
        if error or "FAIL" in str(event.get("eventType")) or re.search("WHY|terminated|exited|gone", text):
            lines.append(text)
    return "\n".join(lines)


def process_of(stack: Stack, run: str, step: str = "") -> int:
    """Return the process that a run, or one of its steps, is in, as its log names it."""
    for event in reversed(events(stack, run)):
        found = re.search(r"\(pid: (\d+)\)", str(event.get("message")))
        # A step's line names the process only; the last such line is the latest step's.
        wanted = "Capturing logs for process" if step else "Started process for run"
        if found and wanted in event["message"]:
            return int(found[1])
    raise AssertionError(f"no process is named in the log of run {run}")
