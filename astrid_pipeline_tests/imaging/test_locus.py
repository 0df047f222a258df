"""The stars' width is found where galaxies outnumber the stars, as in deep fields."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.imaging.stars import locus


@pytest.mark.parametrize(("stars", "galaxies"), [(40, 0), (300, 30), (200, 200), (60, 240), (40, 250)])
@pytest.mark.parametrize("scatter", [0.01, 0.03, 0.06])
def test_the_stars_lead_however_many_galaxies_there_are(stars: int, galaxies: int, scatter: float) -> None:
    rng = np.random.default_rng(stars + galaxies)
    widths = 1.1 * np.concatenate(
        [np.exp(rng.normal(0, scatter, stars)), np.exp(np.abs(rng.normal(0.35, 0.2, galaxies)))]
    )
    assert locus(rng.permutation(widths)) == pytest.approx(1.1, rel=0.06)


def test_a_few_cosmic_rays_do_not_lead() -> None:
    rng = np.random.default_rng(1)
    widths = np.concatenate([rng.uniform(0.3, 0.8, 12), np.exp(rng.normal(0.2, 0.03, 100)), [np.nan, np.inf]])
    assert locus(widths) == pytest.approx(np.exp(0.2), rel=0.02)
