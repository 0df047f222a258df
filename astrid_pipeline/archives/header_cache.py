"""What was read from headers, kept on disk, so that a folder of thousands of files is read through only once.

An entry holds as long as its file's length and time of change are the same and the alias tables are. Nothing but
time depends on the cache: when it is absent, unreadable or cannot be written, headers are read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astrid_pipeline.archives.fits_reader import Summary
from astrid_pipeline.archives.keywords import Keywords
from astrid_pipeline.errors import ReadError

#: Raised when what a summary holds, or how it is made, changes.
VERSION = 1


def cache_folder() -> Path:
    """Return where caches are kept: under $ASTRID_HOME, else under ~/.astrid."""
    home = os.environ.get("ASTRID_HOME")
    return (Path(home) if home else Path.home() / ".astrid") / "cache" / "headers"


class HeaderCache:
    """Summaries of the files of one folder, by file.

    Parameters
    ----------
    root:
        The folder whose files they are.
    keywords:
        The alias tables in use: others make other summaries.
    """

    def __init__(self, root: Path, keywords: Keywords) -> None:
        tables = json.dumps(vars(keywords), sort_keys=True, default=str)
        name = hashlib.sha256(f"{VERSION}\n{root}\n{tables}".encode()).hexdigest()[:24]
        self.path = cache_folder() / f"{name}.json"
        self._known: dict[str, dict[str, Any]] = {}
        self._used: dict[str, dict[str, Any]] = {}
        self._changed = False
        try:
            self._known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._changed = True

    def summaries(self, file: Path, read: Callable[[Path], list[Summary]]) -> list[Summary]:
        """Return a file's summaries, from the cache if the file is as it was, else by `read`.

        Raises
        ------
        AstridError
            What `read` raises.
        """
        try:
            stat = file.stat()
        except OSError as error:
            raise ReadError(
                f"cannot be read: {error.strerror}", where=file, remedy="check the file"
            ) from error
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(str(file))
        if entry is None or entry["stamp"] != stamp:
            self._changed = True
            # A file that cannot be read is looked at again each time: it may be the reader that learns.
            entry = {"stamp": stamp, "summaries": [_packed(summary) for summary in read(file)]}
        self._used[str(file)] = entry
        return [_unpacked(file, packed) for packed in entry["summaries"]]

    def save(self) -> None:
        """Write what was used, if anything is new or gone; a cache that cannot be written is done without."""
        if not self._changed and len(self._used) == len(self._known):
            return
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._used), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError:
            # A read-only home, a full disk: the next one reads the headers again.
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _packed(summary: Summary) -> dict[str, Any]:
    return {
        "key": summary.key,
        "meta": dict(summary.meta),
        "shape": summary.shape,
        "centre": summary.centre,
        "radius": summary.radius,
    }


def _unpacked(file: Path, packed: dict[str, Any]) -> Summary:
    height, width = packed["shape"]
    centre = packed["centre"]
    return Summary(
        file,
        packed["key"],
        packed["meta"],
        (int(height), int(width)),
        None if centre is None else (float(centre[0]), float(centre[1])),
        packed["radius"],
    )
