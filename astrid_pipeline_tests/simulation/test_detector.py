"""What the detector does to light."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.simulation import detector
from astrid_pipeline.simulation.camera import Camera


def test_photon_noise_has_poisson_mean_and_variance():
    rng = np.random.default_rng(0)
    drawn = detector.photon_noise(rng, np.full((400, 400), 50.0, np.float32), 5)
    assert drawn.mean() == pytest.approx(50, abs=0.05)
    assert drawn.var() == pytest.approx(10, rel=0.02)  # the mean of five


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), peak=st.floats(1e3, 3e5))
def test_bleeding_keeps_the_charge_and_the_full_well(seed, peak):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 300, (200, 7)).astype(np.float32)
    image[95:105, 2:5] += np.float32(peak)
    before = image.sum(axis=0, dtype=float)
    saturated, bled = detector.bleed(image, 60_000.0)
    np.testing.assert_allclose(image.sum(axis=0, dtype=float), before, rtol=1e-5)
    assert image.max() <= 60_000.0 * (1 + 1e-6)
    assert bled.any() == saturated.any()
    assert not (bled & saturated).any()
    assert not bled[:, [0, 1, 5, 6]].any()


def test_charge_that_reaches_the_register_is_lost():
    image = np.zeros((20, 1), np.float32)
    image[10] = 1e7
    detector.bleed(image, 1000.0)
    assert (image == 1000).all()


def test_bad_columns_reach_an_end_of_the_detector():
    for x, y0, y1, factor in detector.bad_columns(np.random.default_rng(0), (100, 80), 40):
        assert 0 <= x < 80
        assert y0 == 0 or y1 == 100
        assert factor < 0.75 or factor > 1.4


def test_cosmic_rays_are_sharp_and_inside():
    hits = detector.cosmic_rays(np.random.default_rng(0), (100, 150), 300)
    assert 250 < len(hits) <= 300
    sizes = [len(rows) for rows, _, _ in hits]
    assert np.median(sizes) <= 5
    assert max(sizes) > 15
    for rows, columns, charge in hits:
        assert 0 <= rows.min() <= rows.max() < 100
        assert 0 <= columns.min() <= columns.max() < 150
        assert charge.min() > 0


def test_line_profile_and_ghost():
    light, where = detector.line_profile((60, 60), 30, 30, 0.0, 3.0)
    np.testing.assert_allclose(light[30], 1, atol=1e-6)
    assert light[30 + 1, 0] > 0.5 > light[30 + 2, 0]  # half of it at 1.5 px
    assert where[30].all()
    assert not where[0].any()
    disc = detector.ghost((60, 60), 30, 30, 12)
    assert disc.sum() == pytest.approx(1, rel=1e-5)
    assert disc[30, 30] == 0


CAMERA = Camera(3, (256, 256), n_bad_columns=0, hot_share=0.0)


def read(camera, level, exposure, n, seed=0):
    """n frames of even light."""
    return [
        camera.read(np.random.default_rng([seed, i]), np.full(camera.shape, level, np.float32), exposure, [])
        for i in range(n)
    ]


def trimmed(counts):
    """Imaging area minus the overscan of each row."""
    return counts[:, :256].astype(float) - counts[:, 256:].mean(axis=1, keepdims=True)


def test_photon_transfer_gives_the_gain():
    slopes = []
    for level in (5_000, 20_000, 40_000):
        a, b = (trimmed(c) for c in read(CAMERA, level, 1.0, 2))
        shot = np.var(a - b) / 2 - (CAMERA.read_noise / CAMERA.gain) ** 2 * (1 + 1 / CAMERA.overscan)
        slopes.append((a.mean() + b.mean()) / 2 / shot)
    np.testing.assert_allclose(slopes, CAMERA.gain, rtol=0.02)


def test_pairs_of_bias_frames_give_the_read_noise():
    a, b = read(CAMERA, 0, 0.0, 2)
    noise = np.std(
        (a.astype(float) - b)[:, :256] - (a.astype(float) - b)[:, :256].mean(axis=1, keepdims=True)
    )
    # Rounding to counts adds 1/12.
    expected = np.hypot(CAMERA.read_noise / CAMERA.gain, np.sqrt(1 / 12))
    assert noise / np.sqrt(2) == pytest.approx(expected, rel=0.01)
    assert np.std(a[:, 256:].astype(float) - a[:, 256:].mean(axis=1, keepdims=True)) == pytest.approx(
        expected, rel=0.03
    )


def test_dark_current_grows_with_time_and_has_hot_pixels():
    camera = Camera(3, (256, 256), n_bad_columns=0)
    short, long = (np.mean([trimmed(c) for c in read(camera, 0, t, 6)], axis=0) for t in (10.0, 310.0))
    rate = np.median(long - short) * camera.gain / 300
    assert rate == pytest.approx(camera.dark_rate, rel=0.1)
    hot = camera.dark > 1.0
    assert hot.any()
    np.testing.assert_allclose((long - short)[hot] * camera.gain / 300, camera.dark[hot], rtol=0.2)


def test_flat_field_belongs_to_the_filter_and_has_median_one():
    g, r = CAMERA.flat("g"), CAMERA.flat("r")
    assert np.median(g) == pytest.approx(1, abs=1e-6)
    assert g[:8, :8].mean() < 0.9 < g[120:136, 120:136].mean()  # vignetting
    assert np.abs(g - r).max() > 0.01
    ratio = (g / r)[60:120, 60:120]
    assert ratio.std() < 0.01  # pixel response is the silicon's, the same in both


def test_counts_are_unsigned_and_saturate_at_the_full_well():
    counts = CAMERA.read(np.random.default_rng(0), np.full((256, 256), 1e6, np.float32), 1.0, [])
    assert counts.dtype == np.uint16
    assert np.median(counts[:, :256]) == pytest.approx(CAMERA.saturation, rel=0.01)
