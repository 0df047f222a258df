"""Dagster's instance on AstrID's PostgreSQL, as commands, runs and `dagster dev` find it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster import DagsterInstance
from dagster_postgres import PostgresRunStorage

from astrid_pipeline.services import dagster_home, postgres
from astrid_pipeline.services.health import answers
from astrid_pipeline.settings import Settings, reset_settings
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own() -> Iterator[Settings]:
    with home() as settings:
        yield settings


@pytest.fixture(autouse=True)
def _environment(own: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ASTRID_HOME", str(own.home))
    monkeypatch.setenv("ASTRID_WORKERS", "3")
    monkeypatch.setenv("ASTRID_GPUS", "2")
    monkeypatch.setenv("DAGSTER_HOME", "")
    reset_settings()
    yield
    reset_settings()


def test_the_instance_is_whole_and_loads_without_warnings(own: Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        with dagster_home.dagster_instance() as instance:
            storage = instance.get_ref().storage_data
            assert storage is not None
            assert storage.class_name == "AstridStorage"
            assert isinstance(instance.run_storage, PostgresRunStorage)
            assert str(instance.storage_directory()).startswith(str(own.dagster_home))
            assert isinstance(instance.compute_log_manager, dagster_home.AstridLogs)
            queue = instance.get_concurrency_config().run_queue_config
            assert queue is not None
            assert queue.max_concurrent_runs == 3
            assert {limit["key"] for limit in queue.tag_concurrency_limits} == {
                "astrid/archive",
                "astrid/gpu",
            }
            assert instance.run_monitoring_enabled
            assert instance.run_retries_enabled
            assert not instance.telemetry_enabled
            assert not instance.nux_enabled
            limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
            assert limits == {"gpu": 2, "archive": 2}
            assert isinstance(instance.run_launcher, dagster_home.AstridRunLauncher)


def test_a_persons_choice_of_pool_slots_stays(own: Settings) -> None:
    with dagster_home.dagster_instance() as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 4)
    with dagster_home.dagster_instance() as instance:
        limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
        assert limits["gpu"] == 4
        instance.event_log_storage.set_concurrency_slots("gpu", 1)


def test_runs_are_kept_and_other_processes_find_them(own: Settings) -> None:
    @dg.asset(pool="gpu")
    def sky(context) -> int:
        print("stars come out")
        return 1

    with dagster_home.dagster_instance() as instance:
        result = dg.materialize([sky], instance=instance)
        # A run's process is handed the instance as text.
        with DagsterInstance.from_ref(instance.get_ref()) as again:
            assert again.get_run_by_id(result.run_id) is not None
    program = (
        "import sys; from dagster import DagsterInstance as D, AssetKey as K; "
        "i = D.get(); print(i.get_latest_materialization_event(K('sky')).run_id)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DAGSTER_HOME": str(own.dagster_home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == result.run_id


def test_the_home_is_brought_up_to_date(own: Settings) -> None:
    folder = dagster_home.prepare_dagster_home(own)
    (folder / "dagster.yaml").write_text("of an older version: true")
    assert dagster_home.prepare_dagster_home(own) == folder
    assert yaml.safe_load((folder / "dagster.yaml").read_text()) == yaml.safe_load(
        (ROOT / "dagster.yaml").read_text()
    )
    assert (folder / ".nux" / "nux.yaml").exists()


def test_the_workspace_names_the_definitions() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    (location,) = workspace["load_from"]
    assert location["python_module"]["module_name"] == "astrid_pipeline.definitions"


@pytest.mark.slow
def test_dagster_dev_works_in_the_repository_root_with_nothing_set(tmp_path: Path) -> None:
    with home() as own:
        user = own.home / "user"
        user.mkdir()
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("ASTRID_", "DAGSTER_", "MLFLOW_"))
        }
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "--port", str(port)],
            cwd=ROOT,
            env={**environment, "HOME": str(user), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Tests started in the background of a shell ignore Ctrl-C, and what they start would do so too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 240
            while not answers(f"http://127.0.0.1:{port}/server_info") and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.5)
            query = json.dumps({"query": "{instance{info}}"}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql", query, {"Content-Type": "application/json"}
            )
            info = json.load(urllib.request.urlopen(request, timeout=60))["data"]["instance"]["info"]
            assert "event_log_storage: PostgresEventLogStorage" in info
            assert (user / ".astrid" / "postgres" / "PG_VERSION").exists()
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for other in psutil.process_iter():
                try:
                    if os.getsid(other.pid) == process.pid:
                        other.kill()
                except (ProcessLookupError, PermissionError, psutil.Error):
                    continue
            postgres.stop(own.model_copy(update={"home": user / ".astrid"}))
        assert not list(ROOT.glob(".tmp_dagster_home_*")), "the temporary home is left behind"


def test_steps_that_run_models_wait_for_a_gpu_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ASTRID_GPUS", "")
    reset_settings()
    monkeypatch.setattr(dagster_home, "_GPUS", tmp_path / "none")
    assert dagster_home.gpus() == 0
    assert dagster_home.pools()["gpu"] == os.cpu_count()
    for name in ("0000:17:00.0", "0000:65:00.0", "0000:98:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(dagster_home, "_GPUS", tmp_path / "gpus")
    assert dagster_home.pools()["gpu"] == dagster_home.gpus() == 3
    monkeypatch.setenv("ASTRID_DEVICE", "cpu")
    reset_settings()
    assert dagster_home.gpus() == 0
    monkeypatch.setenv("ASTRID_GPUS", "2")
    reset_settings()
    assert dagster_home.pools()["gpu"] == 2
