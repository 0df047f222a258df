"""What a survey profile changes on real pixels, and how many injections it takes.

``python -m astrid_pipeline_tests.benchmarks.profiles SETS`` reads what ``benchmarks.strata --keep SETS`` left: changes
put into the VISTA and DECam epochs. Everything is judged on pieces of sky that nothing was fitted to. VISTA's epochs
show one field twelve times, so that a piece is a place of it, whatever the pair; the DECam stacks are so small that
their pieces are ninths of one tile, in which the same false peaks come again in each turn.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.calibration import expected_calibration_error, log_loss
from astrid_pipeline.learning.correction import fit_correction, sky_folds
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.matching import NEITHER, RIGHT
from astrid_pipeline.learning.metrics import ECE_FLOOR
from astrid_pipeline.learning.profile import fit_profile, judge_profile, sky_of, survey_peaks
from astrid_pipeline.learning.second_stage import real_bogus_features, real_weight
from astrid_pipeline.learning.shards import ShardSet

SIZES = (50, 200, 600)
#: Draws of a part of the injections.
DRAWS = 5
#: Side of a DECam piece, px: a ninth of the stacks.
CELL = 86


def survey(
    folder: Path, detector: Detector
) -> tuple[pd.DataFrame, pd.Series, pd.Series, pd.DataFrame, float]:
    """Return peaks, what could be found and the area by piece, injections an image by piece, and `real_weight`."""
    shards = ShardSet(folder)
    names = shards.images["image_id"].astype(str)
    place = sky_of(shards).str.replace(r"^.*/", "", regex=True)
    peaks, wanted, area = survey_peaks(detector, shards, pieces=place)
    if place.nunique() == 1:
        ninth = lambda t, x, y: (  # noqa: E731
            (t[y] // CELL).clip(0, 2).astype(int).astype(str)
            + "-"
            + (t[x] // CELL).clip(0, 2).astype(int).astype(str)
        )
        peaks["piece"] = ninth(peaks, "peak_x", "peak_y")
        asked = shards.truth[shards.truth["usable"] & (shards.truth["snr"] >= 4)]
        asked = asked.assign(piece=ninth(asked, "x", "y"))
        wanted = asked["piece"].value_counts()
        area = pd.Series(float(area.sum()) / 9, index=[f"{a}-{b}" for a in range(3) for b in range(3)])
    else:
        asked = shards.truth[shards.truth["usable"] & (shards.truth["snr"] >= 4)]
        asked = asked.assign(piece=asked["image_id"].astype(str).map(place))
    counts = asked.groupby([asked["image_id"].astype(str), "piece"]).size().unstack(fill_value=0)
    return peaks, wanted, area, counts.reindex(names, fill_value=0), real_weight(shards)


def with_few(
    detector: Detector, peaks: pd.DataFrame, counts: pd.DataFrame, size: int, weight: float, seed: int
) -> tuple[float, float, float]:
    """Return calibration error, log loss and precision at the threshold, of maps fitted to some `size` injections."""
    clear = peaks[peaks["verdict"] != NEITHER].reset_index(drop=True)
    real = (clear["verdict"] == RIGHT).to_numpy()
    base = detector.score(clear)["score"].to_numpy(float)
    mapped, least = base.copy(), np.full(len(base), detector.threshold)
    rng = np.random.default_rng(seed)
    for train, test in sky_folds(pd.factorize(clear["piece"])[0], real, 0):
        pieces = clear["piece"].iloc[train].unique()
        order = rng.permutation(counts.index.to_numpy())
        upto = counts.loc[order, counts.columns.intersection(pieces)].sum(axis=1).cumsum()
        images = set(order[: int((upto < size).sum()) + 1])
        rows = train[clear["image_id"].iloc[train].astype(str).isin(images).to_numpy()]
        try:
            made = fit_profile(detector, clear.iloc[rows], name="few", instruments=("*",), real_weight=weight)
        except ModelError:
            continue  # too few peaks of a kind: the scores stay as they are
        mapped[test], least[test] = made(base[test]), made.threshold
    return _figures(mapped, real, least, weight)


def _figures(
    score: np.ndarray, real: np.ndarray, least: np.ndarray, weight: float
) -> tuple[float, float, float]:
    w = np.where(real, weight, 1.0)
    shown, kept = score > ECE_FLOOR, score >= least
    return (
        expected_calibration_error(score[shown], real[shown], weights=w[shown]),
        log_loss(score, real, real_weight=weight),
        float((w * (kept & real)).sum() / max((w * kept).sum(), 1e-9)),
    )


def with_trees(
    detector: Detector, peaks: pd.DataFrame, weight: float
) -> tuple[tuple[float, float, float], list[int]]:
    """Return the same figures of trees boosted on from the score, as labels correct it, and how many there were."""
    clear = peaks[peaks["verdict"] != NEITHER].reset_index(drop=True)
    real = (clear["verdict"] == RIGHT).to_numpy()
    base = detector.score(clear)["score"].to_numpy(float)
    pieces = pd.factorize(clear["piece"])[0]
    mapped, trees = base.copy(), []
    # Of the tens of thousands of peaks that are surely noise, one in ten tells all.
    thin = np.random.default_rng(0).random(len(base)) < np.where(real | (base > 0.02), 1.0, 0.1)
    count = np.where(real, weight, np.where(base > 0.02, 1.0, 10.0))
    for train, test in sky_folds(pieces, real, 0):
        rows = train[thin[train]]
        made = fit_correction(
            clear.iloc[rows],
            real[rows],
            base[rows],
            real_bogus_features(),
            groups=pieces[rows],
            weight=count[rows],
        )
        trees.append(0 if made is None else int(made.facts["trees"]))
        if made is not None:
            mapped[test] = made(clear.iloc[test], base[test])
    return _figures(mapped, real, np.full(len(base), 0.5), weight), trees


def main(arguments: list[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m astrid_pipeline_tests.benchmarks.profiles", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="what `benchmarks.strata --keep` left")
    parser.add_argument("--sets", default="vista,decam_sky,decam", help="comma-separated")
    parser.add_argument("--model", type=Path, help="weights; default: the packaged ones")
    chosen = parser.parse_args(arguments)
    detector = load_model(chosen.model)
    for name in chosen.sets.split(","):
        peaks, wanted, area, counts, weight = survey(chosen.folder / name, detector)
        verdict = judge_profile(detector, peaks, wanted, area, real_weight=weight)
        made = fit_profile(detector, peaks, name=name, instruments=("*",), real_weight=weight)
        print(
            f"{name}: {verdict.injections} injections, {area.sum():.1f} Mpix, {verdict.pieces} pieces of sky"
        )
        print(
            f"  map: {made.facts['kind']} {np.round(made.calibrator.parameters, 3)}, threshold {made.threshold:.3f}"
        )
        for figure in verdict.before:
            print(f"  {figure:15s} {verdict.before[figure]!s:24s} → {verdict.after[figure]!s}")
        print(f"  {verdict.reason}", flush=True)
        for size in SIZES:
            if size > 0.8 * verdict.injections:
                continue
            rows = np.array([with_few(detector, peaks, counts, size, weight, seed) for seed in range(DRAWS)])
            means, spread = rows.mean(axis=0), rows.std(axis=0, ddof=1)
            print(
                f"  {size} injections: ece {means[0]:.3f} ± {spread[0]:.3f}, log loss {means[1]:.4f}, "
                f"precision {means[2]:.3f} ± {spread[2]:.3f}",
                flush=True,
            )
        figures, trees = with_trees(detector, peaks, weight)
        print(
            f"  trees boosted on: ece {figures[0]:.3f}, log loss {figures[1]:.4f}; {trees} trees", flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
