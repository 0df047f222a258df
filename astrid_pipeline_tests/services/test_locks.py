"""locks/*.txt: the pins of constraints.txt with hashes, and all that pyproject.toml asks for."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {name: ROOT / "locks" / f"{name}.txt" for name in ("run", "k8s", "test")}


def pinned(path: Path) -> list[Requirement]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "# "]
    return [Requirement(line.removesuffix("\\")) for line in lines]


def versions(*paths: Path) -> dict[tuple[str, str], str]:
    """Return each pin's specifier by name and marker."""
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        for pin in pinned(path):
            key = (canonicalize_name(pin.name), str(pin.marker or ""))
            assert key not in found, f"{pin.name} twice"
            found[key] = str(pin.specifier)
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_locks_are_the_constraints_without_torch() -> None:
    locks, constraints = versions(*LOCKS.values()), versions(ROOT / "constraints.txt")
    assert constraints.pop(("torch", "")).startswith("==")
    assert locks == constraints, "make lock"


@pytest.mark.parametrize("path", LOCKS.values(), ids=LOCKS)
def test_each_pin_has_hashes_and_no_index_is_named(path: Path) -> None:
    text = path.read_text()
    assert all(re.fullmatch(r"==\S+", str(pin.specifier)) for pin in pinned(path))
    for block in re.split(r"\n(?=[^ #])", text.partition("\n")[2]):
        first, *hashes = block.rstrip("\n").split(" \\\n")
        assert hashes, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)


@pytest.mark.parametrize(("extra", "locks"), [("", ["run"]), ("k8s", ["run", "k8s"]), ("test", list(LOCKS))])
@pytest.mark.parametrize("version", ["3.11.2", "3.12.8"])
@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
)
def test_what_pyproject_asks_for_is_locked(
    project: dict[str, Any], extra: str, locks: list[str], version: str, system: str, machine: str
) -> None:
    environment = {
        **default_environment(),
        "python_version": version.rpartition(".")[0],
        "python_full_version": version,
        "sys_platform": system,
        "platform_machine": machine,
    }
    there: dict[str, str] = {}
    for path in [LOCKS[name] for name in locks]:
        for pin in pinned(path):
            if pin.marker is None or pin.marker.evaluate(environment):
                assert canonicalize_name(pin.name) not in there
                there[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    wanted += project["project"]["optional-dependencies"].get(extra, [])
    for requirement in map(Requirement, wanted):
        if requirement.name != "torch" and (
            requirement.marker is None or requirement.marker.evaluate(environment)
        ):
            assert requirement.specifier.contains(there[canonicalize_name(requirement.name)]), "make lock"


def test_what_is_installed_here_is_what_is_locked() -> None:
    """`pip check` asks the packages themselves for what they need; their versions are those of the locks."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run([*command, "freeze", "--all"], capture_output=True, text=True, check=True).stdout
    here = dict(line.split("==") for line in listed.splitlines() if re.fullmatch(r"[^=@#-][^=@]*==\S+", line))
    here = {canonicalize_name(name): version for name, version in here.items()}
    for path in LOCKS.values():
        for pin in pinned(path):
            if pin.marker is None or pin.marker.evaluate():
                assert here[canonicalize_name(pin.name)] == str(pin.specifier).removeprefix("=="), pin.name


@pytest.fixture
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_entries_of_a_lock_leave_torch_and_its_cuda_out(lock: ModuleType) -> None:
    text = "# a comment\n" + "".join(
        f"{pin} \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n"
        for pin in (
            "nvidia-ml-py==13.0",
            "nvidia-nccl-cu13==2 ; sys_platform == 'linux'",
            "triton==3 ; sys_platform == 'linux'",
            "cuda-bindings==13",
            "torch==2.13.0",
            "zipp==4 ; python_full_version < '3.12'",
        )
    )
    found = lock.entries(text)
    assert list(found) == ["nvidia-ml-py", "zipp ; python_full_version < '3.12'"]
    assert all(block.count("--hash") == 2 for block in found.values())
    assert lock.pins("A_b.C==1\n") == {"a-b-c": "A_b.C==1"}
