"""Making labelled difference images: simulated ones, and injections into a user's own differences."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import AstridError, ModelError
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.learning.samples import labelled_truth, make_sample, no_truth, tiles
from astrid_pipeline.learning.shards import Sample, is_whole, write_manifest, write_shard

#: Called with the number of images done and the number in all.
Progress = Callable[[int, int], None]

#: Images of one shard: some 20 MB at 512², so that a killed build loses little and a shard travels easily.
SHARD_IMAGES = 10

# Shares of simulated cases: mostly nights as they come, some full of artefacts, and some of each case that differencing
# is judged by, so that a network also knows what a clean difference looks like.
_CASES: Mapping[str, float] = {
    "random": 0.55,
    "spoiled": 0.15,
    "clean": 0.05,
    "shift10": 0.05,
    "shift25": 0.05,
    "refbroad": 0.05,
    "varpsf": 0.05,
    "real": 0.05,
}

#: Share of the skies whose changes go up to S/N 500 instead of 50: a bright asteroid must not look strange to a
#: network that has never seen one, and on real frames the halo of a bright source is wider than its PSF model.
BRIGHT_SHARE, BRIGHT_SNR = 0.4, (3.0, 500.0)

#: Of the true changes in skies that detections are calibrated and measured on: what they are, and their S/N.
_SURVEY_SHARES: Mapping[str, float] = {"transients": 0.6, "variables": 0.2, "movers": 0.2}
SURVEY_SNR = (3.0, 50.0)

#: True changes a megapixel of those skies. Many times the sky's own, so that there is something to count; probabilities
#: mean what they say at this rate (`calibration.shift_prior` brings them to another).
SURVEY_CHANGES = 20.0

#: Share of the simulated frames whose PSF is measured from their stars, as it is in life; the rest carry the true one.
MEASURED_PSF = 0.6

#: Attempts at one image before its error is raised: a few simulated frames have too few stars for a PSF.
_ATTEMPTS = 4


@dataclass(frozen=True)
class Simulated:
    """One simulated difference with its truth: what `build_shards` writes, and evaluation looks at whole."""

    difference: Difference
    truth: pd.DataFrame
    candidates: pd.DataFrame
    case: str
    seed: int


def simulate_difference(
    seed: int, shape: tuple[int, int] = (512, 512), *, changes: float | None = None, spoiled: bool = False
) -> Simulated:
    """Return a simulated difference image and its truth; the same seed gives the same.

    The case, the options and whether the PSFs are measured or known are drawn from the seed. Frames whose PSF cannot
    be measured are drawn again, four times at most.

    Parameters
    ----------
    changes:
        True changes a megapixel, of S/N 3-50, on nights as they come. None: as many as learning gets most from, in some
        skies very bright, and some of them full of artefacts.
    spoiled:
        Full of artefacts that no mask covers (`simulation.spoiled_options`), whatever else: to count what passes.

    Raises
    ------
    AstridError
        What the last attempt raised.
    """
    from astrid_pipeline.imaging.candidates import find_candidates
    from astrid_pipeline.imaging.subtract import subtract
    from astrid_pipeline.simulation.pairs import CASES, random_options, simulate_pair, spoiled_options

    problem: AstridError | None = None
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        case = str(rng.choice(list(_CASES), p=list(_CASES.values())))
        if spoiled:
            case = "spoiled"
        elif changes is not None and case == "spoiled":
            case = "random"
        if case in ("random", "spoiled"):
            options = (random_options if case == "random" else spoiled_options)(rng)
            if rng.random() < BRIGHT_SHARE:
                options["snr"] = BRIGHT_SNR
        else:
            options = {**CASES[case], "variables": 20.0, "movers": 15.0, "fading": 0.2}
        if changes is not None:
            options |= {name: share * changes for name, share in _SURVEY_SHARES.items()}
            options["snr"] = SURVEY_SNR
        options["psf"] = "none" if rng.random() < MEASURED_PSF else "true"
        pair = simulate_pair(rng, shape, **options)
        # A detector has to know also what masks commonly keep from it: what is looked for is not always found.
        hidden = case != "spoiled" or not (spoiled or rng.random() < 0.5)
        try:
            difference = subtract(pair.science, pair.reference, find_artefacts=hidden)
            candidates = find_candidates(difference)
        except AstridError as error:
            problem = error
            continue
        truth = labelled_truth(pair.truth, difference, "simulated")
        return Simulated(difference, truth, candidates, case, seed)
    assert problem is not None
    raise problem


def image_seed(seed: int, split: str, index: int) -> int:
    """Return the seed of image `index` of a split: splits of one run never share a sky."""
    text = f"{seed}:{split}:{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _build_shard(
    folder: Path,
    shard: int,
    seeds: Sequence[int],
    shape: tuple[int, int],
    changes: float | None,
    spoiled: bool,
) -> int:
    samples = []
    for seed in seeds:
        made = simulate_difference(seed, shape, changes=changes, spoiled=spoiled)
        info = {"sky": f"simulated-{seed}", "case": made.case, "source": "simulated", "seed": seed}
        samples.append(make_sample(made.difference, made.truth, made.candidates, info))
    write_shard(folder, shard, samples)
    return len(samples)


def build_shards(
    folder: Path,
    n_images: int,
    seed: int = 0,
    shape: tuple[int, int] = (512, 512),
    workers: int = 1,
    progress: Progress | None = None,
    *,
    split: str = "train",
    changes: float | None = None,
    spoiled: bool = False,
) -> dict[str, Any]:
    """Simulate `n_images` labelled difference images into `folder` and return the set's manifest.

    Each image is a sky of its own, drawn from (seed, split, number): sets of different splits share nothing, and
    the number of workers changes nothing. Shards that are there already are kept, so that a killed build goes on.
    `changes` and `spoiled` are those of `simulate_difference`.

    Raises
    ------
    AstridError
        What simulating or subtracting raised.
    """
    if n_images < 1:
        raise ModelError(
            f"a set of {n_images} images cannot be built", where=folder, remedy="ask for one or more"
        )
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [image_seed(seed, split, i) for i in range(n_images)]
    jobs = {s: seeds[i : i + SHARD_IMAGES] for s, i in enumerate(range(0, n_images, SHARD_IMAGES))}
    recipe: dict[str, Any] = {"seed": seed, "split": split, "shape": list(shape), "n_images": n_images}
    if changes is not None:
        recipe["changes"] = changes
    if spoiled:
        recipe["spoiled"] = True
    _same_recipe(folder, recipe)
    missing = {s: part for s, part in jobs.items() if not is_whole(folder, s)}
    done = n_images - sum(len(part) for part in missing.values())
    if progress is not None:
        progress(done, n_images)
    if workers <= 1 or len(missing) <= 1:
        for shard, part in missing.items():
            done += _build_shard(folder, shard, part, shape, changes, spoiled)
            if progress is not None:
                progress(done, n_images)
    else:
        # spawn: the parent may have threads (torch, Dagster), which a fork would copy half way.
        with ProcessPoolExecutor(
            min(workers, len(missing)), get_context("spawn"), _begin_worker, (os.getpid(),)
        ) as pool:
            futures = [
                pool.submit(_build_shard, folder, s, part, shape, changes, spoiled)
                for s, part in missing.items()
            ]
            for future in as_completed(futures):
                done += future.result()
                if progress is not None:
                    progress(done, n_images)
    return write_manifest(folder, jobs, recipe)


def _begin_worker(parent: int) -> None:
    """Keep a worker's libraries to one thread, the processes are the parallelism; and end it with its parent.

    A parent that is killed cannot tell its workers, which would wait for work forever.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _same_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse to mix two sets in one folder; note the recipe of a new one."""
    import json

    note = folder / "recipe.json"
    text = json.dumps(recipe, sort_keys=True)
    if note.exists() and note.read_text() != text:
        raise ModelError(
            f"another set is being built here: {note.read_text()}", where=folder, remedy="use an empty folder"
        )
    note.write_text(text)


def split_of(sky: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """Return the split that a piece of sky belongs to, by a hash: stable however many pieces there are.

    Whatever shows the same sky, any night, any epoch, any object on it, falls into the same split, before any
    augmentation. `shares` sum to 1.
    """
    total = sum(shares.values())
    if not shares or abs(total - 1) > 1e-9:
        raise ModelError(f"the shares of the splits sum to {total}, not 1", where="training data")
    place = int.from_bytes(hashlib.sha256(f"{seed}:{sky}".encode()).digest()[:8], "big") / 2**64
    upto = 0.0
    for name, share in shares.items():
        upto += share
        if place < upto:
            return name
    return list(shares)[-1]


def shards_from_differences(
    folder: Path,
    differences: Iterable[tuple[Difference, pd.DataFrame, pd.DataFrame]],
    *,
    tile: int = 512,
    source: str = "injected",
) -> dict[str, Any]:
    """Cut differences with known truth into tiles, write them as one set, and return its manifest.

    Parameters
    ----------
    differences:
        (difference, truth, candidates) each: a difference made from frames with injections, what was injected
        (x, y, flux, kind, and snr, length, angle where known), and its candidates. Real changes that are known
        belong into the truth as well; unknown ones are taken for false.
    tile:
        Side of the tiles, a multiple of 16. Tiles at the far edges are moved inwards to fit; smaller frames are
        padded with unusable pixels.

    Notes
    -----
    A tile's ``sky`` is the field and its place in it, so that `split_of` keeps all nights of it together.

    Raises
    ------
    ModelError
        If there is no difference, or the tile does not fit the network.
    """
    if tile % 16 or tile < 64:
        raise ModelError(
            f"tiles of {tile} px do not fit the network", remedy="use a multiple of 16, 64 or more"
        )
    samples: list[Sample] = []
    shard = 0
    for difference, truth, candidates in differences:
        known = labelled_truth(truth, difference, source) if len(truth) else no_truth()
        name = str(difference.meta.get("field", difference.meta.get("exposure_id", "unknown")))
        whole = make_sample(difference, known, candidates, {"case": "real", "source": source})
        for sample in tiles(whole, tile, name):
            samples.append(sample)
            if len(samples) == SHARD_IMAGES:
                write_shard(folder, shard, samples)
                samples, shard = [], shard + 1
    if samples:
        write_shard(folder, shard, samples)
        shard += 1
    if not shard:
        raise ModelError(
            "there is no difference to make samples of", where=folder, remedy="run the nights first"
        )
    return write_manifest(folder, range(shard), {"tile": tile, "split": "all"})
