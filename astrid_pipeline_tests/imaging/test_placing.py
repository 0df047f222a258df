"""Sources behind the peaks of a score: where they lie and how bright they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter
from scipy.signal import fftconvolve

from astrid_pipeline.imaging.candidates import find_candidates
from astrid_pipeline.imaging.peaks import Peaks, correlation, interpolate
from astrid_pipeline.imaging.placing import Profile, place
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline_tests.imaging.moffat_fields import add, difference_of, moffat

FWHM = 2.4
STAMP = moffat(12, FWHM)
ERROR = 1 / np.sqrt(np.square(STAMP).sum())
PROFILE = correlation(PSF.from_stamp(STAMP))


def flux_image(sources: list[tuple[float, float, float]], side: int = 80) -> np.ndarray:
    """Return the noiseless flux image of (x, y, flux): each pixel's matched flux."""
    image = np.zeros((side, side))
    for x, y, flux in sources:
        add(image, flux * moffat(12, FWHM, dx=x - round(x), dy=y - round(y)), x, y)
    return (fftconvolve(image, STAMP[::-1, ::-1], mode="same") * ERROR**2).astype(np.float32)


def peaks_at(places: list[tuple[float, float, float]]) -> Peaks:
    x, y, value = (np.array(v, float) for v in zip(*places, strict=True))
    return Peaks(x, y, np.rint(x).astype(np.int64), np.rint(y).astype(np.int64), value)


@settings(max_examples=20, deadline=None)
@given(
    x=st.floats(38, 42), y=st.floats(38, 42), dx=st.floats(-1.0, 1.0), dy=st.floats(-1.0, 1.0),
    sign=st.sampled_from([-1.0, 1.0]),
)  # fmt: skip
def test_a_lone_source_is_found_beside_a_displaced_peak(
    x: float, y: float, dx: float, dy: float, sign: float
) -> None:
    """The slow twin: the highest of many points read one by one."""
    flux = flux_image([(x, y, sign * 500.0)])
    placed, _, own, factor = place(flux, peaks_at([(x + dx, y + dy, sign * 20)]), Profile.of(PROFILE), FWHM)
    grid = np.arange(-0.2, 0.21, 0.02)
    points = np.array([(x + a, y + b) for a in grid for b in grid])
    best = points[np.argmax(sign * interpolate(flux, *points.T))]
    assert np.hypot(placed.x[0] - best[0], placed.y[0] - best[1]) < 0.03
    assert np.hypot(placed.x[0] - x, placed.y[0] - y) < 0.02
    assert own[0] == pytest.approx(sign * 500, rel=0.01)
    assert factor[0] == pytest.approx(1 / Profile.of(PROFILE).at(np.array([dx]), np.array([dy]))[0], rel=0.03)


def test_overlapping_sources_are_told_apart_in_place_and_flux() -> None:
    truth = [(36.3, 40.2, 900.0), (39.8, 40.9, 400.0), (38.1, 44.1, -300.0), (60.0, 20.5, 50.0)]
    flux = flux_image(truth)
    start = [(x + 0.3, y - 0.25, f) for x, y, f in truth]
    placed, _, own, _ = place(flux, peaks_at(start), Profile.of(PROFILE), FWHM)
    for k, (x, y, f) in enumerate(truth):
        assert np.hypot(placed.x[k] - x, placed.y[k] - y) < 0.05
        assert own[k] == pytest.approx(f, rel=0.03)


def test_without_a_maximum_in_reach_the_peak_stays() -> None:
    slope = np.broadcast_to(np.linspace(1, 50, 80, dtype=np.float32), (80, 80)).copy()
    assert not (maximum_filter(slope, 3) == slope)[2:-2, 2:-2].any()
    placed, _, own, factor = place(slope, peaks_at([(40.2, 39.7, 9.0)]), Profile.of(PROFILE), FWHM)
    assert (placed.x[0], placed.y[0]) == (40.2, 39.7)
    assert own[0] == pytest.approx(interpolate(slope, [40.2], [39.7])[0])
    assert factor[0] == pytest.approx(1, abs=1e-6)


def test_where_the_error_is_uneven_the_source_is_found_not_the_scores_peak() -> None:
    """On a star's core the score dips; the candidate is where the source is, with its flux and an honest error."""
    pulls, away = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = 60 + rng.uniform(-0.5, 0.5, 2)
        image = rng.normal(size=(120, 120))
        add(image, 40 * ERROR * moffat(12, FWHM, dx=x - round(x), dy=y - round(y)), x, y)
        difference = difference_of(image, STAMP)
        yy, xx = np.mgrid[:120, :120]
        raised = 1 + 3 * np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / 0.8**2)
        error = (difference.flux_err * raised).astype(np.float32)
        uneven = difference.replace(score=difference.flux / error, flux_err=error)
        table = find_candidates(uneven)
        near = table[np.hypot(table["x"] - x, table["y"] - y) < 3]
        assert len(near) == 1
        best = near.iloc[0]
        away.append((best["x"] - x, best["y"] - y))
        pulls.append((best["flux"] - 40 * ERROR) / best["flux_err"])
        assert best["snr"] > 5
    # √2 s / (S/N) = 0.036 px for this source in even noise; the score's own peak lies over a pixel off.
    assert np.std(away) < 0.06
    assert abs(np.mean(pulls)) < 0.5
    assert np.std(pulls) < 1.2
