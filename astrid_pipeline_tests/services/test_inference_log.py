"""What inference costs in MLflow: one run a model version, day and source, shared by processes; never a night lost."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from astrid_pipeline.resources import inference_log
from astrid_pipeline.resources.inference_log import EXPERIMENT, Inference, log_inference, spent
from astrid_pipeline.resources.tracking import Tracking
from astrid_pipeline.settings import Settings, reset_settings
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.mlflow

ROOT = str(Path(__file__).parents[2])
BATCH = Inference("astrid-unet", "astrid-detector-1", 120.0, 4.0, "estimated", 6.0, 6, 80)

#: What a worker does: some nights of one day, and where each stands.
NIGHTS = """
import datetime as dt, sys
from astrid_pipeline.resources.inference_log import Inference, log_inference
for number in range(4):
    now = dt.datetime(2026, 3, 14, 5, int(sys.argv[1]), number, tzinfo=dt.UTC)
    night = Inference("astrid-unet", "astrid-detector-1", 100.0 + number, 4.0, "estimated", 2.0, 3, 9)
    done = log_inference(night, now=now)
    print(done.run_id, done.step, done.problem)
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Settings]:
    with home() as settings:
        yield settings


@pytest.fixture
def here(own: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("ASTRID_HOME", str(own.home))
    monkeypatch.setattr(inference_log, "_runs", {})
    reset_settings()
    yield own
    reset_settings()


def _on(day: int, hour: int = 5) -> dt.datetime:
    return dt.datetime(2026, 3, day, hour, tzinfo=dt.UTC)


def test_processes_share_one_run_a_day_and_what_they_spent_adds_up(here: Settings) -> None:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", NIGHTS, str(number)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    lines = [line.split() for worker in workers for line in worker.communicate(timeout=300)[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(lines) == 12
    assert len({run for run, _ in lines}) == 1
    assert len({step for _, step in lines}) == 12
    (row,) = spent("2026-03-14").to_dict("records")
    assert (row["model"], row["version"], row["source"]) == ("astrid-unet", "astrid-detector-1", "estimated")
    assert (row["batches"], row["joules"], row["seconds"], row["megapixels"]) == (12, 1218.0, 48.0, 24.0)
    assert row["joules_per_megapixel"] == pytest.approx(1218 / 24)


def test_another_day_model_or_source_is_a_run_of_its_own_and_what_is_over_is_closed(here: Settings) -> None:
    first = log_inference(BATCH, now=_on(20))
    others = [
        log_inference(replace(BATCH, version="astrid-detector-2"), now=_on(20)),
        log_inference(replace(BATCH, source="rapl"), now=_on(20)),
    ]
    client = Tracking(experiment=EXPERIMENT).client
    assert client.get_run(first.run_id).info.status == "RUNNING"
    next_day = log_inference(BATCH, now=_on(21))
    assert len({first.run_id, next_day.run_id, *(other.run_id for other in others)}) == 4
    assert [client.get_run(run.run_id).info.status for run in (first, *others)] == ["FINISHED"] * 3
    assert client.get_run(next_day.run_id).info.status == "RUNNING"
    # A worker that was late still finds the run of its day.
    assert log_inference(BATCH, now=_on(20, 6)).run_id == first.run_id
    assert first.as_metadata() == {"mlflow_run": first.run_id, "mlflow_step": 5 * 3_600_000}
    assert sorted(spent("2026-03-20").source) == ["estimated", "estimated", "rapl"]
    assert not len(spent("2026-03-22"))
    assert len(spent("2026-03-20", model="another")) == 0


def test_what_is_not_known_is_left_out_and_not_divided_by(here: Settings) -> None:
    log_inference(BATCH, now=_on(25))
    done = log_inference(replace(BATCH, megapixels=float("nan"), joules=50.0), now=_on(25, 6))
    (row,) = spent("2026-03-25").to_dict("records")
    assert row["joules"] == 170
    assert row["joules_per_megapixel"] == pytest.approx(20)
    assert not done.problem


def test_a_run_that_was_deleted_is_opened_anew_and_the_night_is_told(here: Settings) -> None:
    first = log_inference(BATCH, now=_on(27))
    Tracking(experiment=EXPERIMENT).client.delete_run(first.run_id)
    told = log_inference(BATCH, now=_on(27, 6))
    assert "not logged: cannot record what inference has cost" in str(told.as_metadata()["mlflow"])
    again = log_inference(BATCH, now=_on(27, 7))
    assert again.run_id not in ("", first.run_id)
    assert spent("2026-03-27").batches.tolist() == [1]


def test_a_server_that_does_not_answer_is_said_and_raises_nothing(
    here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    reset_settings()
    done = log_inference(BATCH)
    assert done.problem.startswith("cannot ")
    assert list(done.as_metadata()) == ["mlflow"]
    with pytest.raises(Exception, match="cannot"):
        spent("2026-03-14")
