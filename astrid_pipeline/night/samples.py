"""Injections into a night's frames: what the night could have found, and labelled images to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.night.differences import meta_of, pair_up
from astrid_pipeline.night.injected_objects import draw_objects
from astrid_pipeline.night.injections import INJECTIONS, Injected, inject_exposure
from astrid_pipeline.night.outcome import Outcome, for_each
from astrid_pipeline.tables import concat

#: Side of the tiles that are kept to learn from: room for crops of 128 px at many offsets.
TILE = 256
#: A change that was there before the injection may be real: at this S/N a label is neither asked for nor held
#: against a network (see `learning.targets`).
UNSURE_SNR = 2.0


@dataclass
class InjectedNight:
    """What came of a night's injections: the truth table, and the set of labelled images in `folder`, if any."""

    truth: pd.DataFrame
    outcome: Outcome[int]
    manifest: Mapping[str, Any] = field(default_factory=dict)


def choose_exposures(metas: Mapping[str, Mapping[str, Any]], per_filter: int) -> list[str]:
    """Return the exposures to inject into: in each filter those with the most usable pixels."""
    by_filter: dict[str, list[str]] = {}
    for key in sorted(metas, key=lambda k: (-int(metas[k].get("good_pixels") or 0), k)):
        by_filter.setdefault(str(metas[key].get("filter")), []).append(key)
    return sorted(key for keys in by_filter.values() for key in keys[:per_filter])


def inject_night(
    frames: Mapping[str, Frame],
    references: Mapping[str, Frame],
    differences: Mapping[str, Difference],
    detections: pd.DataFrame,
    model: Any,
    night: str,
    folder: Path,
    *,
    per_filter: int = 1,
    per_megapixel: float = 60.0,
    others_per_megapixel: float = 30.0,
    field: str = "",
    threshold: float = 5.0,
    seed: int = 0,
    device: str | None = None,
    progress: Callable[[str], Any] | None = None,
) -> InjectedNight:
    """Inject into copies of some of the night's frames, look for what was put in, keep labelled tiles.

    Parameters
    ----------
    frames, references, differences:
        The night's products; the references of its field.
    detections:
        What was found in the untouched differences: may be real, so it counts neither way in the labels.
    model:
        What `learning.load_model` returned.
    folder:
        Gets the set of labelled images (`learning.ShardSet` opens it); stays empty where nothing was injected.
    per_filter, per_megapixel:
        Exposures a filter, new points a megapixel.
    others_per_megapixel:
        Variable stars, faded sources and moving objects a megapixel.
    field:
        Its name: with the seed it makes the objects that live over its nights (`injected_objects`); without, there are
        none.
    seed:
        With the exposure's name it makes every injection the same when the night is made again.
    """
    from astrid_pipeline.learning import shards_from_differences

    metas = {key: meta_of(differences, key) for key in differences}
    pairs = pair_up(frames, references, night)
    made: list[pd.DataFrame] = []
    outcome: Outcome[int] = Outcome()
    lasting: dict[str, pd.DataFrame] = {}

    def objects_of(reference: Frame) -> pd.DataFrame | None:
        name = str(reference.meta.get("exposure_id"))
        if field and name not in lasting:
            lasting[name] = draw_objects(reference, field, seed)
        return lasting.get(name)

    def inject(key: str) -> Injected:
        pair = pairs[key]()
        rng = exposure_rng(seed, key)
        return inject_exposure(
            pair.science,
            pair.reference,
            differences[key],
            rng,
            model,
            threshold=threshold,
            per_megapixel=per_megapixel,
            others_per_megapixel=others_per_megapixel,
            objects=objects_of(pair.reference),
            device=device,
        )

    def labelled() -> Iterator[tuple[Difference, pd.DataFrame, pd.DataFrame]]:
        # One exposure at a time: its difference is cut into tiles before the next is made.
        for key in choose_exposures(metas, per_filter):
            one = for_each([(key, key)], inject, stage="injections", progress=progress)
            outcome.problems += one.problems
            outcome.seconds |= one.seconds
            for injected in one.products.values():
                outcome.products[key] = len(injected.truth)
                made.append(injected.truth)
                yield injected.difference, labels(injected, detections, key), injected.candidates

    first = next(source := labelled(), None)
    if first is None:
        return InjectedNight(INJECTIONS.empty(), outcome)

    def all_of_them() -> Iterator[tuple[Difference, pd.DataFrame, pd.DataFrame]]:
        yield first
        yield from source

    manifest = shards_from_differences(folder, all_of_them(), tile=TILE, source="injected")
    return InjectedNight(concat(INJECTIONS, made), outcome, manifest)


def labels(injected: Injected, detections: pd.DataFrame, exposure_id: str) -> pd.DataFrame:
    """Return what is in an injected difference: the injections, and what was detected before them as unsure."""
    truth = injected.truth[["x", "y", "flux", "snr", "length", "angle"]].assign(
        kind=injected.truth["kind"].replace(["fading", "supernova"], "point"),
        **{"class": injected.truth["kind"]},
    )
    before = detections[detections.exposure_id == exposure_id][["x", "y", "flux"]]
    unsure = before.assign(snr=UNSURE_SNR, kind="point", **{"class": "found before"})
    return pd.concat([truth, unsure], ignore_index=True) if len(unsure) else truth.reset_index(drop=True)


def exposure_rng(seed: int, key: str) -> np.random.Generator:
    """Return the source of randomness that belongs to a seed and a name: the same each time, however it is made."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big"))
