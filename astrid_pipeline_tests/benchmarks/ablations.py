"""What each part of the second stage is worth: ``python -m astrid_pipeline_tests.benchmarks.ablations``.

The packaged network stays as it is. Behind it, real/bogus and the ensemble are fitted anew without one group of their
measurements, and judged on skies that none of them has seen: the same peaks for all, intervals and what is lost by
drawing skies.
With `--folder` simulated skies are kept and used again (`--images` for fitting, half as many each for calibrating, for
judging, and full of artefacts).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from astrid_pipeline.learning import kinds, load_model
from astrid_pipeline.learning.data import SURVEY_CHANGES, build_shards
from astrid_pipeline.learning.evaluate import score_shards
from astrid_pipeline.learning.matching import NEITHER, RIGHT
from astrid_pipeline.learning.metrics import MIN_SNR, Judged, figures_of, judge
from astrid_pipeline.learning.network import prepare_for_inference
from astrid_pipeline.learning.real_bogus import fit_real_bogus
from astrid_pipeline.learning.second_stage import (
    PEAK_FEATURES,
    assemble_detector,
    fit_classical_on,
    label_peaks,
    real_bogus_features,
    real_weight,
)
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.surroundings import SURROUNDINGS
from astrid_pipeline_tests.benchmarks.ablations_epochs import gain

NETWORK = tuple(name for name in PEAK_FEATURES if name.startswith("unet_"))
#: What is left out, by the name under which it stands in the table.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "nothing left out": (),
    "without what lies around": SURROUNDINGS,
    "without the network's answers": NETWORK,
    "without the candidate's measurements": tuple(
        name for name in real_bogus_features() if name not in PEAK_FEATURES
    ),
}


def simulate(folder: Path, images: int, seed: int, workers: int) -> dict[str, ShardSet]:
    """Build what is not there yet: skies to fit on, to calibrate on, to judge on, and full of artefacts."""
    half = max(images // 2, 1)
    wanted: dict[str, tuple[int, float | None, bool]] = {
        "fit": (images, None, False),
        "fit-spoiled": (half, None, True),
        "calibrate": (half, SURVEY_CHANGES, False),
        "judge": (half, SURVEY_CHANGES, False),
        "spoiled": (half, SURVEY_CHANGES, True),
    }
    for name, (number, changes, spoiled) in wanted.items():
        print(f"{name}: {number} skies", flush=True)
        build_shards(
            folder / name, number, seed, (320, 320), workers,
            split=f"ablation-{name}", changes=changes, spoiled=spoiled,
        )  # fmt: skip
    out = {name: ShardSet(folder / name) for name in wanted}
    out["fit"] = ShardSet([folder / "fit", folder / "fit-spoiled"])
    return out


def judged_by(detector: Any, peaks: pd.DataFrame, shards: ShardSet, min_snr: float) -> Judged:
    """Return the peaks of a set judged with a detector's scores."""
    scores = detector.score(peaks)
    size = shards.shape[0] * shards.shape[1] * 1e-6
    usable = shards.images["usable_fraction"].to_numpy(float) * size
    area = pd.Series(usable, index=shards.images["image_id"].astype(str))
    rest = peaks.drop(columns=[name for name in scores if name in peaks])
    return judge(pd.concat([rest, scores], axis=1), shards.truth, area, min_snr=min_snr)


def peaks_of(sets: Mapping[str, ShardSet]) -> dict[str, pd.DataFrame]:
    """Return the packaged network's peaks in each set, those to fit to and to calibrate on labelled."""
    model = load_model()
    fast = prepare_for_inference(model.network)
    out = {name: label_peaks(fast, sets[name]) for name in ("fit", "calibrate")}
    return out | {name: score_shards(model, sets[name])[0] for name in ("judge", "spoiled")}


def measure(sets: Mapping[str, ShardSet], peaks: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Return a row for each thing left out: AP, what it gains, recall at precision .95, false at recall .9, artefacts.

    `peaks` are those of `peaks_of`.
    """
    model = load_model()
    first, last = peaks["fit"], peaks["calibrate"]
    whole = None
    clear = first[first["verdict"] != NEITHER]
    classical = fit_classical_on(first, seed=seed)
    rows = []
    for name, left_out in LEFT_OUT.items():
        features = tuple(f for f in real_bogus_features() if f not in left_out)
        trees = fit_real_bogus(
            clear, clear["verdict"] == RIGHT, features, groups=clear["image_id"], seed=seed
        )
        detector = assemble_detector(
            model.network, last, trees, classical, name="ablation", version="0", seed=seed,
            real_weight=real_weight(sets["calibrate"]),
        )  # fmt: skip
        judged = judged_by(detector, peaks["judge"], sets["judge"], MIN_SNR)
        whole = whole or judged
        figures = figures_of(judged, detector.threshold, seed=seed)
        table = kinds.artefacts(
            judged_by(detector, peaks["spoiled"], sets["spoiled"], 0.0),
            sets["spoiled"].truth,
            detector.threshold,
        )
        worst = table.loc[table["rejected"].idxmin()]
        wanted = ("ap", "recall_at_precision_95", "false_per_mpix_at_recall_90", "precision", "recall")
        rows.append(
            {
                "": name,
                **{key: str(figures[key]) for key in wanted},
                "gain in AP": str(gain(whole, judged, seed)) if judged is not whole else "",
                "artefacts passed": f"{int(table['passed'].sum())} of {int(table['count'].sum())}",
                "worst": f"{worst['kind']} {worst['rejected']:.4f}",
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=400, help="skies of 320 x 320 to fit on")
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sets = simulate(options.folder or Path(temporary), options.images, options.seed, options.workers)
        print(measure(sets, peaks_of(sets), options.seed).to_markdown(index=False))


if __name__ == "__main__":
    main()
