"""The small demo, run once for all tests that look at what it leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from astrid_pipeline.settings import get_settings, reset_settings


@dataclass(frozen=True)
class Demo:
    """A home in which `astrid demo --quick` has run, and what it printed."""

    home: Path
    output: str


def run_astrid(home: Path, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run `astrid` as a person would, with everything kept in `home`."""
    environment = {**os.environ, "ASTRID_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "astrid_pipeline.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="package")
def demo(tmp_path_factory) -> Iterator[Demo]:
    """The quick demo, and the settings of this process pointed at its home."""
    # Short: a PostgreSQL socket lies in it, and a socket's path may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="demo-"))
    done = run_astrid(home, "demo", "--quick")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    before = os.environ.get("ASTRID_HOME")
    os.environ["ASTRID_HOME"] = str(home)
    reset_settings()
    yield Demo(home, done.stdout)
    from astrid_pipeline.services import postgres

    postgres.stop(get_settings())
    if before is None:
        del os.environ["ASTRID_HOME"]
    else:
        os.environ["ASTRID_HOME"] = before
    reset_settings()


@pytest.fixture
def in_demo(demo, monkeypatch) -> Demo:
    """The demo's home as this test's home, whatever tests of other rooms have set since."""
    monkeypatch.setenv("ASTRID_HOME", str(demo.home))
    reset_settings()
    yield demo
    reset_settings()


@pytest.fixture
def home(monkeypatch) -> Iterator[Path]:
    """A fresh home for one test; its database is stopped at the end."""
    from astrid_pipeline.services import postgres

    folder = Path(tempfile.mkdtemp(prefix="nights-"))
    monkeypatch.setenv("ASTRID_HOME", str(folder))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
    reset_settings()
    yield folder
    postgres.stop(get_settings())
    reset_settings()
    shutil.rmtree(folder, ignore_errors=True)


def walk(fields, config: Mapping[str, dict[str, Any]] | None = None):
    """Do what is ready, in this process; `config` holds run configurations by job. Return products and results."""
    from astrid_pipeline.driver import Survey, execute, open_catalogue

    catalogue = open_catalogue()
    for field in fields:
        catalogue.add_field(field)
    survey = Survey(fields)
    results, tried = [], set()
    while steps := [s for s in survey.ready() if s.run_key not in tried]:
        tried |= {s.run_key for s in steps}
        results += [execute(step, (config or {}).get(step.job)) for step in steps]
    return survey.products, results
