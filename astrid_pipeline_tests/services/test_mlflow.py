"""MLflow on the embedded PostgreSQL, on a server, with files in a folder and in a bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from astrid_pipeline.errors import MissingProductError, ServiceError
from astrid_pipeline.resources.tracking import CHALLENGER, CHAMPION, Tracking, mlflow_run
from astrid_pipeline.services import mlflow as service
from astrid_pipeline.services.health import answers
from astrid_pipeline.settings import Settings, get_settings, reset_settings
from astrid_pipeline_tests.s3_servers import free_port, s3_server
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.mlflow

ROOT = str(Path(__file__).parents[2])


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> Iterator[None]:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    reset_settings()
    try:
        yield
    finally:
        reset_settings()


@pytest.fixture(scope="module")
def own() -> Iterator[Settings]:
    """A home whose MLflow database has been made by two processes at once."""
    with home() as settings:
        program = "from astrid_pipeline.services import mlflow; mlflow.tracking_uri()"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, "ASTRID_HOME": str(settings.home), "PYTHONPATH": ROOT},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        errors = [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], errors
        yield settings


@pytest.fixture
def tracking(own: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracking]:
    # MLflow sets this variable when it is pointed somewhere; the test's end takes it back.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with environment(monkeypatch, ASTRID_HOME=str(own.home)):
        yield Tracking(experiment=f"test {time.time_ns()}")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights one")
    (folder / "card.json").write_text('{"name": "one"}')
    return folder


def test_an_attempt_is_one_run_that_says_how_it_ended(tracking: Tracking) -> None:
    with tracking.attempt(
        "unet", params={"lr": 1e-3, "note": "x" * 9000}, tags={"gpu": 0}, dagster_run_id="r1"
    ) as done:
        done.log_metrics({"loss": 0.5, "undefined": float("nan")}, step=1)
        done.log_metrics({"loss": 0.25}, step=2)
        done.log_tags({"dataset": "night one"})
        done.log_bytes(b"{}", "plots/curve.json")
    run = tracking.client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.001"
    assert run.data.metrics == {"loss": 0.25}
    assert [m.value for m in tracking.client.get_metric_history(done.run_id, "loss")] == [0.5, 0.25]
    assert run.data.tags["dagster_run_id"] == "r1"
    assert run.data.tags["dataset"] == "night one"
    assert [f.path for f in tracking.client.list_artifacts(done.run_id, "plots")] == ["plots/curve.json"]
    with pytest.raises(ZeroDivisionError), tracking.attempt("unet") as failed:
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), tracking.attempt("unet") as killed:
        raise KeyboardInterrupt
    assert tracking.client.get_run(failed.run_id).info.status == "FAILED"
    assert tracking.client.get_run(killed.run_id).info.status == "KILLED"


def test_many_parameters_and_metrics_at_once(tracking: Tracking) -> None:
    with tracking.attempt("wide", params={f"p{n}": n for n in range(150)}) as attempt:
        attempt.log_metrics({f"m{n}": n for n in range(1200)})
    data = tracking.client.get_run(attempt.run_id).data
    assert (len(data.params), len(data.metrics)) == (150, 1200)


def test_models_are_found_by_alias(tracking: Tracking, files: Path, tmp_path: Path) -> None:
    name = f"model-{time.time_ns()}"
    assert tracking.find(name) is None
    with pytest.raises(MissingProductError, match="'champion'"):
        tracking.load(name, tmp_path / "none")
    with tracking.attempt("one") as attempt:
        one = tracking.register(
            name, files, attempt.run_id, alias=CHAMPION, tags={"ap": 0.9}, description="the first"
        )
    (files / "weights.safetensors").write_bytes(b"weights two")
    with tracking.attempt("two") as attempt:
        two = tracking.register(
            name, dict.fromkeys(["w.safetensors"], files / "weights.safetensors"), attempt.run_id
        )
    assert (one.version, two.version) == ("1", "2")
    found = tracking.find(name)
    assert found is not None
    assert (found.version, found.run_id, dict(found.tags)) == ("1", one.run_id, {"ap": "0.9"})
    assert tracking.find(name, CHALLENGER) is None
    loaded = tracking.load(name, tmp_path / "loaded")
    assert loaded.folder is not None
    assert {p.name: p.read_bytes() for p in loaded.folder.iterdir()} == {
        "weights.safetensors": b"weights one",
        "card.json": b'{"name": "one"}',
    }
    tracking.set_alias(name, CHAMPION, two.version)
    loaded = tracking.load(name, tmp_path / "again")
    assert loaded.folder is not None
    assert (loaded.folder / "w.safetensors").read_bytes() == b"weights two"


def test_files_go_to_the_store(tracking: Tracking) -> None:
    with tracking.attempt("where") as attempt:
        attempt.log_bytes(b"x", "x.txt")
    place = tracking.client.get_run(attempt.run_id).info.artifact_uri
    assert str(get_settings().home / "store" / "mlflow") in place


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.joblib"])
def test_pickles_are_refused(tracking: Tracking, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with tracking.attempt("unsafe") as attempt, pytest.raises(ValueError, match="safetensors"):
        tracking.register("unsafe", {name: tmp_path / name}, attempt.run_id)


def test_dagster_mlflow_shares_one_run_between_steps(own: Settings, tracking: Tracking) -> None:
    import mlflow
    from dagster_mlflow import end_mlflow_on_run_finished

    @dg.op(required_resource_keys={"mlflow"})
    def first(context) -> str:
        context.resources.mlflow.log_metric("seeing", 1.1)
        return context.resources.mlflow.active_run().info.run_id

    @dg.op(required_resource_keys={"mlflow"})
    def second(context, run_id: str) -> str:
        context.resources.mlflow.log_metric("depth", 21.0)
        assert context.resources.mlflow.active_run().info.run_id == run_id
        return run_id

    @end_mlflow_on_run_finished
    @dg.job(resource_defs={"mlflow": mlflow_run})
    def night():
        second(first())

    result = night.execute_in_process()
    run = tracking.client.get_run(result.output_for_node("second"))
    assert run.data.metrics == {"seeing": 1.1, "depth": 21.0}
    assert run.data.tags["dagster_run_id"] == result.run_id
    assert run.info.status == "FINISHED"
    assert mlflow.active_run() is None


@contextmanager
def running_server(command: list[str], variables: dict[str, str], url: str) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **variables, "PYTHONPATH": ROOT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not answers(url) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        assert answers(url), process.poll()
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.slow
@pytest.mark.s3
def test_a_server_keeps_files_in_the_bucket_for_clients_without_keys(
    own: Settings, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with s3_server("moto", tmp_path) as s3:
        variables = {
            **s3.environment("survey"),
            "ASTRID_HOME": str(own.home),
            "ASTRID_MLFLOW_PORT": str(port),
        }
        command = [sys.executable, "-m", "astrid_pipeline.services.mlflow"]
        with (
            running_server(command, variables, f"{url}/health"),
            environment(monkeypatch, ASTRID_HOME=str(own.home), MLFLOW_TRACKING_URI=url),
        ):
            tracking = Tracking(experiment=f"server {time.time_ns()}")
            name = f"served-{time.time_ns()}"
            with tracking.attempt("unet", params={"a": 1}) as attempt:
                tracking.register(name, files, attempt.run_id, alias=CHAMPION)
            loaded = tracking.load(name, tmp_path / "loaded")
            assert loaded.folder is not None
            assert (loaded.folder / "weights.safetensors").read_bytes() == b"weights one"
            keys = [entry.key for entry in s3.store("survey").list("mlflow")]
            assert sum(key.endswith(f"models/{name}/weights.safetensors") for key in keys) == 1


@pytest.mark.s3
def test_without_a_server_files_go_to_the_bucket(
    own: Settings, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        # The service fills these in for MLflow's own client; what it sets must not outlive the test.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    with (
        s3_server("moto", tmp_path) as s3,
        environment(monkeypatch, ASTRID_HOME=str(own.home), **s3.environment("direct")),
    ):
        tracking = Tracking(experiment=f"bucket {time.time_ns()}")
        name = f"direct-{time.time_ns()}"
        with tracking.attempt("unet") as attempt:
            tracking.register(name, files, attempt.run_id, alias=CHAMPION)
        loaded = tracking.load(name, tmp_path / "loaded")
        assert loaded.folder is not None
        assert (loaded.folder / "card.json").exists()
        assert any(entry.key.endswith("card.json") for entry in s3.store("direct").list("mlflow"))


def test_a_server_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with environment(monkeypatch, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"):
        with pytest.raises(ServiceError, match="cannot look up the model") as caught:
            Tracking().find("any")
        assert not caught.value.permanent


def test_the_password_is_not_among_the_arguments(own: Settings) -> None:
    command, variables = service.server_command(own)
    assert not any("postgres" in part for part in command)
    assert variables["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")
