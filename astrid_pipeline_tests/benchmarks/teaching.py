"""How many labels the order of `learning.teaching` saves: ``python -m astrid_pipeline_tests.benchmarks.teaching``.

Skies are simulated and subtracted, their candidates measured and shown to the packaged network: the queue as people
have it, its truth known. From 50 random labels on, real/bogus (`fit_real_bogus`) is fitted again after each 50 more,
taken at random or by worth, and judged on other skies that hold changes as a survey does. Told is how many labels fewer
each order needs for the same average precision, over ten repeats with other pools and first labels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.candidates import FEATURES
from astrid_pipeline.learning.data import SURVEY_CHANGES, build_shards
from astrid_pipeline.learning.matching import average_precision, match
from astrid_pipeline.learning.real_bogus import columns_of, fit_real_bogus
from astrid_pipeline.learning.second_stage import PEAK_FEATURES, real_bogus_features
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.targets import UNUSABLE_BIT
from astrid_pipeline.learning.teaching import feature_space, uncertainty, worth

#: Labels to begin with, labels from one fit to the next, and labels in all.
FIRST, STEP, LAST = 50, 50, 1000
#: Share of real ones in the queue.
REAL_SHARE = 0.1
RESAMPLES = 400

Pick = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def queue_of(shards: ShardSet) -> pd.DataFrame:
    """Return the candidates of all images with what the packaged detector says of them, and `real` by the truth."""
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.learning.channels import unsqueeze_score
    from astrid_pipeline.learning.infer import peak_table
    from astrid_pipeline.learning.network import predict

    detector = load_model()
    tables = []
    for i in range(len(shards)):
        planes, truth = shards.planes(i), shards.truth_of(i)
        found = shards.candidates_of(i).drop(columns="image_id").reset_index(drop=True)
        bad = (np.asarray(shards.labels(i)) & UNUSABLE_BIT) != 0
        probability = predict(detector.inference_network, planes)
        peaks = peak_table(probability, bad, unsqueeze_score(planes[3]), found, detector.peak_threshold)
        peaks["score"] = detector.score(peaks)["score"]
        mine = peaks[peaks["candidate"] >= 0].set_index("candidate")[[*PEAK_FEATURES, "score"]]
        place = pd.DataFrame({"x": found["x"], "y": found["y"], "score": found["peak_score"].abs()})
        verdict, _ = match(place, truth, min_snr=4.0)
        table = found.join(mine).assign(real=verdict == 1, image_id=shards.image_id(i))
        tables.append(table[verdict >= 0])
    return pd.concat(tables, ignore_index=True)


def by_random(space: np.ndarray, p: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the next labels at random."""
    return rng.choice(np.flatnonzero(~known), STEP, replace=False)


def by_uncertainty(
    space: np.ndarray, p: np.ndarray, known: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the most uncertain ones."""
    return np.argsort(np.where(known, 1.0, -uncertainty(p)), kind="stable")[:STEP]


def by_worth(space: np.ndarray, p: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what `teaching.worth` puts first."""
    return np.argsort(-worth(space, p, known, batch=STEP)["worth"].to_numpy(), kind="stable")[:STEP]


def by_diversity(space: np.ndarray, p: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return those least like what is labelled, whatever the model says of them."""
    return by_worth(space, np.full(len(p), 0.5), known, rng)


def by_score(space: np.ndarray, p: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the surest real ones, as a queue by score shows them."""
    return np.argsort(np.where(known, 1.0, -p), kind="stable")[:STEP]


ORDERS: dict[str, Pick] = {
    "random": by_random,
    "worth": by_worth,
    "uncertainty": by_uncertainty,
    "diversity": by_diversity,
    "score": by_score,
}


def curve(
    pool: pd.DataFrame, held: pd.DataFrame, features: tuple[str, ...], pick: Pick, seed: int
) -> np.ndarray:
    """Return the average precision on `held` after FIRST, FIRST + STEP, … labels; 0 where nothing could be learned."""
    rng = np.random.default_rng([seed, 1])
    real, groups = pool["real"].to_numpy(bool), pool["image_id"].to_numpy()
    truth = held["real"].to_numpy(int)
    space = feature_space(columns_of(pool, features))
    known = np.zeros(len(pool), bool)
    known[np.random.default_rng([seed, 2]).permutation(len(pool))[:FIRST]] = True
    out = []
    while True:
        try:
            model = fit_real_bogus(pool[known], real[known], features, groups=groups[known], seed=seed)
            out.append(average_precision(model.logit(held), truth, int(truth.sum())))
            p = model.probability(pool)
        except ModelError:
            # Fewer than 20 real ones so far: as on the page, the detector's own score is all that is known.
            out.append(0.0)
            p = pool["score"].fillna(pool["score"].min() / 2).to_numpy(float)
        if known.sum() >= LAST:
            return np.array(out)
        known[pick(space, p, known, rng)] = True


def rising(curves: np.ndarray) -> np.ndarray:
    """Return the mean of some curves, made never to fall (isotonic fit)."""
    from sklearn.isotonic import IsotonicRegression

    labels = np.arange(FIRST, LAST + 1, STEP)
    return np.asarray(IsotonicRegression().fit_transform(labels, curves.mean(axis=0)))


def needed(mean: np.ndarray, target: float) -> float:
    """Return how many labels a rising curve needs to reach a target; NaN where it does not."""
    labels = np.arange(FIRST, LAST + 1, STEP)
    reached = np.flatnonzero(mean >= target - 1e-9)
    if not len(reached):
        return float("nan")
    k = int(reached[0])
    if k == 0:
        return float(labels[0])
    share = (target - mean[k - 1]) / max(mean[k] - mean[k - 1], 1e-12)
    return float(labels[k - 1] + STEP * min(share, 1.0))


@dataclass(frozen=True)
class Saving:
    """The share of labels that an order saves for the same average precision, with its 95 % interval.

    `at` tells it for some numbers of labels in random order: those needed instead.
    """

    saved: float
    low: float
    high: float
    at: dict[int, float]

    def __str__(self) -> str:
        told = ", ".join(f"{count:.0f} do for {labels}" for labels, count in self.at.items())
        return f"{self.saved:.0%} fewer [{self.low:.0%}, {self.high:.0%}] ({told})"


def saving(random: np.ndarray, other: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Saving:
    """Return what an order saves over the random one, from (repeats, fits) curves; repeats are drawn again.

    It is the mean over what the random order reaches with LAST / 2 to LAST labels: at one average precision alone, the
    flat end of a curve makes more of a little noise.
    """
    labels = np.arange(FIRST, LAST + 1, STEP)
    late = [k for k, count in enumerate(labels) if count >= LAST / 2]

    def once(rows: np.ndarray) -> tuple[float, dict[int, float]]:
        a, b = rising(random[rows]), rising(other[rows])
        counts = {int(labels[k]): needed(b, float(a[k])) for k in late}
        # Not reached at all: no label was saved.
        shares = [1 - count / n if np.isfinite(count) else 0.0 for n, count in counts.items()]
        return float(np.mean(shares)), counts

    saved, counts = once(np.arange(len(random)))
    rng = np.random.default_rng(seed)
    drawn = [once(rng.integers(len(random), size=len(random)))[0] for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    at = {n: counts[n] for n in (int(labels[late[0]]), int(labels[late[-1]]))}
    return Saving(saved, float(low), float(high), at)


def thinned(queue: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return a queue in which so many are real: all bogus ones, and real ones drawn at random."""
    real = np.flatnonzero(queue["real"])
    bogus = np.flatnonzero(~queue["real"])
    count = min(len(real), round(len(bogus) * share / (1 - share)))
    chosen = np.random.default_rng([seed, 0]).choice(real, count, replace=False)
    return queue.iloc[np.sort(np.r_[bogus, chosen])].reset_index(drop=True)


def measure(
    pool: pd.DataFrame, held: pd.DataFrame, features: tuple[str, ...], orders: Sequence[str], repeats: int
) -> dict[str, np.ndarray]:
    """Return (repeats, fits) average precisions by order, printing as they come."""
    curves: dict[str, np.ndarray] = {}
    for name in orders:
        begun = time.perf_counter()
        curves[name] = np.stack(
            [curve(thinned(pool, REAL_SHARE, s), held, features, ORDERS[name], s) for s in range(repeats)]
        )
        mean = curves[name].mean(axis=0)
        at = " ".join(f"{FIRST + STEP * k}:{mean[k]:.3f}" for k in range(1, len(mean), 3))
        compared = name != "random" and "random" in curves
        told = f"  {saving(curves['random'], curves[name])}" if compared else ""
        print(f"  {name:12s} {at}{told}  ({time.perf_counter() - begun:.0f} s)", flush=True)
    return curves


def main() -> None:
    """Print what each order saves, for the two sets of features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--skies", type=int, default=200, help="of the queue; half as many to judge on")
    parser.add_argument("--pool", type=Path, nargs="*", help="sets made before by build_shards, instead")
    parser.add_argument("--held", type=Path, nargs="*", help="the same, to judge on")
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--output", type=Path, help="where to keep the curves (.npz)")
    parser.add_argument("--features", default="second stage,candidates")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="astrid-teaching-") as folder:
        pool_at, held_at = chosen.pool, chosen.held
        if not pool_at:
            pool_at, held_at = [Path(folder) / "pool"], [Path(folder) / "held"]
            build_shards(pool_at[0], chosen.skies, 1, split="teaching")
            build_shards(held_at[0], chosen.skies // 2, 2, split="taught", changes=SURVEY_CHANGES)
        pool, held = queue_of(ShardSet(pool_at)), queue_of(ShardSet(held_at))
    print(
        f"queue: {len(thinned(pool, REAL_SHARE, 0))} candidates, {REAL_SHARE:.0%} real; judged on {len(held)}, "
        f"{int(held['real'].sum())} of them real; {chosen.repeats} repeats"
    )
    every = {"second stage": real_bogus_features(), "candidates": FEATURES}
    for name in chosen.features.split(","):
        print(f"features: {name} ({len(every[name])})")
        curves = measure(pool, held, every[name], chosen.orders.split(","), chosen.repeats)
        if chosen.output is not None:
            np.savez(chosen.output.with_stem(f"{chosen.output.stem}-{name.replace(' ', '-')}"), **curves)


if __name__ == "__main__":
    main()
