"""Fixtures and rules for every room's tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from astrid_pipeline_tests.support import CHROMIUM_ARGS, NEEDED_IN_CI, find_chromium, in_ci, missing

REPOSITORY = Path(__file__).resolve().parent.parent

_home: Path | None = None
_room: Path | None = None
_environment: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a home of its own before anything reads a setting, so that no test touches a person's data.

    The path is short on purpose: a PostgreSQL socket lives in it, and a socket's path may have 107 bytes.
    """
    global _home
    kept = {"ASTRID_SHARED_DATA", "ASTRID_CHROMIUM"}
    for name in [n for n in os.environ if n.startswith("ASTRID_") and n not in kept]:
        del os.environ[name]
    for name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
    _home = Path(tempfile.mkdtemp(prefix="astrid-"))
    os.environ["ASTRID_HOME"] = str(_home)
    # No test is timed: another process on the machine must not fail it. In CI the examples are always the same.
    settings.register_profile("astrid", deadline=None, derandomize=in_ci(), max_examples=50)
    settings.load_profile("astrid")
    # Two cores: more threads than that only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    _environment.update(_named())


def _named() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ASTRID_")}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to begin a room in an environment that another room left behind: its tests would use the other's data."""
    global _room
    if item.path.parent != _room:
        _room = item.path.parent
        # AstrID sets it for the process that it runs in, for good: runs launched from there need it.
        os.environ.pop("DAGSTER_HOME", None)
        left = dict(_named().items() ^ _environment.items())
        assert not left, f"a room before {_room.name} left behind or took away: {sorted(left)}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the run's PostgreSQL, if a test has started it, and remove the run's home."""
    if _home is not None:
        if (_home / "postgres").exists():
            from astrid_pipeline.services import postgres
            from astrid_pipeline.settings import load_settings

            postgres.stop(load_settings(home=_home))
        shutil.rmtree(_home, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn the skip of a test that needs a service or a browser into a failure."""
    report = yield
    needs = [name for name in NEEDED_IN_CI if item.get_closest_marker(name)]
    if report.skipped and needs and in_ci() and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs {', '.join(needs)} and must not skip in CI: {reason}"
    return report


@pytest.fixture(scope="session")
def astrid_home() -> Path:
    """The run's ASTRID_HOME, empty at its start and removed at its end."""
    assert _home is not None
    return _home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $ASTRID_SHARED_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("ASTRID_SHARED_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder} (set ASTRID_SHARED_DATA to the folder that holds them)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that can be started; absent, the test is skipped, in CI it fails."""
    path = find_chromium()
    if path is None:
        missing("Chromium", "apt-get install chromium, or set ASTRID_CHROMIUM to its path")
    return path


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """A playwright Browser, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_ARGS))
        yield started
        started.close()
