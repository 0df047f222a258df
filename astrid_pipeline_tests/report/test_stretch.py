"""Pooling against its slow obvious twin; the scales' fixed points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.report import stretch


def slow_pool(image: np.ndarray, size: int, peak: bool) -> np.ndarray:
    """Block by block, pixel by pixel."""
    longer = max(image.shape)
    target = [max(1, round(n * size / longer)) for n in image.shape]
    starts = [[k * n // t for k in range(t)] + [n] for n, t in zip(image.shape, target, strict=True)]
    out = np.zeros(target)
    for i in range(target[0]):
        for j in range(target[1]):
            rows = slice(starts[0][i], max(starts[0][i + 1], starts[0][i] + 1))
            columns = slice(starts[1][j], max(starts[1][j + 1], starts[1][j] + 1))
            block = image[rows, columns].ravel()
            out[i, j] = max(block, key=lambda v: (abs(v), v)) if peak else block.mean()
    return out


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 90),
    peak=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pool_agrees_with_its_slow_twin(height: int, width: int, size: int, peak: bool, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    fast = stretch.pool(image, size, peak=peak)
    assert fast.shape[int(width >= height)] == size or max(fast.shape) == size
    np.testing.assert_allclose(fast, slow_pool(image, size, peak), rtol=1e-5, atol=1e-6)


def test_a_faint_change_survives_peak_pooling_and_drowns_in_the_mean() -> None:
    image = np.zeros((1000, 1000), np.float32)
    image[501, 333] = -9
    assert stretch.pool(image, 100, peak=True).min() == -9
    assert stretch.pool(image, 100).min() == pytest.approx(-0.09)


def test_robust_is_the_gaussian_s_centre_and_width_despite_stars() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(40, 3, 100_000)
    values[:3000] += 5000
    values[5000] = np.nan
    middle, spread = stretch.robust(values)
    assert middle == pytest.approx(40, abs=0.2)
    assert spread == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [5.0], [2.0, 2.0, 2.0]])
def test_robust_never_gives_a_spread_that_divides_to_infinity(values: list[float]) -> None:
    middle, spread = stretch.robust(values)
    assert np.isfinite(middle)
    assert spread > 0


def test_diverging_scale_is_dark_at_zero_blue_below_orange_above() -> None:
    low, zero, high = stretch.diverging(np.array([[-6.0, 0.0, 6.0]], np.float32))[0].astype(int)
    assert zero.max() < 40
    assert low[2] > low[0] + 60
    assert high[0] > high[2] + 60
    ends = stretch.diverging(np.array([[-99.0, np.nan, 99.0]], np.float32))[0]
    assert (ends[1] == zero).all()


def test_grey_grows_with_the_value_and_ends_white() -> None:
    values = np.linspace(-50, 5000, 200, dtype=np.float32)[None]
    shade = stretch.grey(values, 0.0, 10.0, 3000.0).astype(int).sum(-1)[0]
    assert (np.diff(shade) >= 0).all()
    assert shade[0] < 60
    assert shade[-1] > 740
