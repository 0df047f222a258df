"""Sets of series of exposures: built once, gone on with after a kill, and looked at across epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.errors import MissingProductError, ModelError
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.channels import unsqueeze_score
from astrid_pipeline.learning.epoch_data import build_series, judged_peaks, load_series, peaks_of_series
from astrid_pipeline.learning.epochs import significance_at
from astrid_pipeline.learning.matching import NEITHER
from astrid_pipeline.learning.targets import UNUSABLE_BIT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    build_series(folder, 2, seed=5, shape=(128, 128), changes=120.0)
    return folder


def test_a_killed_build_goes_on_to_the_same_set(folder: Path):
    shards, times = load_series(folder)
    assert times["sky"].nunique() == 2
    assert list(times["image_id"]) == list(shards.images["image_id"])
    for _, mine in times.groupby("sky"):
        assert mine["mjd"].is_monotonic_increasing
    before = shards.manifests[0]["hash"]
    last = sorted(folder.glob("shard-*.images.parquet"))[-1]
    last.unlink()
    done = []
    after = build_series(
        folder, 2, seed=5, shape=(128, 128), changes=120.0, progress=lambda d, n: done.append((d, n))
    )
    assert after["hash"] == before
    assert done == [(1, 2), (2, 2)]


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(MissingProductError):
        load_series(tmp_path)
    with pytest.raises(ModelError, match="0 skies"):
        build_series(tmp_path, 0)


def test_features_of_peaks_are_those_of_the_images_of_their_sky(folder: Path):
    shards, times = load_series(folder)
    peaks = peaks_of_series(load_model(), shards, times, curves=True)
    looked = peaks[peaks["own_snr"].notna()]
    assert len(looked) >= 5
    assert (peaks.loc[peaks["own_snr"].isna(), "score"] < 0.02).all()
    assert (peaks.loc[peaks["own_snr"].isna(), ["night_count", "past_nights"]] == 0).all(axis=None)
    assert not (judged_peaks(peaks)["verdict"] == NEITHER).any()
    number = {str(name): i for i, name in enumerate(shards.images["image_id"])}
    when = times.set_index("image_id")
    counted = 0
    for _, peak in looked.iterrows():
        own = when.loc[peak["image_id"]]
        sign, values = 1.0, []
        for other, row in when.iterrows():
            planes, labels = shards.planes(number[other]), np.asarray(shards.labels(number[other]))
            value = significance_at(
                unsqueeze_score(planes[3]), (labels & UNUSABLE_BIT) != 0, [peak["x"]], [peak["y"]]
            )[0]
            if other == peak["image_id"]:
                sign = -1.0 if value < 0 else 1.0
            elif row["night"] == own["night"] and row["filter"] == own["filter"] and np.isfinite(value):
                values.append(value)
        assert peak["night_count"] == len(values)
        counted += len(values)
        if values:
            assert peak["night_mean"] == pytest.approx(sign * np.mean(values), abs=1e-6)
    assert counted > 0
