"""Many frames, one in memory: mappings from exposure id to `Frame` or `Difference` that live on disk.

`FrameSpool` is what an asset fills, exposure by exposure; `StoredFrames` is what the next asset reads. Either
way one exposure at a time is held, however many a night has.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.resources.store import LocalStore, Store, damaged, sha256_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from astrid_pipeline.imaging.flux_planes import FluxPlanes, ScorePlanes
    from astrid_pipeline.imaging.frame import Difference

INDEX = "index.json"


class Frames(Mapping[str, Any]):
    """A night's exposures: exposure id → `Frame` or `Difference`. The type to annotate assets' values with."""

    def near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | FluxPlanes:
        """Return of a difference at least what photometry at these places (ICRS degrees) needs."""
        found: Difference = self[name]
        return found

    def score_near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | ScorePlanes:
        """Return of a difference at least the significance and mask at these places (ICRS degrees)."""
        found: Difference = self[name]
        return found


@dataclass(frozen=True)
class IndexEntry:
    """One exposure of a stored product: object key, digest, size, kind (frame, difference, masters), meta."""

    key: str
    sha256: str
    size: int
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """What `index.json` says: who made the product, when, with which code, and where its exposures are."""

    asset: str
    partition: str
    run_id: str
    code_version: str
    created: str
    entries: dict[str, IndexEntry]
    single: bool = False

    def dump(self) -> bytes:
        """Return the index as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes, where: str) -> Index:
        """Return the index from JSON. Raises `DamagedError` where it is."""
        try:
            raw = json.loads(data)
            return cls(
                **{**raw, "entries": {name: IndexEntry(**entry) for name, entry in raw["entries"].items()}}
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(where, "its index cannot be read") from error


def kind_of(value: object) -> str:
    """Return how a value is written: `frame`, `difference` or `masters`.

    Raises
    ------
    TypeError
        If it is none of them.
    """
    from astrid_pipeline.imaging.frame import Difference, Frame

    if isinstance(value, Frame):
        return "frame"
    if isinstance(value, Difference):
        return "difference"
    from astrid_pipeline.imaging.calibrate import MasterCalibration

    if isinstance(value, MasterCalibration):
        return "masters"
    raise TypeError(f"neither Frame, Difference nor MasterCalibration, but {type(value).__name__}")


def write_product(value: Any, path: Path) -> str:
    """Write a Frame, Difference or MasterCalibration as one FITS file; return its kind."""
    from astrid_pipeline.imaging import io

    kind = kind_of(value)
    write: Any = {"frame": io.write_frame, "difference": io.write_difference, "masters": io.write_masters}[
        kind
    ]
    write(value, path)
    return kind


def read_product(kind: str, path: Path) -> Any:
    """Read what `write_product` wrote."""
    from astrid_pipeline.imaging import io

    read: Any = {"frame": io.read_frame, "difference": io.read_difference, "masters": io.read_masters}[kind]
    return read(path)


def file_name(name: str) -> str:
    """Return a safe file name for an exposure id or partition key; letters, digits and `._=+@,~-` stay."""
    quoted = quote(name, safe="._=+@,~-")
    # A leading dot would hide the file, and `.` and `..` would leave the folder.
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def plain_meta(value: object) -> dict[str, Any]:
    """Return the plain values of `meta`, for the index; the inputs of a reference of 25 frames fit."""
    meta = getattr(value, "meta", None) or {}
    plain = {}
    for name, entry in meta.items():
        entry = entry.item() if hasattr(entry, "item") and getattr(entry, "ndim", 1) == 0 else entry
        if isinstance(entry, (bool, int, float, str)) and len(str(entry)) <= 4000:
            # JSON knows no NaN.
            plain[str(name)] = None if isinstance(entry, float) and entry != entry else entry
    return plain


class FrameSpool(Frames, MutableMapping[str, Any]):
    """Exposures written to temporary FITS files as they are put in; the IO manager moves them to the store.

    Reading gives what a later asset will read, with the rounding of the file format. The files vanish with the
    spool (`close`, or when it is no longer used).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="astrid-spool-", dir=folder)
        self._entries: dict[str, tuple[Path, str, dict[str, Any]]] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        path = Path(self._folder.name) / f"{file_name(name)}.fits"
        path.unlink(missing_ok=True)
        kind = write_product(value, path)
        self._entries[name] = (path, kind, plain_meta(value))

    def __getitem__(self, name: str) -> Any:
        path, kind, _ = self._entries[name]
        return read_product(kind, path)

    def __delitem__(self, name: str) -> None:
        self._entries.pop(name)[0].unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> FrameSpool:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self._entries.clear()
        self._folder.cleanup()

    def file(self, name: str) -> tuple[Path, str, dict[str, Any]]:
        """Return an exposure's file, kind and meta, without reading the pixels."""
        return self._entries[name]


class StoredFrames(Frames):
    """A stored product's exposures, each read (and checked by its digest) when it is asked for.

    A product that is made again while this one is being read gives the new exposures from then on.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._index = read_index(store, folder)

    @property
    def index(self) -> Index:
        """Who made the product, when, and with which code."""
        return self._index

    def meta(self, name: str) -> dict[str, Any]:
        """Return an exposure's plain meta values without reading its pixels."""
        return dict(self._index.entries[name].meta)

    def __getitem__(self, name: str) -> Any:
        return self._get(name, read_product)

    def near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | FluxPlanes:
        """Return of a difference what photometry at these places (ICRS degrees) needs, and no more."""
        from astrid_pipeline.imaging.flux_planes import read_flux_planes

        found: FluxPlanes = self._get(name, lambda kind, path: read_flux_planes(path, ra, dec))
        return found

    def score_near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | ScorePlanes:
        """Return of a difference the significance and mask at these places (ICRS degrees), and no more."""
        from astrid_pipeline.imaging.flux_planes import read_score_planes

        found: ScorePlanes = self._get(name, lambda kind, path: read_score_planes(path, ra, dec))
        return found

    def _get(self, name: str, read: Callable[[str, Path], Any]) -> Any:
        entry = self._index.entries[name]
        try:
            return self._read(entry, read)
        except MissingProductError:
            self._index = read_index(self._store, self._folder)
            renewed = self._index.entries.get(name)
            if renewed is None or renewed == entry:
                raise
            return self._read(renewed, read)

    def _read(self, entry: IndexEntry, read: Callable[[str, Path], Any]) -> Any:
        with self._store.open_local(entry.key) as path:
            try:
                digest = sha256_of(path)
            except FileNotFoundError as error:  # removed between the look and the opening
                raise MissingProductError(
                    "not in the store", where=self._store.location(entry.key)
                ) from error
            if digest != entry.sha256:
                raise damaged(
                    self._store.location(entry.key), "the file is not what was written (SHA-256 differs)"
                )
            return read(entry.kind, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.entries)

    def __len__(self) -> int:
        return len(self._index.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._index.entries


class JoinedFrames(Frames):
    """The exposures of several nights in one mapping; exposure ids are unique within an archive."""

    def __init__(self, parts: list[Frames]) -> None:
        self._owner = {name: part for part in parts for name in part}

    def __getitem__(self, name: str) -> Any:
        return self._owner[name][name]

    def near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | FluxPlanes:
        """Return of a difference what photometry at these places (ICRS degrees) needs."""
        return self._owner[name].near(name, ra, dec)

    def score_near(
        self, name: str, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
    ) -> Difference | ScorePlanes:
        """Return of a difference the significance and mask at these places (ICRS degrees)."""
        return self._owner[name].score_near(name, ra, dec)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)

    def __contains__(self, name: object) -> bool:
        return name in self._owner

    def meta(self, name: str) -> dict[str, Any]:
        """Return an exposure's plain meta values without reading its pixels."""
        owner = self._owner[name]
        return owner.meta(name) if isinstance(owner, StoredFrames | JoinedFrames) else plain_meta(owner[name])


def read_index(store: Store, folder: str) -> Index:
    """Return the index of the product in `folder`. Raises `MissingProductError` if it was never finished."""
    key = f"{folder}/{INDEX}"
    return Index.load(store.get_bytes(key), store.location(key))


def spool_parent(store: Store) -> Path | None:
    """Return a folder on the store's own disk for spools, or None where the store is not a folder."""
    if not isinstance(store, LocalStore):
        return None
    parent = store.root / ".tmp"
    parent.mkdir(parents=True, exist_ok=True)
    return parent
