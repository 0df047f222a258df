"""The machine: a full disk, no memory for one exposure, a clock that is set while a run is under way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.faults.conftest import FRAMES, is_not_there, is_whole, said_of
from astrid_pipeline_tests.faults.processes import Night

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.s3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True
    ).returncode:
        # Not a skip, which counts as a failure in CI where services are needed: a right is missing, not a service.
        pytest.xfail("a small file system cannot be mounted here (root may)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def store_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the store be a folder, with the references that the nights rest on."""
    from astrid_pipeline import driver

    before = driver.open_products().store
    references = {entry.key: before.get_bytes(entry.key) for entry in before.list("reference_images")}
    try:
        with monkeypatch.context() as changed:
            changed.setenv("ASTRID_STORE", str(folder))
            changed.delenv("ASTRID_STORE_ENDPOINT")
            reset_settings()
            for key, data in references.items():
                driver.open_products().store.put_bytes(key, data)
            yield
    finally:
        reset_settings()


def test_a_full_disk_fails_the_night_in_words_and_leaves_nothing_behind(
    healthy_site, small_disk, monkeypatch
):
    """The store is a folder on a disk that fills up in the middle of a night."""
    partition = healthy_site.fresh_night()
    store, ballast = small_disk / "store", small_disk / "ballast"
    with store_in(store, monkeypatch):
        # Room for the raw files and not for all that is made of them.
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        raw = sum(
            path.stat().st_size for path in healthy_site.frames.glob(f"small-{healthy_site.used:04d}-*")
        )
        ballast.write_bytes(bytes(max(0, free - raw - 150_000)))
        result = healthy_site.make(partition)
        assert result.error is not None
        assert "No space left on device" in result.error
        said = said_of(result.run_id)
        assert "free space" in said or "make room on its disk" in said
        assert "failed_partitions tries it again" in said
        is_not_there(partition)
        assert not list((store / ".tmp").rglob("*.fits")), "no temporary file is left on the full disk"
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        assert healthy_site.make(partition).error is None
        is_whole(partition)


def test_one_exposure_that_needs_more_memory_than_there_is(healthy_site, tmp_path, monkeypatch):
    """A frame of 5000², which takes 3 GB to calibrate, among frames of 192², in a process that may take 1 GB more.

    What is limited is address space: Arrow's own allocator would take that gigabyte for itself at its first table.
    """
    from astropy.io import fits

    from astrid_pipeline import driver

    partition = healthy_site.fresh_night()
    field, night = partition.split("|")
    path = sorted(healthy_site.frames.glob(f"small-{healthy_site.used:04d}-*"))[1]
    with fits.open(path) as file:
        header, data = file[0].header, file[0].data
    path.unlink()
    fits.PrimaryHDU(np.resize(data, (5000, 5000)).astype(np.float32), header).writeto(path)
    with store_in(tmp_path / "store", monkeypatch):
        process = Night(partition, "calibrate_night", 1000, ARROW_DEFAULT_MEMORY_POOL="system").ready()
        process.go()
        result = process.result()
        assert result["error"] is None, "the others are made"
        is_whole(partition, FRAMES - 1, ["calibrated_frames"])
        assert path.stem not in driver.open_products().frames("calibrated_frames", field, night)
    told = _problems(result["run_id"])
    assert [name for name, _ in told] == [path.stem]
    assert "not enough memory for this exposure" in told[0][1]


def _problems(run_id: str) -> list[tuple[str, str]]:
    """Return exposure and text of what the run's materializations name as problems."""
    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance

    found = []
    with dagster_instance() as instance:
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            table = entry.dagster_event.materialization.metadata.get("problems")
            for record in table.records if table is not None else []:
                found.append((record.data["exposure"], record.data["what"]))
    return found


def test_the_clock_is_set_while_a_night_is_made(healthy_site, tmp_path, monkeypatch):
    """The run's process sees another time than the rest of the machine, forward and back, from one moment to the next.

    The store is a folder: an S3 server refuses requests whose clock is wrong by more than a quarter of an hour.
    """
    import libfaketime

    from astrid_pipeline.services.dagster_home import dagster_instance
    from astrid_pipeline.services.dead_runs import end_dead_runs

    library = next(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
    partition, clock = healthy_site.fresh_night(), tmp_path / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    with store_in(tmp_path / "store", monkeypatch):
        process = Night(partition, "calibrate_night", **faked, FAKETIME_DONT_FAKE_MONOTONIC="1").ready()
        process.go()
        _wait_for_step(partition)
        for jump in ("+2d", "-2d"):
            clock.write_text(jump)
            with dagster_instance() as instance:
                assert end_dead_runs(instance) == [], "the run lives, whatever the clock says"
        result = process.result()
        assert result["error"] is None
        is_whole(partition, assets=["calibrated_frames"])
    # The clock was set: the run's log has both times.
    with dagster_instance() as instance:
        times = [entry.timestamp for entry in instance.all_logs(result["run_id"])]
    assert max(times) - min(times) > 86400


def _wait_for_step(partition: str) -> None:
    """Wait until a night's run has begun its first step."""
    import time

    import dagster as dg

    from astrid_pipeline.services.dagster_home import dagster_instance

    deadline = time.monotonic() + 120
    with dagster_instance() as instance:
        while time.monotonic() < deadline:
            for run in instance.get_runs(dg.RunsFilter(tags={"dagster/partition": partition})):
                if instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START):
                    return
            time.sleep(0.1)
    raise AssertionError("no step has begun")
