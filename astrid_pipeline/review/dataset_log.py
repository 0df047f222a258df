"""A training dataset as an MLflow run: its numbers, what it was collected by, pictures of it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from astrid_pipeline.learning.labelled import IMAGES, LabelledStamps
from astrid_pipeline.review.stamps import Stamp, sprite_png

if TYPE_CHECKING:
    from astrid_pipeline.resources.tracking import Tracking

#: Samples that are shown, half of each class.
SHOWN = 10


def log_dataset(tracking: Tracking, identity: int, data: LabelledStamps) -> str:
    """Log a dataset as the run `training_data_<id>` and return the run's id.

    Raises
    ------
    ServiceError
        If MLflow does not answer.
    """
    facts, table = data.facts, data.samples
    params = {
        "name": facts["name"],
        "hash": facts["hash"],
        "collection_date": pd.Timestamp.now("UTC").isoformat(timespec="seconds"),
        "confidence_threshold": facts["confidence_threshold"],
        "time_range": f"{facts['start']} to {facts['end']}",
        "survey_sources": ", ".join(str(survey) for survey in facts.get("surveys", [])) or "all",
        "fields": ", ".join(sorted(table["field"].astype(str).unique())),
        "max_samples": facts["max_samples"],
        "split_by": facts.get("split_by"),
        "seed": facts["seed"],
    }
    tags = {"dataset": facts["name"], "dataset_id": identity, "kind": "training data"}
    with tracking.attempt(f"training_data_{identity}", params=params, tags=tags) as attempt:
        attempt.log_metrics(metrics_of(facts, table))
        for name, picture in plots(table).items():
            attempt.log_bytes(picture, f"plots/{name}.png")
        for name, picture in sample_images(data).items():
            attempt.log_bytes(picture, f"samples/{name}.png")
        attempt.log_bytes(json.dumps(facts, indent=1, default=str).encode(), "facts.json")
        return str(attempt.run_id)


def metrics_of(facts: dict[str, Any], table: pd.DataFrame) -> dict[str, float]:
    """Return the dataset's numbers: total_samples, anomaly_ratio, data_quality_score, and of every check its figure."""
    found = {
        "total_samples": float(len(table)),
        "anomaly_ratio": float(table["is_anomaly"].mean()),
        "data_quality_score": float(table["quality"].mean()),
        "labelled_by_people": float((table["label_source"] == "human").sum()),
        "nights": float((table["field"].astype(str) + table["night"].astype(str)).nunique()),
        "objects": float(table["object"].nunique()),
        "left_out_by_split": float(facts.get("left_out_by_split", 0)),
    }
    for split, mine in table.groupby("split"):
        found[f"samples_{split}"] = float(len(mine))
    for check in facts.get("quality", []):
        if check["value"] is not None:
            found[f"check_{check['name'].replace(' ', '_')}"] = float(check["value"])
    return found


def plots(table: pd.DataFrame) -> dict[str, bytes]:
    """Return PNGs of how the samples are distributed: over classes and splits, nights, scores, image quality."""
    kind = table["anomaly_type"].fillna("not said").where(table["is_anomaly"], "bogus")
    numbers = {"score": table["score"], "image_quality": table["quality"], "seeing": table["seeing"]}
    return {
        "classes": _bars(pd.crosstab(kind, table["split"]), "samples by class and split"),
        "nights": _bars(
            pd.crosstab(table["night"].astype(str), np.where(table["is_anomaly"], "real", "bogus")),
            "samples by night",
        ),
        **{
            name: _histogram(values, table["is_anomaly"], name.replace("_", " "))
            for name, values in numbers.items()
            if values.notna().any()
        },
    }


def _bars(counts: pd.DataFrame, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bottom = np.zeros(len(counts))
    places = np.arange(len(counts))
    for name in counts.columns:
        axes.bar(places, counts[name], bottom=bottom, label=str(name))
        bottom += counts[name].to_numpy(float)
    # At most a dozen names are readable side by side.
    step = max(1, len(counts) // 12)
    axes.set_xticks(places[::step], labels=[str(n) for n in counts.index[::step]], rotation=30, ha="right")
    axes.set_ylabel("samples")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, fontsize=9)
    return _png(figure)


def _histogram(values: pd.Series, real: pd.Series, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    finite = values.notna()
    parts = [values[finite & real].to_numpy(float), values[finite & ~real].to_numpy(float)]
    axes.hist(parts, bins=20, stacked=True, label=["real", "bogus"])
    axes.set_xlabel(title)
    axes.set_ylabel("samples")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def sample_images(data: LabelledStamps) -> dict[str, bytes]:
    """Return up to `SHOWN` samples as PNGs (science, reference, difference, score), spread evenly over each class."""
    images = np.load(data.folder / IMAGES, mmap_mode="r", allow_pickle=False)
    real = np.flatnonzero(data.samples["is_anomaly"].to_numpy(bool))
    bogus = np.flatnonzero(~data.samples["is_anomaly"].to_numpy(bool))
    shown: dict[str, bytes] = {}
    for name, mine, most in (("real", real, SHOWN // 2), ("bogus", bogus, SHOWN - SHOWN // 2)):
        for k in np.unique(np.linspace(0, len(mine) - 1, min(most, len(mine))).round().astype(int)):
            row = data.samples.iloc[mine[k]]
            planes = np.asarray(images[int(row["row"])], np.float32)
            shown[f"{name}-{len(shown):02d}"] = sprite_png(Stamp(planes, {}))
    return shown
