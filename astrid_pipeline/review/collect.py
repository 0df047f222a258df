"""Training datasets from labels: collected, stratified, split, checked, kept in the store and the catalogue.

Samples that people agree on come first; where they do not reach `max_samples`, detections of high confidence fill up
and are marked as the model's. A dataset that fails a check is refused with the reason, and nothing is kept of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sqlalchemy import delete, insert, text

from astrid_pipeline.catalog import Catalog, labels
from astrid_pipeline.catalog.review_models import TrainingSample
from astrid_pipeline.catalog.rows import plain
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.learning.labelled import FACTS, IMAGES, MASKS, SAMPLES, LabelledStamps
from astrid_pipeline.resources.folders import get_folder, put_folder
from astrid_pipeline.resources.frames import file_name
from astrid_pipeline.resources.products import Products
from astrid_pipeline.resources.store import Store
from astrid_pipeline.review import quality, splitting
from astrid_pipeline.review.cutting import cut_samples
from astrid_pipeline.review.dataset_log import log_dataset

if TYPE_CHECKING:
    from astrid_pipeline.resources.tracking import Tracking

#: The larger class has at most this many times the smaller one's samples: neither drowned nor alone.
MOST_TO_LEAST = 3


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


def surveys_of(catalog: Catalog, wanted: Collection) -> list[int]:
    """Return the surveys that were asked for; if none was, those that have sources in the window."""
    if wanted.survey_ids:
        return list(wanted.survey_ids)
    query = text(
        "SELECT f.survey_id FROM fields f WHERE EXISTS (SELECT 1 FROM sources s WHERE s.field_id = f.id "
        "AND s.night BETWEEN :start AND :end) GROUP BY f.survey_id ORDER BY f.survey_id"
    )
    with catalog.reading("list surveys") as connection:
        return [int(i) for i in connection.scalars(query, {"start": wanted.start, "end": wanted.end})]


def collect(
    catalog: Catalog, store: Store, wanted: Collection, who: str, tracking: Tracking | None = None
) -> dict[str, Any]:
    """Collect a dataset, check it, keep it, log it to MLflow, and return its row with its checks.

    Where MLflow does not answer, the dataset is kept all the same: `mlflow_run_id` is None then, `problem` says why,
    and `log_again` logs it.

    Parameters
    ----------
    tracking:
        MLflow; default: that of the settings.

    Raises
    ------
    RefusedError
        If a check that a dataset must pass fails; the reasons are in it.
    ConfigError
        If there is a dataset of that name: a dataset is never changed.
    """
    if store.exists(f"{dataset_path(wanted.name)}/index.json"):
        raise ConfigError("there is a dataset of that name", where=wanted.name, remedy="choose another name")
    samples = choose(catalog, wanted)
    split, by = splitting.splits(samples, wanted.seed) if len(samples) else (pd.Series(dtype=object), "sky")
    apart = splitting.left_out(split)
    samples = samples.assign(split=split)[split.notna().to_numpy(bool)].reset_index(drop=True)
    kappa, shared = labels.kappa(catalog)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = cut_samples(Products(store), samples, folder)
        surveys = surveys_of(catalog, wanted)
        found = quality.checks(table, kappa, shared, surveys)
        if failed := quality.refused(found):
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
        params |= {
            "left_out": len(samples) - len(table),
            "left_out_by_split": apart,
            "split_by": by,
            "surveys": surveys,
            "quality": quality.as_rows(found),
        }
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
    logged: dict[str, Any] = {"mlflow_run_id": None}
    try:
        logged = {"mlflow_run_id": log_again(store, identity, wanted.name, tracking)}
    except ServiceError as error:
        logged["problem"] = f"{error.what} ({error.remedy})"
    return {
        "id": identity,
        "name": wanted.name,
        "hash": digest,
        "total_samples": len(table),
        "quality_score": score,
        "anomaly_ratio": float(table["is_anomaly"].mean()),
        "split_by": by,
        "checks": quality.as_rows(found),
        **logged,
    }


def log_again(store: Store, identity: int, name: str, tracking: Tracking | None = None) -> str:
    """Log a dataset that is kept to MLflow as `training_data_<id>`, and return the run's id.

    Raises
    ------
    ServiceError
        If MLflow does not answer.
    MissingProductError
        If there is no such dataset in the store.
    """
    from astrid_pipeline.resources.tracking import Tracking

    return log_dataset(tracking or Tracking(), identity, AstridDataset(name, store=store))


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
                                "raw_sha256",
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
