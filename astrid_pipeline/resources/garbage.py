"""What nothing refers to any more in the store: pieces of runs that were killed, raw files of no observation.

A product is named by an index that is written last (`io_managers`, `resources.folders`): a file of a product's folder
that the index does not name belongs to a run that did not end, or to an older making whose removal was cut short. Only
such files, by the shape of their keys, are ever judged; whatever else lies in the store is left alone.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from astrid_pipeline.errors import AstridError, MissingProductError
from astrid_pipeline.resources import layout
from astrid_pipeline.resources.frames import INDEX
from astrid_pipeline.resources.s3 import S3Store
from astrid_pipeline.resources.store import SCRATCH, LocalStore, Store, StoredObject

#: Nobody's run takes a week; what is younger may belong to one that goes on.
OLDEST_RUN_DAYS = 7.0
#: Never judged: pictures of the Dagster page's history, images that people asked for by address, datasets that people
#: collected, MLflow's own files (models in use, with every version that it knows), packets of alerts that were sent.
KEPT = (
    "pictures",
    "reference-datasets",
    "training-datasets",
    "mlflow",
    "alert-packets",
    "astrid-layout.json",
)
_FRAME = re.compile(r"(?P<folder>.+)/[^/]+\.[0-9a-f]{12}\.fits")
_FILE = re.compile(r"(?P<folder>.+)/[0-9a-f]{12}/[^/]+")
#: What lies in a folder by the name of its field, should a field be called like a token.
_OF_FIELD = re.compile(r"(index\.json|\d{4}-\d{2}-\d{2}\.parquet)")
_RAW = re.compile(r"raw/[^/]+/(?P<night>\d{4}-\d{2}-\d{2})/[^/]+")
#: Objects looked at at once: a server far away answers each in tens of milliseconds.
_AT_ONCE = 16

Why = Literal["not in the index", "no index", "no observation", "unfinished write"]


@dataclass(frozen=True)
class Leftover:
    """An object that nothing refers to, or a write that never ended (`token`: the S3 server's name of it)."""

    key: str
    size: int
    why: Why
    token: str | None = None


@dataclass
class Found:
    """What a look came to: leftovers, how many objects there are, and folders whose index cannot be read."""

    leftovers: list[Leftover] = field(default_factory=list)
    objects: int = 0
    unreadable: list[str] = field(default_factory=list)

    def by_why(self) -> dict[str, tuple[int, int]]:
        """Return count and bytes for each reason."""
        sums: dict[str, tuple[int, int]] = {}
        for entry in self.leftovers:
            count, size = sums.get(entry.why, (0, 0))
            sums[entry.why] = (count + 1, size + entry.size)
        return sums


def find(
    store: Store,
    observed: Callable[[], Iterable[str]],
    *,
    days: float = OLDEST_RUN_DAYS,
    now: float | None = None,
) -> Found:
    """Return what nothing refers to and is older than `days`.

    Safe while runs write: the store is listed first and the indices are read afterwards, so that what a run has just
    finished is in its index, and what it has not finished is too young.

    Parameters
    ----------
    observed:
        Gives the keys of the raw files that the catalogue's observations name; asked after the listing.
    now:
        Unix time to reckon ages from; the clock's by default.

    Raises
    ------
    StoreError, ServiceError
        If the store or the catalogue does not answer, or a newer AstrID has changed the store's layout.
    """
    layout.check(store)
    before = (time.time() if now is None else now) - 86400.0 * days
    everything = store.list()
    there = {entry.key for entry in everything}
    old = [
        entry
        for entry in everything
        if entry.modified is not None and entry.modified < before and entry.key.split("/", 1)[0] not in KEPT
    ]
    found = Found(objects=len(everything))
    folders: dict[str, list[StoredObject]] = defaultdict(list)
    raw: list[StoredObject] = []
    for entry in old:
        name = entry.key.rsplit("/", 1)[-1]
        if entry.key.startswith("raw/"):
            raw += [entry] if _RAW.fullmatch(entry.key) else []
        elif _OF_FIELD.fullmatch(name):
            continue
        elif match := _FRAME.fullmatch(entry.key) or _FILE.fullmatch(entry.key):
            folders[match["folder"]].append(entry)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for (folder, entries), named in zip(
            folders.items(), pool.map(lambda folder: _named(store, folder), folders), strict=True
        ):
            if isinstance(named, AstridError):
                found.unreadable.append(f"{folder}: {named.what}")
                continue
            why: Why = "no index" if named is None else "not in the index"
            found.leftovers += [
                Leftover(e.key, e.size, why) for e in entries if named is None or e.key not in named
            ]
        _raw_leftovers(store, raw, there, observed, found, pool)
    found.leftovers += _unfinished(store, before)
    found.leftovers.sort(key=lambda entry: entry.key)
    return found


def _named(store: Store, folder: str) -> set[str] | AstridError | None:
    """Return the keys that a product's index names; None without an index; the error where it cannot be read."""
    try:
        data = store.get_bytes(f"{folder}/{INDEX}")
        index = json.loads(data)
        listed = index["entries"] if "entries" in index else index["files"]
        return {str(entry["key"]) for entry in listed.values()}
    except MissingProductError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return AstridError("its index cannot be read", where=folder, remedy="materialize it again")
    except AstridError as error:
        if not error.permanent:
            raise
        return error


def _raw_leftovers(
    store: Store,
    raw: Sequence[StoredObject],
    there: set[str],
    observed: Callable[[], Iterable[str]],
    found: Found,
    pool: ThreadPoolExecutor,
) -> None:
    """Add raw files that neither the catalogue nor the night's own table of observations names."""
    if not raw:
        return
    known = set(observed())
    left = [entry for entry in raw if entry.key not in known]
    nights = {match["night"] for entry in left if (match := _RAW.fullmatch(entry.key))}
    tables = [
        key
        for key in there
        if key.startswith("observations/") and key.rsplit("/", 1)[-1].removesuffix(".parquet") in nights
    ]
    for paths in pool.map(lambda key: _paths(store, key), tables):
        if isinstance(paths, AstridError):
            # It may have named any of them.
            found.unreadable.append(f"{paths.where}: {paths.what}")
            return
        known |= paths
    found.leftovers += [
        Leftover(entry.key, entry.size, "no observation") for entry in left if entry.key not in known
    ]


def _paths(store: Store, key: str) -> set[str] | AstridError:
    from astrid_pipeline.io_managers import from_parquet

    try:
        return set(from_parquet(store.get_bytes(key), store.location(key))["path"].dropna().astype(str))
    except MissingProductError:
        return set()
    except AstridError as error:
        if not error.permanent:
            raise
        return error


def _unfinished(store: Store, before: float) -> list[Leftover]:
    """Return writes that began before a time and never ended: scratch files, or an S3 server's open uploads."""
    if isinstance(store, LocalStore):
        found = [
            Leftover(path.relative_to(store.root).as_posix(), _size(path), "unfinished write")
            for path in (store.root / SCRATCH).glob("*")
            if _touched(path) < before
        ]
    else:
        assert isinstance(store, S3Store)
        found = [
            Leftover(key, 0, "unfinished write", upload)
            for key, upload, at in open_uploads(store)
            if at < before
        ]
    return found


def _touched(path: Path) -> float:
    """Return when a scratch file, or anything in a scratch folder, was last written to; now where it is just going."""
    try:
        return max(part.stat().st_mtime for part in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def open_uploads(store: S3Store) -> list[tuple[str, str, float]]:
    """Return uploads in parts that were begun and not ended: key, upload id, when; none where a server lists none.

    A server keeps their parts, which no listing of objects shows, until they are abandoned.

    Raises
    ------
    StoreError
        If the server does not answer.
    """
    from botocore.exceptions import ClientError

    start = f"{store.prefix}/" if store.prefix else ""
    found = []
    with store._failing("list the open uploads", ""):
        try:
            pages = store.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=store.bucket, Prefix=start):
                found += [
                    (entry["Key"][len(start) :], str(entry["UploadId"]), entry["Initiated"].timestamp())
                    for entry in page.get("Uploads", [])
                ]
        except ClientError as error:
            # Some servers keep no list of them; rclone's says so where there is none.
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status not in (405, 501) and error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise
    return sorted(found)


def _abandon(store: S3Store, key: str, upload: str) -> None:
    from botocore.exceptions import ClientError

    with store._failing("abandon an upload", key):
        try:
            store.client.abort_multipart_upload(Bucket=store.bucket, Key=store._key(key), UploadId=upload)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise


def remove(
    store: Store, leftovers: Iterable[Leftover], done: Callable[[Leftover], Any] = lambda _: None
) -> None:
    """Remove leftovers one by one; killed in between, the next look finds the rest.

    Raises
    ------
    StoreError
        If the store refuses one; those before it are gone.
    """
    for entry in leftovers:
        if entry.why != "unfinished write":
            store.delete([entry.key])
        elif isinstance(store, S3Store):
            _abandon(store, entry.key, entry.token or "")
        elif isinstance(store, LocalStore):
            path = store.root / entry.key
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        done(entry)
