"""Small labelled sets of simulated skies, as people's labels would make them: for notebooks and first tries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from astrid_pipeline.learning.channels import channels, unusable
from astrid_pipeline.learning.data import Simulated, simulate_difference, split_of
from astrid_pipeline.learning.infer import peak_table
from astrid_pipeline.learning.labelled import FACTS, IMAGES, MASKS, SAMPLES, LabelledStamps
from astrid_pipeline.learning.matching import NEITHER, RIGHT, match
from astrid_pipeline.learning.network import predict
from astrid_pipeline.night.stamps import cut, planes_of

if TYPE_CHECKING:
    from astrid_pipeline.learning.detector import Detector

#: As `review.collect` splits.
_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
#: A sky this wide takes a second or two.
_SHAPE = (320, 320)
#: Fainter true changes than this are neither real nor bogus: a person could not tell either.
_REAL_SNR = 4.0


def _skies(images: int, seed: int) -> Iterator[tuple[Simulated, pd.DataFrame]]:
    """Yield each sky with its candidates, labelled by the truth."""
    for number in range(images):
        sky = simulate_difference(1000 * seed + number, _SHAPE)
        table = sky.candidates.reset_index(drop=True)
        place = pd.DataFrame({"x": table["x"], "y": table["y"], "score": table["peak_score"].abs()})
        verdict, which = match(place, sky.truth, min_snr=_REAL_SNR)
        kinds = sky.truth["label"].reset_index(drop=True).reindex(which)
        piece = f"sky {number}"
        table = table.assign(
            field="simulated",
            night="2026-01-01",
            piece=piece,
            is_anomaly=verdict == RIGHT,
            anomaly_type=kinds.reset_index(drop=True).where(verdict == RIGHT, None),
            label_source="truth",
            split=split_of(piece, _SHARES, seed),
        )
        yield sky, table[verdict != NEITHER].reset_index(drop=True)


def simulated_stamps(folder: Path, *, images: int = 4, seed: int = 0) -> LabelledStamps:
    """Write a dataset of the candidates of some simulated skies, labelled by their truth, and open it.

    Parameters
    ----------
    folder:
        Gets the files that a collected dataset has.
    images:
        Skies of 320² pixels, each a piece of sky of its own.
    """
    tables, planes, masks = [], [], []
    for sky, table in _skies(images, seed):
        for x, y in table[["x", "y"]].to_numpy(float):
            planes.append(planes_of(sky.difference, x, y)[0])
            mask = cut(sky.difference.mask, x, y)
            masks.append(np.where(np.isfinite(mask), mask, 128).astype(np.int32))
        tables.append(table)
    samples = pd.concat(tables, ignore_index=True)
    samples.assign(row=np.arange(len(samples))).to_parquet(folder / SAMPLES, index=False)
    np.save(folder / IMAGES, np.stack(planes).astype(np.float32), allow_pickle=False)
    np.save(folder / MASKS, np.stack(masks), allow_pickle=False)
    (folder / FACTS).write_text(json.dumps({"name": "simulated", "skies": images, "seed": seed}))
    return LabelledStamps(folder)


def simulated_peaks(detector: Detector, *, images: int = 4, seed: int = 0) -> pd.DataFrame:
    """Return what a detector sees at the candidates of simulated skies, with their truth: is_anomaly, piece."""
    found = []
    for sky, table in _skies(images, seed):
        probability = predict(detector.inference_network, channels(sky.difference))
        candidates = sky.candidates.reset_index(drop=True)
        bad = unusable(sky.difference)
        peaks = peak_table(probability, bad, sky.difference.score, candidates, detector.peak_threshold)
        known = table[["candidate_id", "is_anomaly", "anomaly_type", "piece"]]
        found.append(peaks[peaks["candidate"] >= 0].merge(known, on="candidate_id"))
    return pd.concat(found, ignore_index=True)
