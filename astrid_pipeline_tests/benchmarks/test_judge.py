"""The judge itself: what it says of images whose worth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from astrid_pipeline_tests.benchmarks import accuracy, figures, registration, report
from astrid_pipeline_tests.benchmarks.ideal import ideal, stamps_on, zogy
from astrid_pipeline_tests.benchmarks.judge import Grounds, Outcome, Verdict, judge
from astrid_pipeline_tests.benchmarks.known import CORRELATED, MIXINGS, KnownPair, known_pair, matrix

SIDE = 256


@pytest.fixture(scope="module")
def known() -> KnownPair:
    return known_pair("clean", 3, 0, SIDE)


@pytest.fixture(scope="module")
def grounds(known: KnownPair) -> Grounds:
    return Grounds.of(known)


def smooth_noise(seed: int, shape: tuple[int, int], sigma: float = 1.2) -> np.ndarray:
    """Return a Gaussian random image of unit variance that is as smooth as a score."""
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return ndimage.gaussian_filter(noise, sigma, mode="wrap") * 2 * math.sqrt(math.pi) * sigma


def nothing_masked(score: np.ndarray, **more: object) -> Outcome:
    return Outcome(score, np.zeros(score.shape, bool), 1.0, **more)  # type: ignore[arg-type]


def test_gaussian_noise_has_width_one_and_no_kurtosis(grounds: Grounds) -> None:
    verdicts = [judge(grounds, nothing_masked(smooth_noise(i, (SIDE, SIDE)))) for i in range(20)]
    f = figures.figures(verdicts)
    # Neighbours share noise: some 4 π σ² pixels are one independent value.
    independent = 20 * SIDE**2 / (4 * math.pi * 1.2**2)
    assert f["score_sigma"] == pytest.approx(1, abs=4 / math.sqrt(2 * independent))
    assert f["score_kurtosis"] == pytest.approx(0, abs=4 * math.sqrt(24 / independent))
    assert f["megapixels"] == pytest.approx(20 * SIDE**2 / 1e6)


def test_noise_alone_makes_as_many_false_peaks_as_the_theory_of_random_fields_says() -> None:
    """Peaks over u: λ / (2π)^(3/2) u exp(−u²/2) a pixel, λ = 1/(2 s²) the variance of the slope (Bond & Efstathiou).

    Pixels see a peak that lies r off their centres only if it reaches u (1 + λ r² / 2).
    """
    score = smooth_noise(0, (1500, 1500))
    u, slope = 3.5, 1 / (2 * 1.2**2)
    largest = (ndimage.maximum_filter(score, 7) == score) & (score > u)
    rate = slope / (2 * math.pi) ** 1.5 * u * math.exp(-(u**2) / 2)
    bend = math.sqrt(u**2 * slope / 2)
    seen = (math.sqrt(math.pi) * math.erf(bend / 2) / bend) ** 2
    assert largest.sum() == pytest.approx(rate * seen * score.size, rel=0.2)


def test_a_planted_peak_is_found_false_unless_masked_or_a_change(grounds: Grounds) -> None:
    far = np.argwhere(~grounds.near_change & ~grounds.spoiled)
    y, x = far[len(far) // 2]
    score = np.zeros((SIDE, SIDE))
    score[y, x] = 6.0
    verdict = judge(grounds, nothing_masked(score))
    assert verdict.false[["x", "y", "sign"]].to_numpy().tolist() == [[x, y, 1]]
    assert judge(grounds, nothing_masked(-score)).false["sign"].tolist() == [-1]
    masked = np.zeros(score.shape, bool)
    masked[y, x] = True
    assert not len(judge(grounds, Outcome(score, masked, 0.0)).false)
    change = grounds.changes.iloc[0]
    score[:] = 0
    score[round(change.y), round(change.x)] = 6.0
    verdict = judge(grounds, nothing_masked(score))
    assert not len(verdict.false)
    assert verdict.rows.peak.iat[0] == 6.0
    assert (verdict.rows.peak.iloc[1:] == 0).all()


def test_peaks_on_planted_artefacts_are_counted_apart() -> None:
    grounds = Grounds.of(known_pair("real", 5, 0, SIDE))
    y, x = np.argwhere(grounds.near_artefact & ~grounds.near_change)[0]
    score = np.zeros((SIDE, SIDE))
    score[y, x] = 9.0
    table = pd.DataFrame(
        {"x": [float(x)], "y": [float(y)], "flux": 1.0, "flux_err": 0.1, "snr": 10.0, "sign": 1, "flags": 0}
    )
    for flags in (0, 16):
        verdict = judge(grounds, nothing_masked(score, candidates=table.assign(flags=flags)))
        f = figures.figures([verdict])
        assert f["false_positive"]["count"] == 0
        assert f["on_artefacts"]["count"] == 1
        assert f["on_artefacts_unflagged"]["count"] == (flags == 0)


def perfect(grounds: Grounds, seed: int, factor: float = 1.0) -> Outcome:
    """Return what a method would make of the changes if its errors were exactly those that it states."""
    rng = np.random.default_rng(seed)
    c = grounds.changes
    error = (c.flux / c.snr).to_numpy()
    noise = rng.normal(0, error)
    flux = factor * c.flux.to_numpy() + noise
    # The ideal statistic meets the same noise.
    c["ideal_flux"] = c.flux + noise
    shift = rng.normal(0, 1, (2, len(c))) * 1.5 / c.snr.to_numpy()
    table = pd.DataFrame(
        {
            "x": c.x + shift[0],
            "y": c.y + shift[1],
            "flux": flux,
            "flux_err": error,
            "snr": flux / error,
            "sign": np.sign(flux).astype(int),
            "flags": 0,
        }
    )
    score = np.zeros((SIDE, SIDE))
    score[np.rint(c.y).astype(int), np.rint(c.x).astype(int)] = flux / error
    return nothing_masked(score, photometry=lambda x, y: (flux, error), candidates=table)


def test_a_method_of_exact_errors_has_pulls_of_width_one_and_no_bias(grounds: Grounds) -> None:
    f = figures.figures([judge(grounds, perfect(grounds, i)) for i in range(20)])
    assert f["changes"] == 20 * len(grounds.changes)
    for key in ("pull", "pull_galaxies", "table_pull"):
        assert f[key]["value"] == pytest.approx(1, abs=4 * f[key]["error"]), key
    for key in ("flux_bias", "table_flux_bias", "position_bias_x", "position_bias_y"):
        assert abs(f[key]["value"]) < 4 * f[key]["error"], key
    assert 0 < f["flux_bias"]["error"] < 0.02
    assert f["half_sky"]["value"] == pytest.approx(5.0, abs=4 * f["half_sky"]["error"])
    width = judge(grounds, perfect(grounds, 0)).rows["width"].iat[0]
    assert f["position_scatter"]["value"] == pytest.approx(1.5 / (math.sqrt(2) * width), rel=0.1)
    assert f["pull_outliers"] == 0


def test_a_bias_of_four_percent_is_seen(grounds: Grounds) -> None:
    f = figures.figures([judge(grounds, perfect(grounds, i, factor=1.04)) for i in range(20)])
    assert f["flux_bias"]["value"] == pytest.approx(0.04, abs=4 * f["flux_bias"]["error"])
    # Without the noise that both have met, it is seen exactly.
    assert f["flux_bias_paired"]["value"] == pytest.approx(0.04)
    assert f["flux_bias_paired"]["error"] < 1e-6
    assert not next(c for c in checks_of(f) if c.what.endswith(": flux bias paired")).met


def checks_of(f: figures.Figure) -> list[report.Check]:
    return report.checks({"cases": {"clean": {"astrid zogy": f}}})


def test_missed_figures_are_told(grounds: Grounds) -> None:
    noise = smooth_noise(1, (SIDE, SIDE))
    verdicts = [judge(grounds, nothing_masked(factor * noise)) for factor in (1.0, 1.2)]
    met = [{c.what: c.met for c in checks_of(figures.figures([v]))} for v in verdicts]
    assert met[0]["clean: σ of the score"]
    assert not met[1]["clean: σ of the score"]
    assert not met[0]["clean: completeness at S/N 5–7"]


def test_the_half_point_of_a_known_curve() -> None:
    rng = np.random.default_rng(0)
    snr = pd.Series(rng.uniform(3, 12, 4000))
    found = snr + rng.normal(0, 1, len(snr)) > 5.6
    half = figures.half_point(snr, found)
    assert half["value"] == pytest.approx(5.6, abs=4 * half["error"])
    assert half["error"] < 0.06


def test_zogy_of_pure_noise_and_of_a_source() -> None:
    """The ideal statistic against its own promises: unit variance, α unbiased with its error, through a shift."""
    rng = np.random.default_rng(1)
    n_images, side = 40, 64
    psf_n, psf_r = (gaussian(side, width) for width in (1.1, 1.3))
    v = np.full((n_images, side, side), 4.0), np.full((n_images, side, side), 1.0)
    noise = rng.normal(0, 2, v[0].shape), rng.normal(0, 1, v[0].shape)
    dx, dy = np.full(n_images, 0.3), np.full(n_images, -0.2)
    # A star that does not change, displaced in the reference, and a source in the science image only.
    star = 5000.0
    n = noise[0] + star * moved(psf_n, 20, 30) + 100.0 * moved(psf_n, 40, 34)
    r = noise[1] + star * moved(psf_r, 20.3, 29.8)
    same = np.broadcast_to(psf_n, n.shape), np.broadcast_to(psf_r, n.shape)
    score, flux, error, bound = zogy(n, r, *v, *same, dx, dy)
    empty = score[:, :, 5:12]
    assert empty.std() == pytest.approx(1, abs=0.03)
    assert np.abs(score[:, 26:34, 16:24]).max() < 5
    pull = (flux[:, 34, 40] - 100.0) / error[:, 34, 40]
    assert abs(pull.mean()) < 4 / math.sqrt(n_images)
    # Where one noise dominates and the PSF is Gaussian, the bound is √2 s.
    _, _, _, alone = zogy(n, r, v[0], 1e-6 * v[1], *same, dx, dy)
    assert alone[0] == pytest.approx(math.sqrt(2) * 1.1, rel=0.01)
    assert bound[0] > alone[0]


def gaussian(side: int, width: float) -> np.ndarray:
    return moved_from(np.fft.fftfreq(side), width, 0, 0)


def moved_from(k: np.ndarray, width: float, x: float, y: float) -> np.ndarray:
    spectrum = np.exp(-2 * (math.pi * width) ** 2 * (k[:, None] ** 2 + k**2))
    return np.fft.ifft2(spectrum * np.exp(-2j * math.pi * (k[:, None] * y + k * x))).real


def moved(psf: np.ndarray, x: float, y: float) -> np.ndarray:
    k = np.fft.fftfreq(len(psf))
    return np.fft.ifft2(np.fft.fft2(psf) * np.exp(-2j * math.pi * (k[:, None] * y + k * x))).real


def test_the_ideal_statistic_has_the_snr_that_the_truth_says(known: KnownPair, grounds: Grounds) -> None:
    clean = grounds.changes[~grounds.changes.spoiled]
    found = ideal(known, clean)
    off = found["at"].to_numpy() - clean.snr.to_numpy()
    assert abs(off.mean()) < 0.3 + 4 / math.sqrt(len(off))
    assert off.std() == pytest.approx(1, abs=0.5)
    stamp = stamps_on(known.pair.science_psf, np.array([10.0]), np.array([20.0]))
    assert stamp.sum() == pytest.approx(1)
    assert stamp[0, 0, 0] == stamp.max()


@pytest.mark.parametrize("case", CORRELATED)
def test_mixed_pixels_keep_their_light_and_share_their_noise(case: str) -> None:
    how = MIXINGS[case.partition("+")[2]]
    w = matrix(how, 64, int(56 / how.step), 0.4)
    # Each input pixel's light goes somewhere, all of it.
    assert w[:, 16:40].sum(0).mean() == pytest.approx(1, abs=0.01)
    known = known_pair(case, 2, 0, 128)
    data = known.pair.science.data
    sky = data[data < np.median(data) + 3 * 15]
    assert np.median(sky) == pytest.approx(200 * how.step**2, rel=0.05)
    # Light falls where the truth says.
    bright = known.pair.changes.sort_values("snr").iloc[-1]
    assert 4 < bright.x < data.shape[1] - 4
    assert (known.pair.science.variance is None) == (how.variance == "none")


def test_verdicts_say_what_lies_beside_false_peaks(known: KnownPair, grounds: Grounds) -> None:
    score = np.zeros((SIDE, SIDE))
    y, x = np.argwhere(~grounds.near_change)[100]
    score[y, x] = 7.0
    verdict: Verdict = judge(grounds, nothing_masked(score))
    told = accuracy.with_neighbours(verdict.false, grounds)
    assert set(told["source"]) <= {"star", "galaxy"}
    assert (told.source_distance >= 0).all()


def test_slow_methods_get_fewer_pairs() -> None:
    tasks = accuracy.plan(["clean", CORRELATED[0]], ["astrid zogy", "sfft"], 8, 1, 1, SIDE, "data")
    assert sum("sfft" in t.methods for t in tasks) == 1
    assert sum(t.case == "clean" for t in tasks) == 8
    assert sum(t.case == CORRELATED[0] for t in tasks) == 2
    assert tasks[0].methods == ("astrid zogy", "sfft")


def test_a_pair_goes_all_the_way_to_the_table() -> None:
    tasks = [accuracy.Task("clean", 0, 1, SIDE, ("astrid zogy", "plain + sep"))]
    comparison = accuracy.Comparison(tasks)
    assert comparison.figures() == {"clean": {}}
    comparison.add(accuracy.work(tasks[0]))
    found = comparison.figures()["clean"]
    assert found["astrid zogy"]["score_sigma"] == pytest.approx(1, abs=0.05)
    assert found["astrid zogy"]["completeness_10_40"]["value"] > 0.9
    assert found["plain + sep"]["changes"] == found["astrid zogy"]["changes"]
    told = list(report.lines("clean", found))
    assert len(told) == 2
    assert "nan" not in "".join(told)


def test_a_method_that_fails_is_told_with_its_error() -> None:
    task = accuracy.Task("clean", 4, 1, SIDE, ("sfft",))
    comparison = accuracy.Comparison([task])
    comparison.add(accuracy.Result(task, {}, {"sfft": "PeerError: no stars"}))
    told = list(report.lines("clean", comparison.figures()["clean"]))
    assert told[0].endswith("pair 4: PeerError: no stars")


@pytest.mark.parametrize("name", ["shifted", "turned"])
def test_the_wcs_of_a_turned_reference_is_wrong_by_what_was_said(name: str) -> None:
    (science, reference), warp = registration.apart(name, 1, 128)
    x, y = np.array([10.0, 64.0, 110.0]), np.array([100.0, 64.0, 20.0])
    true = warp.table(pd.DataFrame({"x": x, "y": y}))
    assert science.wcs is not None
    assert reference.wcs is not None
    u, v = reference.wcs.all_world2pix(*science.wcs.all_pix2world(x, y, 0), 0)
    error = registration.SETTINGS[name][3]
    np.testing.assert_allclose(u - true.x, error[0], atol=1e-3)
    np.testing.assert_allclose(v - true.y, error[1], atol=1e-3)
