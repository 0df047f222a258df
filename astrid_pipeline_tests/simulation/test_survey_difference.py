"""A plain difference: resampling, and the flux of what changed."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.simulation.pairs import simulate_pair
from astrid_pipeline.simulation.survey_difference import resampled, subtract_plainly, survey_options


def slowly(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The weighted mean of the pixels within 3 px on either axis, written out; the edge pixel goes on for ever."""
    height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            total = norm = 0.0
            for j in range(-4, 5):
                for i in range(-4, 5):
                    a, b = i - dx, j - dy
                    if abs(a) >= 3 or abs(b) >= 3:
                        continue
                    weight = np.sinc(a) * np.sinc(a / 3) * np.sinc(b) * np.sinc(b / 3)
                    total += weight * image[min(max(y + j, 0), height - 1), min(max(x + i, 0), width - 1)]
                    norm += weight
            out[y, x] = total / norm
    return out


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.37, -0.81), (-1.0, 0.5)])
def test_resampling_is_the_written_out_sum(dx, dy):
    image = np.random.default_rng(0).normal(size=(17, 20))
    np.testing.assert_allclose(resampled(image, dx, dy), slowly(image, dx, dy), atol=1e-12)


def test_resampling_moves_a_well_sampled_star_and_keeps_its_light():
    yy, xx = np.mgrid[:40, :40]

    def star(x: float, y: float) -> np.ndarray:
        return np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 1.5**2))

    np.testing.assert_allclose(resampled(star(20.3, 19.6), 0.3, -0.4), star(20, 20), atol=0.01)
    assert resampled(star(20, 20), 0.4, 0.4).sum() == pytest.approx(star(20, 20).sum(), rel=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_one_and_the_flux_of_a_change_is_what_was_put_there(seed):
    rng = np.random.default_rng(seed)
    quiet = {
        "bad_columns": 0.0,
        "cosmic_rays": 0.0,
        "trails": 0,
        "ghosts": 0.0,
        "galaxies": 100.0,
        "stars": 800.0,
    }
    pair = simulate_pair(
        rng,
        (384, 384),
        **survey_options(rng) | quiet | {"psf_variation": 0.0, "on_galaxy": 0.0, "transients": 250.0},
    )
    made = subtract_plainly(pair, rng)
    assert made.data.shape == made.score.shape == (384, 384)
    assert 1.4826 * np.median(np.abs(made.score)) == pytest.approx(1, abs=0.1)
    truth = pair.changes
    # Those on nothing bright: where a star stands besides, its residual is in the flux too.
    alone = truth[(truth["class"] == "hostless") & (truth["snr"] > 30)]
    x, y = (np.rint(alone[c]).astype(int).to_numpy() for c in ("x", "y"))
    inside = (x > 20) & (x < 364) & (y > 20) & (y < 364)
    ratio = made.flux[y[inside], x[inside]] / alone["flux"].to_numpy()[inside]
    assert len(ratio) >= 3
    # A PSF that is 10 % too wide, and a peak between pixels, cost as much.
    assert np.median(ratio) == pytest.approx(1, abs=0.25)
