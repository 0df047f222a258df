"""Datasets from labels: what goes in, what is refused, that nothing leaks over splits, that PyTorch loads it."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from astrid_pipeline.archives.base import OBSERVATIONS
from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.errors import ModelError, ReadError, ServiceError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.io_managers import to_parquet
from astrid_pipeline.resources.frames import Index, IndexEntry, plain_meta, write_product
from astrid_pipeline.resources.store import Store
from astrid_pipeline.resources.tracking import Tracking
from astrid_pipeline.review import collect, quality, splitting
from astrid_pipeline.review.collect import AstridDataset, Collection, stratified
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.report.example import make_difference
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT, Scene
from astrid_pipeline_tests.s3_servers import s3_server

#: What the made-up frames have below the counts, as a camera's bias.
PEDESTAL = 500.0


def keep_images(store: Store, folder: Path, night: str = NIGHT, **meta: Any) -> None:
    """Put a made-up night's difference image, calibrated frame and raw file where the pipeline keeps them."""
    exposure = f"e-{night}"
    about = {"seeing": 2.5, "masked_fraction": 0.02, "score_sigma": 1.003, "filter": "g", **meta}
    difference = make_difference((300, 400), (), exposure_id=exposure, **about)
    frame = Frame(difference.science + 100.0, meta={"exposure_id": exposure, "filter": "g"})
    for asset, product in (("difference_images", difference), ("calibrated_frames", frame)):
        path = folder / f"{asset}.fits"
        kind = write_product(product, path)
        key = f"{asset}/{FIELD}/{night}/{exposure}.fits"
        kept = store.put_file(key, path)
        entry = IndexEntry(key, str(kept.sha256), kept.size, kind, plain_meta(product))
        index = Index(asset, f"{FIELD}|{night}", "run", "1", "now", {exposure: entry})
        store.put_bytes(f"{asset}/{FIELD}/{night}/index.json", index.dump())
    cards = {"DATE-OBS": f"{night}T03:00:00", "EXPTIME": 60.0, "FILTER": "g", "INSTRUME": "cam"}
    header = fits.Header({**cards, "GAIN": 1.0, "RDNOISE": 5.0, "BUNIT": "adu"})
    counts = (difference.science + PEDESTAL).astype(np.float32)
    fits.PrimaryHDU(counts, header).writeto(folder / "raw.fits", overwrite=True)
    raw = store.put_file(f"raw/{FIELD}/{night}/{exposure}--raw.fits", folder / "raw.fits")
    row = {"exposure_id": exposure, "field": FIELD, "kind": "light", "mjd": 61042.0, "night": night}
    row |= {"filter": "g", "instrument": "cam", "exposure": 60.0, "path": raw.key, "size": raw.size}
    table = OBSERVATIONS.conform(pd.DataFrame([{**row, "sha256": raw.sha256, "problem": None}]))
    store.put_bytes(f"observations/{FIELD}/{night}.parquet", to_parquet(table, OBSERVATIONS))


def give_labels(scene: Scene, rows: list[dict], people: tuple[str, ...] = ("ada", "bob")) -> None:
    """Every fourth is bogus; all agree."""
    for i, row in enumerate(rows):
        for who in people:
            verdict = "real" if i % 4 else "bogus"
            labels.record(scene.catalog, row["id"], who=who, verdict=verdict, token=uuid.uuid4().hex)


#: `instance` points the settings of this process, and so MLflow, at the scene's home.
@pytest.mark.postgres
@pytest.mark.usefixtures("instance")
def test_a_dataset_from_labels(client, scene, tmp_path):
    keep_images(scene.store, tmp_path)
    asked = {"name": "first", "start": "2026-01-01", "end": "2026-01-31", "confidence_threshold": 0.95}
    refused = client.post("/training/datasets/collect", json=asked)
    assert refused.status_code == 422, "nobody has said bogus: the ratio is 1"
    assert "anomaly ratio" in refused.json()["title"]
    assert client.get("/training/datasets").json() == []
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows
    give_labels(scene, rows[:40])
    made = client.post("/api/v1/training/datasets/collect", json=asked)
    assert made.status_code == 201, made.text
    body = made.json()
    assert body["total_samples"] >= 40 - 10
    assert 0.1 <= body["anomaly_ratio"] <= 0.9
    assert {check["name"] for check in body["checks"] if not check["passed"] and check["refuses"]} == set()
    assert body["split_by"] == "sky", "one night cannot be split by night"
    run = Tracking().client.get_run(body["mlflow_run_id"])
    assert run.info.run_name == f"training_data_{body['id']}"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["total_samples"] == body["total_samples"]
    assert run.data.metrics["anomaly_ratio"] == pytest.approx(body["anomaly_ratio"])
    assert run.data.metrics["data_quality_score"] == pytest.approx(body["quality_score"])
    assert run.data.params["confidence_threshold"] == "0.95"
    assert run.data.params["time_range"] == "2026-01-01 to 2026-01-31"
    assert run.data.params["survey_sources"] == "1"
    assert run.data.params["collection_date"] >= "2026"
    listed = [
        f.path for p in ("plots", "samples") for f in Tracking().client.list_artifacts(run.info.run_id, p)
    ]
    assert sum(name.startswith("samples/real") for name in listed) == 5
    assert sum(name.startswith("samples/bogus") for name in listed) == 5
    assert {"plots/classes.png", "plots/nights.png", "plots/image_quality.png"} <= set(listed)
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
    # Raw counts and the calibrated frame (kept to a fraction of its noise, 20) show one place.
    inside = int(np.hypot(everything.samples["x"] - 200, everything.samples["y"] - 150).argmin())
    np.testing.assert_allclose(
        everything.raw(inside) - PEDESTAL, everything.calibrated(inside) - 100.0, atol=1.0
    )
    assert everything.samples["has_raw"].all()
    assert samples[0]["metadata"]["raw_sha256"]
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


def several_nights(scene: Scene, folder: Path, nights: list[str], store: Store | None = None) -> None:
    """Nights of the same places: objects that are seen again and again."""
    for night in nights:
        scene.make_night(night, n=60, passed=0, seed=0)
        keep_images(store or scene.store, folder, night)
    rows = queue.list_sources(
        scene.catalog, queue.Filter(sort="id", since=pd.Timestamp(nights[0]).date()), 999
    ).rows
    give_labels(scene, [row for row in rows if str(row["night"]) in nights])


@pytest.mark.postgres
@pytest.mark.usefixtures("instance")
def test_no_night_and_no_object_is_in_two_splits_and_s3_gives_it_to_workers(scene, tmp_path, monkeypatch):
    nights = [f"2026-02-{day:02d}" for day in (1, 2, 3, 4, 5)]
    with s3_server("rclone", tmp_path) as bucket:
        store = bucket.store()
        several_nights(scene, tmp_path, nights, store)
        wanted = Collection("winter", pd.Timestamp(nights[0]).date(), pd.Timestamp(nights[-1]).date())
        made = collect.collect(scene.catalog, store, wanted, "ada")
        assert made["split_by"] == "sky and night"
        assert {c["name"] for c in made["checks"] if not c["passed"]} <= {"splits without both classes"}
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        reset_settings()
        # The three lines of the README.
        data = AstridDataset("winter", split="train")
        image, label_ = data[0]
        batches = list(DataLoader(data, batch_size=16, num_workers=2))
        assert sum(len(images) for images, _ in batches) == len(data)
        assert batches[0][0][0].numpy().tobytes() == image.numpy().tobytes()
        assert int(batches[0][1][0]) == label_
        samples = AstridDataset("winter").samples
    monkeypatch.undo()
    reset_settings()
    assert samples["split"].nunique() == 3
    assert (samples.groupby("night")["split"].nunique() == 1).all()
    assert (samples.groupby("object")["split"].nunique() == 1).all()
    assert samples["night"].nunique() == 5


@pytest.mark.postgres
@pytest.mark.usefixtures("instance")
def test_a_poor_image_is_refused_and_mlflow_may_come_later(scene, client, tmp_path, monkeypatch):
    nights = ["2026-03-01", "2026-03-02"]
    several_nights(scene, tmp_path, nights)
    keep_images(scene.store, tmp_path, nights[1], seeing=9.0, score_sigma=1.2)
    asked = {"name": "spring", "start": nights[1], "end": nights[1]}
    poor = client.post("/training/datasets/collect", json=asked)
    assert poor.status_code == 422
    assert "image quality is 0." in poor.json()["title"]
    assert client.get("/training/datasets").status_code == 200
    assert not scene.store.exists("training-datasets/spring/index.json"), "nothing is kept of it"

    def away(*given: Any, **more: Any) -> Any:
        raise ServiceError("cannot open a run: away", remedy="start it")

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "attempt", away)
        made = client.post("/training/datasets/collect", json={**asked, "start": nights[0], "end": nights[0]})
        assert made.status_code == 201, made.text
        assert made.json()["mlflow_run_id"] is None
        assert "away" in made.json()["problem"]
        path = f"/training/datasets/{made.json()['id']}/log"
        assert client.post(path).status_code == 503
    run = Tracking().client.get_run(client.post(path).json()["mlflow_run_id"])
    assert run.info.run_name == f"training_data_{made.json()['id']}"


def made_up(nights: int, objects: int, seen: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "field": "a",
            "night": [f"2026-01-{1 + night % nights:02d}" for night, _ in seen],
            "object_hpx": [(obj % objects) << 40 for _, obj in seen],
            "hpx29": 0,
            "exposure_id": "e",
        }
    )


@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 29)), min_size=1, max_size=120),
    st.integers(0, 5),
)
def test_splits_share_neither_sky_nor_night(nights, objects, seen, seed):
    samples = made_up(nights, objects, seen)
    split, by = splitting.splits(samples, seed)
    kept = samples.assign(split=split, piece=splitting.pieces(samples)).dropna(subset=["split"])
    assert (kept.groupby("piece")["split"].nunique() <= 1).all()
    assert set(kept["split"]) <= set(splitting.SHARES)
    if samples["night"].nunique() >= quality.LEAST_NIGHTS:
        assert by == "sky and night"
        assert (kept.groupby("night")["split"].nunique() <= 1).all()
        assert set(kept["piece"]) == set(splitting.pieces(samples)), "no place is lost altogether"
    else:
        assert by == "sky"
        assert len(kept) == len(samples)
    again, _ = splitting.splits(samples, seed)
    assert list(again.astype(object).fillna("-")) == list(split.astype(object).fillna("-"))


def test_every_split_gets_a_night_and_about_its_share():
    sizes = {f"a|{k}": 10 for k in range(20)}
    shared = splitting._shared_out(sizes, 0)
    counts = pd.Series(list(shared.values())).value_counts()
    assert dict(counts) == {"train": 14, "valid": 3, "test": 3}
    assert set(splitting._shared_out({"a": 1000, "b": 1, "c": 1}, 0).values()) == set(splitting.SHARES)


def table(n: int, real: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "is_anomaly": [True] * real + [False] * (n - real),
            "quality": 0.9,
            "object": [f"o{i}" for i in range(n)],
            "sha256": [f"{i:x}" for i in range(n)],
            "split": [("train", "train", "valid", "test")[i % 4] for i in range(n)],
            "night": [f"2026-01-{1 + i % 4:02d}" for i in range(n)],
            "field": "a",
            "survey_id": 1,
        }
    )


@pytest.mark.parametrize(
    ("change", "kappa", "fails"),
    [
        ({}, 0.9, set()),
        ({}, None, set()),
        ({}, 0.1, {"label agreement"}),
        ({"quality": 0.6}, 0.9, {"image quality"}),
        ({"quality": np.nan}, 0.9, {"image quality"}),
        ({"is_anomaly": [True] * 95 + [False] * 5}, 0.9, {"anomaly ratio"}),
        ({"is_anomaly": [True] * 9 + [False] * 91}, 0.9, {"anomaly ratio"}),
        ({"sha256": "same"}, 0.9, {"duplicates across splits"}),
        ({"object": "one"}, 0.9, {"duplicates across splits"}),
        ({"night": [f"n{i % 3}" for i in range(100)]}, 0.9, {"nights across splits"}),
        ({"night": "one"}, 0.9, {"temporal distribution"}),
        (
            {"night": ["a"] * 98 + ["b", "c"], "split": ["train"] * 98 + ["valid", "test"]},
            0.9,
            {"temporal distribution", "splits without both classes"},
        ),
        ({"survey_id": 2}, 0.9, {"survey coverage"}),
        ({"is_anomaly": [i % 4 != 3 for i in range(100)]}, 0.9, {"splits without both classes"}),
    ],
)
def test_every_check_can_fail(change, kappa, fails):
    found = quality.checks(table(100, 40).assign(**change), kappa, 30, [1])
    assert {check.name for check in found if not check.passed} == fails
    told = {check.name for check in quality.refused(found)}
    only_told = {"temporal distribution", "survey coverage", "splits without both classes"}
    assert told == fails - only_told, "these are told, and no reason to refuse"


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
