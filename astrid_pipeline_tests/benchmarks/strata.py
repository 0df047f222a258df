"""The detector on real pixels: ``python -m astrid_pipeline_tests.benchmarks.strata``.

Changes of known place, brightness and kind (new points, variable stars, faded sources, moving objects; 20 a megapixel,
S/N 3 to 50, as in the simulated skies that detectors are judged on) are put into the VISTA and DECam epochs, before the
reference is aligned. What the epochs' own movers do counts neither way; whatever else is found is a false alarm, though
some of it may be a change that nobody has reported. `--report FILE` writes the page of `astrid evaluate`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from astrid_pipeline.cli.compare import open_frame
from astrid_pipeline.imaging import coadd, find_candidates, inject
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.data import SURVEY_CHANGES, SURVEY_SNR, shards_from_differences
from astrid_pipeline.learning.evaluate import Evaluation, evaluate
from astrid_pipeline.learning.goals import GOALS
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.night.differences import difference_one
from astrid_pipeline.night.injected_changes import SHARES, plan_changes, science_part, with_faded
from astrid_pipeline.night.injections import plan_injections
from astrid_pipeline.night.samples import UNSURE_SNR
from astrid_pipeline_tests.benchmarks.real import EPOCHS, folder

#: Of `SURVEY_CHANGES` a megapixel, new points; the rest as `injected_changes.SHARES` has them.
POINTS = 0.5
TILE = 512
#: Times that other changes are put into the small DECam stacks.
DECAM_TURNS = 40

Labelled = tuple[Difference, pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class RealPair:
    """Two epochs, and where something is known to have changed between them (x, y in the science frame).

    Without `on_sources`, changes are kept away from stars and galaxies: where the frames have five sources in common, a
    change on one of them is a fifth of what their match is measured on.
    """

    name: str
    science: Frame
    reference: Frame
    known: pd.DataFrame
    on_sources: bool = True


def vista(data: Path) -> Iterator[RealPair]:
    """Yield all ordered pairs of the VISTA epochs, 3.3 megapixels each."""
    frames = {epoch: open_frame(data / "vista_video_A" / f"image_{epoch}.fits") for epoch in EPOCHS}
    movers = pd.read_csv(data / "vista_video_A" / "transients.csv")
    movers["epoch"] = movers["file"].str.extract(r"image_(\d+)").astype(int)
    for new, old in itertools.permutations(EPOCHS, 2):
        here = movers[movers.epoch.isin((new, old))]
        wcs = frames[new].wcs
        assert wcs is not None
        x, y = wcs.all_world2pix(here.ra_deg, here.dec_deg, 0)
        yield RealPair(f"vista {new}−{old}", frames[new], frames[old], pd.DataFrame({"x": x, "y": y}))


def decam(data: Path, on_sources: bool = True) -> Iterator[RealPair]:
    """Yield the two DECam stacks, both ways round, `DECAM_TURNS` times."""
    at = data / "decam_sfft_minis"
    truth = pd.read_csv(at / "transients.csv")[["x", "y"]].astype(float)
    stacks = {
        epoch: coadd([open_frame(p) for p in sorted((at / "input_data").glob(f"DEC-OBS{epoch}?.mini.fits"))])
        for epoch in ("04", "18")
    }
    # Seven hundredths of a megapixel hold one or two changes: the same sky is used again and again.
    for turn in range(DECAM_TURNS):
        for new, old in (("04", "18"), ("18", "04")):
            yield RealPair(f"decam {new}−{old} turn {turn}", stacks[new], stacks[old], truth, on_sources)


def decam_sky(data: Path) -> Iterator[RealPair]:
    """Yield the same, with changes in the empty sky alone."""
    yield from decam(data, on_sources=False)


SETS: dict[str, Callable[[Path], Iterator[RealPair]]] = {
    "vista": vista,
    "decam": decam,
    "decam_sky": decam_sky,
}


def injected(pair: RealPair, rng: np.random.Generator) -> Labelled:
    """Return the difference of a pair with changes put in, their truth, and the candidates."""
    before, _ = difference_one(pair.science, pair.reference)
    on_galaxies = 0.5 if pair.on_sources else 0.0
    points = plan_injections(before, rng, POINTS * SURVEY_CHANGES, on_galaxies)
    others = plan_changes(before, rng, points, (1 - POINTS) * SURVEY_CHANGES, SURVEY_SNR)
    if not pair.on_sources:
        others = others[others["kind"] != "variable"]
    plan = pd.concat([points, others], ignore_index=True) if len(others) else points
    ratio = float(before.meta.get("flux_ratio") or 1.0)
    difference, _ = difference_one(
        inject(pair.science, science_part(plan), rng),
        pair.reference,
        change=lambda aligned: with_faded(aligned, plan, ratio, rng),
    )
    truth = plan[["x", "y", "flux", "snr", "length", "angle"]].assign(
        kind=plan["kind"].replace("fading", "point"), **{"class": plan["kind"]}
    )
    known = pair.known.assign(flux=1.0, snr=UNSURE_SNR, kind="point", **{"class": "known"})
    difference = difference.replace(meta={**difference.meta, "field": pair.name})
    return difference, pd.concat([truth, known], ignore_index=True), find_candidates(difference)


def measure(
    where: Path,
    seed: int = 0,
    model: Path | None = None,
    told: Callable[[str], None] = print,
    sets: tuple[str, ...] = tuple(SETS),
) -> dict[str, Evaluation]:
    """Return the evaluation on each set; labelled images are kept below `where`. Empty where the data are not."""
    data = folder()
    if data is None:
        told("real pixels: no real data sets (set ASTRID_SHARED_DATA)")
        return {}
    detector = load_model(model)
    out = {}
    for name in sets:
        pairs, started = SETS[name], time.perf_counter()

        def labelled(pairs: Callable[[Path], Iterator[RealPair]] = pairs) -> Iterator[Labelled]:
            for number, pair in enumerate(pairs(data)):
                made = injected(pair, np.random.default_rng([seed, number]))
                told(f"{pair.name}: {len(made[1])} changes, {len(made[2])} candidates")
                yield made

        if not (where / name / "manifest.json").exists():
            shards_from_differences(where / name, labelled(), tile=TILE)
        out[name] = evaluate(detector, ShardSet(where / name), seed=seed)
        told(f"{name}: {time.perf_counter() - started:.0f} s")
        for line in lines(out[name]):
            told(line)
    return out


def lines(found: Evaluation) -> Iterator[str]:
    """Yield the table of one set."""
    best = found.best
    yield f"  {found.images} tiles, {found.megapixels:.1f} Mpix, {found.truths} changes of S/N ≥ {found.min_snr:g}"
    yield f"  at the threshold: precision {best['precision']}, recall {best['recall']}"
    yield f"  false a Mpix there: {best['false_per_mpix']}"
    for goal in GOALS:
        if goal.name != "artefacts":
            yield f"  {goal.text:50s} {goal.of(found)!s:26s} {goal.bound}"
    for name, each in found.figures.items():
        yield f"  {name:14s} AP {each['ap']}  false at .9 {each['false_per_mpix_at_recall_90']}"
    for row in found.by_class.itertuples():
        yield f"  found of {row.label}: {row.found} of {row.truths}"


def main(arguments: list[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m astrid_pipeline_tests.benchmarks.strata", description=__doc__
    )
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="weights; default: the packaged ones")
    parser.add_argument("--keep", type=Path, help="folder to keep the labelled images in")
    parser.add_argument("--report", type=Path, help="HTML page to write")
    chosen = parser.parse_args(arguments)
    assert abs(sum(SHARES.values()) - 1) < 1e-9
    with tempfile.TemporaryDirectory(prefix="astrid-strata-") as temporary:
        found = measure(
            chosen.keep or Path(temporary), chosen.seed, chosen.model, sets=tuple(chosen.sets.split(","))
        )
    if found and chosen.report:
        from astrid_pipeline.report.evaluation import write_evaluation

        write_evaluation(found, chosen.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
