"""Judging injections: pairing against a slow twin, completeness and flux statistics against analytic truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.night.injections import (
    HOST_SHARE,
    SNR_BINS,
    completeness,
    flux_statistics,
    host_positions,
    match,
    plan_injections,
)
from astrid_pipeline_tests.report.example import make_difference


def match_slowly(truth, finds, radius):
    """Greedy by distance over all pairs."""
    pairs = sorted(
        (np.hypot(t.x - f.x, t.y - f.y), i, j)
        for i, t in enumerate(truth.itertuples())
        for j, f in enumerate(finds.itertuples())
    )
    index = [-1] * len(truth)
    for d, i, j in pairs:
        if d <= radius and index[i] < 0 and j not in index:
            index[i] = j
    return index


points = st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), max_size=12)


@settings(max_examples=200)
@given(points, points, st.floats(0.5, 8))
def test_match_equals_its_slow_twin(a, b, radius):
    truth, finds = (pd.DataFrame(p, columns=["x", "y"], dtype=float) for p in (a, b))
    index, distance = match(truth, finds, radius)
    assert index.tolist() == match_slowly(truth, finds, radius)
    assert (np.isfinite(distance) == (index >= 0)).all()


def test_completeness_counts_and_bounds():
    snr = np.repeat([4.0, 6.0, 8.0, 15.0], 100)
    detected = np.concatenate([np.arange(100) < k for k in (5, 60, 95, 100)])
    rows = completeness(pd.DataFrame({"snr": snr, "detected": detected}))
    assert [(r["injected"], r["found"]) for r in rows] == [(100, 5), (100, 60), (100, 95), (100, 100), (0, 0)]
    assert len(rows) == len(SNR_BINS) - 1
    for row in rows[:-1]:
        assert row["low"] <= row["found"] / row["injected"] <= row["high"]
    # Wilson's interval for 60 of 100 at z = 1, worked out by hand.
    centre, half = (0.6 + 0.005) / 1.01, np.sqrt(0.6 * 0.4 / 100 + 0.25 / 1e4) / 1.01
    assert rows[1]["low"] == pytest.approx(centre - half, abs=1e-6)
    assert rows[1]["high"] == pytest.approx(centre + half, abs=1e-6)


def test_flux_statistics_find_a_planted_bias_and_width():
    rng = np.random.default_rng(3)
    n = 20_000
    flux = rng.uniform(1000, 3000, n)
    error = np.full(n, 50.0)
    measured = 1.02 * flux + rng.normal(0, 1.5 * 50, n)
    table = pd.DataFrame(
        {"found": True, "snr": 30.0, "flux": flux, "measured_flux": measured, "measured_flux_err": error}
    )
    statistics = flux_statistics(table)
    assert statistics["flux_bias"] == pytest.approx(0.02, abs=0.001)
    # The bias of 2 % of 1000-3000 spreads the pulls too: sqrt(75² + 11.5²) / 50.
    assert statistics["pull_width"] == pytest.approx(np.hypot(75, 0.02 * 2000 / np.sqrt(12)) / 50, rel=0.03)


def test_too_few_say_nothing():
    table = pd.DataFrame(
        {"found": [True, True], "snr": 20.0, "flux": 1.0, "measured_flux": 1.0, "measured_flux_err": 1.0}
    )
    assert np.isnan(flux_statistics(table)["flux_bias"])


def test_few_hosts_get_an_injection_and_none_lies_on_a_masked_pixel():
    """The frames' match is measured on the hosts: most of them must stay as they are."""
    difference = make_difference((600, 600))
    yy, xx = np.mgrid[:600, :600]
    hosts = [(x, y) for x in range(40, 580, 60) for y in range(40, 580, 60)]
    galaxies = sum(300 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 50) for x, y in hosts)
    difference = difference.replace(reference=difference.reference + galaxies)
    table = plan_injections(difference, np.random.default_rng(2), per_megapixel=150)
    assert len(table) == 54
    assert table.on_galaxy.sum() == np.ceil(HOST_SHARE * len(hosts))
    near = table[table.on_galaxy]
    apart = [min(np.hypot(x - a, y - b) for a, b in hosts) for x, y in zip(near.x, near.y, strict=True)]
    assert max(apart) < 1.5 * difference.psf.fwhm() + 1
    masked = difference.mask[table.y.round().astype(int), table.x.round().astype(int)]
    assert not masked.any()
    assert np.allclose(table.flux / 10.0, table.snr)
    assert table.snr.between(3, 50).all()


def test_hosts_that_are_known_already_make_the_same_plan():
    sources = tuple((x, y, 60.0) for x in range(30, 270, 24) for y in range(30, 270, 24))
    difference = make_difference((300, 300))
    difference.reference[:] += make_difference((300, 300), sources).data - difference.data
    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    hosts = host_positions(difference, bad, difference.psf.fwhm())
    assert len(hosts) > 50
    plans = [
        plan_injections(difference, np.random.default_rng(1), 300.0, hosts=given) for given in (None, hosts)
    ]
    pd.testing.assert_frame_equal(*plans)
    assert plans[0].on_galaxy.any()
