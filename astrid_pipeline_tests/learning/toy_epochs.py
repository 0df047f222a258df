"""Several exposures of small made-up skies: points in images of significance, without any imaging."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from astrid_pipeline.learning.epochs import When, epoch_features, significance_at

SIGMA = 1.6  # of a score image: the PSF twice convolved


def when(name: str, night: int, minute: float = 0.0, filter: str = "r") -> When:
    return When(name, f"night {night}", 61_000.0 + night + minute / 1440, filter)


def sky(rng: np.random.Generator, sources: list[tuple[float, float, float]], size: int = 64) -> np.ndarray:
    """A significance image of unit noise with points of known S/N."""
    score = gaussian_filter(rng.standard_normal((size, size)), SIGMA) * 2 * np.sqrt(np.pi) * SIGMA
    yy, xx = np.mgrid[:size, :size]
    for x, y, snr in sources:
        score += snr * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * SIGMA**2))
    return score


def toys(seed: int, skies: int) -> pd.DataFrame:
    """Peaks of toy skies of three exposures a night, all of which the detector takes for even odds.

    In each a source that stays, true; a hit that is there once, false; and an asteroid, true and there once too, but
    with the network's word that it moves.
    """
    rng = np.random.default_rng(seed)
    at = np.array([[16.0, 16.0], [48.0, 16.0], [16.0, 48.0]])
    parts = []
    for number in range(skies):
        names = [when(f"s{number}e{i}", 0, 10 * i) for i in range(int(rng.integers(1, 4)))]
        snr = rng.uniform(6, 15, 3)
        looks = []
        for i in range(len(names)):
            # Of what is there once the first exposure has it.
            shown = [(x, y, s) for k, ((x, y), s) in enumerate(zip(at, snr, strict=True)) if k == 0 or i == 0]
            score = sky(rng, shown)
            looks.append(significance_at(score, np.zeros(score.shape, bool), *at.T))
        table = epoch_features(names[0], looks[0], list(zip(names[1:], looks[1:], strict=True)))
        parts.append(
            table.assign(
                sky=f"{seed}-{number}",
                score=rng.uniform(0.4, 0.6, 3),
                p_variable=0.1,
                p_moving=[0.1, 0.1, 0.9],
                real=[True, False, True],
                what=["stays", "hit", "asteroid"],
            )
        )
    return pd.concat(parts, ignore_index=True)
