"""deploy/kubernetes/values.yaml: what comes of it are jobs that Kubernetes takes, with a GPU where one is wanted.

There is no cluster here. What the chart does with the run launcher's part is done by the same library that the chart
configures (dagster-k8s); what comes out is checked against Kubernetes' own schemas. `test_chart.py` renders the chart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster import DagsterRun
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import (
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
    get_user_defined_k8s_config,
)

from astrid_pipeline import definitions
from astrid_pipeline.services import dagster_home
from astrid_pipeline.settings import Settings, variable_name

VALUES = Path(__file__).parents[2] / "deploy" / "kubernetes" / "values.yaml"
#: Kubernetes' versions of a year: what the big clouds support.
VERSIONS = ("1.31", "1.34", "1.37")


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(VALUES.read_text())
    return loaded


def snake(name: str) -> str:
    """Return the name that the launcher has for one of the chart's."""
    return {"runK8sConfig": "run_k8s_config"}.get(name) or re.sub(
        "([A-Z])", lambda c: f"_{c[1].lower()}", name
    )


@pytest.fixture(scope="module")
def launcher(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the launcher, as the chart's `dagster.yaml` would hold it."""
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    told = values["runLauncher"]["config"]["k8sRunLauncher"]
    config = {snake(name): value for name, value in told.items()}
    config["env_secrets"] = [source["name"] for source in told["envSecrets"]]
    config["run_k8s_config"] = {snake(name): value for name, value in config["run_k8s_config"].items()}
    # What the chart itself adds.
    config |= {
        "load_incluster_config": False,
        "kubeconfig_file": None,
        "service_account_name": "astrid",
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "dagster_home": values["global"]["dagsterHome"],
    }
    done = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert done.success, done.errors
    return dict(done.value)


def job_of(config: dict[str, Any], values: dict[str, Any], node: Any) -> dict[str, Any]:
    """Return the Kubernetes job of a step, as `k8s_job_executor` puts it together."""
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    image = deployment["image"]
    context = K8sContainerContext(
        image_pull_policy=config["image_pull_policy"],
        service_account_name=config["service_account_name"],
        env_secrets=config["env_secrets"],
        resources=config["resources"],
        namespace="astrid",
        run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config["run_k8s_config"]),
    )
    if deployment.get("includeConfigInLaunchedRuns", {"enabled": True})["enabled"]:
        # So the chart would have it: what the code server asks for, its jobs ask for too.
        context = context.merge(
            K8sContainerContext(
                env_secrets=[source["name"] for source in deployment["envSecrets"]],
                resources=deployment.get("resources", {}),
            )
        )
    context = context.merge(
        K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(node.definition.tags))
    )
    run = DagsterRun(job_name="process_night", run_id="0" * 8)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(f"{image['repository']}:{image['tag']}", _Names(config)),
        ["dagster", "api", "execute_step"],
        "dagster-step-0",
        context.run_k8s_config,
        labels={"dagster/run-id": run.run_id},
    )
    from kubernetes import client

    made: dict[str, Any] = client.ApiClient().sanitize_for_serialization(job)
    return made


class _Names:
    """What a job takes of its launcher beside the container's own: names."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.dagster_home = config["dagster_home"]
        self.instance_config_map = config["instance_config_map"]
        self.postgres_password_secret = config["postgres_password_secret"]
        self.job_image = None


@pytest.mark.parametrize("version", VERSIONS)
def test_each_step_is_a_job_that_kubernetes_takes_and_only_those_on_gpus_ask_for_one(
    values, launcher, version
):
    nodes = definitions.defs.resolve_job_def("process_night").nodes
    asked = {}
    for node in nodes:
        job = job_of(launcher, values, node)
        kubernetes_validate.validate(job, version, strict=True)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        resources = container["resources"]
        asked[node.name] = resources["limits"].get("nvidia.com/gpu")
        # Memory is asked for and bounded all the same.
        assert resources["limits"]["memory"] == "8Gi"
        assert resources["requests"]["memory"] == "4Gi"
        assert container["securityContext"]["runAsNonRoot"]
        assert any(m["mountPath"] == "/var/lib/astrid" for m in container["volumeMounts"])
        assert {"secretRef": {"name": "astrid"}} in container["envFrom"]
        assert {"name": "ASTRID_EXECUTOR", "value": "k8s"} in container["env"]
    gpu = {node.name for node in nodes if node.definition.tags["dagster-celery/queue"] == "gpu"}
    assert gpu
    assert {name for name, count in asked.items() if count} == gpu
    assert {count for count in asked.values() if count} == {"1"}
    # The check can fail.
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_the_deployments_are_ones_that_kubernetes_takes(values):
    """The parts of the values that the chart puts into pods as they stand."""
    (code,) = values["dagster-user-deployments"]["deployments"]
    for name, part in (
        ("code", code),
        ("web", values["dagsterWebserver"]),
        ("daemon", values["dagsterDaemon"]),
    ):
        image = part["image"]
        container = {
            "name": name,
            "image": f"{image['repository']}:{image['tag']}",
            "imagePullPolicy": image["pullPolicy"],
            "env": part["env"],
            "envFrom": [{"secretRef": source} for source in part["envSecrets"]],
            "securityContext": part["securityContext"],
            "resources": part["resources"],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container]},
        }
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)


def test_variables_and_classes_are_ones_that_astrid_has_and_no_secret_is_in_the_file(values):
    (code,) = values["dagster-user-deployments"]["deployments"]
    known = {variable_name(name) for name in Settings.model_fields}
    told = {variable["name"]: variable["value"] for variable in code["env"]}
    assert set(told) <= known
    assert told["ASTRID_EXECUTOR"] == "k8s"
    assert not re.search(r"(?i)password:|secret_access_key:", VALUES.read_text())
    told = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    assert told["module"] == dagster_home.__name__
    kind = getattr(dagster_home, told["class"])
    assert process_config(resolve_to_config_type(kind.config_type()), told["config"]).success
