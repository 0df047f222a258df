"""This machine's copies of folder products on an S3 server: none goes that is in use, and not all stay for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.resources import copies
from astrid_pipeline.resources.folders import get_folder, put_folder
from astrid_pipeline.resources.s3 import S3Store
from astrid_pipeline.settings import get_settings, reset_settings
from astrid_pipeline_tests.learning.helpers import toy_set
from astrid_pipeline_tests.s3_servers import s3_server

pytestmark = pytest.mark.s3
DAY = 86400.0
FIELDS = ("m31", "m 33")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with s3_server("moto", tmp_path_factory.mktemp("s3")) as running:
        yield running.store("copies")


@pytest.fixture
def store(served: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """The store, and a home without any copy."""
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path / "home"))
    reset_settings()
    yield served
    served.delete([entry.key for entry in served.list()])
    monkeypatch.undo()
    reset_settings()


def fetch(store: S3Store, path: str, numbers: range, tmp_path: Path, used_days_ago: float = 0.0) -> Path:
    """Keep a small set of samples at `path`, fetch it, and let that have been some days ago."""
    folder = tmp_path / f"set-{numbers.start}-{numbers.stop}"
    if not folder.exists():
        toy_set(folder, numbers)
    put_folder(store, path, folder, {})
    copy = get_folder(store, path)
    age(copy, used_days_ago)
    return copy


def age(copy: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(copy.with_name(f"{copy.name}.json"), (then, then))


def test_what_a_watched_field_has_stays_and_what_none_has_goes(store: S3Store, tmp_path: Path) -> None:
    kept = fetch(store, "training_samples/m31/2026-01-01", range(3), tmp_path, 30)
    spaced = fetch(store, "training_samples/m%2033/2026-01-01", range(10, 12), tmp_path, 30)
    model = fetch(store, "unet", range(20, 22), tmp_path, 30)
    unwatched = fetch(store, "training_samples/gone/2026-01-01", range(30, 32), tmp_path, 30)
    young = fetch(store, "training_samples/gone/2026-01-02", range(40, 42), tmp_path, 3)
    # Made again, a night's samples have another copy; of the old one nobody asks any more.
    old = fetch(store, "training_samples/m31/2026-01-02", range(50, 52), tmp_path, 30)
    new = fetch(store, "training_samples/m31/2026-01-02", range(60, 62), tmp_path, 30)
    found = {copy.folder: copy for copy in copies.look(store, FIELDS)}
    assert {folder for folder, copy in found.items() if copy.wanted} == {kept, spaced, model, new}
    assert found[kept].size == sum(path.stat().st_size for path in kept.iterdir())
    count, size = copies.prune(store, FIELDS, 7.0)
    assert count == 2
    assert size == found[unwatched].size + found[old].size
    assert [folder.exists() for folder in (unwatched, old)] == [False, False]
    assert all(folder.exists() for folder in (kept, spaced, model, young, new))
    # Nothing is lost: what is asked for again is fetched again.
    assert get_folder(store, "training_samples/gone/2026-01-01") == unwatched
    assert len(ShardSet(unwatched)) == 2


def test_one_copy_of_two_products_stays_as_long_as_one_of_them_is_watched(
    store: S3Store, tmp_path: Path
) -> None:
    copy = fetch(store, "training_samples/gone/2026-01-01", range(3), tmp_path)
    assert fetch(store, "training_samples/m31/2026-01-01", range(3), tmp_path, 30) == copy
    assert copies.prune(store, FIELDS, 7.0) == (0, 0)
    assert copies.prune(store, ("another",), 7.0)[0] == 1


def test_the_longest_unused_go_when_there_are_too_many_and_none_that_is_in_use(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = [
        fetch(store, f"training_samples/m31/2026-01-0{n}", range(100 * n, 100 * n + 3), tmp_path, days)
        for n, days in enumerate((5, 9, 0.1, 3), 1)
    ]
    size = copies.look(store, FIELDS)[0].size
    monkeypatch.setenv("ASTRID_FOLDER_CACHE_GB", str(2.5 * size / 1e9))
    reset_settings()
    mapped = ShardSet(nights[1])
    planes = mapped.planes(0)
    before = np.array(planes)
    assert copies.prune(store, FIELDS, 7.0)[0] == 2
    assert [night.exists() for night in nights] == [False, False, True, True]
    # What is mapped stays until it is let go.
    assert np.array_equal(planes, before)
    monkeypatch.setenv("ASTRID_FOLDER_CACHE_GB", "1e-9")
    reset_settings()
    copies.prune(store, FIELDS, 7.0)
    assert [night.exists() for night in nights] == [False, False, True, False], "used two hours ago"
    assert not [path for path in copies.copies_folder().iterdir() if path.name.startswith(".")]


def test_to_be_asked_for_is_to_be_used(store: S3Store, tmp_path: Path) -> None:
    path = "training_samples/m31/2026-01-01"
    copy = fetch(store, path, range(3), tmp_path, 30)
    get_folder(store, path)
    (found,) = copies.look(store, FIELDS)
    assert time.time() - found.used < 60
    # A copy of an earlier AstrID has no note: nobody knows whose it is, until it is asked for.
    copy.with_name(f"{copy.name}.json").unlink()
    assert [(c.folder, c.wanted) for c in copies.look(store, FIELDS)] == [(copy, False)]
    get_folder(store, path)
    assert copies.look(store, FIELDS)[0].wanted


def test_what_a_killed_process_left_goes_and_what_another_is_fetching_stays(
    store: S3Store, tmp_path: Path
) -> None:
    fetch(store, "training_samples/m31/2026-01-01", range(3), tmp_path)
    left, going = (copies.copies_folder() / f".{name}.part" for name in ("left", "going"))
    for folder, days in ((left, 9), (going, 0)):
        folder.mkdir()
        (folder / "shard").write_bytes(b"12345")
        then = time.time() - days * DAY
        os.utime(folder, (then, then))
    assert copies.prune(store, FIELDS, 7.0) == (0, 5)
    assert (left.exists(), going.exists()) == (False, True)


def test_without_any_copy_nothing_is_asked_of_the_store(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "get_bytes", lambda key: pytest.fail("asked"))
    assert copies.prune(store, FIELDS, 7.0) == (0, 0)
    assert get_settings().folder_cache_gb == 50
