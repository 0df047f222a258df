"""docker-compose.yml, Dockerfile and .env.example: as their specifications and AstrID's own settings have them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from astrid_pipeline.settings import Settings, variable_name

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_compose_is_as_the_specification_says(compose: dict[str, Any]) -> None:
    import jsonschema

    vendor = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendor.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    # The check can fail.
    assert list(validator.iter_errors({**compose, "services": {"x": {"comand": "misspelt"}}}))


def test_every_part_is_there_with_a_healthcheck_and_comes_back(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        *("postgres", "redis", "mlflow", "code", "webserver", "review", "daemon", "s3"),
        *("worker-cpu", "worker-gpu", "worker-nvidia"),
    }
    for name, service in services.items():
        assert "healthcheck" in service, name
        assert service["restart"] == "unless-stopped", name
    for service in services.values():
        for upstream, condition in service.get("depends_on", {}).items():
            assert upstream in services
            assert condition == {"condition": "service_healthy"}
    assert services["s3"]["profiles"] == ["s3"]
    assert {name for name, service in services.items() if "profiles" in service} == {"s3", "worker-nvidia"}
    for name in ("postgres", "redis", "s3"):
        # What is kept is kept outside the container, in a volume that the file declares.
        kept = [volume.split(":")[0] for volume in service_volumes(services[name])]
        assert kept
        assert set(kept) <= set(compose["volumes"])


def service_volumes(service: dict[str, Any]) -> list[str]:
    return [str(volume) for volume in service.get("volumes", [])]


def test_each_queue_has_its_workers_and_the_gpu_one_gets_a_gpu(compose: dict[str, Any]) -> None:
    from astrid_pipeline.services.celery import QUEUES

    services = compose["services"]
    served = {
        name: option(service["command"], "--queues") for name, service in services.items() if "worker" in name
    }
    assert served == {"worker-cpu": "cpu", "worker-gpu": "gpu", "worker-nvidia": "gpu"}
    assert set(served.values()) == set(QUEUES)
    assert option(services["worker-gpu"]["command"], "--concurrency") == "1"
    nvidia = services["worker-nvidia"]
    (device,) = nvidia["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert nvidia["environment"]["ASTRID_DEVICE"] == "cuda"
    assert nvidia["build"]["target"] in targets()
    assert services["code"]["build"]["target"] in targets()
    # What Redis has acknowledged it has on disk.
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "always"


def option(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"{name}="))


def targets() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_processes_are_told_where_json_logs_go(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if service.get("image", "").startswith("astrid:"):
            assert service["environment"]["ASTRID_LOG_JSON"] == "${ASTRID_LOG_JSON:-}", name


def test_the_dockerfile_has_nothing_that_hadolint_finds_fault_with(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    # The linter can find fault.
    worse = tmp_path / "Dockerfile"
    worse.write_text(
        (ROOT / "Dockerfile").read_text().replace("python:3.11.14-slim-bookworm", "python:latest")
    )
    assert subprocess.run([program, worse], capture_output=True).returncode != 0


def test_no_secret_and_no_open_port(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|URL", name):
                assert "${" in str(value), f"{name} holds a value of its own"
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), "pages without sign-in are for this machine only"
    for line in (ROOT / ".env.example").read_text().splitlines():
        if re.search("PASSWORD|SECRET|KEY", line) and not line.startswith("#"):
            assert line.endswith("=")


def test_the_variables_are_those_that_astrid_reads(compose: dict[str, Any]) -> None:
    known = {variable_name(name) for name in Settings.model_fields}
    used = {
        name
        for service in compose["services"].values()
        for name in service.get("environment", {})
        if name.startswith("ASTRID_") or name == "MLFLOW_TRACKING_URI"
    }
    assert used
    assert used <= known
    example = {line.split("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    assert {name for name in example if name.startswith("ASTRID_")} <= known


def options(command: list[str]) -> str:
    """Return what the program of a command says about its options."""
    words = [word for word in command if not word.startswith("-") or word == "-m"]
    program = {"python": [sys.executable]}.get(words[0], [sys.executable, "-m", words[0].replace("-", "_")])
    if words[0].startswith("dagster"):
        program = [str(Path(sys.executable).parent / words[0])]
    known = ("code-server", "start", "run", "api", "grpc-health-check", "worker")
    subcommands = [word for word in words[1:] if word in known]
    return subprocess.run(
        [*program, *subcommands, "--help"], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", ["code", "webserver", "daemon", "worker-cpu"])
def test_the_commands_are_ones_that_dagster_knows(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    for command in (service["command"], service["healthcheck"]["test"][1:]):
        if command[0].startswith(("dagster", "celery")):
            text = options(command)
            for word in [word.partition("=")[0] for word in command]:
                if word.startswith("--"):
                    assert re.search(rf"(^|[\s,]){re.escape(word)}\b", text), f"{command[0]} has no {word}"


def test_the_image_takes_what_is_sent_to_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            copied.update(line.split()[1:-1])
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied - {"README.md"})


def test_the_image_does_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "--uid 10001" in text
    # Both images are made of the stage with that user, and of images whose tags do not move under one's feet.
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE))
    assert {name: image for image, name in re.findall(r"^FROM (base) AS (\S+)$", text, re.MULTILINE)} == {
        "cuda": "base",
        "cpu": "base",
    }
    for image in set(stages) - set(targets()):
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image), image


def test_the_packaged_dagster_yaml_is_the_one_at_the_top() -> None:
    packaged = resources.files("astrid_pipeline.services").joinpath("dagster.yaml").read_text()
    assert packaged == (ROOT / "dagster.yaml").read_text()
