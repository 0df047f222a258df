"""Training on a user's own nights, in the steps that the pipeline keeps apart.

The network goes on from the champion's weights; real/bogus and the anomaly detectors are fitted to its peaks on
images it was not trained on; calibration, ensemble and threshold on images that none of them has seen. Each step
reads what the one before left in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from astrid_pipeline.learning.classical import Classical
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.drift import baseline_of
from astrid_pipeline.learning.evaluate import Evaluation, evaluate
from astrid_pipeline.learning.real_bogus import RealBogus
from astrid_pipeline.learning.second_stage import (
    assemble_detector,
    fit_classes_on,
    fit_classical_on,
    fit_real_bogus_on,
    label_peaks,
    real_weight,
    with_watch,
)
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.train import train
from astrid_pipeline.learning.train_config import TrainConfig, TrainingResult
from astrid_pipeline.learning.weights import load_network

Progress = Callable[[int, int, dict[str, float]], None]
NETWORK, PEAKS = "network.safetensors", "peaks-{split}.parquet"


def train_network(
    splits: Mapping[str, ShardSet],
    mode: str,
    config: TrainConfig,
    out: Path,
    *,
    initial: Detector | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    processes: int = 1,
) -> TrainingResult:
    """Train on `train`, choose by `held_out`, and keep the network with its peaks on `second` and `held_out`.

    Parameters
    ----------
    splits:
        By name: train, second, held_out.
    initial:
        Detector whose network is gone on from; None starts from nothing.
    out:
        Gets `network.safetensors` and the peaks as Parquet, from which the later steps learn.
    processes:
        That train together, one a GPU (`train.train`).
    """
    result = train(
        splits["train"],
        splits["held_out"],
        mode,
        config,
        out=out,
        device=device,
        initial=None if initial is None else initial.network,
        progress=progress,
        processes=processes,
    )
    network = load_network(result.weights)
    for split in ("second", "held_out"):
        label_peaks(network, splits[split], device=device).to_parquet(
            out / PEAKS.format(split=split), index=False
        )
    (out / "training.json").write_text(
        json.dumps(
            {
                "history": result.history,
                "best": result.best,
                "steps": result.steps,
                "seconds": result.seconds,
                "joules": result.joules,
                "energy_source": result.energy_source,
                "data_hash": result.data_hash,
                "device": result.device,
                "config": result.config.as_dict(),
                "real_weight": real_weight(splits["held_out"]),
                "baseline": baseline_of(splits["held_out"]),
            },
            indent=1,
            default=str,
        )
    )
    return result


def peaks_of(folder: Path, split: str) -> pd.DataFrame:
    """Return the labelled peaks that `train_network` kept."""
    return pd.read_parquet(folder / PEAKS.format(split=split))


def train_real_bogus(network: Path, out: Path, *, seed: int = 0) -> RealBogus:
    """Fit real/bogus to the network's peaks on images that it was not trained on."""
    model = fit_real_bogus_on(peaks_of(network, "second"), seed=seed)
    model.save(out / "real_bogus.safetensors")
    return model


def train_classical(network: Path, out: Path, *, seed: int = 0) -> Classical:
    """Fit Isolation Forest and One-Class SVM to the real ones among the same peaks."""
    model = fit_classical_on(peaks_of(network, "second"), seed=seed)
    model.save(out / "classical.safetensors")
    return model


def train_ensemble(
    network: Path,
    real_bogus: Path,
    classical: Path,
    out: Path,
    *,
    name: str,
    version: str,
    champion: Detector | None = None,
    seed: int = 0,
) -> Detector:
    """Calibrate, weigh and set the threshold on held-out peaks; write the whole detector as one file.

    What a night's other exposures say of a score needs series of epochs to be learned, which a training set of single
    pairs has not: it is the champion's. It starts from calibrated scores, whichever network made them, and from
    significances at the place. The champion's survey profiles stay behind (fact ``profiles_left``): they map the
    champion's scores, and this detector's are calibrated on the nights' own images.
    """
    facts = json.loads((network / "training.json").read_text())
    detector = assemble_detector(
        load_network(network / NETWORK),
        peaks_of(network, "held_out"),
        RealBogus.load(real_bogus / "real_bogus.safetensors"),
        Classical.load(classical / "classical.safetensors"),
        name=name,
        version=version,
        facts={key: facts[key] for key in ("steps", "joules", "energy_source", "data_hash")},
        seed=seed,
        real_weight=float(facts["real_weight"]),
    ).replace(classes=fit_classes_on(peaks_of(network, "second"), seed=seed))
    if champion is not None and champion.epochs is not None:
        source = {"epochs_from": f"{champion.name} {champion.version}"}
        detector = detector.replace(epochs=champion.epochs, facts={**detector.facts, **source})
    if champion is not None and champion.profiles:
        left = [profile.name for profile in champion.profiles]
        detector = detector.replace(facts={**detector.facts, "profiles_left": left})
    detector = with_watch(detector, peaks_of(network, "held_out"), facts["baseline"])
    detector.save(out / "detector.safetensors")
    return detector


@dataclass(frozen=True)
class Comparison:
    """A challenger and the champion on the same test images; `reason` says why it is promoted or not."""

    challenger: Evaluation
    champion: Evaluation
    promoted: bool
    reason: str


def compare(
    challenger: Detector, champion: Detector, test: ShardSet, *, device: str | None = None
) -> Comparison:
    """Evaluate both on the test split; the challenger wins if its AP is better beyond the interval and no class fell.

    See `judge_challenger`.
    """
    ours, theirs = evaluate(challenger, test, device=device), evaluate(champion, test, device=device)
    return Comparison(ours, theirs, *judge_challenger(ours, theirs))


def judge_challenger(ours: Evaluation, theirs: Evaluation) -> tuple[bool, str]:
    """Return whether a challenger (`ours`) is to be promoted over the champion, and why.

    The interval's lower end of the challenger's AP must lie above the champion's value: a difference that another
    draw of test images could reverse is no reason to change what detects. A class fell where the upper end of the
    challenger's recall of it lies below the champion's.
    """
    new, old = ours.best["ap"], theirs.best["ap"]
    text = f"AP {new.value:.3f} ({new.low:.3f}–{new.high:.3f}) against the champion's {old.value:.3f}"
    if not new.low > old.value:
        return False, f"{text}: not better beyond the interval"
    before = theirs.by_class.set_index("label")["recall"]
    fell = [
        f"{row['label']} from {before[row['label']]:.2f} to {row['recall']:.2f}"
        for row in ours.by_class.to_dict("records")
        if row["high"] < before[row["label"]]
    ]
    if fell:
        return False, f"{text}: better, but recall fell: {', '.join(fell)}"
    return True, f"{text}: better beyond the interval, and no class fell"


def describe(model: Any) -> dict[str, Any]:
    """Return the plain facts of a fitted model, for a page."""
    return {k: v for k, v in dict(model.facts).items() if isinstance(v, bool | int | float | str)}
