"""What other epochs are worth to the second stage: ``python -m astrid_pipeline_tests.benchmarks.ablations_epochs``.

Series of exposures of the same skies (`simulation.series`) are simulated: to fit on, to calibrate on, to judge on. The
packaged detector stays as it is; on the peaks that it finds, the score of one epoch stands beside those that other
epochs of the same place make of it. The same peaks and skies for all; intervals and gains by drawing skies.
With `--folder` the simulated skies are kept and used again. With `--write`, the packaged model is written with the part
that looks at a night's own exposures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.calibration import expected_calibration_error
from astrid_pipeline.learning.data import SURVEY_CHANGES
from astrid_pipeline.learning.epoch_data import build_series, judged_peaks, load_series, peaks_of_series
from astrid_pipeline.learning.epochs import OtherEpochs, fit_epochs
from astrid_pipeline.learning.evaluate import ECE_FLOOR
from astrid_pipeline.learning.matching import NEITHER, RIGHT, average_precision
from astrid_pipeline.learning.metrics import MIN_SNR, Judged, Value, bootstrap, figures_of, judge, wilson
from astrid_pipeline.learning.shards import ShardSet

#: Changing objects a megapixel where there is something to learn; of the others `SURVEY_CHANGES`.
_MANY = 60.0
#: What is looked at, by the name under which it stands in the table; None: the score stays as it is.
ARMS: Mapping[str, tuple[str, ...] | None] = {
    "one epoch only": None,
    "one epoch, fitted anew": (),
    "the same night": ("night",),
    "and earlier nights": ("night", "past"),
    "and other filters": ("night", "past", "filters"),
    "and the light curve's own": ("night", "past", "filters", "curve"),
    "only the night, all filters": ("night", "filters"),
}
#: What the packaged part looks at: `night.differences` says why.
PACKAGED = "only the night, all filters"
#: Images of a set, and when they were taken.
Series = tuple[ShardSet, pd.DataFrame]


def simulate(folder: Path, skies: int, seed: int) -> dict[str, Series]:
    """Build what is not there yet: `skies` to fit on, as many to judge on; half as many full of artefacts, to fit on
    too, and to calibrate on."""
    half = max(skies // 2, 1)
    wanted = {
        "fit": (skies, _MANY, False),
        "fit-spoiled": (half, _MANY, True),
        "calibrate": (half, SURVEY_CHANGES, False),
        "judge": (skies, SURVEY_CHANGES, False),
    }
    for name, (number, changes, spoiled) in wanted.items():
        print(f"{name}: {number} skies", flush=True)
        build_series(folder / name, number, seed, split=f"epochs-{name}", changes=changes, spoiled=spoiled)
    return {name: load_series(folder / name) for name in wanted}


def real_weight(*sets: ShardSet, least: float = 3.0) -> float:
    """Return how much a real peak counts for, so that there are `SURVEY_CHANGES` a megapixel of S/N ≥ `least`."""
    seen = 0
    for shards in sets:
        truth = shards.truth
        seen += int(((truth["label"] != "artefact") & truth["usable"] & (truth["snr"] >= least)).sum())
    return SURVEY_CHANGES * sum(s.megapixels for s in sets) / max(seen, 1)


def judged_by_sky(peaks: pd.DataFrame, shards: ShardSet, sky_of: Mapping[str, int], min_snr: float) -> Judged:
    """Return the peaks judged, their skies in the place of images: exposures of one sky are no two samples."""
    size = shards.shape[0] * shards.shape[1] * 1e-6
    names = shards.images["image_id"].astype(str)
    area = pd.Series(shards.images["usable_fraction"].to_numpy(float) * size, index=names)
    one = judge(peaks.drop(columns="verdict"), shards.truth, area, min_snr=min_snr)
    place = np.array([sky_of[name] for name in names])
    table = one.table.assign(image=place[one.table["image"].to_numpy(int)])
    truth = one.truth.assign(image=place[one.truth["image"].to_numpy(int)])
    return Judged(table, truth, np.bincount(place, weights=one.megapixels), min_snr)


def _ap(judged: Judged, counts: npt.NDArray[np.int64]) -> float:
    table = judged.table[judged.table["verdict"] != NEITHER]
    times = counts[table["image"].to_numpy(int)]
    score, verdict = table["score"].to_numpy(float), table["verdict"].to_numpy(int)
    return average_precision(
        np.repeat(score, times), np.repeat(verdict, times), int((judged.wanted * counts).sum())
    )


def gain(before: Judged, after: Judged, seed: int) -> Value:
    """Return how much higher the average precision is, with the interval of the difference on the same skies."""
    return bootstrap(lambda c: _ap(after, c) - _ap(before, c), len(before.megapixels), seed=seed)


def ece(four: Judged, weight: float, seed: int) -> Value:
    """Return the calibration error of scores over `ECE_FLOOR`, changes as frequent as the scores are meant for."""
    table = four.table[(four.table["verdict"] != NEITHER) & (four.table["score"] > ECE_FLOOR)]
    image, score = table["image"].to_numpy(int), table["score"].to_numpy(float)
    real = (table["verdict"] == RIGHT).to_numpy()

    def error(counts: npt.NDArray[np.int64]) -> float:
        times = counts[image]
        w = np.repeat(np.where(real, weight, 1.0), times)
        return expected_calibration_error(np.repeat(score, times), np.repeat(real, times), weights=w)

    return bootstrap(error, len(four.megapixels), seed=seed)


def kinds_found(judged: Judged, threshold: float) -> dict[str, str]:
    """Return by kind how many of the truths asked for are found, and of the supernovae those never seen before."""
    good = judged.table[(judged.table["verdict"] == RIGHT) & (judged.table["score"] >= threshold)]
    truth = judged.truth[judged.truth["snr"] >= judged.min_snr]
    found = truth.index.isin(good["truth"])
    out = {}
    for kind in (*sorted(truth["kind"].unique()), "first seen"):
        mine = (truth["first"] if kind == "first seen" else truth["kind"] == kind).to_numpy(bool)
        n, k = int(mine.sum()), int((mine & found).sum())
        low, high = wilson(k, n)
        out[kind] = f"{k}/{n} {k / max(n, 1):.3f} [{low:.3f}, {high:.3f}]"
    return out


def with_first(truth: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Return the truth with ``first``: whether a new point was under S/N 3 in all exposures before, where there were
    any on earlier nights."""
    when = times.set_index("image_id")
    every = truth.assign(
        sky=truth["image_id"].map(when["sky"]),
        mjd=truth["image_id"].map(when["mjd"]).astype(float),
        night=truth["image_id"].map(when["night"]),
    )
    first = np.zeros(len(truth), bool)
    nights = times.groupby("sky")["mjd"].min()
    for i in np.flatnonzero(every["kind"].isin(["supernova", "hostless"])):
        row = every.iloc[i]
        same = (every["sky"] == row["sky"]) & (np.hypot(every["x"] - row["x"], every["y"] - row["y"]) < 2)
        before = same & (every["night"] != row["night"]) & (every["mjd"] < row["mjd"])
        earlier = row["mjd"] - nights[row["sky"]] > 0.5
        first[i] = earlier and not bool((every["snr"][before] >= 3).any())
    return truth.assign(first=first)


def measure(
    sets: Mapping[str, Series], peaks: Mapping[str, pd.DataFrame], seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, OtherEpochs]]:
    """Return a row an arm, a row an arm of recall by kind at the detector's threshold, and the fitted parts.

    `peaks` are those of `peaks_of_series`, light curves and all.
    """
    model = load_model().replace(epochs=None)
    fit = pd.concat([judged_peaks(peaks[name]) for name in ("fit", "fit-spoiled")], ignore_index=True)
    last = judged_peaks(peaks["calibrate"])
    weights = real_weight(sets["fit"][0], sets["fit-spoiled"][0]), real_weight(sets["calibrate"][0])
    shards, times = sets["judge"]
    shards.truth = with_first(shards.truth, times)
    sky = dict(zip(times["image_id"].astype(str), pd.factorize(times["sky"])[0].tolist(), strict=True))
    mine = peaks["judge"]
    looked = mine["own_snr"].notna().to_numpy()
    rows, kinds, made, first = [], [], {}, None
    for name, groups in ARMS.items():
        score = mine["score"].to_numpy(float).copy()
        if groups is not None:
            part = fit_epochs(
                fit,
                fit["verdict"] == RIGHT,
                last,
                last["verdict"] == RIGHT,
                groups=groups,
                real_weight=weights,
                seed=seed,
            )
            score[looked] = part(mine[looked], score[looked])
            made[name] = part
        table = mine.assign(score=score)
        judged = judged_by_sky(table, shards, sky, MIN_SNR)
        faint = judged_by_sky(table, shards, sky, 4.0)
        first = (judged, faint) if first is None else first
        figures = figures_of(judged, model.threshold, seed=seed)
        wanted = ("ap", "recall_at_precision_95", "false_per_mpix_at_recall_90", "precision", "recall")
        rows.append(
            {
                "": name,
                "trees": made[name].facts["trees"] if name in made else 0,
                **{key: str(figures[key]) for key in wanted},
                "gain in AP": str(gain(first[0], judged, seed)),
                "AP of S/N ≥ 4": str(
                    bootstrap(lambda c, j=faint: _ap(j, c), len(faint.megapixels), seed=seed)
                ),
                "gain there": str(gain(first[1], faint, seed)),
                "ECE": str(ece(faint, real_weight(shards), seed)),
            }
        )
        kinds.append({"": name, **kinds_found(judged, model.threshold)})
        print(pd.DataFrame(rows[-1:]).T.to_string(header=False), flush=True)
    return pd.DataFrame(rows), pd.DataFrame(kinds), made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--skies", type=int, default=70, help="skies of 320 x 320, of some seven exposures, to fit on"
    )
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--write", type=Path, help="write the model with the part that the package has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sets = simulate(options.folder or Path(temporary), options.skies, options.seed)
        model = load_model().replace(epochs=None)
        peaks = {name: peaks_of_series(model, *each, curves=True) for name, each in sets.items()}
        table, kinds, made = measure(sets, peaks, options.seed)
        truth = sets["judge"][0]
        print(f"judged on {truth.megapixels:.1f} megapixels, {len(truth)} exposures")
        print(table.to_markdown(index=False))
        print(kinds.to_markdown(index=False))
        if options.write:
            model.replace(epochs=made[PACKAGED]).save(options.write)


if __name__ == "__main__":
    main()
