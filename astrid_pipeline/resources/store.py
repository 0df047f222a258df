"""The store: where products are kept. A folder, or a bucket that speaks S3; the same promises either way.

A product is either whole under its key or not there: a write goes to a temporary name and is renamed
(folder), or is one PUT that the server makes visible at its end (S3). `put_if_absent` lets one of many
racing writers win.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Protocol, runtime_checkable

from dagster import ConfigurableResource
from pydantic import Field, PrivateAttr

from astrid_pipeline.errors import DamagedError, MissingProductError, StoreError
from astrid_pipeline.settings import Settings, get_settings

_SAFE_PART = re.compile(r"[A-Za-z0-9._=+@,~%-]+")
#: Temporary files of the folder store live here, on the same file system as what they become.
SCRATCH = ".tmp"


@dataclass(frozen=True)
class StoredObject:
    """What the store says about an object: key, bytes, SHA-256 in hex (None where it was not recorded).

    `version` is what a listing gives for telling contents apart: the ETag, or a file's time of change. `modified` is
    when a listed object was written, Unix time.
    """

    key: str
    size: int
    sha256: str | None = None
    version: str | None = dataclass_field(default=None, compare=False)
    modified: float | None = dataclass_field(default=None, compare=False)


@runtime_checkable
class Store(Protocol):
    """A place for products. Keys are relative, `/`-separated paths of safe characters (`check_key`)."""

    @property
    def url(self) -> str:
        """The folder or `s3://bucket/prefix`."""

    def put_bytes(self, key: str, data: bytes) -> StoredObject:
        """Keep `data` under `key`, replacing what was there, all or nothing."""

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Keep a copy of the file under `key`, all or nothing."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Keep `data` under `key` unless something is there; True for the one writer that won."""

    def get_bytes(self, key: str) -> bytes:
        """Return the object. Raises `MissingProductError` if there is none."""

    def get_file(self, key: str, path: Path) -> Path:
        """Copy the object to `path` (all or nothing) and return it."""

    def open_local(self, key: str) -> AbstractContextManager[Path]:
        """Return a context that gives a readable local path of the object: itself, or a temporary copy."""

    def exists(self, key: str) -> bool:
        """Tell whether there is an object under `key`."""

    def stat(self, key: str) -> StoredObject:
        """Return the object's size and digest. Raises `MissingProductError`."""

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects below the folder `prefix`, sorted by key."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""

    def location(self, key: str) -> str:
        """Return the object's path or address, for a person to open."""


def check_key(key: str) -> str:
    """Return `key` if it is a safe relative path; keys can come from headers and requests.

    Raises
    ------
    StoreError
        If a part is empty, `.` or `..`, hidden, or has other characters than letters, digits and `._=+@,~%-`.
    """
    parts = key.split("/")
    if not all(_SAFE_PART.fullmatch(part) and not part.startswith(".") for part in parts):
        error = StoreError(
            "this is not a safe key", where=repr(key), remedy="use letters, digits and ._=+@,~%-"
        )
        error.permanent = True
        raise error
    return key


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _missing(key: str, url: str) -> MissingProductError:
    return MissingProductError(
        "not in the store",
        where=f"{url}/{key}",
        remedy="materialize the asset that makes it, then run this again",
    )


def damaged(where: str, how: str) -> DamagedError:
    """Return the error for an object that is not what was written."""
    return DamagedError(how, where=where, remedy="materialize the asset again for this partition")


class LocalStore:
    """A store in a folder. Writes are synced to disk before they become visible."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    def path(self, key: str) -> Path:
        """Return where the object is, or would be."""
        return self.root / check_key(key)

    def location(self, key: str) -> str:
        """Return the object's path."""
        return str(self.path(key))

    @contextmanager
    def _failing(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise _missing(key, self.url) from error
        except OSError as error:
            raise StoreError(
                f"cannot {what}: {error.strerror or error}",
                where=self.root / key,
                remedy="look at the disk's free space and the folder's permissions",
            ) from error

    def _scratch(self) -> Path:
        folder = self.root / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def _publish(self, temporary: Path, key: str) -> None:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
        _sync_folder(target.parent)

    def put_bytes(self, key: str, data: bytes) -> StoredObject:
        """Keep `data` under `key`, replacing what was there, all or nothing."""
        check_key(key)
        with self._failing("write", key):
            temporary = self._scratch()
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                self._publish(temporary, key)
            finally:
                temporary.unlink(missing_ok=True)
        return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Keep a copy of the file under `key`, all or nothing."""
        check_key(key)
        source = Path(path)
        digest = hashlib.sha256()
        size = 0
        with self._failing("write", key):
            temporary = self._scratch()
            try:
                with source.open("rb") as incoming, temporary.open("wb") as stream:
                    while block := incoming.read(1 << 20):
                        digest.update(block)
                        size += len(block)
                        stream.write(block)
                    stream.flush()
                    os.fsync(stream.fileno())
                self._publish(temporary, key)
            finally:
                temporary.unlink(missing_ok=True)
        return StoredObject(key, size, digest.hexdigest())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Keep `data` under `key` unless something is there; True for the one writer that won."""
        target = self.path(key)
        with self._failing("write", key):
            temporary = self._scratch()
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    # A hard link is made only where there is nothing: the file system decides who was first.
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                _sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def get_bytes(self, key: str) -> bytes:
        """Return the object."""
        with self._failing("read", key):
            return self.path(key).read_bytes()

    def get_file(self, key: str, path: Path) -> Path:
        """Copy the object to `path` (all or nothing) and return it."""
        target = Path(path)
        source = self.path(key)
        if not source.is_file():
            raise _missing(key, self.url)
        with self._failing("read", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            try:
                shutil.copyfile(source, temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        return target

    @contextmanager
    def open_local(self, key: str) -> Iterator[Path]:
        """Give the object's own path (read only, please)."""
        path = self.path(key)
        if not path.is_file():
            raise _missing(key, self.url)
        yield path

    def exists(self, key: str) -> bool:
        """Tell whether there is an object under `key`."""
        return self.path(key).is_file()

    def stat(self, key: str) -> StoredObject:
        """Return the object's size and digest (computed from its bytes)."""
        path = self.path(key)
        if not path.is_file():
            raise _missing(key, self.url)
        with self._failing("read", key):
            return StoredObject(key, path.stat().st_size, sha256_of(path))

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects below the folder `prefix`, sorted by key; digests are not computed."""
        top = self.root / check_key(prefix.strip("/")) if prefix.strip("/") else self.root
        found = []
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder) / name
                if not name.startswith("."):
                    try:
                        stat = path.stat()
                    except FileNotFoundError:
                        continue  # removed by another process since the folder was read
                    name = path.relative_to(self.root).as_posix()
                    version, at = str(stat.st_mtime_ns), stat.st_mtime
                    found.append(StoredObject(name, stat.st_size, version=version, modified=at))
        return sorted(found, key=lambda entry: entry.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, and the folders that become empty."""
        for key in keys:
            path = self.path(key)
            with self._failing("delete", key):
                path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break  # not empty, or not there


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_store(settings: Settings | None = None) -> Store:
    """Return the store that the settings name.

    Raises
    ------
    StoreError
        If the bucket's keys are not set, or the address is not one.
    """
    settings = settings or get_settings()
    if settings.store_url.startswith("s3://"):
        from astrid_pipeline.resources.s3 import open_s3_store

        return open_s3_store(
            settings.store_url, endpoint=settings.store_endpoint, region=settings.store_region
        )
    return LocalStore(settings.store_url)


class StoreResource(ConfigurableResource):
    """The store as a Dagster resource: `store.open()` gives the `Store`."""

    url: str | None = Field(
        default=None, description="A folder or s3://bucket/prefix; default: ASTRID_STORE."
    )
    endpoint: str | None = Field(default=None, description="S3 server; default: ASTRID_STORE_ENDPOINT.")

    _opened: Store | None = PrivateAttr(default=None)

    def open(self) -> Store:
        """Return the store, whose layout this AstrID knows; one object for the life of the resource.

        Raises
        ------
        StoreError
            If it does not answer, or a newer AstrID has changed its layout.
        """
        if self._opened is None:
            settings = get_settings()
            changes = {
                name: value
                for name, value in (("store", self.url), ("store_endpoint", self.endpoint))
                if value
            }
            # Validated again, so that a folder given here is made absolute as one from the environment is.
            opened = open_store(Settings(**{**settings.model_dump(), **changes}) if changes else settings)
            from astrid_pipeline.resources import layout

            layout.claim(opened)
            self._opened = opened
        return self._opened


@contextmanager
def scratch_folder(store: Store | None = None) -> Iterator[Path]:
    """Give a temporary folder, on the store's own disk if it is a folder; it is gone afterwards."""
    parent = None
    if isinstance(store, LocalStore):
        parent = store.root / SCRATCH
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="astrid-", dir=parent) as folder:
        yield Path(folder)
