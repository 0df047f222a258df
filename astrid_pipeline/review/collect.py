"""Training datasets from labels: collected, stratified, split, checked, kept in the store and the catalogue.

Samples that people agree on come first; where they do not reach `max_samples`, detections of high confidence fill up
and are marked as the model's. A dataset that fails a check is refused with the reason, and nothing is kept of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import delete, insert, text

from astrid_pipeline.catalog import Catalog, labels, sky
from astrid_pipeline.catalog.review_models import TrainingSample
from astrid_pipeline.catalog.rows import plain
from astrid_pipeline.errors import ConfigError, MissingProductError
from astrid_pipeline.learning.data import split_of
from astrid_pipeline.learning.labelled import FACTS, IMAGES, MASKS, SAMPLES, LabelledStamps
from astrid_pipeline.night.stamps import cut, planes_of
from astrid_pipeline.resources.folders import get_folder, put_folder
from astrid_pipeline.resources.frames import file_name
from astrid_pipeline.resources.products import Products
from astrid_pipeline.resources.store import Store
from astrid_pipeline.review import quality

SHARES: Mapping[str, float] = {"train": 0.7, "valid": 0.15, "test": 0.15}
#: The larger class has at most this many times the smaller one's samples: neither drowned nor alone.
MOST_TO_LEAST = 3
#: HEALPix order of the pieces of sky that splits are made of, where a source has no object: 52″.
_SPLIT_ORDER = 12


class RefusedError(ConfigError):
    """A dataset is not fit to learn from."""


@dataclass(frozen=True)
class Collection:
    """What to collect: of which surveys (all if empty) and nights, from which score on the model's word is taken."""

    name: str
    start: dt.date
    end: dt.date
    survey_ids: tuple[int, ...] = ()
    confidence_threshold: float = 0.7
    max_samples: int = 10_000
    seed: int = 0


def dataset_path(name: str) -> str:
    """Return where a dataset is kept in the store."""
    return f"training-datasets/{file_name(name)}"


def choose(catalog: Catalog, wanted: Collection) -> pd.DataFrame:
    """Return the sources to learn from: is_anomaly, anomaly_type, confidence, label_source and where they are."""
    query = text(
        "SELECT s.*, s.class AS model_class, f.name AS field, f.survey_id, o.name AS object, o.hpx29 AS object_hpx "
        "FROM sources s JOIN fields f ON f.id = s.field_id LEFT JOIN objects o ON o.id = s.object_id "
        "WHERE s.present AND NOT s.injected AND s.night BETWEEN :start AND :end "
        "AND (cardinality(cast(:surveys AS bigint[])) = 0 OR f.survey_id = ANY(:surveys)) "
        "AND (s.state IN ('real', 'bogus') OR (s.state = 'unseen' AND s.score >= :least)) "
        "ORDER BY (s.state = 'unseen'), s.score DESC NULLS LAST, s.id"
    )
    values: Any = {
        "start": wanted.start,
        "end": wanted.end,
        "surveys": list(wanted.survey_ids),
        "least": wanted.confidence_threshold,
    }
    with catalog.reading("collect labels") as connection:
        found = pd.read_sql(query, connection, params=values)
    people = found["state"] != "unseen"
    found["label_source"] = np.where(people, "human", "model")
    found["is_anomaly"] = found["state"] != "bogus"
    found["anomaly_type"] = found["label_class"].where(people, found["model_class"])
    found["confidence"] = found["agreement"].where(people, found["score"])
    return stratified(found, wanted.max_samples)


def stratified(found: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most `most` rows, the first of each class, with at most `MOST_TO_LEAST` of the larger to one other."""
    sizes = found["is_anomaly"].value_counts()
    smaller = int(sizes.min()) if len(sizes) == 2 else 0
    cap = MOST_TO_LEAST * smaller if smaller else most
    kept = pd.concat([mine.head(cap) for _, mine in found.groupby("is_anomaly")]) if len(found) else found
    if len(kept) > most:
        share = kept["is_anomaly"].mean()
        real = round(most * share)
        kept = pd.concat([kept[kept["is_anomaly"]].head(real), kept[~kept["is_anomaly"]].head(most - real)])
    return kept.sort_index().reset_index(drop=True)


def splits(samples: pd.DataFrame, seed: int) -> list[str]:
    """Return the split of each sample: by piece of sky, so that an object is in one whatever the night and filter."""
    index = samples["object_hpx"].fillna(samples["hpx29"])
    pieces = [
        f"{row_field}:{int(hpx) >> 2 * (sky.ORDER - _SPLIT_ORDER)}"
        if hpx == hpx and hpx is not None
        else exposure
        for row_field, hpx, exposure in zip(
            samples["field"], index.astype(object), samples["exposure_id"], strict=True
        )
    ]
    return [split_of(piece, SHARES, seed) for piece in pieces]


def collect(catalog: Catalog, store: Store, wanted: Collection, who: str) -> dict[str, Any]:
    """Collect a dataset, check it, keep it, and return its row with its checks.

    Raises
    ------
    RefusedError
        If a check fails; the reasons are in it.
    ConfigError
        If there is a dataset of that name: a dataset is never changed.
    """
    if store.exists(f"{dataset_path(wanted.name)}/index.json"):
        raise ConfigError("there is a dataset of that name", where=wanted.name, remedy="choose another name")
    samples = choose(catalog, wanted)
    kappa, shared = labels.kappa(catalog)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = _cut(Products(store), samples, folder)
        table["split"] = splits(table, wanted.seed) if len(table) else []
        found = quality.checks(table, kappa, shared)
        failed = [c for c in found if not c.passed]
        if failed:
            told = "; ".join(
                f"{c.name} is {c.value if c.value is None else round(c.value, 3)}, asked is {c.asks}"
                for c in failed
            )
            raise RefusedError(
                f"not fit to learn from: {told}", where=wanted.name, remedy="label more, or widen the window"
            )
        digest = hashlib.sha256(
            "".join(sorted(table["sha256"] + table["is_anomaly"].astype(str))).encode()
        ).hexdigest()
        params = {name: str(v) if isinstance(v, dt.date) else v for name, v in asdict(wanted).items()}
        params |= {"left_out": len(samples) - len(table), "quality": quality.as_rows(found)}
        kept = table.drop(columns=["features"]).astype({"night": str})
        kept.to_parquet(folder / SAMPLES, index=False)
        (folder / FACTS).write_text(json.dumps({"name": wanted.name, "hash": digest, **params}, default=str))
        put_folder(store, dataset_path(wanted.name), folder, {"run_id": who, "partition": ""})
    score = float(table["quality"].mean())
    identity = catalog.record_dataset(
        wanted.name,
        total_samples=len(table),
        anomaly_ratio=float(table["is_anomaly"].mean()),
        quality_score=score,
        content_hash=digest,
        collection_params=params,
        description=f"{int((table['label_source'] == 'human').sum())} labelled by people, "
        f"{int((table['label_source'] == 'model').sum())} by the model",
        created_by=who,
    )
    _keep_samples(catalog, identity, wanted.name, table)
    return {
        "id": identity,
        "name": wanted.name,
        "hash": digest,
        "total_samples": len(table),
        "quality_score": score,
        "anomaly_ratio": float(table["is_anomaly"].mean()),
        "checks": quality.as_rows(found),
    }


def _cut(products: Products, samples: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Cut every sample's planes and mask from its difference image; those whose image is gone are left out."""
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    for (field, night), of_night in samples.groupby(["field", "night"], sort=True):
        try:
            frames = products.frames("difference_images", str(field), str(night))
        except MissingProductError:
            continue
        for exposure, mine in of_night.groupby("exposure_id", sort=True):
            if exposure not in frames:
                continue
            difference, meta = frames[str(exposure)], frames.meta(str(exposure))
            about.append(
                {
                    "exposure_id": exposure,
                    "field": field,
                    "filter": meta.get("filter"),
                    "seeing": meta.get("seeing", np.nan),
                    "noise": meta.get("science_sky_sigma", np.nan),
                    "masked_fraction": meta.get("masked_fraction", 0.0),
                    "score_sigma": meta.get("score_sigma", np.nan),
                    "reference_id": meta.get("reference_id"),
                }
            )
            for row in mine.to_dict(orient="records"):
                planes, _ = planes_of(difference, row["x"], row["y"])
                mask = cut(difference.mask, row["x"], row["y"])
                rows.append(
                    {
                        **{str(k): v for k, v in row.items()},
                        "row": len(rows),
                        "sha256": hashlib.sha256(planes.tobytes()).hexdigest(),
                    }
                )
                images.append(planes)
                # Outside the frame: NO_DATA, as everywhere.
                masks.append(np.where(np.isfinite(mask), mask, 128).astype(np.int32))
    if not rows:
        return pd.DataFrame(columns=[*samples.columns, "row", "sha256", "quality"])
    np.save(folder / IMAGES, np.stack(images).astype(np.float32), allow_pickle=False)
    np.save(folder / MASKS, np.stack(masks), allow_pickle=False)
    exposures = pd.DataFrame(about).astype({"seeing": float, "noise": float, "score_sigma": float})
    exposures["quality"] = quality.image_quality(exposures)
    return pd.DataFrame(rows).merge(
        exposures[["exposure_id", "field", "quality", "seeing", "reference_id"]], on=["exposure_id", "field"]
    )


def _keep_samples(catalog: Catalog, identity: int, name: str, table: pd.DataFrame) -> None:
    path = dataset_path(name)
    with catalog.transaction(f"keep the samples of {name}") as connection:
        connection.execute(delete(TrainingSample).where(TrainingSample.dataset_id == identity))
        connection.execute(
            insert(TrainingSample),
            [
                {
                    "dataset_id": identity,
                    "source_key": row["key"],
                    "detection_id": row["detection_id"],
                    "image_path": f"{path}/{IMAGES}#{row['row']}",
                    "mask_path": f"{path}/{MASKS}#{row['row']}",
                    "is_anomaly": bool(row["is_anomaly"]),
                    "split": row["split"],
                    **plain({k: row[k] for k in ("anomaly_type", "confidence")}),
                    "reviewer_notes": None,
                    "metadata": plain(
                        {
                            k: row[k]
                            for k in (
                                "field",
                                "night",
                                "exposure_id",
                                "reference_id",
                                "object",
                                "quality",
                                "label_source",
                                "sha256",
                            )
                        }
                        | {"night": str(row["night"])}
                    ),
                }
                for row in table.to_dict(orient="records")
            ],
        )


class AstridDataset(LabelledStamps):
    """A training dataset by its name, from the store of the settings (a folder or S3), for PyTorch.

    >>> from astrid_pipeline.review.collect import AstridDataset
    >>> data = AstridDataset("spring", split="train")  # doctest: +SKIP
    >>> image, label = data[0]  # doctest: +SKIP
    """

    def __init__(self, name: str, split: str | None = None, store: Store | None = None) -> None:
        from astrid_pipeline.resources.store import open_store

        super().__init__(get_folder(store or open_store(), dataset_path(name)), split)
