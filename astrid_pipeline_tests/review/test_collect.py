"""Datasets from labels: what goes in, what is refused, that nothing leaks over splits, that PyTorch loads it."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader

from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.errors import ModelError, ReadError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.resources.frames import Index, IndexEntry, plain_meta, write_product
from astrid_pipeline.review import quality
from astrid_pipeline.review.collect import AstridDataset, stratified
from astrid_pipeline_tests.report.example import make_difference
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT, Scene


def keep_difference(scene: Scene, folder: Path) -> None:
    """Put the made-up night's difference image where the pipeline keeps it."""
    exposure = f"e-{NIGHT}"
    about = {"seeing": 2.5, "masked_fraction": 0.02, "score_sigma": 1.003, "filter": "g"}
    difference = make_difference((300, 400), (), exposure_id=exposure, **about)
    path = folder / "d.fits"
    kind = write_product(difference, path)
    key = f"difference_images/{FIELD}/{NIGHT}/{exposure}.fits"
    kept = scene.store.put_file(key, path)
    entry = IndexEntry(key, str(kept.sha256), kept.size, kind, plain_meta(difference))
    index = Index("difference_images", f"{FIELD}|{NIGHT}", "run", "1", "now", {exposure: entry})
    scene.store.put_bytes(f"difference_images/{FIELD}/{NIGHT}/index.json", index.dump())


@pytest.mark.postgres
def test_a_dataset_from_labels(client, scene, tmp_path):
    keep_difference(scene, tmp_path)
    asked = {"name": "first", "start": "2026-01-01", "end": "2026-01-31", "confidence_threshold": 0.95}
    refused = client.post("/training/datasets/collect", json=asked)
    assert refused.status_code == 422, "nobody has said bogus: the ratio is 1"
    assert "anomaly ratio" in refused.json()["title"]
    assert client.get("/training/datasets").json() == []
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows
    for i, row in enumerate(rows[:40]):
        for who in ("ada", "bob"):
            verdict = "real" if i % 4 else "bogus"
            labels.record(scene.catalog, row["id"], who=who, verdict=verdict, token=uuid.uuid4().hex)
    made = client.post("/api/v1/training/datasets/collect", json=asked)
    assert made.status_code == 201, made.text
    body = made.json()
    assert body["total_samples"] >= 40 - 10
    assert 0.1 <= body["anomaly_ratio"] <= 0.9
    assert all(check["passed"] for check in body["checks"])
    agreement = next(check for check in body["checks"] if check["name"] == "label agreement")
    assert agreement["value"] == pytest.approx(1.0)
    # The same name again is refused: a dataset is never changed.
    assert client.post("/training/datasets/collect", json=asked).status_code == 422
    listed = client.get("/training/datasets").json()
    assert [row["name"] for row in listed] == ["first"]
    one = client.get(f"/training/datasets/{body['id']}").json()
    assert one["content_hash"] == body["hash"]
    samples = client.get(f"/training/datasets/{body['id']}/samples", params={"limit": 1000}).json()["items"]
    assert len(samples) == body["total_samples"]
    assert samples[0]["metadata"]["exposure_id"] == f"e-{NIGHT}"
    assert {row["metadata"]["label_source"] for row in samples} <= {"human", "model"}
    assert client.get(f"/training/datasets/{body['id']}/quality").json() == body["checks"]
    assert client.get("/training/datasets/999999").status_code == 404

    everything = AstridDataset("first", store=scene.store)
    assert len(everything) == body["total_samples"]
    parts = [AstridDataset("first", split, scene.store) for split in sorted(set(everything.samples["split"]))]
    assert sum(map(len, parts)) == len(everything)
    image, label = everything[0]
    assert tuple(image.shape) == (4, 63, 63)
    assert image.dtype.is_floating_point
    assert label in (0, 1)
    assert everything.mask(0).shape == (63, 63)
    edge = int((everything.samples["x"]).to_numpy().argmin())
    assert (everything.mask(edge) & int(Mask.NO_DATA)).any(), "its stamp reaches over the frame's border"
    # A worker of its own maps the files anew and gives the same.
    loaded = [part for images, _ in DataLoader(everything, batch_size=8, num_workers=1) for part in images]
    assert (
        hashlib.sha256(loaded[3].numpy().tobytes()).digest()
        == hashlib.sha256(everything[3][0].numpy().tobytes()).digest()
    )
    with pytest.raises(ModelError, match="is empty"):
        AstridDataset("first", "no such split", scene.store)


def test_a_folder_without_a_dataset_is_said(tmp_path):
    from astrid_pipeline.learning.labelled import LabelledStamps

    with pytest.raises(ReadError, match="no labelled stamps"):
        LabelledStamps(tmp_path)


def table(n: int, real: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "is_anomaly": [True] * real + [False] * (n - real),
            "quality": 0.9,
            "object": [f"o{i}" for i in range(n)],
            "sha256": [f"{i:x}" for i in range(n)],
            "split": "train",
            "night": "2026-01-01",
            "field": "a",
        }
    )


@pytest.mark.parametrize(
    ("change", "kappa", "fails"),
    [
        ({}, 0.9, set()),
        ({}, None, set()),
        ({}, 0.1, {"label agreement"}),
        ({"quality": 0.6}, 0.9, {"image quality"}),
        ({"is_anomaly": True}, 0.9, {"anomaly ratio"}),
        ({"sha256": "same", "split": ["train", "test"] * 50}, 0.9, {"duplicates across splits"}),
        ({"object": "one", "split": ["train", "test"] * 50}, 0.9, {"duplicates across splits"}),
    ],
)
def test_every_check_can_fail(change, kappa, fails):
    found = quality.checks(table(100, 40).assign(**change), kappa, 30)
    assert {check.name for check in found if not check.passed} == fails


def test_too_few_samples_fail():
    assert "total" in {check.name for check in quality.checks(table(10, 5), None, 0) if not check.passed}
    assert not all(check.passed for check in quality.checks(table(0, 0), None, 0))


def test_image_quality_is_1_at_the_best_and_falls_with_each_part():
    best = {
        "field": "a",
        "filter": "g",
        "seeing": 2.0,
        "noise": 5.0,
        "masked_fraction": 0.0,
        "score_sigma": 1.0,
    }
    worse = [
        {**best, "seeing": 4.0},
        {**best, "noise": 10.0},
        {**best, "masked_fraction": 0.5},
        {**best, "score_sigma": 1.1},
    ]
    score = quality.image_quality(pd.DataFrame([best] * 10 + worse))
    assert score[:10] == pytest.approx(1.0)
    assert score[10:12] == pytest.approx(0.5**0.25)
    assert score[12] == pytest.approx(0.5**0.25)
    assert score[13] == pytest.approx(np.exp(-1) ** 0.25)


@pytest.mark.parametrize(
    ("real", "bogus", "most"), [(1000, 10, 5000), (10, 1000, 5000), (300, 200, 100), (50, 0, 20)]
)
def test_strata_are_neither_drowned_nor_alone(real, bogus, most):
    found = pd.DataFrame({"is_anomaly": [True] * real + [False] * bogus})
    kept = stratified(found, most)
    counts = kept["is_anomaly"].value_counts()
    assert len(kept) <= most
    if bogus:
        assert counts.max() <= 3 * counts.min()
