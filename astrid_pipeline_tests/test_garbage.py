"""What nothing refers to is found and removed, and nothing else, on a folder and on an S3 server."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from astrid_pipeline.errors import StoreError
from astrid_pipeline.io_managers import to_parquet
from astrid_pipeline.resources import copies, garbage
from astrid_pipeline.resources.folders import get_folder, put_folder
from astrid_pipeline.resources.frames import StoredFrames
from astrid_pipeline.resources.store import LocalStore, Store
from astrid_pipeline_tests.assets.conftest import home, walk  # noqa: F401
from astrid_pipeline_tests.s3_servers import s3_server

DAY = 86400.0
TOKEN = "0123456789ab"
LATER = 8 * DAY


@pytest.fixture(params=["folder", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    """A store of each kind."""
    if request.param == "folder":
        yield LocalStore(tmp_path / "store")
        return
    with s3_server(request.param, tmp_path) as server:
        yield server.store()


def keep_frames(store: Store, path: str, *names: str, token: str = TOKEN) -> list[str]:
    """Keep what the frames' IO manager keeps, by its names."""
    keys = [f"{path}/{name}.{token}.fits" for name in names]
    for key in keys:
        store.put_bytes(key, b"pixels")
    entries = {name: {"key": key} for name, key in zip(names, keys, strict=True)}
    store.put_bytes(f"{path}/index.json", json.dumps({"entries": entries}).encode())
    return keys


def small_store(store: Store, tmp_path: Path) -> tuple[set[str], set[str]]:
    """Fill a store with products and leftovers; return the keys of what stays and of what is to go."""
    keep_frames(store, "calibrated_frames/m31/2026-01-02", "a", "b")
    # A field by the name of a token, which is somebody's right.
    keep_frames(store, f"calibrated_frames/{TOKEN}/2026-01-02", "a")
    keep_frames(store, f"reference_images/{TOKEN}", "product")
    for key in (
        f"observations/{TOKEN}/2026-01-02.parquet",
        f"{TOKEN}/2026-01-02.parquet",
        "detections/m31/2026-01-02.parquet",
        "survey_summary.parquet",
        "something/else.txt",
        f"something/{TOKEN}.txt",
    ):
        store.put_bytes(key, b"table")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "detector.safetensors").write_bytes(b"weights")
    put_folder(store, "unet", folder, {})
    for name in (
        "pictures/0f.png",
        f"training-datasets/spring/{TOKEN}/images.npy",
        f"mlflow/1/{TOKEN}/model.pt",
    ):
        store.put_bytes(name, b"kept")
    store.put_bytes(f"reference-datasets/dss2/x.{TOKEN}.fits", b"kept")
    observed = pd.DataFrame({"path": ["raw/m31/2026-01-03/new--e.fits", None]})
    store.put_bytes("observations/m31/2026-01-03.parquet", to_parquet(observed))
    for name in ("raw/m31/2026-01-02/old--e.fits", "raw/m31/2026-01-03/new--e.fits", "raw/odd"):
        store.put_bytes(name, b"raw")
    stays = {entry.key for entry in store.list()}
    goes = {
        "calibrated_frames/m31/2026-01-02/a.aaaaaaaaaaaa.fits",
        "difference_images/m31/2026-01-02/a.bbbbbbbbbbbb.fits",
        "unet/cccccccccccc/detector.safetensors",
        "stamps/m31/2026-01-02/dddddddddddd/stamps.npy",
        "raw/m31/2026-01-03/gone--e.fits",
    }
    for key in goes:
        store.put_bytes(key, b"left over")
    return stays, goes


def observed() -> list[str]:
    """What the catalogue names."""
    return ["raw/m31/2026-01-02/old--e.fits"]


def test_what_nothing_refers_to_goes_and_all_else_stays(store: Store, tmp_path: Path):
    stays, goes = small_store(store, tmp_path)
    young = garbage.find(store, observed)
    assert young.leftovers == [], "a run may be about to name them"
    assert young.objects == len(stays | goes)
    later = time.time() + LATER
    found = garbage.find(store, observed, now=later)
    assert {entry.key for entry in found.leftovers} == goes
    assert found.by_why() == {
        "not in the index": (2, 18),
        "no index": (2, 18),
        "no observation": (1, 9),
    }
    assert found.unreadable == []
    # Killed in the middle: what is gone is gone, the rest is found again.
    done: list[garbage.Leftover] = []

    def die(entry: garbage.Leftover) -> None:
        done.append(entry)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        garbage.remove(store, found.leftovers, die)
    rest = garbage.find(store, observed, now=later)
    assert {e.key for e in rest.leftovers} == goes - {e.key for e in done}
    garbage.remove(store, rest.leftovers)
    garbage.remove(store, rest.leftovers)
    assert {entry.key for entry in store.list()} == stays
    assert garbage.find(store, observed, now=later).leftovers == []


def test_an_index_that_cannot_be_read_protects_its_folder(tmp_path: Path):
    store = LocalStore(tmp_path)
    for folder, index in (("a/m31/2026-01-02", b"{"), ("a/m31/2026-01-03", b'{"entries": []}'), ("b", b"[]")):
        store.put_bytes(f"{folder}/index.json", index)
        store.put_bytes(f"{folder}/e.{TOKEN}.fits", b"x")
    store.put_bytes("observations/m31/2026-01-02.parquet", b"no table")
    store.put_bytes("raw/m31/2026-01-02/e.fits", b"x")
    found = garbage.find(store, lambda: [], now=time.time() + LATER)
    assert found.leftovers == []
    assert len(found.unreadable) == 4
    assert "observations" in found.unreadable[-1]


def test_a_store_or_a_catalogue_that_does_not_answer_is_an_error(tmp_path: Path):
    store = LocalStore(tmp_path)
    small_store(store, tmp_path)

    def away() -> list[str]:
        raise StoreError("away")

    with pytest.raises(StoreError, match="away"):
        garbage.find(store, away, now=time.time() + LATER)


def test_writes_that_never_ended(tmp_path: Path):
    store = LocalStore(tmp_path)
    store.put_bytes("a", b"x")
    scratch = tmp_path / ".tmp"
    (scratch / "file").write_bytes(b"12345")
    (scratch / "astrid-spool-x").mkdir()
    (scratch / "astrid-spool-x" / "e.fits").write_bytes(b"123")
    (scratch / "astrid-spool-y").mkdir()
    (scratch / "astrid-spool-y" / "e.fits").write_bytes(b"123")
    for path in (scratch / "file", scratch / "astrid-spool-x", scratch / "astrid-spool-x" / "e.fits",
                 scratch / "astrid-spool-y"):  # fmt: skip
        os.utime(path, (time.time() - LATER,) * 2)
    found = garbage.find(store, list)
    assert [(e.key, e.why) for e in found.leftovers] == [
        (".tmp/astrid-spool-x", "unfinished write"),
        (".tmp/file", "unfinished write"),
    ], "in the other something was written just now"
    assert sum(e.size for e in found.leftovers) >= 8
    garbage.remove(store, found.leftovers)
    assert sorted(path.name for path in scratch.iterdir()) == ["astrid-spool-y"]
    with s3_server("moto", tmp_path) as server:
        remote = server.store()
        for key in ("survey/big", "other/big"):
            remote.client.create_multipart_upload(Bucket=remote.bucket, Key=key)
        # This server dates all of them 2010.
        assert garbage.find(remote, list, now=0.0).leftovers == []
        (left,) = garbage.find(remote, list).leftovers
        assert (left.key, left.why) == ("big", "unfinished write"), "other people's are theirs"
        garbage.remove(remote, [left])
        garbage.remove(remote, [left])
        assert garbage.open_uploads(remote) == []


def test_nothing_that_is_being_made_is_lost(tmp_path: Path):
    """A product made again and again, and others that are cut short, while all that is older than a minute goes."""
    store = LocalStore(tmp_path / "store")
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"a" * 1000)
    path = "stamps/m31/2026-01-02"
    put_folder(store, path, folder, {})
    # Looked at as if it were a day later but for a minute: what is older than a minute has had its day.
    ahead = DAY - 60
    until = time.monotonic() + 3
    planted, gone = 0, 0

    def make() -> None:
        while time.monotonic() < until:
            put_folder(store, path, folder, {})

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(make)
        while time.monotonic() < until:
            key = f"{path}/{planted:012x}/a.npy"
            store.put_bytes(key, b"cut short")
            os.utime(store.path(key), (time.time() - 90,) * 2)
            planted += 1
            left = garbage.find(store, list, days=1.0, now=time.time() + ahead).leftovers
            garbage.remove(store, left)
            gone += len(left)
        writer.result()
    assert planted == gone > 10
    assert (get_folder(store, path) / "a.npy").read_bytes() == b"a" * 1000


def remote_night(store: Store, orphans: list[str], night: str, folder: Path) -> None:
    """The same nights and orphans on an S3 server, whose table of observations alone names the raw files."""
    with s3_server("rclone", folder) as server:
        remote = server.store()
        stays = {entry.key for entry in store.list()}
        for key in stays:
            remote.put_bytes(key, store.get_bytes(key))
        for key in orphans:
            remote.put_bytes(key, b"left over")
        found = garbage.find(remote, list)
        assert {entry.key for entry in found.leftovers} == set(orphans)
        garbage.remove(remote, found.leftovers)
        assert {entry.key for entry in remote.list()} == stays
        frames = StoredFrames(remote, f"difference_images/small/{night}")
        assert len(frames) == 1
        assert all(frames[name].data.size for name in frames)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.mlflow
def test_a_real_night_loses_nothing(home: Path, tmp_path: Path, monkeypatch):  # noqa: F811
    """Two nights through the pipeline, then orphans; after the command the orphans are gone and all can be read."""
    from astrid_pipeline.archives.base import Field
    from astrid_pipeline.cli.app import app
    from astrid_pipeline.driver import open_catalogue
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline_tests.assets.test_folder_nights import WITHOUT_INJECTIONS
    from astrid_pipeline_tests.night.small_survey import night_of, write_field

    write_field(tmp_path / "fits", "small", 2)
    field = Field("small", 150.0, 20.0, 0.3, archive=f"folder:{tmp_path / 'fits'}")
    products, results = walk([field], {"process_night": WITHOUT_INJECTIONS})
    assert [r.error for r in results if r.error] == []
    store = open_store()
    stays = {entry.key for entry in store.list()}
    assert any(key.startswith("raw/") for key in stays)
    night = night_of(1)
    orphans = [
        f"raw/small/{night}/never--seen.fits",
        f"difference_images/small/{night}/x.{TOKEN}.fits",
        f"stamps/small/{night}/{TOKEN}/stamps.npy",
        f"calibrated_frames/small/2031-01-01/x.{TOKEN}.fits",
    ]
    for key in orphans:
        store.put_bytes(key, b"left over")
    run = CliRunner().invoke
    listed = run(app, ["gc", "--names"])
    assert listed.exit_code == 0, listed.output
    assert "0 of " in listed.output
    real = time.time
    monkeypatch.setattr(garbage.time, "time", lambda: real() + LATER)
    listed = run(app, ["gc", "--names"])
    assert all(key in listed.output for key in orphans)
    assert {entry.key for entry in store.list()} == stays | set(orphans), "it only lists"
    assert "4 of " in listed.output
    removed = run(app, ["gc", "--delete"])
    assert removed.exit_code == 0, removed.output
    assert {entry.key for entry in store.list()} == stays
    for asset in ("calibrated_frames", "difference_images"):
        frames = products.frames(asset, "small", night)
        assert all(frames[name] is not None for name in frames)
    assert len(products.table("observations", f"small|{night}")) == 1
    with open_catalogue().reading("look") as connection:
        from sqlalchemy import text

        (entry,) = connection.execute(text("SELECT what FROM audit_log WHERE action = 'gc'")).all()
    assert entry.what["objects"] == 4
    # This machine's copy of what no field has: from a store on a server, which is not this one.
    copy = copies.copies_folder() / "a-copy"
    copy.mkdir(parents=True)
    (copy / "shard").write_bytes(b"12345")
    assert "1 copies of products" in run(app, ["gc"]).output
    assert copy.exists()
    assert "removed" in run(app, ["gc", "--delete"]).output
    assert not copy.exists()
    remote_night(store, orphans, night, tmp_path)
    assert run(app, ["gc", "--older-than", "0"]).exit_code != 0, "a run that goes on would lose its files"
