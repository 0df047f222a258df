"""Curated examples: cut-outs of real sources that someone or something has called real or bogus, balanced and split.

Every example says who labelled it and of which survey it is; all of one object stand in one split. On disk they are a
`ShardSet` of 64² images, mapped into memory, with the table of labels beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import MissingProductError, ModelError, ReadError
from astrid_pipeline.learning.data import split_of
from astrid_pipeline.learning.gathering import EXAMPLES, HUMAN, Gathered
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.shards import Sample, ShardSet, write_manifest, write_shard
from astrid_pipeline.learning.stamps import SIDE, Stamp, from_planes, planes
from astrid_pipeline.learning.targets import UNUSABLE_BIT

TABLE = "examples.parquet"

#: Shares of the splits, as of datasets from labels.
SPLITS: Mapping[str, float] = {"train": 0.7, "valid": 0.15, "test": 0.15}

#: Two detections within so many arcsec are one object, whatever they are called: the error of a position and a pixel.
SAME_OBJECT = 2.0

#: Bins of S/N that a sample is balanced over: near the threshold, ordinary, and what nobody can overlook.
SNR_EDGES = (7.0, 20.0)

#: An example counts for at most so many others of its survey: a handful of bogus must not outweigh hundreds.
MOST_WEIGHT = 5.0

#: Stamps of one shard: 16 MB.
_SHARD = 500


def objects_of(table: pd.DataFrame) -> pd.Series:
    """Return the object of each row: what has one survey's name, or lies within `SAME_OBJECT`, is one, and so on.

    Its name is that of its first member in order of names, whatever the order of the rows.
    """
    from astropy.coordinates import SkyCoord
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    count = len(table)
    alone = table["survey"].astype(str) + ":" + table["file"].astype(str) + "#" + table["record"].astype(str)
    named = table["object_id"].notna() & (table["object_id"].astype(str) != "")
    names = (table["survey"].astype(str) + ":" + table["object_id"].astype(str)).where(named, alone)
    codes, unique = pd.factorize(names)
    pairs = [np.column_stack([np.arange(count), count + codes])]
    placed = np.flatnonzero(table[["ra", "dec"]].notna().all(axis=1))
    if len(placed):
        sky = SkyCoord(*(table[c].to_numpy(float)[placed] for c in ("ra", "dec")), unit="deg")
        tree = cKDTree(sky.cartesian.xyz.value.T)
        pairs.append(
            placed[tree.query_pairs(2 * np.sin(np.radians(SAME_OBJECT / 3600) / 2), output_type="ndarray")]
        )
    edges = np.concatenate([p.reshape(-1, 2) for p in pairs])
    size = count + len(unique)
    graph = coo_matrix((np.ones(len(edges)), edges.T), (size, size))
    group = connected_components(graph, directed=False)[1][:count]
    return names.groupby(group).transform("min")


def balanced(table: pd.DataFrame, most: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the row numbers of at most `most` labelled examples, shared out evenly over the strata.

    Surveys first get equal shares, then in each the real and the bogus, then their classes, then the bins of
    `SNR_EDGES`; what a stratum cannot fill goes to the others of its level. In a stratum every object gives one before
    any gives two.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table))
    turn = table["object"].iloc[order].groupby(table["object"].iloc[order]).cumcount().to_numpy()
    order = order[np.argsort(turn, kind="stable")]
    levels = [
        table["survey"].to_numpy(object)[order],
        table["real"].to_numpy(bool)[order],
        np.array([_kind(one) for one in table["class"]], object)[order],
        np.digitize(table["snr"].to_numpy(float)[order], SNR_EDGES),
    ]
    return np.sort(order[_share(np.arange(len(order)), levels, most)])


def _kind(name: Any) -> str:
    """Return the class a label tells: one of `CLASSES` (supernovae of all types are transients), or "" if none."""
    return "" if not isinstance(name, str) or not name else name if name in CLASSES else "transient"


def _share(
    rows: npt.NDArray[np.int64], levels: Sequence[npt.NDArray[Any]], most: int
) -> npt.NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    if not levels:
        return rows[:most]
    parts = [rows[levels[0][rows] == value] for value in pd.unique(levels[0][rows])]
    taken: list[npt.NDArray[np.int64]] = []
    left = most
    # The smallest stratum first: what it leaves of its share, the larger ones divide.
    for number, part in enumerate(sorted(parts, key=len)):
        quota = left // (len(parts) - number)
        taken.append(_share(part, levels[1:], quota))
        left -= len(taken[-1])
    return np.concatenate(taken)


def curate(
    sources: Gathered, folder: Path, *, most: int = 10_000, seed: int = 0, name: str = ""
) -> CuratedSet:
    """Write the labelled ones of some sources as a balanced set of examples into `folder`, and return it.

    Raises
    ------
    ModelError
        If no source has a label, or the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError("the folder is not empty", where=folder, remedy="name another, or remove it")
    table = sources.table.copy()
    rows = _once(table, np.flatnonzero(table["real"].notna()))
    if not len(rows):
        raise ModelError(
            f"none of {len(table)} sources has a label",
            where=folder,
            remedy="give a catalogue of known transients (--catalogue), or verdicts (--labels, --reviewed)",
        )
    table["object"] = objects_of(table) if len(table) else ""
    table = table.iloc[rows].assign(real=table["real"].iloc[rows] == 1).reset_index(drop=True)
    chosen = balanced(table, most, seed)
    table = table.iloc[chosen].reset_index(drop=True)
    stamps = [sources.stamps[rows[i]] for i in chosen]
    table["split"] = [split_of(str(one), SPLITS, seed) for one in table["object"]]
    table["weight"] = _weights(table)
    table["image_id"] = [f"{i // _SHARD:05d}-{i % _SHARD:03d}" for i in range(len(table))]
    for shard in range(0, len(table), _SHARD):
        part = range(shard, min(shard + _SHARD, len(table)))
        write_shard(folder, shard // _SHARD, [_sample(stamps[i].load(), table.iloc[i]) for i in part])
    EXAMPLES.conform(table).to_parquet(folder / TABLE, index=False)
    digest = hashlib.sha256((folder / TABLE).read_bytes()).hexdigest()
    recipe = {"split": "curated", "seed": seed, "most": most, "name": name, "examples": digest}
    write_manifest(folder, range(-(-len(table) // _SHARD)), recipe)
    return CuratedSet(folder)


def _once(table: pd.DataFrame, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows without second copies of a survey's detection; a person's word goes before all others."""
    mine = table.iloc[rows]
    human = (mine["label_source"] == HUMAN).to_numpy(bool)
    rows = rows[np.argsort(~human, kind="stable")]
    mine = table.iloc[rows]
    again = mine.duplicated(["survey", "source_id"]) & (mine["source_id"].fillna("") != "")
    return np.sort(rows[~again.to_numpy(bool)])


def _weights(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    size = table.groupby("survey")["real"].transform("size")
    mine = table.groupby(["survey", "real"])["real"].transform("size")
    kinds = table.groupby("survey")["real"].transform("nunique")
    return np.minimum((size / (kinds * mine)).to_numpy(float), MOST_WEIGHT)


def _sample(stamp: Stamp, row: pd.Series) -> Sample:
    middle = SIDE / 2
    kind = row["class"] if isinstance(row["class"], str) else ("unknown" if row["real"] else "bogus")
    label = (kind if kind in CLASSES else "transient") if row["real"] else "artefact"
    place = {"x": [middle], "y": [middle], "snr": [row["snr"]]}
    truth = {**place, "snr_here": [row["snr"]], "label": [label], "kind": [kind], "usable": [True]}
    truth["label_source"] = [row["label_source"]]
    info = {"sky": row["object"], "night": "", "case": row["survey"], "source": "curated", "seed": -1}
    info |= {"seeing": np.nan, "score_sigma": np.nan}
    bits = np.where(stamp.blank, np.uint8(UNUSABLE_BIT), np.uint8(0))
    candidates = pd.DataFrame({**place, "peak_score": [row["snr"]]}).drop(columns="snr")
    return Sample(planes(stamp), bits, pd.DataFrame(truth), candidates, info)


class CuratedSet:
    """Examples that `curate` wrote.

    Attributes
    ----------
    table:
        Schema `EXAMPLES`.
    shards:
        The stamps, mapped: images of 64² with the source in the middle.

    Raises
    ------
    MissingProductError
        If there is no such set.
    ReadError
        If it is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / TABLE).exists():
            raise MissingProductError(
                "no curated examples are here", where=folder, remedy="make them: `astrid curate`"
            )
        self.shards = ShardSet(self.folder)
        data = (self.folder / TABLE).read_bytes()
        manifest = json.loads((self.folder / "manifest.json").read_text())
        if manifest.get("examples") != hashlib.sha256(data).hexdigest():
            raise ReadError(
                "the table is not the set's own", where=self.folder / TABLE, remedy="curate again"
            )
        self.table = pd.read_parquet(self.folder / TABLE)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def hash(self) -> str:
        """One hash of stamps and labels."""
        text = self.shards.hash + str(self.shards.manifests[0]["examples"])
        return hashlib.sha256(text.encode()).hexdigest()

    def stamp(self, index: int) -> Stamp:
        """Return the cut-outs of row `index` of the table."""
        blank = (np.asarray(self.shards.labels(index)) & UNUSABLE_BIT) != 0
        return from_planes(np.asarray(self.shards.planes(index), np.float32), blank)

    def stamps(self) -> list[Stamp]:
        """Return all of them."""
        return [self.stamp(index) for index in range(len(self))]

    def counts(self) -> pd.DataFrame:
        """Return how many are real and bogus of each survey and label source: survey, label_source, real, bogus."""
        sums = self.table.assign(source=self.table["label_source"]).groupby(["survey", "source"])["real"]
        out = sums.agg(real="sum", all="size").reset_index()
        out["bogus"] = out["all"] - out["real"]
        return out.rename(columns={"source": "label_source"})[["survey", "label_source", "real", "bogus"]]
