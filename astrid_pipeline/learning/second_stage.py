"""Fitting what stands behind the network: calibration, real/bogus, the classical detectors, and their ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.candidates import FEATURES
from astrid_pipeline.learning import calibration
from astrid_pipeline.learning.canary import canary
from astrid_pipeline.learning.change_class import LEAST, ChangeClass, fit_change_class
from astrid_pipeline.learning.channels import unsqueeze_score
from astrid_pipeline.learning.classical import Classical, fit_classical
from astrid_pipeline.learning.data import SURVEY_CHANGES
from astrid_pipeline.learning.detector import PEAK_THRESHOLD, Detector
from astrid_pipeline.learning.drift import baseline_of, scores_of
from astrid_pipeline.learning.ensemble import Ensemble, fit_ensemble
from astrid_pipeline.learning.infer import peak_table
from astrid_pipeline.learning.matching import NEITHER, RIGHT, match
from astrid_pipeline.learning.network import predict, prepare_for_inference
from astrid_pipeline.learning.real_bogus import RealBogus, fit_real_bogus
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.surroundings import SURROUNDINGS
from astrid_pipeline.learning.targets import UNUSABLE_BIT
from astrid_pipeline.learning.unet import CLASSES

#: What real/bogus looks at: the candidate's features, the network's answer at the peak, and what lies around it.
PEAK_FEATURES: tuple[str, ...] = (
    "unet_logit",
    *(f"unet_{name}" for name in CLASSES),
    "unet_mask_area",
    "unet_mask_mean",
    "peak_snr",
    "peak_distance",
    *SURROUNDINGS,
)

#: Truth from here on is a real example; fainter changes are neither, as in the network's own training.
REAL_SNR = 4.0

#: The threshold is where held-out detections reach this precision at truth of S/N ≥ 4. Rubin asks for 95 % at S/N 6;
#: from 97 to 98.5 % up to half of the artefacts that passed are gone, for one in a hundred of the true changes.
TARGET_PRECISION = 0.985


def real_bogus_features() -> tuple[str, ...]:
    """Return the columns that real/bogus is fitted to."""
    return (*(name for name in FEATURES if name not in PEAK_FEATURES), *PEAK_FEATURES)


def label_peaks(
    network: nn.Module,
    shards: ShardSet,
    *,
    device: str | torch.device | None = None,
    peak_threshold: float = PEAK_THRESHOLD,
    min_snr: float = REAL_SNR,
) -> pd.DataFrame:
    """Return the network's peaks in all images of a set, `infer.peak_table`, with what they really are.

    Adds image_id, ``verdict`` (`matching.RIGHT`, `FALSE` or `NEITHER`), and of a right one ``truth_snr``,
    ``truth_label``, ``truth_kind``, ``truth_distance`` (px).

    Parameters
    ----------
    network:
        Made by `network.prepare_for_inference`, or any in eval mode.
    """
    tables = []
    for index in range(len(shards)):
        planes, labels, truth = shards.planes(index), shards.labels(index), shards.truth_of(index)
        probability = predict(network, planes, device=device)
        bad = (np.asarray(labels) & UNUSABLE_BIT) != 0
        table = peak_table(
            probability,
            bad,
            unsqueeze_score(planes[3]),
            shards.candidates_of(index).drop(columns="image_id"),
            peak_threshold,
        )
        place = pd.DataFrame({"x": table["peak_x"], "y": table["peak_y"], "score": table["unet_raw"]})
        verdict, which = match(place, truth, min_snr=min_snr)
        found = truth.reset_index(drop=True).reindex(np.where(verdict == RIGHT, which, -1))
        table["image_id"] = shards.image_id(index)
        table["verdict"] = verdict
        table["truth_snr"] = found["snr"].to_numpy(float)
        table["truth_label"] = found["label"].to_numpy(object)
        table["truth_kind"] = found["kind"].to_numpy(object)
        table["truth_distance"] = np.hypot(
            found["x"].to_numpy() - place["x"], found["y"].to_numpy() - place["y"]
        )
        tables.append(table)
    filled = [t for t in tables if len(t)] or tables[:1]
    return pd.concat(filled, ignore_index=True)


def _clear(peaks: pd.DataFrame) -> pd.DataFrame:
    return peaks[peaks["verdict"] != NEITHER]


def fit_real_bogus_on(peaks: pd.DataFrame, *, seed: int = 0) -> RealBogus:
    """Return real/bogus fitted to labelled peaks (`label_peaks`)."""
    clear = _clear(peaks)
    return fit_real_bogus(
        clear, clear["verdict"] == RIGHT, real_bogus_features(), groups=clear["image_id"], seed=seed
    )


def fit_classical_on(peaks: pd.DataFrame, *, seed: int = 0) -> Classical:
    """Return the classical detectors fitted to the real ones among labelled peaks that are candidates."""
    real = peaks[(peaks["verdict"] == RIGHT) & (peaks["candidate"] >= 0)]
    return fit_classical(real, tuple(FEATURES), seed=seed)


def fit_classes_on(peaks: pd.DataFrame, *, seed: int = 0) -> ChangeClass | None:
    """Return what tells the classes apart, fitted to the real ones among labelled peaks.

    None where there are fewer than `change_class.LEAST` of a class, as in the skies of a quick check: the network's
    own heats then say the class.
    """
    real = peaks[peaks["verdict"] == RIGHT]
    if real["truth_label"].value_counts().reindex(list(CLASSES), fill_value=0).min() < LEAST:
        return None
    return fit_change_class(real, real["truth_label"], seed=seed)


def real_weight(shards: ShardSet) -> float:
    """Return how much a real peak of a set counts for, so that scores hold at `SURVEY_CHANGES` a megapixel.

    Raises
    ------
    ModelError
        If the set holds no change at all.
    """
    truth = shards.truth
    changes = int((truth["label"].isin(CLASSES) & truth["usable"]).sum())
    if not changes:
        raise ModelError(
            "the held-out images hold no true change", where="calibration", remedy="hold out more images"
        )
    return SURVEY_CHANGES * shards.megapixels / changes


def fit_ensemble_on(
    peaks: pd.DataFrame, detector: Detector, *, seed: int = 0, real_weight: float = 1.0
) -> Ensemble:
    """Return the weights of a detector's parts, learned on peaks that none of them was fitted to."""
    clear = _clear(peaks)
    real = clear["verdict"] == RIGHT
    return fit_ensemble(detector.stage_inputs(clear), real, seed=seed, real_weight=real_weight)


def threshold_for(
    score: np.ndarray, verdict: np.ndarray, precision: float = TARGET_PRECISION, *, real_weight: float = 1.0
) -> float:
    """Return the lowest score above which the precision holds; 0.5 where it is never reached.

    With `real_weight` it is the precision where real ones are so many times as frequent.
    """
    keep = verdict != NEITHER
    order = np.argsort(-score[keep], kind="stable")
    ranked, right = score[keep][order], (verdict[keep] == RIGHT)[order]
    good, bad = real_weight * np.cumsum(right), np.cumsum(~right)
    reached = np.flatnonzero(good / (good + bad) >= precision)
    return float(ranked[reached[-1]]) if len(reached) else 0.5


def fit_detector(
    network: nn.Module,
    second: ShardSet,
    held_out: ShardSet,
    *,
    name: str,
    version: str,
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Detector:
    """Return a detector: the network with everything behind it fitted.

    Parameters
    ----------
    second:
        Images the network was not trained on; real/bogus and the classical detectors learn on its peaks there.
    held_out:
        Images none of them was trained on; calibration, ensemble and threshold are found there.

    Raises
    ------
    ModelError
        If the sets share a piece of sky, or hold too few peaks to learn from.
    """
    shared = set(second.images["sky"]) & set(held_out.images["sky"])
    if shared:
        raise ModelError(
            f"{len(shared)} pieces of sky are in both sets", remedy="split by sky (data.split_of)"
        )
    fast = prepare_for_inference(network)
    first = label_peaks(fast, second, device=device)
    last = label_peaks(fast, held_out, device=device)
    detector = assemble_detector(
        network,
        last,
        fit_real_bogus_on(first, seed=seed),
        fit_classical_on(first, seed=seed),
        name=name,
        version=version,
        facts=facts,
        seed=seed,
        real_weight=real_weight(held_out),
    ).replace(classes=fit_classes_on(first, seed=seed))
    return with_watch(detector, last, baseline_of(held_out), device=device)


def with_watch(
    detector: Detector,
    held_out: pd.DataFrame,
    baseline: Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
) -> Detector:
    """Return the detector with what later nights are compared with (`drift`) among its facts.

    Parameters
    ----------
    held_out:
        Its labelled peaks on images that no part was trained on.
    baseline:
        `drift.baseline_of` those images; the scores of the detections in them are added.
    """
    found = held_out[["image_id"]].assign(score=detector.score(held_out)["score"].to_numpy(float))
    watched = {**baseline, **scores_of(found[found["score"] >= detector.threshold])}
    noted = canary(detector, device=None if device is None else str(device)).as_dict()
    return detector.replace(facts={**detector.facts, "baseline": watched, "canary": noted})


def assemble_detector(
    network: nn.Module,
    held_out: pd.DataFrame,
    real_bogus: RealBogus,
    classical: Classical,
    *,
    name: str,
    version: str,
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    real_weight: float = 1.0,
) -> Detector:
    """Return a detector of fitted parts: calibration, ensemble and threshold found on `held_out` peaks.

    Parameters
    ----------
    held_out:
        `label_peaks` of images that no part was trained on.
    real_weight:
        What the function `real_weight` says of those images.

    Raises
    ------
    ModelError
        If there are too few peaks to calibrate on.
    """
    clear = _clear(held_out)
    real = (clear["verdict"] == RIGHT).to_numpy()
    if min(real.sum(), (~real).sum()) < 20:
        raise ModelError(
            f"the network found {int(real.sum())} real and {int((~real).sum())} false peaks in the held-out "
            "images: too few to calibrate on",
            where="calibration",
            remedy="train longer, or hold out more images",
        )
    calibrator = calibration.choose(
        calibration.logit(clear["unet_raw"]), real, seed=seed, real_weight=real_weight
    )
    detector = Detector(network, name, version, calibrator, threshold=0.5, facts=dict(facts or {}))
    detector = detector.replace(real_bogus=real_bogus, classical=classical)
    detector = detector.replace(
        ensemble=fit_ensemble_on(held_out, detector, seed=seed, real_weight=real_weight)
    )
    score = detector.score(held_out)["score"].to_numpy()
    return detector.replace(
        threshold=threshold_for(score, held_out["verdict"].to_numpy(), real_weight=real_weight)
    )
