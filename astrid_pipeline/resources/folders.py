"""Products that are folders of files: labelled samples to be memory-mapped, models with their card.

Layout in the store: `<asset>/<partition>/<token>/<file>`, and `<asset>/<partition>/index.json`, written last.
"""

# No `from __future__ import annotations` here: Dagster reads the resource fields' types at class creation.
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import dagster as dg

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.io_managers import _PartitionedIOManager
from astrid_pipeline.resources.copies import copies_folder, name_of, note_use
from astrid_pipeline.resources.frames import INDEX
from astrid_pipeline.resources.store import LocalStore, Store, damaged, sha256_of


def put_folder(store: Store, path: str, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Keep a folder's files under `path`, visible all at once; return the index.

    Parameters
    ----------
    path:
        Key prefix of the product.
    folder:
        Its files (not its sub-folders) are kept.
    facts:
        Plain values to keep in the index.
    """
    token = uuid.uuid4().hex[:12]
    before = read_folder_index(store, path)
    files = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        kept = store.put_file(f"{path}/{token}/{file.name}", file)
        files[file.name] = {"key": kept.key, "sha256": sha256_of(file), "size": kept.size}
    index = {**facts, "files": files}
    store.put_bytes(f"{path}/{INDEX}", json.dumps(index, indent=1, sort_keys=True).encode())
    if before is not None:
        store.delete(entry["key"] for entry in before["files"].values())
    return index


def read_folder_index(store: Store, path: str) -> dict[str, Any] | None:
    """Return the index of a folder product, None if it was never finished."""
    try:
        data = store.get_bytes(f"{path}/{INDEX}")
    except MissingProductError:
        return None
    try:
        index: dict[str, Any] = json.loads(data)
        if not isinstance(index.get("files"), dict):
            raise ValueError("no files")
    except (ValueError, AttributeError) as error:
        raise damaged(store.location(f"{path}/{INDEX}"), "its index cannot be read") from error
    return index


def get_folder(store: Store, path: str) -> Path:
    """Return a local folder with the product's files, to be read only.

    In a folder store it is the product itself; else a copy under the home, named by content and checked by
    digest, so that it is fetched once.

    Raises
    ------
    MissingProductError
        If it was never made.
    StoreError
        If a file is not what was written.
    """
    index = read_folder_index(store, path)
    if index is None:
        raise MissingProductError(
            "not in the store",
            where=store.location(path),
            remedy="materialize the asset that makes it, then run this again",
        )
    files = index["files"]
    if isinstance(store, LocalStore):
        folders = {store.path(entry["key"]).parent for entry in files.values()}
        if len(folders) == 1:
            return folders.pop()
    name = name_of(files)
    target = copies_folder() / name
    if target.is_dir():
        note_use(target, path)
        return target
    # Threads, and processes of two containers with one home, may want the same at once.
    partial = target.with_name(f".{name}.{uuid.uuid4().hex}.part")
    partial.mkdir(parents=True)
    try:
        for file, entry in files.items():
            local = store.get_file(entry["key"], partial / file)
            if sha256_of(local) != entry["sha256"]:
                raise damaged(
                    store.location(entry["key"]), "the file is not what was written (SHA-256 differs)"
                )
        try:
            partial.rename(target)
        except OSError:
            # Another process was faster; its copy holds the same bytes.
            if not target.is_dir():
                raise
        note_use(target, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class FolderIOManager(_PartitionedIOManager):
    """Keeps products that are folders: the value is a `Path`, going in and coming out."""

    def write(self, context: dg.OutputContext, path: str, key: str | None, obj: Any) -> dict[str, Any]:
        """Keep the files, swap the index, remove the older files."""
        store = self.store.open()
        index = put_folder(store, path, Path(obj), {"run_id": context.run_id, "partition": key or ""})
        return {
            "files": len(index["files"]),
            "size": dg.MetadataValue.int(sum(entry["size"] for entry in index["files"].values())),
            "path": dg.MetadataValue.path(store.location(f"{path}/{INDEX}")),
        }

    def read(self, context: dg.InputContext, path: str) -> Any:
        """Return a local folder of the files."""
        return get_folder(self.store.open(), path)

    def combine(self, context: dg.InputContext, parts: dict[str | None, Any], wanted: Any) -> Any:
        """Return the one folder, or folders by partition key."""
        return (
            next(iter(parts.values())) if len(parts) == 1 else {str(key): part for key, part in parts.items()}
        )
