"""Copies on this machine of folder products that lie on an S3 server: whose they are, and which may go.

Each is a folder by the name of its content, below `cache/folders` of the home, with a note beside it: the products
that it was fetched for. The note's time is that of the last use. Without a copy nothing is lost but the time to fetch
it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from astrid_pipeline.errors import AstridError, MissingProductError
from astrid_pipeline.resources.frames import INDEX
from astrid_pipeline.resources.store import Store
from astrid_pipeline.settings import get_settings

#: What was used since then may be in use: no training takes as long.
IN_USE_DAYS = 1.0


def copies_folder() -> Path:
    """Return where the copies lie."""
    return get_settings().home / "cache" / "folders"


def name_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a copy, by its files' names and digests."""
    return uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([[n, files[n]["sha256"]] for n in sorted(files)])).hex


def note_use(copy: Path, path: str) -> None:
    """Note that a copy serves the product at `path` of the store, now.

    A note that cannot be written, or is overwritten by another process' at the same moment, costs fetching again.
    """
    note = _note(copy)
    of = _noted(note)
    with contextlib.suppress(OSError):
        if path in of:
            os.utime(note)
            return
        partial = note.with_name(f".{note.name}.{uuid.uuid4().hex[:8]}")
        partial.write_text(json.dumps({"of": [*of, path]}))
        os.replace(partial, note)


def _note(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _noted(note: Path) -> list[str]:
    try:
        return [str(path) for path in json.loads(note.read_text())["of"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@dataclass(frozen=True)
class Copy:
    """A copy: where, how large (bytes), when last used (Unix time), and whether a watched field still has it."""

    folder: Path
    size: int
    used: float
    wanted: bool


def look(store: Store, fields: Collection[str]) -> list[Copy]:
    """Return the copies, the longest unused first.

    Parameters
    ----------
    fields:
        Names of the fields that are watched.

    Raises
    ------
    StoreError
        If the store does not answer.
    """
    found = []
    root = copies_folder()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        # Of a folder that is being fetched, or was when its process was killed, the name begins with a point.
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        note = _note(folder)
        wanted = any(_is_of(store, path, folder.name, fields) for path in _noted(note))
        with contextlib.suppress(FileNotFoundError):
            size = sum(part.stat().st_size for part in folder.rglob("*") if part.is_file())
            used = (note if note.exists() else folder).stat().st_mtime
            found.append(Copy(folder, size, used, wanted))
    return sorted(found, key=lambda copy: copy.used)


def _is_of(store: Store, path: str, name: str, fields: Collection[str]) -> bool:
    """Tell whether a product is of a watched field (or of none), and is still what was copied."""
    parts = path.split("/")
    # `asset/field/night`; models and their like have no field.
    if len(parts) == 3 and unquote(parts[1]) not in fields:
        return False
    try:
        files = json.loads(store.get_bytes(f"{path}/{INDEX}"))["files"]
        return name_of(files) == name
    except MissingProductError:
        return False
    except (ValueError, KeyError, TypeError):
        return False  # an index that cannot be read: nobody gets the copy by it
    except AstridError as error:
        if not error.permanent:
            raise
        return False


def to_go(copies: list[Copy], *, days: float, most: float, now: float | None = None) -> list[Copy]:
    """Return the copies that may go: unwanted and unused for `days`, and the longest unused ones over `most` bytes.

    What was used within `IN_USE_DAYS` stays in any case.
    """
    now = time.time() if now is None else now
    idle = [copy for copy in copies if now - copy.used > 86400.0 * IN_USE_DAYS]
    going = [copy for copy in idle if not copy.wanted and now - copy.used > 86400.0 * days]
    left = sum(copy.size for copy in copies) - sum(copy.size for copy in going)
    # Unwanted ones before wanted ones, of each the longest unused first.
    for copy in sorted((c for c in idle if c not in going), key=lambda c: (c.wanted, c.used)):
        if left <= most:
            break
        going.append(copy)
        left -= copy.size
    return going


def remove(copies: list[Copy]) -> int:
    """Remove copies and return their bytes; one whose files are mapped goes when the last process lets go of it."""
    for copy in copies:
        # Out of sight at once: nobody shall find half of it.
        hidden = copy.folder.with_name(f".{copy.folder.name}.{uuid.uuid4().hex}.part")
        with contextlib.suppress(FileNotFoundError):
            copy.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        _note(copy.folder).unlink(missing_ok=True)
    return sum(copy.size for copy in copies)


def remove_unfinished(days: float, now: float | None = None) -> int:
    """Remove what processes that were killed had begun to fetch, or to remove, so many days ago; return the bytes."""
    before = (time.time() if now is None else now) - 86400.0 * days
    size = 0
    for part in copies_folder().glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_mtime < before:
                size += sum(p.stat().st_size for p in (part, *part.rglob("*")) if p.is_file())
                shutil.rmtree(part) if part.is_dir() else part.unlink()
    return size


def prune(store: Store, fields: Collection[str], days: float) -> tuple[int, int]:
    """Remove the copies that may go by the settings, and return how many and how many bytes.

    Raises
    ------
    StoreError
        If the store does not answer.
    """
    most = get_settings().folder_cache_gb * 1e9
    going = to_go(look(store, fields), days=days, most=most)
    return len(going), remove(going) + remove_unfinished(max(days, IN_USE_DAYS))
