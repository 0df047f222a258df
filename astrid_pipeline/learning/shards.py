"""Labelled difference images on disk: planes as memory-mapped half floats, truth as Parquet.

A set is one folder. Each shard is five files: ``shard-00000.planes.npy`` (n, 4, H, W) float16 (`channels`),
``.labels.npy`` (n, H, W) uint8 (`targets.UNUSABLE_BIT`, `SOURCE_BIT`), ``.truth.parquet``, ``.candidates.parquet``
and, written last, ``.images.parquet``. A shard that has its last file is whole, so a build that was killed goes on
where it stopped. ``manifest.json`` names the shards with their hashes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import MissingProductError, ModelError, ReadError
from astrid_pipeline.learning.channels import CHANNELS
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.targets import Target, render
from astrid_pipeline.tables import Column, TableSchema

VERSION = 3

#: What a truth row can be called.
LABELS: tuple[str, ...] = (*CLASSES, "artefact")

TRUTH = TableSchema(
    "training_truth",
    "What is in each labelled difference image, and what its names of artefacts are",
    (
        Column("image_id", "string", "the image it is in"),
        Column("x", "float64", "column in the image", "px"),
        Column("y", "float64", "row in the image", "px"),
        Column("flux", "float64", "science minus reference", "units of the science frame"),
        Column("snr", "float64", "|flux| over the least error that the two frames allow"),
        Column(
            "snr_here",
            "float64",
            "the same with what errors of registration, PSF and flux ratio add to the noise",
        ),
        Column("position_bound", "float64", "least error of a point's position at its S/N, an axis", "px"),
        Column("label", "string", "transient, variable, moving or artefact"),
        Column("kind", "string", "what it is in detail: supernova, asteroid, cosmic_ray, …"),
        Column("length", "float64", "length of a trail", "px"),
        Column("angle", "float64", "its direction, from x towards y", "rad"),
        Column("usable", "bool", "whether the pixel at its centre can be used in both frames"),
        Column("label_source", "string", "simulated, injected or human"),
    ),
    sort_by=("image_id", "y", "x"),
)

IMAGES = TableSchema(
    "training_images",
    "The labelled difference images of one set",
    (
        Column("image_id", "string", "unique within the set"),
        Column("shard", "int32", "number of its shard"),
        Column("row", "int32", "place in the shard"),
        Column("sky", "string", "the piece of sky it shows: never in two splits"),
        Column("night", "string", "night of the science frame, or empty"),
        Column("case", "string", "simulated case, or real"),
        Column("source", "string", "simulated, injected or human"),
        Column("seed", "int64", "seed of the simulation, -1 if real"),
        Column("seeing", "float64", "FWHM of the science frame's PSF", "px"),
        Column("score_sigma", "float64", "standard deviation of the score where nothing changed"),
        Column("score_sigma_raw", "float64", "the same before the noise was scaled to it"),
        Column("psf_ratio_error", "float64", "what the two PSFs still differ by, where that was measured"),
        Column(
            "astrometric_sigma_x", "float64", "error of the registration left, where it was measured", "px"
        ),
        Column("astrometric_sigma_y", "float64", "the same of the rows", "px"),
        Column("usable_fraction", "float64", "share of usable pixels"),
    ),
    sort_by=("shard", "row"),
)


#: Columns of `IMAGES` that are in a difference's meta under the same name.
MATCH_COLUMNS: tuple[str, ...] = (
    "score_sigma",
    "score_sigma_raw",
    "psf_ratio_error",
    "astrometric_sigma_x",
    "astrometric_sigma_y",
)


@dataclass
class Sample:
    """One labelled difference image on its way to disk; `truth` and `candidates` without image_id."""

    planes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    truth: pd.DataFrame
    candidates: pd.DataFrame
    info: Mapping[str, Any] = field(default_factory=dict)


def _paths(folder: Path, shard: int) -> dict[str, Path]:
    stem = f"shard-{shard:05d}"
    return {
        "planes": folder / f"{stem}.planes.npy",
        "labels": folder / f"{stem}.labels.npy",
        "truth": folder / f"{stem}.truth.parquet",
        "candidates": folder / f"{stem}.candidates.parquet",
        "images": folder / f"{stem}.images.parquet",
    }


def is_whole(folder: Path, shard: int) -> bool:
    """Return whether a shard was written to its end."""
    return _paths(folder, shard)["images"].exists()


def _whole(path: Path, write: Any) -> None:
    """Call `write` with a temporary name beside `path`, then give the file its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as stream:
        write(stream)
    temporary.replace(path)


def write_shard(folder: Path, shard: int, samples: Sequence[Sample]) -> None:
    """Write one shard; all samples have one shape.

    Raises
    ------
    ValueError
        If there is no sample, or shapes differ.
    """
    if not samples or len({s.planes.shape for s in samples}) != 1:
        raise ValueError("a shard holds at least one image, all of one shape")
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(folder, shard)
    images, truths, candidates = [], [], []
    for row, sample in enumerate(samples):
        name = f"{shard:05d}-{row:03d}"
        usable = float(np.mean((sample.labels & 1) == 0))
        images.append(
            {**sample.info, "image_id": name, "shard": shard, "row": row, "usable_fraction": usable}
        )
        truths.append(sample.truth.assign(image_id=name))
        candidates.append(sample.candidates.assign(image_id=name))
    planes = np.stack([s.planes for s in samples]).astype(np.float16)
    _whole(paths["planes"], lambda f: np.save(f, planes, allow_pickle=False))
    _whole(paths["labels"], lambda f: np.save(f, np.stack([s.labels for s in samples]), allow_pickle=False))
    filled = [t for t in truths if len(t)]
    truth = TRUTH.conform(pd.concat(filled, ignore_index=True)) if filled else TRUTH.empty()
    _whole(paths["truth"], lambda f: truth.to_parquet(f, index=False))
    some = [c for c in candidates if len(c)] or candidates[:1]
    table = pd.concat(some, ignore_index=True)
    _whole(paths["candidates"], lambda f: table.to_parquet(f, index=False))
    _whole(paths["images"], lambda f: IMAGES.conform(pd.DataFrame(images)).to_parquet(f, index=False))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, shards: Iterable[int], info: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the set's manifest: how it was made, its shards and their hashes, and one hash of all."""
    files = {p.name: _sha256(p) for shard in shards for p in _paths(folder, shard).values()}
    images = [pd.read_parquet(folder / name) for name in files if name.endswith(".images.parquet")]
    table = pd.concat(images, ignore_index=True)
    manifest = {
        "format": "astrid-shards",
        "version": VERSION,
        "channels": list(CHANNELS),
        "classes": list(CLASSES),
        "images": len(table),
        "sources": {str(k): int(v) for k, v in table["source"].value_counts().items()},
        **info,
        "files": files,
        "hash": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }
    text = json.dumps(manifest, indent=1)
    _whole(folder / "manifest.json", lambda f: f.write(text.encode()))
    return manifest


class ShardSet:
    """Labelled difference images of one folder or several, all of one shape, mapped into memory.

    Attributes
    ----------
    images, truth, candidates:
        Tables; `image_id` gets the folder's number in front where there are several.
    shape:
        (H, W) of every image.

    Raises
    ------
    MissingProductError
        If a folder holds no finished set.
    ReadError
        If a set is damaged or was written for other channels.
    """

    def __init__(self, folders: Path | str | Sequence[Path | str]) -> None:
        paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(f) for f in folders]
        images: list[pd.DataFrame] = []
        truths: list[pd.DataFrame] = []
        candidates: list[pd.DataFrame] = []
        self._selection = ""
        self._planes: dict[tuple[int, int], npt.NDArray[np.float16]] = {}
        self._labels: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        self.manifests = [_read_manifest(path) for path in paths]
        for n, (folder, manifest) in enumerate(zip(paths, self.manifests, strict=True)):
            for shard in sorted(int(f[6:11]) for f in manifest["files"] if f.endswith(".images.parquet")):
                files = _paths(folder, shard)
                try:
                    self._planes[n, shard] = np.load(files["planes"], mmap_mode="r", allow_pickle=False)
                    self._labels[n, shard] = np.load(files["labels"], mmap_mode="r", allow_pickle=False)
                    tables = [pd.read_parquet(files[k]) for k in ("images", "truth", "candidates")]
                except (OSError, ValueError) as error:
                    remedy = "remove the folder and build the set again"
                    raise ReadError(
                        f"shard {shard} cannot be read: {error}", where=folder, remedy=remedy
                    ) from error
                for table, where in zip(tables, (images, truths, candidates), strict=True):
                    table["image_id"] = (
                        f"{n}:" + table["image_id"].astype(str) if len(paths) > 1 else table["image_id"]
                    )
                    where.append(table.assign(set=n) if where is images else table)
        shapes = {planes.shape[1:] for planes in self._planes.values()}
        if len(shapes) != 1:
            raise ReadError(f"the sets' images have different shapes: {sorted(shapes)}", where=paths[0])
        self.shape: tuple[int, int] = shapes.pop()[1:]
        self.images = pd.concat(images, ignore_index=True)
        self.truth = pd.concat(truths, ignore_index=True)
        filled = [c for c in candidates if len(c)] or candidates[:1]
        self.candidates = pd.concat(filled, ignore_index=True)
        self._truth_of = {str(k): v for k, v in self.truth.groupby("image_id", sort=False)}
        self._candidates_of = {str(k): v for k, v in self.candidates.groupby("image_id", sort=False)}

    def __copy__(self) -> ShardSet:
        # Shares what is mapped, which `__setstate__` would map again.
        other = ShardSet.__new__(ShardSet)
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # To another process goes where the planes lie, not the planes: it maps them itself.
        mapped = {
            name: {key: (str(array.filename), array.shape) for key, array in getattr(self, name).items()}
            for name in ("_planes", "_labels")
        }
        return {**self.__dict__, **mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_planes", "_labels"):
            mapped = {}
            for key, (path, shape) in state[name].items():
                mapped[key] = np.load(path, mmap_mode="r", allow_pickle=False)
                if mapped[key].shape != shape:
                    raise ReadError("the shard was made again meanwhile", where=path, remedy="run it again")
            setattr(self, name, mapped)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hash(self) -> str:
        """One hash of all that is in the set."""
        if self._selection:
            return self._selection
        return hashlib.sha256("".join(m["hash"] for m in self.manifests).encode()).hexdigest()

    @property
    def megapixels(self) -> float:
        """Usable megapixels."""
        return float(self.images["usable_fraction"].sum()) * self.shape[0] * self.shape[1] * 1e-6

    def select(self, wanted: npt.ArrayLike) -> ShardSet:
        """Return the images for which `wanted` (boolean, one an image) holds, sharing the mapped planes.

        Raises
        ------
        ModelError
            If nothing is left.
        """
        keep = np.asarray(wanted, bool)
        if not keep.any():
            raise ModelError("no image is left", where="training data", remedy="collect more labelled nights")
        part = copy.copy(self)
        part.images = self.images[keep].reset_index(drop=True)
        names = part.images["image_id"].astype(str)
        part.truth = self.truth[self.truth["image_id"].astype(str).isin(names)]
        part.candidates = self.candidates[self.candidates["image_id"].astype(str).isin(names)]
        part._selection = hashlib.sha256("\n".join([self.hash, *names]).encode()).hexdigest()
        return part

    def plus(self, other: ShardSet, name: str) -> ShardSet:
        """Return the images of both; those of `other` get `name` in front of their image_id.

        Raises
        ------
        ModelError
            If their images have different shapes.
        """
        if other.shape != self.shape:
            raise ModelError(
                f"images of {self.shape} and of {other.shape} do not make one set", where="training data"
            )
        both = copy.copy(self)
        shift = 1 + max(key[0] for key in self._planes)
        both._planes = self._planes | {(n + shift, s): v for (n, s), v in other._planes.items()}
        both._labels = self._labels | {(n + shift, s): v for (n, s), v in other._labels.items()}
        both.manifests = [*self.manifests, *other.manifests]

        def named(table: pd.DataFrame) -> pd.DataFrame:
            return table.assign(image_id=f"{name}:" + table["image_id"].astype(str))

        theirs = named(other.images).assign(set=other.images["set"] + shift)
        both.images = pd.concat([self.images, theirs], ignore_index=True)
        both.truth = pd.concat([self.truth, named(other.truth)], ignore_index=True)
        both.candidates = pd.concat([self.candidates, named(other.candidates)], ignore_index=True)
        both._truth_of = self._truth_of | {f"{name}:{k}": named(v) for k, v in other._truth_of.items()}
        both._candidates_of = self._candidates_of | {
            f"{name}:{k}": named(v) for k, v in other._candidates_of.items()
        }
        both._selection = hashlib.sha256(f"{self.hash}\n{name}\n{other.hash}".encode()).hexdigest()
        return both

    def image_id(self, index: int) -> str:
        """Return the name of image number `index`."""
        return str(self.images["image_id"].iat[index])

    def _place(self, index: int) -> tuple[tuple[int, int], int]:
        row = self.images.iloc[index]
        return (int(row["set"]), int(row["shard"])), int(row["row"])

    def planes(self, index: int) -> npt.NDArray[np.float16]:
        """Return the (4, H, W) float16 planes of image number `index`, mapped."""
        key, row = self._place(index)
        return self._planes[key][row]

    def labels(self, index: int) -> npt.NDArray[np.uint8]:
        """Return its (H, W) label bits, mapped."""
        key, row = self._place(index)
        return self._labels[key][row]

    def truth_of(self, index: int) -> pd.DataFrame:
        """Return its truth rows."""
        return self._truth_of.get(self.image_id(index), self.truth.iloc[:0])

    def candidates_of(self, index: int) -> pd.DataFrame:
        """Return its candidates."""
        return self._candidates_of.get(self.image_id(index), self.candidates.iloc[:0])

    def crop(self, index: int, y0: int, x0: int, size: int) -> tuple[npt.NDArray[np.float32], Target]:
        """Return the (4, size, size) planes and the target of a part of image number `index`."""
        part = np.s_[y0 : y0 + size, x0 : x0 + size]
        planes = self.planes(index)[:, part[0], part[1]].astype(np.float32)
        return planes, render(self.truth_of(index), np.asarray(self.labels(index)[part]), x0=x0, y0=y0)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError as error:
        remedy = "build it with astrid_pipeline.learning.data.build_shards, or `astrid train`"
        raise MissingProductError("no finished training set is here", where=folder, remedy=remedy) from error
    except ValueError as error:
        raise ReadError(
            f"the manifest is damaged: {error}", where=folder, remedy="build the set again"
        ) from error
    if manifest.get("version") != VERSION or manifest.get("channels") != list(CHANNELS):
        raise ReadError(
            f"a training set of version {manifest.get('version')} with channels {manifest.get('channels')}",
            where=folder,
            remedy=f"build it again: this AstrID uses version {VERSION} with {list(CHANNELS)}",
        )
    return manifest
