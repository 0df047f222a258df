"""An inbox: a folder or bucket prefix that others put FITS files into, taken over once they are complete.

What is complete is copied into the folder `received`, which is an archive as any other folder; the inbox itself is
only read. A file is complete when its length and time have not changed between two looks and it is a whole FITS file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrid_pipeline.archives.base import copy_checked, safe_name, sha256_of
from astrid_pipeline.archives.download import check_fits
from astrid_pipeline.archives.fits_reader import SUFFIX
from astrid_pipeline.archives.web import BadAnswerError
from astrid_pipeline.errors import AstridError, ReadError

if TYPE_CHECKING:
    from astrid_pipeline.resources.store import Store

#: Files taken over in one look, so that a tick stays short.
AT_ONCE = 100


@dataclass
class Received:
    """What one look found: files taken over, files still being written, files that are no good with the reason."""

    taken: list[Path] = field(default_factory=list)
    growing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left: int = 0

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} new files"]
        if self.growing:
            parts.append(f"{len(self.growing)} still being written ({', '.join(self.growing[:3])})")
        if self.refused:
            parts.append(
                "not taken: " + "; ".join(f"{name}: {why}" for name, why in sorted(self.refused.items())[:5])
            )
        if self.left:
            parts.append(f"{self.left} more at the next look")
        return "; ".join(parts)


class Inbox:
    """Takes complete files out of a folder.

    Parameters
    ----------
    source:
        The folder that others write to.
    received:
        Where complete files are copied to.
    """

    def __init__(self, source: Path, received: Path) -> None:
        self.source = source
        self.received = received
        self._index = received / ".inbox.json"

    def _known(self) -> dict[str, list[int]]:
        try:
            known = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def look(self, seen: dict[str, list[int]]) -> tuple[Received, dict[str, list[int]]]:
        """Take over what is complete.

        Parameters
        ----------
        seen:
            Length and time of change of the files that were not complete at the last look.

        Returns
        -------
        received, seen:
            What was found, and what to hand over at the next look.

        Raises
        ------
        ReadError
            If the folder is not there or may not be listed.
        """
        if not self.source.is_dir():
            raise ReadError(
                "the inbox is not there", where=self.source, remedy="make the folder, or mend ASTRID_INBOX"
            )
        known, out, waiting = self._known(), Received(), {}
        for path in self._files():
            name = path.relative_to(self.source).as_posix()
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # renamed since the folder was read
            stamp = [stat.st_size, stat.st_mtime_ns]
            if known.get(name) == stamp:
                continue
            if seen.get(name) != stamp:
                waiting[name] = stamp
                out.growing.append(name)
                continue
            if len(out.taken) >= AT_ONCE:
                waiting[name] = stamp
                out.left += 1
                continue
            try:
                check_fits(path)
                out.taken.append(self._take(path, stat.st_size))
                known[name] = stamp
            except (BadAnswerError, AstridError, OSError) as error:
                waiting[name] = stamp
                out.refused[name] = str(error)
        if out.taken:
            self._save(known)
        return out, waiting

    def _files(self) -> list[Path]:
        found = []
        for folder, folders, names in os.walk(self.source):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [
                Path(folder, name)
                for name in sorted(names)
                if SUFFIX.search(name) and not name.startswith(".")
            ]
        return found

    def _take(self, path: Path, size: int) -> Path:
        target = self.received / safe_name("_".join(path.relative_to(self.source).parts))
        digest = sha256_of(path)
        if target.exists() and sha256_of(target) != digest:
            # Another file of the same name: both are kept.
            stem, ending = target.name.split(".", 1)
            target = target.with_name(f"{stem}-{digest[:8]}.{ending}")
        return copy_checked(path, target, size=size, sha256=digest)

    def _save(self, known: dict[str, list[int]]) -> None:
        temporary = self._index.with_name(f"{self._index.name}.new")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        os.replace(temporary, self._index)


def mirror(store: Store, folder: Path, seen: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Bring a bucket prefix's FITS objects into a folder, each once; objects in a bucket are always complete.

    An object that was overwritten comes again, also where the new one has the old one's length.

    Returns
    -------
    seen:
        Length and version (ETag) of each object that was brought, to hand over at the next look.
    """
    out = dict(seen)
    for entry in store.list():
        stamp = [entry.size, entry.version]
        if not SUFFIX.search(entry.key) or out.get(entry.key) == stamp:
            continue
        store.get_file(entry.key, folder / entry.key)
        out[entry.key] = stamp
    return out
