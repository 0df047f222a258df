"""A named training dataset: a manifest over sets of labelled images, with splits fixed before anything is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.data import Progress, build_shards, split_of
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.tables import Column, TableSchema

#: The network learns on most; a second set for real/bogus and the anomaly detectors, one to calibrate and weigh on,
#: and one that is looked at once, at the end.
SPLITS: Mapping[str, float] = {"train": 0.55, "second": 0.18, "held_out": 0.12, "test": 0.15}

#: Nights from which on a survey's own sky alone is trained on. Fewer show too little of its weather, seeing and Moon:
#: what they lack is simulated.
OWN_NIGHTS = 10
#: Most simulated images that are made for one training: as many as `astrid train` makes from nothing.
MOST_SIMULATED = 400

DATASET = TableSchema(
    "training_dataset",
    "One row a labelled image of the dataset",
    (
        Column("name", "string", "the dataset"),
        Column("partition", "string", "field and night of the samples"),
        Column("image_id", "string", "image within that partition's set"),
        Column("sky", "string", "piece of sky; it falls into one split in all nights"),
        Column("split", "string", "train, second, held_out or test"),
        Column("source", "string", "simulated, injected or human"),
        Column("night", "string", "night of the science frame"),
        Column("seeing", "float64", "FWHM of the science frame's PSF", "px"),
        Column("score_sigma", "float64", "standard deviation of the score where nothing changed"),
        Column("usable_fraction", "float64", "share of usable pixels"),
        *(Column(name, "int64", f"labels {name}") for name in (*CLASSES, "artefact")),
        Column("set_hash", "string", "hash of the partition's set"),
    ),
    sort_by=("partition", "image_id"),
)


def collect(name: str, folders: Mapping[str, Path], *, seed: int = 0) -> pd.DataFrame:
    """Return the manifest, schema `DATASET`, over the sets of labelled images of some partitions.

    Parameters
    ----------
    folders:
        By partition key, the folder of its set.
    seed:
        Of the split.

    Raises
    ------
    ModelError
        If there is no set at all.
    """
    if not folders:
        raise ModelError(
            "there are no labelled images yet",
            where=name,
            remedy="process a night: training_samples come with it",
        )
    parts = []
    for partition, folder in sorted(folders.items()):
        shards = ShardSet(folder)
        counts = pd.crosstab(shards.truth["image_id"], shards.truth["label"])
        table = shards.images.drop(columns="set").assign(
            name=name,
            partition=partition,
            set_hash=shards.hash,
            split=[split_of(str(sky), SPLITS, seed) for sky in shards.images["sky"]],
        )
        for label in (*CLASSES, "artefact"):
            column = counts[label] if label in counts else pd.Series(dtype=int)
            table[label] = column.reindex(table["image_id"]).fillna(0).astype(int).to_numpy()
        parts.append(table)
    return DATASET.conform(pd.concat(parts, ignore_index=True))


def open_split(dataset: pd.DataFrame, folders: Mapping[str, Path], split: str) -> ShardSet:
    """Return the images of one split, mapped into memory.

    Raises
    ------
    ModelError
        If the split is empty, or a set is not the one that the manifest was made over.
    """
    mine = dataset[dataset["split"] == split]
    if not len(mine):
        raise ModelError(f"the dataset has no image in its split {split!r}", remedy="collect more nights")
    partitions = sorted(set(mine["partition"]))
    shards = ShardSet([folders[key] for key in partitions])
    for manifest, key in zip(shards.manifests, partitions, strict=True):
        wanted = mine.loc[mine["partition"] == key, "set_hash"].iloc[0]
        if hashlib.sha256(str(manifest["hash"]).encode()).hexdigest() != wanted:
            raise ModelError(
                "the samples were made again since the dataset was collected",
                where=key,
                remedy="materialize training_dataset again",
            )
    prefix = len(partitions) > 1
    wanted_ids = {
        f"{partitions.index(row.partition)}:{row.image_id}" if prefix else str(row.image_id)
        for row in mine.itertuples()
    }
    return shards.select(shards.images["image_id"].astype(str).isin(wanted_ids))


def simulated_share(nights: int) -> float:
    """Return the share of simulated images beside those of so many nights: 1 of none, 0 from `OWN_NIGHTS` on."""
    return max(0.0, 1.0 - nights / OWN_NIGHTS)


def with_simulated(
    own: ShardSet,
    share: float,
    folder: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> ShardSet:
    """Return a survey's own labelled images with simulated ones beside them, `share` of all (at most `MOST_SIMULATED`).

    The simulated ones are made in `folder`; their image_id begins with ``simulated``.

    Raises
    ------
    ModelError
        If the share is not below 1.
    """
    if not 0 <= share < 1:
        raise ModelError(
            f"a share of {share} simulated images cannot be",
            where="training data",
            remedy="choose one of 0 or more, below 1",
        )
    count = min(round(share / (1 - share) * len(own)), MOST_SIMULATED)
    if not count:
        return own
    build_shards(folder, count, seed, own.shape, workers, progress, split="beside")
    return own.plus(ShardSet(folder), "simulated")


def shares(images: pd.DataFrame) -> dict[str, int]:
    """Return how many of some images are simulated, injected or a person's (column ``source``)."""
    return {str(name): int(count) for name, count in images["source"].value_counts().items()}
