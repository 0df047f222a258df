"""Other epochs: what they show at a peak's place, what that makes of its score, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.correction import BASE
from astrid_pipeline.learning.epochs import (
    COUNTS,
    GROUPS,
    OWN,
    OtherEpochs,
    When,
    epoch_features,
    fit_epochs,
    places_in,
    significance_at,
)
from astrid_pipeline.learning.object_types import SEEN_SNR
from astrid_pipeline_tests.learning.toy_epochs import sky, toys, when

# Places ------------------------------------------------------------------------------------------------------------


def test_significance_between_pixels_is_the_sources_own():
    at = np.array([[20.3, 30.7], [41.5, 12.5], [50.0, 50.0]])
    clean = sky(np.random.default_rng(0), [(x, y, 12.0) for x, y in at]) - sky(np.random.default_rng(0), [])
    found = significance_at(clean, np.zeros((64, 64), bool), *at.T)
    np.testing.assert_allclose(found, 12.0, rtol=0.01)


def test_off_the_frame_and_on_bad_pixels_nothing_is_known():
    score, bad = np.ones((20, 30)), np.zeros((20, 30), bool)
    bad[4, 7] = True
    x = [-0.6, -0.4, 29.4, 29.6, 7.2, 8.0, np.nan]
    y = [5.0, 5.0, 5.0, 5.0, 3.9, 4.0, 5.0]
    assert np.isnan(significance_at(score, bad, x, y)).tolist() == [
        True,
        False,
        False,
        True,
        True,
        False,
        True,
    ]


def tan(dx: float, dy: float, turn: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 30.0]
    wcs.wcs.crpix = [33 + dx, 33 + dy]
    s, c = np.sin(turn) / 3600, np.cos(turn) / 3600
    wcs.wcs.cd = [[-c, s], [s, c]]
    return wcs


def test_a_source_is_found_in_a_shifted_and_turned_frame():
    one, other = tan(0, 0, 0), tan(4.3, -7.6, 0.4)
    rng = np.random.default_rng(1)
    x, y = np.array([25.2, 40.1]), np.array([30.4, 22.9])
    ra, dec = one.all_pix2world(x, y, 0)
    u, v = places_in(other, ra, dec)
    assert np.hypot(u - x, v - y).min() > 2
    score = sky(rng, [(a, b, 15.0) for a, b in zip(u, v, strict=True)])
    assert significance_at(score, np.zeros(score.shape, bool), u, v) == pytest.approx([15, 15], abs=4)
    assert np.isnan(places_in(None, ra, dec)).all()


# Features: the slow obvious twin -----------------------------------------------------------------------------------


def slowly(
    own: When, peak: float, others: list[tuple[When, float]], window: float = 30.0
) -> dict[str, float]:
    """The features of one peak, one epoch after another."""
    sign = -1.0 if peak < 0 else 1.0
    night, filters, past = [], [], {}
    for one, value in others:
        if one.exposure_id == own.exposure_id or np.isnan(value):
            continue
        if one.night == own.night:
            (night if one.filter == own.filter else filters).append(sign * value)
        elif one.filter == own.filter and 0 < own.mjd - one.mjd <= window:
            past.setdefault(one.night, []).append(sign * value)
    every = [v for values in past.values() for v in values]
    nan = float("nan")
    out = {"own_snr": abs(peak)}
    for name, values in (("night", night), ("filter", filters)):
        out[f"{name}_count"] = float(len(values))
        out[f"{name}_mean"] = float(np.mean(values)) if values else nan
        out[f"{name}_strongest"] = max(values) if values else nan
        out[f"{name}_weakest"] = min(values) if values else nan
    out["night_stacked"] = (abs(peak) + sum(night)) / np.sqrt(1 + len(night)) if night else nan
    out["past_nights"] = float(len(past))
    out["past_mean"] = float(np.mean([np.mean(v) for v in past.values()])) if past else nan
    out["past_largest"] = max(abs(v) for v in every) if every else nan
    out["past_opposite"] = max(-v for v in every) if every else nan
    out["past_share"] = float(np.mean([abs(v) >= SEEN_SNR for v in every])) if every else nan
    return out


values = st.one_of(st.just(float("nan")), st.floats(-30, 30).map(lambda v: round(v, 2)))
epochs = st.lists(
    st.tuples(
        st.integers(-35, 2),
        st.integers(0, 300),
        st.sampled_from(["r", "g"]),
        st.tuples(values, values, values),
    ),
    max_size=8,
    unique_by=lambda e: (e[0], e[1]),
)


@settings(max_examples=150, deadline=None)
@given(epochs, st.randoms(use_true_random=False))
def test_features_are_those_of_the_slow_way_and_no_order_matters(drawn, random):
    own, peaks = when("own", 0, 301), np.array([7.5, -12.0, 0.0])
    others = [(when(f"e{i}", n, m, f), np.array(v)) for i, (n, m, f, v) in enumerate(drawn)]
    table = epoch_features(own, peaks, others)
    for k, peak in enumerate(peaks):
        expected = slowly(own, peak, [(w, float(v[k])) for w, v in others])
        got = table.iloc[k].to_dict()
        assert set(got) == set(expected)
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, nan_ok=True, abs=1e-9), name
    random.shuffle(others)
    pd.testing.assert_frame_equal(epoch_features(own, peaks, others), table, check_exact=True)


def test_later_nights_and_those_long_ago_say_nothing():
    own = when("own", 0)
    alone = epoch_features(own, [9.0], [])
    others = [(when("later", 1), np.array([20.0])), (when("old", -31), np.array([20.0]))]
    pd.testing.assert_frame_equal(epoch_features(own, [9.0], others), alone)
    assert (alone[[c for c in COUNTS.values() if c in alone]] == 0).all(axis=None)


def test_the_light_curve_has_the_shape_that_was_put_in():
    own = when("own", 0)
    rising = [(when(f"n{-n}", -n), np.array([10.0 - n, 0.0])) for n in range(1, 8)]
    table = epoch_features(own, [10.0, 10.0], rising, curves=True)
    assert table["curve_epochs"].tolist() == [8, 8]
    assert table["curve_rise"][0] == pytest.approx(1.0)
    assert table["curve_seen_share"].tolist() == pytest.approx([7 / 8, 1 / 8])
    assert table["curve_before"].tolist() == [1, 7]


# The model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> OtherEpochs:
    first, second = toys(1, 250), toys(2, 150)
    return fit_epochs(first, first["real"], second, second["real"])


def test_what_repeats_is_raised_and_what_hit_once_is_lowered(taught):
    table = toys(3, 150)
    after = taught(table, table["score"])
    seen = (table["night_count"] > 0).to_numpy()
    for what, right in (("stays", after > 0.9), ("hit", after < 0.1), ("asteroid", after > 0.9)):
        mine = seen & (table["what"] == what).to_numpy()
        assert mine.sum() > 50
        assert right[mine].mean() > 0.95, what


def test_a_lone_epoch_is_left_to_the_last_bit(taught):
    table = toys(4, 60)
    alone = (table["night_count"] == 0).to_numpy()
    assert 0 < alone.sum() < len(table)
    after = taught(table, table["score"])
    assert (after[alone] == table["score"].to_numpy()[alone]).all()
    assert (after[~alone] != table["score"].to_numpy()[~alone]).all()
    assert len(taught(table[:0], table["score"][:0])) == 0


def test_it_goes_through_a_detectors_file_and_back(taught, tmp_path: Path):
    table = toys(5, 30)
    model = load_model().replace(epochs=taught)
    model.save(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.epochs is not None
    np.testing.assert_array_equal(again.epochs(table, table["score"]), taught(table, table["score"]))
    assert again.epochs.features == taught.features
    assert again.epochs.facts["groups"] == ["night", "filters"]
    bare = model.replace(epochs=None)
    bare.save(tmp_path / "bare.safetensors")
    without = load_model(tmp_path / "bare.safetensors")
    assert without.epochs is None
    assert without.floor == without.threshold > again.floor


def test_what_does_not_fit_is_refused(taught, tmp_path: Path):
    tensors, facts = taught.parts()
    with pytest.raises(ModelError, match="not known"):
        OtherEpochs.from_parts(tensors, {**facts, "features": [*facts["features"][:-1], "colour"]}, tmp_path)
    with pytest.raises(ModelError, match="not known"):
        OtherEpochs.from_parts(tensors, {**facts, "features": facts["features"][:1]}, tmp_path)
    with pytest.raises(ModelError, match="damaged"):
        OtherEpochs.from_parts({}, facts, tmp_path)
    with pytest.raises(ModelError, match="lack the columns"):
        taught(toys(6, 2).drop(columns="night_count"), np.full(6, 0.5))
    few = toys(7, 10)
    with pytest.raises(ModelError, match="too few"):
        fit_epochs(few, few["real"], few, few["real"])


def test_every_feature_has_a_name_that_a_file_may_hold():
    made = epoch_features(when("own", 0), [5.0], [(when("before", -1), np.array([4.0]))], curves=True)
    assert set(made) | {"p_variable", "p_moving"} == {*OWN, *(n for group in GROUPS.values() for n in group)}
    assert BASE not in made
