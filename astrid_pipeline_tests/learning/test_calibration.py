from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.learning import calibration
from astrid_pipeline.learning.calibration import (
    Calibrator,
    choose,
    expected_calibration_error,
    fit,
    log_loss,
    shift_prior,
    sigmoid,
)


def _sample(n: int, slope: float, shift: float, seed: int = 0):
    """Logits whose true probability is sigmoid(slope z + shift)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, n)
    return z, rng.random(n) < sigmoid(slope * z + shift)


def test_platt_finds_the_true_slope_and_shift():
    z, y = _sample(40000, 0.6, -1.2)
    a, b = fit("platt", z, y).parameters
    assert a == pytest.approx(0.6, abs=0.03)
    assert b == pytest.approx(-1.2, abs=0.05)


def test_temperature_finds_the_true_temperature():
    z, y = _sample(40000, 0.5, 0.0)
    assert 1 / fit("temperature", z, y).parameters[0] == pytest.approx(2.0, abs=0.1)


def test_isotonic_is_monotonic_and_never_certain():
    z, y = _sample(3000, 1.0, 0.0)
    p = fit("isotonic", z, y)(np.linspace(-20, 20, 500))
    assert (np.diff(p) >= 0).all()
    assert 0 < p.min() < p.max() < 1


def test_separable_data_do_not_give_an_infinite_slope():
    z = np.r_[-np.arange(1, 11.0), np.arange(1, 11.0)]
    p = fit("platt", z, z > 0)(z)
    assert 0.5 < p[-1] < 1
    assert np.isfinite(fit("platt", z, z > 0).parameters).all()


def test_an_inverted_classifier_is_not_turned_round():
    z, y = _sample(2000, 1.0, 0.0)
    p = fit("platt", -z, y)(np.sort(z))
    assert (np.diff(p) >= 0).all()


def test_the_best_kind_is_chosen():
    z, y = _sample(20000, 0.6, -2.0)
    assert choose(z, y).kind in ("platt", "isotonic")  # a temperature cannot shift
    rng = np.random.default_rng(0)
    steps = rng.uniform(-3, 3, 20000)
    truth = np.where(steps < -1, 0.05, np.where(steps < 1, 0.5, 0.95))
    assert choose(steps, rng.random(20000) < truth).kind == "isotonic"


def test_calibration_lowers_the_error():
    z, y = _sample(20000, 0.3, 1.0)
    raw = expected_calibration_error(sigmoid(z), y)
    test_z, test_y = _sample(20000, 0.3, 1.0, seed=1)
    for kind in ("platt", "isotonic"):
        assert expected_calibration_error(fit(kind, z, y)(test_z), test_y) < 0.02 < 0.1 < raw


def test_calibration_error_of_known_cases():
    # Says .8 where 60 % are real, and .3 where 30 % are: the error is .2 for half of them.
    p = np.r_[np.full(100, 0.8), np.full(100, 0.3)]
    y = np.r_[np.arange(100) < 60, np.arange(100) < 30]
    assert expected_calibration_error(p, y, bins=2) == pytest.approx(0.1)
    assert np.isnan(expected_calibration_error([], []))


def test_bins_hold_equal_counts():
    p = np.random.default_rng(0).random(1000) ** 4
    counts = calibration.reliability(p, p > 0.5, bins=10)[:, 2]
    assert (counts == 100).all()


def test_log_loss_is_the_formula():
    assert log_loss([0.9, 0.2], [True, False]) == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)


@pytest.mark.parametrize(
    ("labels", "match"), [([True, True], "both kinds"), ([False, False], "both kinds"), ([True], "labels")]
)
def test_useless_labels(labels, match):
    with pytest.raises(ValueError, match=match):
        fit("platt", [0.0, 1.0], labels)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(calibration.KINDS))
def test_kept_and_read_again_it_says_the_same(seed, kind):
    z, y = _sample(60, 1.0, 0.3, seed)
    made = fit(kind, z, y)
    again = Calibrator.from_tensors(made.tensors("x."), "x.")
    np.testing.assert_array_equal(made(z), again(z))
    assert ((made(z) >= 0) & (made(z) <= 1)).all()


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_weights_calibrate_for_skies_with_fewer_real_ones(kind):
    z, y = _sample(60000, 1.0, 0.0, seed=5)
    # A sky with a tenth of the real ones: the rest are left out at random.
    rng = np.random.default_rng(6)
    kept = ~y | (rng.random(len(y)) < 0.1)
    weighted = fit(kind, z, y, real_weight=0.1)
    assert expected_calibration_error(weighted(z[kept]), y[kept]) < 0.012
    assert expected_calibration_error(fit(kind, z, y)(z[kept]), y[kept]) > 0.1
    # Bayes says the same of the probabilities of the full sky.
    at = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(weighted(at), shift_prior(sigmoid(at), 0.1), atol=0.05)


def test_a_prior_of_one_changes_nothing_and_shifts_add_up():
    p = np.array([0.0, 0.2, 0.9, 1.0])
    np.testing.assert_allclose(shift_prior(p, 1.0), p)
    np.testing.assert_allclose(shift_prior(shift_prior(p, 0.05), 20.0), p, atol=1e-12)
