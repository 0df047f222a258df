"""Types of objects: features against analytic truth, the packaged model on objects it never saw, hostile files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.object_types import (
    FEATURES,
    LEAST_EPOCHS,
    PACKAGED,
    TYPES,
    ObjectTypes,
    classify_objects,
    fit_object_types,
    load_object_types,
    object_features,
)
from astrid_pipeline.simulation import object_curves

NOWHERE = {"ref_distance": 50.0, "ref_ratio": 5.0, "trail": 0.0}


def curve(flux, *, mjd=None, error=1.0, band="r") -> pd.DataFrame:
    mjd = 60_000.3 + 3.0 * np.arange(len(flux)) if mjd is None else mjd
    return pd.DataFrame({"mjd": mjd, "filter": band, "flux": np.asarray(flux, float), "flux_err": error})


def drawn(seed: int, count: int) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = [TYPES[i % 3] for i in range(count)]
    rows = [object_features(*object_curves.draw_object(rng, kind)) for kind in kinds]
    return pd.DataFrame(rows), np.array(kinds)


def test_what_a_curve_looks_like_in_numbers() -> None:
    rising = object_features(curve([0, 0, 5, 10, 20, 15, 10, 5]), NOWHERE)
    assert rising["epochs"] == 8
    assert rising["seen"] == 6
    assert rising["before"] == 2
    assert rising["rise"] == pytest.approx(0.95, abs=0.06)
    assert rising["decline"] == pytest.approx(-1)
    assert rising["largest_snr"] == 20
    assert rising["opposite_snr"] == 0
    assert rising["smoothness"] < 0.7
    jumping = object_features(curve([8, -8, 8, -8, 8, -8]), {**NOWHERE, "ref_distance": 0.2})
    assert jumping["opposite_snr"] == 8
    assert jumping["positive_share"] == 0.5
    assert jumping["smoothness"] > 2.5
    once = object_features(curve([0, 0, 15, 0, 0]), NOWHERE)
    assert once["seen_days"] == 0
    assert once["after"] == 2


def test_points_of_one_night_are_one_epoch_by_inverse_variance() -> None:
    points = curve([10, 20, 0, 0], mjd=[1.2, 1.25, 2.2, 3.2], error=np.array([1.0, 2.0, 1.0, 1.0]))
    features = object_features(points, NOWHERE)
    assert features["epochs"] == 3
    mean, error = (10 / 1 + 20 / 4) / (1 + 1 / 4), 1 / np.sqrt(1 + 1 / 4)
    assert features["largest_snr"] == pytest.approx(mean / error)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e4), st.integers(0, 30)), max_size=12),
    st.sampled_from([float("nan"), 0.0, 1e9]),
)
def test_whatever_the_points_are_features_are_numbers_or_missing(rows, odd) -> None:
    points = pd.DataFrame(rows, columns=["flux", "flux_err", "mjd"]).assign(filter=None)
    if len(points):
        points.loc[0, "flux"] = odd
    features = object_features(points, {"ref_distance": None, "ref_ratio": "x", "trail": odd})
    assert tuple(features) == FEATURES
    assert not np.isinf(list(features.values())).any()


def test_the_packaged_model_tells_nine_of_ten_that_it_never_saw() -> None:
    features, kinds = drawn(77, 600)
    told = load_object_types().types(features)
    sure = told.type.notna().to_numpy()
    assert sure.mean() > 0.9
    assert (told.type.to_numpy()[sure] == kinds[sure]).mean() >= 0.9
    share = load_object_types().probabilities(features)
    best = np.array(TYPES)[share.to_numpy().argmax(axis=1)]
    assert (best == kinds).mean() >= 0.9


def test_too_few_epochs_are_not_judged_and_objects_are_kept_apart() -> None:
    points = pd.concat(
        [
            curve([0, 0, 0, 20, 0, 0, 0]).assign(object_id=7),
            curve([20, 10]).assign(object_id=3),
        ]
    )
    places = pd.DataFrame([{"object_id": 7, **NOWHERE, "trail": 6.0}])
    table = classify_objects(points, places).set_index("object_id")
    assert table.type[7] == "moving"
    assert table.type[3] is None
    assert table.epochs[3] == 2 < LEAST_EPOCHS
    assert np.isnan(table.probability[3])
    assert not len(classify_objects(points.iloc[:0], places))


def test_what_is_saved_is_loaded_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    features, kinds = drawn(5, 300)
    model = fit_object_types(features, kinds)
    model.save(tmp_path / "m.safetensors")
    again = load_object_types(tmp_path / "m.safetensors")
    pd.testing.assert_frame_equal(again.probabilities(features), model.probabilities(features))
    tensors, facts, _ = weights.load(PACKAGED, "objects")
    weights.save(tmp_path / "other.safetensors", "objects", tensors, {**facts, "features": ["a"]})
    with pytest.raises(ModelError, match="damaged"):
        load_object_types(tmp_path / "other.safetensors")
    with pytest.raises(ModelError):
        load_object_types(tmp_path / "nothing.safetensors")
    assert isinstance(again, ObjectTypes)
