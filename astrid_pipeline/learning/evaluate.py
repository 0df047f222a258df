"""How good a detector is, on images it has never seen, beside the baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from astrid_pipeline.learning import kinds
from astrid_pipeline.learning.calibration import expected_calibration_error, reliability, shift_prior
from astrid_pipeline.learning.channels import unsqueeze_score
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.energy import EnergyMeter
from astrid_pipeline.learning.infer import peak_table
from astrid_pipeline.learning.masks import Overlap, overlap
from astrid_pipeline.learning.matching import NEITHER, RIGHT, average_precision
from astrid_pipeline.learning.metrics import (
    ECE_FLOOR,
    MIN_SNR,
    RESAMPLES,
    SNR_EDGES,
    Judged,
    Value,
    figures_of,
    judge,
    recall_by_snr,
    snr_at_half,
)
from astrid_pipeline.learning.network import describe_device, predict
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.targets import UNUSABLE_BIT
from astrid_pipeline.learning.unet import CLASSES

#: Methods as reports call them.
METHODS: Mapping[str, str] = {
    "score_5_sigma": "|S_corr| > 5",
    "isolation": "Isolation Forest, fitted to real ones",
    "one_class": "One-Class SVM, fitted to real ones",
    "unet": "network alone, calibrated",
    "real_bogus": "boosted trees on features and network",
    "ensemble": "ensemble (the detector)",
}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes
    ----------
    figures:
        By method (`score_5_sigma`, `isolation`, `one_class`, `unet`, `real_bogus`, `ensemble`) the figures of
        `metrics.figures_of`, for truth of S/N ≥ `min_snr`.
    recall:
        Recall by S/N of the detector, at its threshold.
    snr_half:
        S/N at which half is found.
    ece:
        Expected calibration error of scores over `ECE_FLOOR`, truth of any S/N ≥ 4 being real.
    reliability:
        (bins, 3): mean score, share real, count.
    iou:
        Of the masks of detections at the threshold, with the changes of S/N ≥ 4 (`masks.overlap`).
    network_iou:
        Of all that the network marks, over all pixels, with all that is true, however faint.
    by_class:
        `kinds.recall_by_class`, at the threshold.
    classes:
        Confusion: rows the true class, columns the detected, detections at the threshold.
    types:
        The same of what one epoch can tell, `kinds.types`: point, trail or artefact.
    artefacts:
        By artefact, `kinds.artefacts`: how many there were on usable pixels, and how many were taken for real.
    ranks:
        `kinds.recall_at_rank`.
    looking_load:
        Share of the candidates to be looked at if 1 % of what was found may be lost.
    sparse:
        Figures where there is one true change a megapixel: ``ap``, ``looking_load``, and ``ece`` with the scores
        brought to that rate.
    images, megapixels, truths:
        What it was measured on.
    seconds_per_mpix, joules_per_mpix, energy_source:
        Of the network and second stage.
    threshold, min_snr, device, model:
        Of the detector.
    """

    figures: dict[str, dict[str, Value]]
    recall: pd.DataFrame
    snr_half: float
    ece: float
    reliability: pd.DataFrame
    iou: float
    network_iou: float
    by_class: pd.DataFrame
    classes: pd.DataFrame
    types: pd.DataFrame
    artefacts: pd.DataFrame
    ranks: pd.DataFrame
    looking_load: float
    sparse: Mapping[str, float]
    images: int
    megapixels: float
    truths: int
    seconds_per_mpix: float
    joules_per_mpix: float
    energy_source: str
    threshold: float
    min_snr: float
    device: str
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Value]:
        """The figures of the detector itself."""
        return self.figures["ensemble" if "ensemble" in self.figures else "unet"]

    def table(self) -> pd.DataFrame:
        """Return one row a method, figures and intervals as text."""
        rows = {name: {k: str(v) for k, v in each.items()} for name, each in self.figures.items()}
        return pd.DataFrame(rows).T.rename_axis("method").reset_index()

    def flat(self) -> dict[str, float]:
        """Return plain numbers, for a tracker."""
        out = {name: value.value for name, value in self.best.items()}
        out |= {f"{name}_low": value.low for name, value in self.best.items()}
        out |= {f"{name}_high": value.high for name, value in self.best.items()}
        more = [
            "snr_half",
            "ece",
            "iou",
            "network_iou",
            "megapixels",
            "seconds_per_mpix",
            "joules_per_mpix",
            "threshold",
        ]
        more += ["looking_load"]
        out |= {name: float(getattr(self, name)) for name in more}
        out |= {f"sparse_{name}": value for name, value in self.sparse.items()}
        out["type_right"] = kinds.share_right(self.types)
        out |= dict(zip("rejected." + self.artefacts["kind"], self.artefacts["rejected"], strict=True))
        bins = self.recall[["snr_low", "snr_high", "recall"]].to_numpy(float)
        out |= {f"recall_snr_{low:g}_{high:g}": recall for low, high, recall in bins}
        for method, each in self.figures.items():
            out |= {
                f"{method}.{name}": each[name].value
                for name in ("ap", "precision", "recall", "false_per_mpix")
            }
        return {name: value for name, value in out.items() if np.isfinite(value)}


def score_shards(
    detector: Detector, shards: ShardSet, *, device: str | torch.device | None = None
) -> tuple[pd.DataFrame, Overlap]:
    """Return every peak of every image with its scores and class, and how the masks overlap.

    Positions are those that `infer.detect` would give: the candidate's, or the peak's where there is none.
    """
    tables = []
    covered = Overlap()
    for index in range(len(shards)):
        planes, labels = shards.planes(index), np.asarray(shards.labels(index))
        probability = predict(detector.inference_network, planes, device=device)
        candidates = shards.candidates_of(index).drop(columns="image_id")
        bad = (labels & UNUSABLE_BIT) != 0
        table = peak_table(probability, bad, unsqueeze_score(planes[3]), candidates, detector.peak_threshold)
        table = pd.concat([table, detector.score(table)], axis=1)
        own = (table["candidate"] >= 0).to_numpy()
        table["x"] = np.where(own, table["x"].astype(float), table["peak_x"])
        table["y"] = np.where(own, table["y"].astype(float), table["peak_y"])
        table["class"] = (
            [CLASSES[c] for c in detector.class_shares(table).argmax(axis=1)] if len(table) else []
        )
        table["image_id"] = shards.image_id(index)
        tables.append(table)
        covered += overlap(
            probability[-1], labels, shards.truth_of(index), table[table["score"] >= detector.threshold]
        )
    filled = [t for t in tables if len(t)] or tables[:1]
    return pd.concat(filled, ignore_index=True), covered


def evaluate(
    detector: Detector,
    shards: ShardSet,
    *,
    min_snr: float = MIN_SNR,
    device: str | torch.device | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    spoiled: ShardSet | None = None,
) -> Evaluation:
    """Measure a detector and the baselines on one set of images.

    With `spoiled`, images full of artefacts (`data.build_shards`), what artefacts pass for real is counted there: in
    images as they come, masks leave too few of most kinds.

    The baseline ``score_5_sigma`` takes every candidate (|S_corr| > 5) for real, ranked by |S_corr|; the classical
    detectors rank the same candidates by how like a real change they are, kept where that is more likely than not.
    """
    with EnergyMeter() as meter:
        began = time.perf_counter()
        peaks, covered = score_shards(detector, shards, device=device)
        spent = time.perf_counter() - began
    size = shards.shape[0] * shards.shape[1] * 1e-6
    area = pd.Series(
        shards.images["usable_fraction"].to_numpy(float) * size, index=shards.images["image_id"].astype(str)
    )
    figures: dict[str, dict[str, Value]] = {}
    for name, (found, least) in _methods(detector, shards, peaks).items():
        judged = judge(found, shards.truth, area, min_snr=min_snr)
        figures[name] = figures_of(judged, least, seed=seed, resamples=resamples)
    low = judge(peaks, shards.truth, area, min_snr=SNR_EDGES[0])
    # Calibration was fitted with truth of S/N ≥ 4 as real and fainter counting neither way.
    four = judge(peaks, shards.truth, area, min_snr=4.0)
    counted = four.table[(four.table["verdict"] != NEITHER) & (four.table["score"] > ECE_FLOOR)]
    real = (counted["verdict"] == RIGHT).to_numpy()
    pixels = len(shards) * size
    asked = judge(peaks, shards.truth, area, min_snr=min_snr)
    place = shards.candidates[["image_id", "x", "y"]].assign(score=shards.candidates["peak_score"].abs())
    judged_candidates = judge(place, shards.truth, area, min_snr=0.0)
    # Skies of one change a megapixel have so many times the changes of these.
    rate = float(area.sum()) / max(len(low.truth), 1)
    return Evaluation(
        figures=figures,
        recall=recall_by_snr(low, detector.threshold),
        snr_half=snr_at_half(low, detector.threshold),
        ece=expected_calibration_error(counted["score"], real),
        reliability=pd.DataFrame(
            reliability(counted["score"], real), columns=["score", "share_real", "count"]
        ),
        iou=covered.iou,
        network_iou=covered.network_iou,
        by_class=kinds.recall_by_class(asked, detector.threshold),
        classes=kinds.classes(low, detector.threshold),
        types=kinds.types(asked, judged_candidates, detector.threshold),
        artefacts=_artefacts(detector, spoiled, device)
        if spoiled is not None
        else kinds.artefacts(low, shards.truth, detector.threshold),
        ranks=kinds.recall_at_rank(asked),
        looking_load=kinds.looking_load(asked, judged_candidates),
        sparse={
            **_sparse(asked, four, rate),
            "looking_load": kinds.looking_load(asked, judged_candidates, real_weight=rate),
        },
        images=len(shards),
        megapixels=float(area.sum()),
        truths=int((low.truth["snr"] >= min_snr).sum()),
        seconds_per_mpix=spent / pixels,
        joules_per_mpix=meter.joules / pixels,
        energy_source=meter.source,
        threshold=detector.threshold,
        min_snr=min_snr,
        device=describe_device(device),
        model={"name": detector.name, "version": detector.version, "data_hash": shards.hash},
    )


def _artefacts(detector: Detector, shards: ShardSet, device: str | torch.device | None) -> pd.DataFrame:
    peaks, _ = score_shards(detector, shards, device=device)
    area = pd.Series(1.0, index=shards.images["image_id"].astype(str))
    return kinds.artefacts(judge(peaks, shards.truth, area, min_snr=0.0), shards.truth, detector.threshold)


def _sparse(asked: Judged, four: Judged, rate: float) -> dict[str, float]:
    table, clear = asked.table, four.table[four.table["verdict"] != NEITHER]
    score = shift_prior(clear["score"], rate)
    shown = score > ECE_FLOOR
    real = (clear["verdict"] == RIGHT).to_numpy()[shown]
    weights = np.where(real, rate, 1.0)
    wanted = int(asked.wanted.sum())
    return {
        "ap": average_precision(table["score"], table["verdict"], wanted, real_weight=rate),
        "ece": expected_calibration_error(score[shown], real, weights=weights),
    }


def _methods(
    detector: Detector, shards: ShardSet, peaks: pd.DataFrame
) -> dict[str, tuple[pd.DataFrame, float]]:
    """Return, by method, its detections (image_id, x, y, score) and the score from which they count."""
    candidates = shards.candidates
    base = candidates[["image_id", "x", "y"]]
    methods = {"score_5_sigma": (base.assign(score=candidates["peak_score"].abs()), 5.0)}
    if detector.classical is not None:
        # 0.5 is Liu et al.'s own boundary of an ordinary row, 0 the SVM's.
        methods["isolation"] = (base.assign(score=-detector.classical.isolation(candidates)), -0.5)
        methods["one_class"] = (base.assign(score=-detector.classical.one_class(candidates)), 0.0)
    place = peaks[["image_id", "x", "y"]]
    methods["unet"] = (place.assign(score=peaks["unet_score"]), detector.threshold)
    if detector.real_bogus is not None:
        methods["real_bogus"] = (place.assign(score=peaks["real_bogus"]), detector.threshold)
    if detector.ensemble is not None:
        methods["ensemble"] = (place.assign(score=peaks["score"]), detector.threshold)
    return methods
