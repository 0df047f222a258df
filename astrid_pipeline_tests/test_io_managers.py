"""Assets' values on the way to the store and back, through Dagster, on a folder and on an S3 server."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline import io_managers
from astrid_pipeline.errors import StoreError
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.io_managers import (
    ALLOW_MISSING,
    list_partitions,
    partition_path,
)
from astrid_pipeline.resources import frames as frames_module
from astrid_pipeline.resources.frames import Frames, FrameSpool, StoredFrames, file_name
from astrid_pipeline.resources.store import LocalStore, Store, StoreResource
from astrid_pipeline_tests.io_support import (
    NIGHTS,
    instance,
    local,
    make_difference,
    make_frame,
    materialize,
    resource,
)

# Fixtures, found by name.
__all__ = ["instance", "local", "resource"]


def load(store: Store, asset: str = "calibrated", night: str = "2026-01-02") -> StoredFrames:
    return StoredFrames(store, partition_path(dg.AssetKey(asset), f"m31|{night}"))


@dg.asset(partitions_def=NIGHTS, io_manager_key="frames", code_version="v7")
def calibrated(context: dg.AssetExecutionContext) -> dict[str, Frame]:
    night = context.partition_key.keys_by_dimension["night"]
    return {f"{night}-{n}": make_frame(100 + n, f"{night}-{n}") for n in range(3)}


def test_frames_come_back_as_they_went(resource: StoreResource, instance: dg.DagsterInstance) -> None:
    seen: dict[str, Any] = {}

    @dg.asset(partitions_def=NIGHTS, io_manager_key="frames")
    def differences(calibrated: Frames) -> dict[str, Difference]:
        seen.update(calibrated)
        return {name: make_difference(name) for name in calibrated}

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables")
    def last(differences: Frames) -> None:
        seen["difference"] = differences["2026-01-02-1"]

    result = materialize([calibrated, differences, last], resource, instance)
    assert result.success
    for n in range(3):
        before, after = make_frame(100 + n), seen[f"2026-01-02-{n}"]
        assert np.abs(after.data - before.data).max() < 3.0  # one σ: the file format's bound, tested there
        assert after.meta["exposure_id"] == f"2026-01-02-{n}"
    assert isinstance(seen["difference"], Difference)
    np.testing.assert_allclose(seen["difference"].score, make_difference().score, atol=0.5)
    store = resource.open()
    frames = load(store)
    index = frames.index
    assert (index.asset, index.partition, index.run_id) == ("calibrated", "m31|2026-01-02", result.run_id)
    assert index.code_version == "v7"
    assert frames.meta("2026-01-02-1")["filter"] == "r"
    assert list_partitions(store, "calibrated") == ["m31|2026-01-02"]
    assert list_partitions(store, "calibrated", "m31") == ["m31|2026-01-02"]
    assert list_partitions(store, "calibrated", "m3") == []


def test_exposures_are_read_when_they_are_asked_for(
    local: StoreResource, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize([calibrated], local, instance)
    read: list[str] = []
    original = frames_module.read_product
    monkeypatch.setattr(
        frames_module, "read_product", lambda kind, path: read.append(kind) or original(kind, path)
    )
    frames = load(local.open())
    assert sorted(frames) == ["2026-01-02-0", "2026-01-02-1", "2026-01-02-2"]
    assert len(frames) == 3
    assert "2026-01-02-2" in frames
    assert frames.meta("2026-01-02-2")["mjd"] == 60000.0
    assert read == []
    assert frames["2026-01-02-2"].name == "2026-01-02-2"
    assert read == ["frame"]


def test_inputs_take_the_shape_of_their_annotation(
    local: StoreResource, instance: dg.DagsterInstance
) -> None:
    seen: dict[str, Any] = {}
    everything = dg.AllPartitionMapping()
    tolerant = {ALLOW_MISSING: True}

    @dg.asset(
        ins={"calibrated": dg.AssetIn(partition_mapping=everything, metadata=tolerant)},
        io_manager_key="tables",
    )
    def joined(calibrated: Frames) -> None:
        seen["joined"] = calibrated

    @dg.asset(
        ins={"calibrated": dg.AssetIn(partition_mapping=everything, metadata=tolerant)},
        io_manager_key="tables",
    )
    def apart(calibrated: dict[str, Frames]) -> None:
        seen["apart"] = calibrated

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables")
    def eager(calibrated: dict[str, Frame]) -> None:
        seen["eager"] = calibrated

    for night in ("2026-01-02", "2026-01-05"):
        materialize([calibrated], local, instance, night=night)
    assets = [calibrated, joined, apart, eager]
    materialize(assets, local, instance, selection=[joined, apart], night=None)
    materialize(assets, local, instance, selection=[eager])
    assert sorted(seen["joined"])[::3] == ["2026-01-02-0", "2026-01-05-0"]
    assert seen["joined"]["2026-01-05-1"].name == "2026-01-05-1"
    assert seen["joined"].meta("2026-01-05-1")["filter"] == "r"
    assert sorted(seen["apart"]) == ["m31|2026-01-02", "m31|2026-01-05"]
    assert type(seen["eager"]) is dict
    assert isinstance(seen["eager"]["2026-01-02-0"], Frame)


def test_an_empty_night_is_a_product(local: StoreResource, instance: dg.DagsterInstance) -> None:
    @dg.asset(partitions_def=NIGHTS, io_manager_key="frames")
    def calibrated() -> dict[str, Frame]:
        return {}

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables")
    def down(calibrated: Frames) -> None:
        assert list(calibrated) == []

    assert materialize([calibrated, down], local, instance).success


def test_a_single_frame_and_a_spool(local: StoreResource, instance: dg.DagsterInstance) -> None:
    seen = {}
    spools: list[FrameSpool] = []

    @dg.asset(partitions_def=NIGHTS, io_manager_key="frames")
    def single() -> Frame:
        return make_frame(7, "only")

    @dg.asset(partitions_def=NIGHTS, io_manager_key="frames")
    def spooled() -> Frames:
        spool = FrameSpool()
        spools.append(spool)
        for n in range(3):
            spool[f"e{n}"] = make_frame(50 + n, f"e{n}")
        del spool["e1"]
        assert spool["e2"].name == "e2"
        return spool

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables")
    def down(single: Frame, spooled: Frames) -> None:
        seen.update(single=single, spooled=dict(spooled))

    assert materialize([single, spooled, down], local, instance).success
    assert seen["single"].name == "only"
    assert sorted(seen["spooled"]) == ["e0", "e2"]
    assert len(spools[0]) == 0, "the spool's files should be gone once they are in the store"


def test_made_again_replaces_and_leaves_nothing_behind(
    resource: StoreResource, instance: dg.DagsterInstance
) -> None:
    store = resource.open()
    materialize([calibrated], resource, instance)
    first = {entry.key for entry in store.list("calibrated")}
    reader = load(store)

    @dg.asset(partitions_def=NIGHTS, io_manager_key="frames", name="calibrated")
    def again() -> dict[str, Frame]:
        return {"2026-01-02-1": make_frame(900, "2026-01-02-1")}

    materialize([again], resource, instance)
    second = {entry.key for entry in store.list("calibrated")}
    assert len(first) == 4
    assert len(second) == 2
    assert first & second == {"calibrated/m31/2026-01-02/index.json"}
    # A reader that began before goes on with what is there now.
    assert np.median(reader["2026-01-02-1"].data) > 800
    with pytest.raises(KeyError):
        reader["2026-01-02-0"]


def test_two_makings_at_once_leave_one_whole_product(local: StoreResource) -> None:
    store = local.open()
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def make(level: int) -> None:
        @dg.asset(partitions_def=NIGHTS, io_manager_key="frames", name="calibrated")
        def made() -> dict[str, Frame]:
            start.wait()
            return {f"e{n}": make_frame(level, f"e{n}") for n in range(3)}

        try:
            with dg.DagsterInstance.ephemeral() as instance:
                instance.add_dynamic_partitions("fields", ["m31"])
                materialize([made], local, instance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(100 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    levels = {round(float(np.median(frame.data)), -2) for frame in load(store).values()}
    assert len(levels) == 1, f"the exposures come from different makings: {levels}"


def test_missing_inputs_fail_for_good(local: StoreResource, instance: dg.DagsterInstance) -> None:
    tries: list[int] = []

    @dg.asset(partitions_def=NIGHTS, io_manager_key="tables", retry_policy=dg.RetryPolicy(max_retries=3))
    def down(context: dg.AssetExecutionContext, calibrated: Frames) -> None:
        tries.append(context.retry_number)

    result = materialize([calibrated, down], local, instance, selection=[down], raise_on_error=False)
    assert not result.success
    assert tries == []
    events = [event.event_type_value for event in result.all_events]
    assert "STEP_UP_FOR_RETRY" not in events
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    text = failure.step_failure_data.user_failure_data.description
    assert "m31|2026-01-02" in text
    assert "was not made" in text
    assert "materialize" in text


def test_a_damaged_exposure_is_found_by_its_digest(
    local: StoreResource, instance: dg.DagsterInstance
) -> None:
    materialize([calibrated], local, instance)
    store = local.open()
    assert isinstance(store, LocalStore)
    frames = load(store)
    path = store.path(frames.index.entries["2026-01-02-1"].key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="not what was written") as caught:
        frames["2026-01-02-1"]
    assert caught.value.permanent
    with pytest.raises(StoreError, match="not what was written"):
        frames.near("2026-01-02-1", np.array([150.0]), np.array([2.0]))
    assert frames["2026-01-02-0"].name == "2026-01-02-0"
    store.put_bytes("calibrated/m31/2026-01-02/index.json", b"{")
    with pytest.raises(StoreError, match="index"):
        load(store)


KILLED = """
import sys, time
from pathlib import Path
import dagster as dg
from astrid_pipeline.resources import frames
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline_tests.io_support import NIGHTS, make_frame, materialize
from astrid_pipeline import io_managers

original, count = io_managers.write_product, []
def slow(value, path):
    count.append(1)
    if len(count) == 3:
        Path(sys.argv[2]).touch()
        time.sleep(600)
    return original(value, path)
io_managers.write_product = slow

@dg.asset(partitions_def=NIGHTS, io_manager_key="frames", name="calibrated")
def again() -> dict:
    return {f"2026-01-02-{n}": make_frame(900, f"2026-01-02-{n}") for n in range(3)}

with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions("fields", ["m31"])
    materialize([again], StoreResource(url=sys.argv[1], endpoint=sys.argv[3] or None), instance)
"""


def test_killed_in_mid_write_the_old_product_is_whole(
    resource: StoreResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    materialize([calibrated], resource, instance)
    flag = tmp_path / "two of three are written"
    store = resource.open()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, store.url, str(flag), resource.endpoint or ""],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    deadline = time.monotonic() + 120
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert flag.exists(), errors.decode()[-2000:]
    written = {entry.key for entry in store.list("calibrated") if entry.key.endswith(".fits")}
    assert len(written) == 5, "two new exposures should lie beside the three old ones"
    frames = load(store)
    assert sorted(frames) == ["2026-01-02-0", "2026-01-02-1", "2026-01-02-2"]
    for frame in frames.values():
        assert np.median(frame.data) < 200
    # Made again, the partition is whole and new.
    materialize([calibrated], resource, instance)
    assert sorted(load(store)) == sorted(frames)


@given(st.text(min_size=1, max_size=30))
def test_file_names_are_safe_and_say_the_same(name: str) -> None:
    from astrid_pipeline.resources.store import check_key

    made = file_name(name)
    assert check_key(made) == made
    assert "/" not in made
    assert unquote(made) == name


@given(st.text(min_size=1, max_size=20).filter(lambda s: "|" not in s), st.dates())
def test_partition_paths_and_keys_match(field: str, night: Any) -> None:
    plain = partition_path(dg.AssetKey("a"), f"{field}|{night}")
    typed = partition_path(dg.AssetKey("a"), dg.MultiPartitionKey({"night": str(night), "field": field}))
    assert plain == typed
    assert len(plain.split("/")) == 3


def test_the_module_says_what_metadata_key_tables_use() -> None:
    from astrid_pipeline.assets.common import SCHEMA_KEY

    assert io_managers.SCHEMA == SCHEMA_KEY
