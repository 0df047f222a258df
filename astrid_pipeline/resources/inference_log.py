"""What inference costs, in MLflow: joules, seconds and megapixels of each night, beside the model that judged it.

A thousand fields a night must not make MLflow what they wait for. So there is one MLflow run a model version, day and
source of the joules (measured ones and estimates are never summed), and a night adds one step to it in one request.
The night itself goes on if MLflow does not answer.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from astrid_pipeline.errors import AstridError, ServiceError
from astrid_pipeline.resources.tracking import Tracking, mlflow_failing
from astrid_pipeline.services import mlflow as service
from astrid_pipeline.services import postgres

#: Of its own, so that the attempts of training stay easy to read.
EXPERIMENT = "astrid-inference"

_DAY_MS = 86_400_000

_lock = threading.Lock()
#: MLflow runs by server, model, day and source: a process looks for each of them once.
_runs: dict[tuple[str, str, str, str, str], str] = {}


@dataclass(frozen=True)
class Inference:
    """One batch of inference: a field's night, or what came with its alerts.

    Attributes
    ----------
    model, version:
        As on its detections.
    joules, seconds, source:
        Of `learning.energy.EnergyMeter`.
    megapixels:
        Looked at; NaN where they are not known.
    images, detections:
        How many exposures (or alerts) went in, and what was found.
    """

    model: str
    version: str
    joules: float
    seconds: float
    source: str
    megapixels: float
    images: int
    detections: int

    def metrics(self) -> dict[str, float]:
        """Return the numbers that are kept; what is not known is left out."""
        values = {
            "joules": self.joules,
            "seconds": self.seconds,
            "megapixels": self.megapixels,
            "images": float(self.images),
            "detections": float(self.detections),
            "joules_per_megapixel": self.joules / self.megapixels if self.megapixels else math.nan,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Logged:
    """Where a batch stands in MLflow: run and step; or in `problem` why it does not."""

    run_id: str = ""
    step: int = -1
    problem: str = ""

    def as_metadata(self) -> dict[str, str | int]:
        """Return it as an asset's metadata."""
        if self.problem:
            return {"mlflow": f"not logged: {self.problem}"}
        return {"mlflow_run": self.run_id, "mlflow_step": self.step}


def log_inference(batch: Inference, *, now: dt.datetime | None = None) -> Logged:
    """Add a batch as one step to the MLflow run of its model version, day (UTC) and source of joules.

    The step is the time of day in milliseconds: processes that share a run need not agree on a number.

    Returns
    -------
    Logged
        With `problem` where MLflow (or its database) could not be reached: what was judged is not lost for that.
    """
    now = now or dt.datetime.now(dt.UTC)
    step = int(now.timestamp() * 1000) % _DAY_MS
    try:
        key = (service.tracking_uri(), batch.model, batch.version, now.date().isoformat(), batch.source)
        tracking = Tracking(experiment=EXPERIMENT)
        run_id = _runs.get(key) or _find_or_open(tracking, key)
        try:
            _add(tracking, run_id, batch.metrics(), step)
        except ServiceError:
            # Somebody may have deleted the run meanwhile: the next night looks for it anew.
            _runs.pop(key, None)
            raise
    except AstridError as error:
        return Logged(problem=error.what)
    return Logged(run_id, step)


def spent(day: str, *, model: str | None = None) -> pd.DataFrame:
    """Return what inference has cost on a day (YYYY-MM-DD, UTC): a row a model version and source of joules.

    Returns
    -------
    DataFrame
        model, version, source, batches, joules, seconds, megapixels, joules_per_megapixel (of those batches that know
        their megapixels).

    Raises
    ------
    ServiceError
        If MLflow does not answer.
    """
    columns = [
        "model",
        "version",
        "source",
        "batches",
        "joules",
        "seconds",
        "megapixels",
        "joules_per_megapixel",
    ]
    tracking = Tracking(experiment=EXPERIMENT)
    wanted = f"tags.day = '{day}'" + (f" and tags.model = '{model}'" if model else "")
    rows = []
    with mlflow_failing("read what inference has cost"):
        for run in tracking.client.search_runs([tracking._experiment_id()], wanted):
            history = {
                name: tracking.client.get_metric_history(run.info.run_id, name)
                for name in ("joules", "seconds", "megapixels")
            }
            total = {name: sum(m.value for m in values) for name, values in history.items()}
            known = {m.step for m in history["megapixels"]}
            of_known = sum(m.value for m in history["joules"] if m.step in known)
            tags = run.data.tags
            rows.append(
                {
                    **{name: tags[name] for name in ("model", "version", "source")},
                    **total,
                    "batches": len(history["seconds"]),
                    "joules_per_megapixel": of_known / total["megapixels"]
                    if total["megapixels"]
                    else math.nan,
                }
            )
    return pd.DataFrame(rows, columns=columns)


def _add(tracking: Tracking, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = [Metric(name, value, now, step) for name, value in metrics.items()]
    with mlflow_failing("record what inference has cost"):
        tracking.client.log_batch(run_id, metrics=values)


def _find_or_open(tracking: Tracking, key: tuple[str, str, str, str, str]) -> str:
    """Return the run of a model, day and source; open it, and close those of earlier days, if it is the day's first."""
    _, model, version, day, source = key
    with mlflow_failing("find the run of inference"):
        where = [tracking._experiment_id()]
        wanted = " and ".join(
            f"tags.{name} = '{value}'"
            for name, value in {"model": model, "version": version, "day": day, "source": source}.items()
        )
        found = list(tracking.client.search_runs(where, wanted, max_results=1))
        if not found:
            # One process at a time, or a day that begins with many would have as many runs.
            with postgres.advisory_lock("mlflow", EXPERIMENT):
                found = list(tracking.client.search_runs(where, wanted, max_results=1))
                if not found:
                    tags = {"model": model, "version": version, "day": day, "source": source}
                    name = f"{version} {day} {source}"
                    found = [tracking.client.create_run(where[0], run_name=name, tags=tags)]
                    for old in tracking.client.search_runs(where, "attributes.status = 'RUNNING'"):
                        if old.data.tags.get("day", day) < day:
                            tracking.client.set_terminated(old.info.run_id)
    run_id = str(found[0].info.run_id)
    with _lock:
        if len(_runs) > 50:  # some days of a process that never ends
            _runs.clear()
        _runs[key] = run_id
    return run_id
