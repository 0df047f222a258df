"""Training shards on an S3 server: fetched once, known by their content, and mapped from then on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.errors import DamagedError, MissingProductError
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.resources.folders import get_folder, put_folder
from astrid_pipeline.settings import get_settings
from astrid_pipeline_tests.learning.helpers import toy_set
from astrid_pipeline_tests.s3_servers import S3Server, s3_server

pytestmark = pytest.mark.s3
PATH = "training_samples/f/2026-01-01"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("moto", tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def asked(server: S3Server, request: pytest.FixtureRequest):
    """A store of its own for each test, and what is asked of it."""
    store, counts = server.store(request.node.name.replace("[", "-").replace("]", "")), Counter()
    store.client.meta.events.register(
        "before-send.s3", lambda event_name, **_: counts.update([event_name.rpartition(".")[2]])
    )
    return store, counts


def test_shards_are_fetched_once_and_mapped(asked, tmp_path):
    store, counts = asked
    local = toy_set(tmp_path / "set", range(3))
    put_folder(store, PATH, tmp_path / "set", {})
    folder = get_folder(store, PATH)
    fetched = counts["GetObject"]
    shards = ShardSet(folder)
    assert shards.hash == local.hash
    assert isinstance(shards.planes(2).base, np.memmap)
    for index in range(3):
        assert np.array_equal(shards.planes(index), local.planes(index))
    counts.clear()
    assert get_folder(store, PATH) == folder
    # The index alone says that nothing is new.
    assert dict(counts) == {"GetObject": 1}
    assert fetched > 5
    # Under another name, the same content is the same copy.
    put_folder(store, PATH.replace("-01-01", "-01-02"), tmp_path / "set", {})
    counts.clear()
    assert get_folder(store, PATH.replace("-01-01", "-01-02")) == folder
    assert counts["GetObject"] == 1


def test_a_set_made_again_is_another_copy_and_the_mapped_one_stays(asked, tmp_path):
    store, _ = asked
    toy_set(tmp_path / "first", range(10, 12))
    put_folder(store, PATH, tmp_path / "first", {})
    mapped = ShardSet(get_folder(store, PATH))
    before = np.array(mapped.planes(0))
    toy_set(tmp_path / "second", range(20, 23))
    put_folder(store, PATH, tmp_path / "second", {})
    assert len(ShardSet(get_folder(store, PATH))) == 3
    assert np.array_equal(mapped.planes(0), before)


def test_a_damaged_shard_is_refused_and_leaves_nothing(asked, tmp_path):
    store, _ = asked
    toy_set(tmp_path / "set", range(30, 32))
    index = put_folder(store, PATH, tmp_path / "set", {})
    entry = index["files"]["shard-00000.planes.npy"]
    damaged = bytearray(store.get_bytes(entry["key"]))
    damaged[5000] ^= 1
    store.put_bytes(entry["key"], bytes(damaged))
    cache = get_settings().home / "cache" / "folders"
    before = set(cache.iterdir()) if cache.exists() else set()
    with pytest.raises(DamagedError, match="SHA-256"):
        get_folder(store, PATH)
    assert set(cache.iterdir()) == before


def test_processes_that_want_the_same_at_once_get_one_copy(asked, tmp_path):
    store, _ = asked
    toy_set(tmp_path / "set", range(40, 42))
    put_folder(store, PATH, tmp_path / "set", {})
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: get_folder(store, PATH), range(4)))
    (folder,) = folders
    assert len(ShardSet(folder)) == 2
    assert not [p for p in folder.parent.iterdir() if p.name.endswith(".part")]


def test_what_was_never_made_is_told(asked):
    with pytest.raises(MissingProductError, match="materialize"):
        get_folder(asked[0], "training_samples/f/1999-01-01")


def test_shards_go_to_another_process_by_their_place(tmp_path: Path):
    import pickle

    shards = toy_set(tmp_path / "set", range(50, 53))
    packed = pickle.dumps(shards)
    assert len(packed) < shards.planes(0).nbytes
    again = pickle.loads(packed)
    assert isinstance(again.planes(1).base, np.memmap)
    assert np.array_equal(again.planes(1), shards.planes(1))
    assert np.array_equal(again.labels(2), shards.labels(2))
    # In one process, parts of a set share what is mapped.
    part = shards.select([False, True, True])
    assert np.shares_memory(part.planes(0), shards.planes(1))
    assert np.array_equal(pickle.loads(pickle.dumps(part)).planes(0), shards.planes(1))
