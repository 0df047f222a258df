"""Bringing a file from a server: under a temporary name, resumed where it broke, checked, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from astrid_pipeline.archives.base import sha256_of
from astrid_pipeline.archives.web import BadAnswerError, Patience, open_session, persist
from astrid_pipeline.errors import AstridError

#: Bytes read at a time.
CHUNK = 1 << 20
#: What a FITS file begins with, and the compressed forms of one (gzip, bzip2, xz, zip).
FITS_START = b"SIMPLE  ="
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
#: Downloads at once: what public archives ask of one client.
AT_ONCE = 3


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    session: requests.Session | None = None,
    patience: Patience | None = None,
    what: str | None = None,
) -> Path:
    """Bring a FITS file (or a compressed one, or a zip of them) to `target`; it is whole there, or not there.

    A download that breaks goes on where it broke, in this call or in a later one, if the server says by its ETag
    that the file is still the same. A file whose length is not the listed one is fetched once more; if the same
    bytes come again and prove whole, the listing was wrong, and they are kept.

    Parameters
    ----------
    url, target:
        From where to where.
    size:
        Length that the archive lists, bytes.
    what:
        What to call it in messages.

    Raises
    ------
    ServiceError
        If no whole file came in `patience.tries` tries.
    """
    patience = patience or Patience()
    session = session or open_session(patience)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    seen: set[str] = set()

    def once() -> Path:
        _receive(session, url, partial, patience)
        try:
            end = check_fits(partial)
            got = partial.stat().st_size
            if size is not None and size > 0 and got != size:
                digest = sha256_of(partial)
                if digest not in seen or end not in (None, got):
                    seen.add(digest)
                    raise BadAnswerError(f"{got} bytes came where {size} are listed")
        except BadAnswerError:
            # These bytes are wrong: what comes next must not be joined to them.
            _forget(partial)
            raise
        os.replace(partial, target)
        _validator(partial).unlink(missing_ok=True)
        return target

    return persist(once, f"fetch {what or target.name}", url.split("?")[0], patience)


def _validator(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _validator(partial).unlink(missing_ok=True)


def _receive(session: requests.Session, url: str, partial: Path, patience: Patience) -> None:
    """Write the body to `partial`, going on at its end if the server agrees that it is the same file."""
    have = partial.stat().st_size if partial.exists() else 0
    etag = _read_validator(partial, url) if have else None
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges count the file's own bytes
    if have and etag:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag}
    with session.get(url, stream=True, headers=headers, timeout=(patience.connect, patience.read)) as reply:
        if reply.status_code == 416:
            _forget(partial)
            raise BadAnswerError("the part that was fetched before is longer than the file")
        reply.raise_for_status()
        resumed = reply.status_code == 206 and reply.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if reply.status_code == 206 and not resumed:
            _forget(partial)
            raise BadAnswerError("another part of the file came than the one asked for")
        if not resumed:
            have = 0
            _forget(partial)
            if (new := reply.headers.get("ETag")) and not new.startswith("W/"):
                _validator(partial).write_text(json.dumps({"url": url, "etag": new}), encoding="utf-8")
        length = reply.headers.get("Content-Length")
        with partial.open("ab" if resumed else "wb") as stream:
            for block in reply.iter_content(CHUNK):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
    if length is not None and partial.stat().st_size != have + int(length):
        raise BadAnswerError(f"{partial.stat().st_size - have} of {length} bytes came")


def _read_validator(partial: Path, url: str) -> str | None:
    try:
        known = json.loads(_validator(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(known["etag"]) if known.get("url") == url else None


def check_fits(path: Path) -> int | None:
    """Check that a file is a whole FITS file and that its checksums hold, where it has any; return where it ends.

    A compressed file or a zip is only looked at for its first bytes (None is returned): its reader finds whether it
    is whole.

    Raises
    ------
    BadAnswerError
        What it is instead, or where it ends.
    """
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(COMPRESSED):
        return None
    if not start.startswith(FITS_START):
        kind = "a web page" if start.lstrip()[:1] == b"<" else "no FITS file"
        raise BadAnswerError(f"{kind} came instead of the file")
    length = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            # Compressed images are checked as the tables that they are stored as.
            with fits.open(path, memmap=True, lazy_load_hdus=False, disable_image_compression=True) as hdus:
                ends = [info["datLoc"] + info["datSpan"] for hdu in hdus if (info := hdu.fileinfo())]
                if max(ends) > length:
                    raise BadAnswerError(f"the file ends after {length} of {max(ends)} bytes")
                for number, hdu in enumerate(hdus):
                    # 0 means that it does not hold, 1 that it does, 2 that there is none.
                    if "DATASUM" in hdu.header and hdu.verify_datasum() == 0:
                        raise BadAnswerError(f"the data of extension {number} do not have their DATASUM")
                    if "CHECKSUM" in hdu.header and hdu.verify_checksum() == 0:
                        raise BadAnswerError(f"extension {number} does not have its CHECKSUM")
                return int(max(ends))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadAnswerError(f"no readable FITS file came: {error}") from error


class DiskCache:
    """Fetched files on disk, the ones used longest ago removed once they are more than `limit` bytes.

    Parameters
    ----------
    folder:
        Where they lie.
    limit:
        Bytes; the file just fetched stays, whatever its size.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = threading.Lock()

    def path(self, url: str, version: str = "") -> Path:
        """Return where a file is, or would be."""
        ending = "".join(Path(url.split("?")[0]).suffixes[-2:])[-12:]
        name = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}{ending}"

    def get(self, url: str, version: str = "") -> Path | None:
        """Return the file, marked as used just now, or None."""
        path = self.path(url, version)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def trim(self, keep: Iterable[Path] = ()) -> int:
        """Remove what was used longest ago until the limit holds; return how many bytes went."""
        with self._lock:
            kept = {Path(path) for path in keep}
            files = []
            for path in self.folder.glob("*/*"):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # another process has removed it
                if not path.name.startswith("."):
                    files.append((stat.st_mtime, stat.st_size, path))
            total = sum(size for _, size, _ in files)
            removed = 0
            for _, size, path in sorted(files):
                if total - removed <= self.limit:
                    break
                if path not in kept:
                    path.unlink(missing_ok=True)
                    removed += size
            return removed


def side_by_side(
    jobs: Mapping[str, Callable[[], Path]], at_once: int = AT_ONCE
) -> dict[str, Path | AstridError]:
    """Call each job (of no arguments) and return its result or its error, a few at a time."""

    def one(job: Callable[[], Path]) -> Path | AstridError:
        try:
            return job()
        except AstridError as error:
            return error

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return dict(zip(jobs, pool.map(one, jobs.values()), strict=True))
