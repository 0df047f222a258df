"""The instance that Dagster's Helm chart makes of deploy/kubernetes/values.yaml, and all that the chart renders.

The chart is on no package index: rendering it needs the chart (`helm pull dagster/dagster --version 1.13.27`) named by
DAGSTER_CHART, and `helm` on the PATH. Without them, the instance is put together here from the values as the
chart's template of it does.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import sqlalchemy
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config
from dagster_postgres.utils import pg_url_from_config

VALUES = Path(__file__).parents[2] / "deploy" / "kubernetes" / "values.yaml"


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(VALUES.read_text())
    return loaded


def snake(name: str) -> str:
    return (
        re.sub("(?<=[a-z])(?=[A-Z])", "_", name.replace("K8s", "_k8s_")).lower().replace("__", "_").strip("_")
    )


def custom(values: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the class, with its configuration, that one part of the values names itself."""
    told = values["config"][f"custom{part}"]
    return {name: told[name] for name in ("module", "class", "config")}


def instance(values: dict[str, Any]) -> dict[str, Any]:
    """Return the `dagster.yaml` that the chart would write, less its scheduler."""
    told, daemon = values["postgresql"], values["dagsterDaemon"]
    database = {
        "username": told["postgresqlUsername"],
        "password": {"env": "DAGSTER_PG_PASSWORD"},
        "hostname": told["postgresqlHost"],
        "db_name": told["postgresqlDatabase"],
        "port": told["service"]["port"],
        "params": {},
    }
    if told.get("postgresqlScheme"):
        database["scheme"] = told["postgresqlScheme"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    made: dict[str, Any] = {
        name: {"module": f"dagster_postgres.{module}", "class": kind, "config": {"postgres_db": database}}
        for name, module, kind in (
            ("run_storage", "run_storage", "PostgresRunStorage"),
            ("event_log_storage", "event_log", "PostgresEventLogStorage"),
            ("schedule_storage", "schedule_storage", "PostgresScheduleStorage"),
        )
    }
    made["run_launcher"] = {
        "module": "dagster_k8s",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": launcher["loadInclusterConfig"],
            "job_namespace": "default",
            "image_pull_policy": launcher["imagePullPolicy"],
            "service_account_name": "astrid-dagster",
            "dagster_home": values["global"]["dagsterHome"],
            "instance_config_map": "astrid-dagster-instance",
            "postgres_password_secret": values["global"]["postgresqlSecretName"],
            "env_secrets": [source["name"] for source in launcher["envSecrets"]],
            "resources": launcher["resources"],
            "run_k8s_config": {snake(name): value for name, value in launcher["runK8sConfig"].items()},
        },
    }
    made["run_coordinator"] = custom(daemon["runCoordinator"], "RunCoordinator")
    made["compute_logs"] = custom(values["computeLogManager"], "ComputeLogManager")
    made["python_logs"] = {snake(name): value for name, value in values["pythonLogs"].items()}
    made["run_monitoring"] = {snake(name): value for name, value in daemon["runMonitoring"].items()}
    if daemon["runRetries"]["enabled"]:
        made["run_retries"] = {"enabled": True, "max_retries": daemon["runRetries"]["maxRetries"]}
    made["telemetry"] = {"enabled": values["telemetry"]["enabled"]}
    made["retention"] = {
        name: {"purge_after_days": values["retention"][name]["purgeAfterDays"]}
        for name in ("sensor", "schedule")
    }
    assert not set(made) & set(values["additionalInstanceConfig"]), "twice in one file"
    return made | values["additionalInstanceConfig"]


def check_instance(made: dict[str, Any], folder: Path) -> None:
    """Look whether Dagster takes an instance, each class its configuration, and whether it is as AstrID's own."""
    (folder / "dagster.yaml").write_text(yaml.safe_dump(made))
    dagster_instance_config(str(folder))
    for name, part in made.items():
        if isinstance(part, dict) and "class" in part:
            kind = getattr(importlib.import_module(part["module"]), part["class"])
            done = process_config(resolve_to_config_type(kind.config_type()), part.get("config") or {})
            assert done.success, (name, done.errors)
            if "postgres_db" in (part.get("config") or {}):
                # SQLAlchemy has the driver that the address names.
                sqlalchemy.create_engine(pg_url_from_config(done.value))
    own = yaml.safe_load(resources.files("astrid_pipeline.services").joinpath("dagster.yaml").read_text())
    for name in (
        "run_coordinator",
        "compute_logs",
        "local_artifact_storage",
        "concurrency",
        "run_retries",
        "nux",
    ):
        found = {key: value for key, value in made[name].items() if value != {}}
        assert found == own[name], name
    same = ("enabled", "start_timeout_seconds", "cancel_timeout_seconds", "free_slots_after_run_end_seconds")
    assert {key: made["run_monitoring"][key] for key in same} == {
        key: own["run_monitoring"][key] for key in same
    }
    assert made["python_logs"] == own["python_logs"]


def test_dagster_takes_the_instance_and_it_is_as_astrids_own(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "not-one")
    check_instance(instance(values), tmp_path)
    # The check can fail: without its scheme, the address is one that no driver here is for.
    del values["postgresql"]["postgresqlScheme"]
    with pytest.raises(ModuleNotFoundError, match="psycopg"):
        check_instance(instance(values), tmp_path)


def test_the_chart_renders_objects_that_kubernetes_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart, helm = os.environ.get("DAGSTER_CHART"), shutil.which("helm")
    if not chart or not helm:
        pytest.skip("Dagster's chart (DAGSTER_CHART) or helm is not here")
    command = [helm, "template", "astrid", chart, "--values", str(VALUES), "--namespace", "astrid"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = [made for made in yaml.safe_load_all(done.stdout) if made]
    assert objects
    for made in objects:
        kubernetes_validate.validate(made, "1.34", strict=True)
    (found,) = [made for made in objects if made["kind"] == "ConfigMap" and "dagster.yaml" in made["data"]]
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "not-one")
    check_instance(yaml.safe_load(found["data"]["dagster.yaml"]), tmp_path)
    for made in objects:
        if made["kind"] == "Deployment":
            spec = made["spec"]["template"]["spec"]
            for container in spec["containers"] + spec.get("initContainers", []):
                assert container["securityContext"]["runAsNonRoot"], made["metadata"]["name"]
                told = {variable["name"] for variable in container.get("env", [])}
                assert "DAGSTER_CONTAINER_CONTEXT" not in told, "jobs would take the code server's bounds"
