"""The store's promises, kept by a folder and by two real S3 servers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.errors import MissingProductError, StoreError
from astrid_pipeline.resources import s3
from astrid_pipeline.resources.store import LocalStore, Store, StoreResource, check_key, open_store
from astrid_pipeline.settings import load_settings
from astrid_pipeline_tests.s3_servers import BUCKET, S3Server, free_port, s3_server


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("moto", tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server("rclone", tmp_path_factory.mktemp("rclone")) as server:
        yield server


KINDS = ["folder", pytest.param("moto", marks=pytest.mark.s3), pytest.param("rclone", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue(request.param)
    return server.store(prefix=f"run-{tmp_path.name}")


def test_what_is_put_is_what_is_got(store: Store, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    kept = store.put_bytes("frames/m31/2026-01-02/a.fits", data)
    assert (kept.size, kept.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.get_bytes(kept.key) == data
    assert store.stat(kept.key) == kept
    assert store.get_file(kept.key, tmp_path / "out" / "a.fits").read_bytes() == data
    with store.open_local(kept.key) as path:
        assert path.read_bytes() == data
    assert isinstance(store, Store)


def test_files_are_copied_and_not_moved(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 70_000)
    kept = store.put_file("a/b", source)
    assert source.exists()
    assert store.stat("a/b") == kept
    assert kept.sha256 == hashlib.sha256(b"x" * 70_000).hexdigest()


def test_replaced_listed_deleted(store: Store) -> None:
    for key in ("a/1", "a/2", "ab/3", "b/4"):
        store.put_bytes(key, key.encode())
    store.put_bytes("a/1", b"new")
    assert store.get_bytes("a/1") == b"new"
    # The folder `a`, and not all keys that begin with an a.
    assert [(entry.key, entry.size) for entry in store.list("a")] == [("a/1", 3), ("a/2", 3)]
    assert [entry.key for entry in store.list()] == ["a/1", "a/2", "ab/3", "b/4"]
    store.delete(["a/1", "a/1", "never/was"])
    assert not store.exists("a/1")
    assert store.exists("a/2")
    assert store.list("nothing") == []


def test_absent_objects_are_missing_products(store: Store, tmp_path: Path) -> None:
    for ask in (
        lambda: store.get_bytes("no/such"),
        lambda: store.stat("no/such"),
        lambda: store.get_file("no/such", tmp_path / "x"),
        lambda: store.open_local("no/such").__enter__(),
    ):
        with pytest.raises(MissingProductError, match=r"not in the store.*materialize"):
            ask()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "key", ["../x", "/etc/passwd", "a//b", "", ".tmp/x", "a/./b", "a/b\n", "a\\b", "a/ü"]
)
def test_unsafe_keys_are_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="safe key") as caught:
        store.put_bytes(key, b"x")
    assert caught.value.permanent
    with pytest.raises(StoreError):
        store.get_bytes(key)


@given(st.text(max_size=40))
def test_no_key_leaves_the_store(key: str) -> None:
    root = Path("/store")
    try:
        checked = check_key(key)
    except StoreError:
        return
    assert (root / checked).resolve().is_relative_to(root)
    assert (root / checked).resolve() != root


def test_readers_never_see_half_an_object(store: Store) -> None:
    versions = [bytes([n]) * (200_000 + n) for n in range(6)]
    store.put_bytes("hot", versions[0])
    done = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not done.is_set():
            data = store.get_bytes("hot")
            if data not in versions:
                torn.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions * 2:
        store.put_bytes("hot", version)
    done.set()
    reader.join()
    assert torn == []


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["moto", "rclone"])
@pytest.mark.parametrize("carries", [True, False])
def test_a_damaged_object_is_found_by_its_digest(
    kind: str, carries: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: S3Server = request.getfixturevalue(kind)
    store = server.store(f"damaged-{carries}")
    store.put_bytes("night/product", b"whole" * 1000)
    rotten = b"rotten" * 1000
    notes = {s3._DIGEST: hashlib.sha256(b"whole" * 1000).hexdigest()} if carries else {}
    address = {"Bucket": BUCKET, "Key": f"damaged-{carries}/night/product"}
    server.client().put_object(**address, Body=rotten, Metadata=notes)
    if not carries:
        # A stranger's object is what its server says that it is, unless it breaks on its way.
        assert store.get_bytes("night/product") == rotten
        assert store.get_file("night/product", tmp_path / "copy").read_bytes() == rotten
        monkeypatch.setattr(
            s3, "_md5", lambda data=b"": hashlib.md5(bytes(data) + b"!", usedforsecurity=False)
        )
        (tmp_path / "copy").unlink()
    for ask in (
        lambda: store.get_bytes("night/product"),
        lambda: store.get_file("night/product", tmp_path / "copy"),
    ):
        with pytest.raises(StoreError, match=r"another digest than it carries.*materialize"):
            ask()
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize("kind", ["folder", pytest.param("moto", marks=pytest.mark.s3)])
def test_one_of_many_racing_writers_wins(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store: Store = LocalStore(tmp_path) if kind == "folder" else request.getfixturevalue(kind).store("race")
    start = threading.Barrier(16)
    won: list[bytes] = []

    def claim(name: bytes) -> None:
        start.wait()
        if store.put_if_absent("claims/night", name):
            won.append(name)

    threads = [threading.Thread(target=claim, args=(f"writer {n}".encode(),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get_bytes("claims/night") == won[0]
    assert not store.put_if_absent("claims/night", b"too late")


@pytest.mark.s3
def test_a_repeated_request_of_the_winner_still_wins(moto: S3Server) -> None:
    # The reply to the first PUT may be lost on its way: the retry is refused, and the digest tells whose it is.
    store = moto.store("lost-reply")
    assert store.put_if_absent("claim", b"writer 1")
    assert store.put_if_absent("claim", b"writer 1")
    assert not store.put_if_absent("claim", b"writer 2")


@pytest.mark.s3
def test_nothing_is_reserved_on_a_server_that_ignores_conditions(rclone: S3Server) -> None:
    with pytest.raises(StoreError, match="If-None-Match") as caught:
        rclone.store("claims").put_if_absent("claim", b"x")
    assert caught.value.permanent


@pytest.mark.s3
def test_wrong_keys_are_a_permanent_error(rclone: S3Server) -> None:
    with pytest.raises(StoreError, match="AWS keys") as caught:
        rclone.store(secret="wrong").put_bytes("a", b"x")
    assert caught.value.permanent


@pytest.mark.s3
def test_a_missing_bucket_is_a_permanent_error(moto: S3Server) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket") as caught:
        s3.S3Store(moto.client(), "no-such-bucket").put_bytes("a", b"x")
    assert caught.value.permanent


@pytest.mark.s3
def test_a_server_that_is_down_is_worth_another_try(tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path) as server:
        store = server.store()
        store.put_bytes("a", b"kept")
        server.process.kill()
        server.process.wait()
        with pytest.raises(StoreError, match="server of ASTRID_STORE_ENDPOINT") as caught:
            store.get_bytes("a")
        assert not caught.value.permanent
        assert not isinstance(caught.value, MissingProductError)
        # What was acknowledged outlives the server.
        assert (tmp_path / "rclone" / BUCKET / "survey" / "a").read_bytes() == b"kept"


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_large_files_go_up_in_parts_with_their_digest(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 5 MiB is the least that the protocol allows for a part.
    monkeypatch.setattr(s3, "_SINGLE_PUT_LIMIT", 5 * 1024 * 1024)
    store = request.getfixturevalue(kind).store("large")
    path = tmp_path / "large"
    path.write_bytes(os.urandom(12 * 1024 * 1024))
    kept = store.put_file("large", path)
    assert kept.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert store.stat("large") == kept
    assert store.get_bytes("large") == path.read_bytes()


def test_a_writer_killed_in_mid_write_leaves_the_old_object_whole(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_bytes("night/product", b"old" * 1000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = (
        "import sys; from pathlib import Path; from astrid_pipeline.resources.store import LocalStore; "
        "LocalStore(sys.argv[1]).put_file('night/product', Path(sys.argv[2]))"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(store.root), str(pipe)])
    with pipe.open("wb", buffering=0) as stream:
        # The writer holds half of the new object when it dies: the pipe stays open, so it waits for the rest.
        stream.write(b"new" * 20_000)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any((store.root / ".tmp").iterdir()):
            time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert any((store.root / ".tmp").iterdir()), "the writer was killed before it had begun"
    assert store.get_bytes("night/product") == b"old" * 1000
    assert [entry.key for entry in store.list()] == ["night/product"]


def test_a_full_or_forbidden_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="free space and the folder's permissions"):
        LocalStore(tmp_path / "file" / "store").put_bytes("a", b"x")


def test_settings_choose_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(load_settings(home=tmp_path)).url == str(tmp_path / "store")
    assert StoreResource(url=str(tmp_path / "x")).open().url == str(tmp_path / "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    endpoint = f"http://127.0.0.1:{free_port()}"
    opened = open_store(load_settings(store="s3://bucket/some/prefix/", store_endpoint=endpoint))
    assert opened.url == "s3://bucket/some/prefix"
    with pytest.raises(StoreError, match="names no bucket"):
        open_store(load_settings(store="s3:///x"))


@pytest.mark.s3
def test_without_keys_the_remedy_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moto: S3Server
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_store(load_settings(store=f"s3://{BUCKET}/x", store_endpoint=moto.endpoint))
    with pytest.raises(StoreError, match="AWS keys"):
        store.put_bytes("a", b"x")
