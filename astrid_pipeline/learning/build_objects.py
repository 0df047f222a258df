"""``python -m astrid_pipeline.learning.build_objects FILE``: the model of object types, fitted and measured anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.object_types import (
    FEATURES,
    TYPES,
    ObjectTypes,
    fit_object_types,
    object_features,
)


def simulated_objects(
    seed: int, count: int, told: Callable[[int], None] | None = None
) -> tuple[pd.DataFrame, npt.NDArray[np.str_]]:
    """Return the features of `count` simulated objects, equally many of each type, and their types."""
    from astrid_pipeline.simulation.object_curves import draw_object

    rng = np.random.default_rng(seed)
    kinds = [TYPES[i % len(TYPES)] for i in range(count)]
    rows = []
    for number, kind in enumerate(kinds, 1):
        rows.append(object_features(*draw_object(rng, kind)))
        if told is not None and number % 1000 == 0:
            told(number)
    return pd.DataFrame(rows, columns=list(FEATURES)), np.array(kinds)


def measured(model: ObjectTypes, features: pd.DataFrame, kinds: npt.NDArray[np.str_]) -> dict[str, float]:
    """Return the shares told right: of all, of the surely told, and of those with three to five epochs."""
    share = model.probabilities(features).to_numpy(float)
    right = np.array(TYPES)[share.argmax(axis=1)] == kinds
    types = model.types(features)["type"]
    sure = types.notna().to_numpy()
    few = features["epochs"].to_numpy(float) < 6
    return {
        "right": float(right.mean()),
        "sure": float(sure.mean()),
        "right_of_sure": float((types.to_numpy(object)[sure] == kinds[sure]).mean()),
        "right_of_few_epochs": float(right[few].mean()),
        **{f"right_{name}": float(right[kinds == name].mean()) for name in TYPES},
    }


def main(arguments: list[str] | None = None) -> int:
    """Fit, measure on other objects, and write; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m astrid_pipeline.learning.build_objects", description=__doc__
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--objects", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)

    def told(number: int) -> None:
        print(f"{number} objects", flush=True)

    model = fit_object_types(*simulated_objects(chosen.seed, chosen.objects, told), seed=chosen.seed)
    found = measured(model, *simulated_objects(chosen.seed + 1, chosen.objects // 3, told))
    model = replace(model, facts={**model.facts, "measured": {k: round(v, 4) for k, v in found.items()}})
    model.save(chosen.file)
    print("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
