"""Labels of a collected dataset, as the peaks of the network that a second stage learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.learning.channels import channels, unusable
from astrid_pipeline.learning.infer import peak_table
from astrid_pipeline.learning.matching import MATCH_RADIUS, RIGHT
from astrid_pipeline.learning.metrics import wilson
from astrid_pipeline.learning.network import pick_device, predict
from astrid_pipeline.learning.second_stage import label_peaks
from astrid_pipeline.learning.shards import ShardSet

if TYPE_CHECKING:
    from astrid_pipeline.learning.detector import Detector
    from astrid_pipeline.resources.products import Products


@dataclass(frozen=True)
class LabelledPeaks:
    """What a detector sees where people have looked.

    Attributes
    ----------
    table:
        Peaks (`infer.peak_table`) with the detector's scores, and of the label: key, is_anomaly, anomaly_type, piece
        (of sky), weight.
    unseen:
        Labels at whose place the network has no peak: no second stage can be asked about them.
    """

    table: pd.DataFrame
    unseen: pd.DataFrame


def people_only(samples: pd.DataFrame) -> pd.DataFrame:
    """Return a dataset's samples that people labelled, with the `piece` of sky that each is of, and `weight` 1.

    What the model itself said with confidence fills a dataset up, but would only teach it what it knows.
    """
    mine = samples[samples["label_source"] == "human"].reset_index(drop=True)
    # Of no object: the HEALPix pixel of order 12 (52 arcsec), without a position the exposure.
    cells = [
        f"{field}:{exposure if hpx is None or hpx != hpx else int(hpx) >> 34}"
        for field, exposure, hpx in zip(
            mine["field"], mine["exposure_id"], mine["hpx29"].astype(object), strict=True
        )
    ]
    piece = mine["object"].where(mine["object"].notna(), pd.Series(cells, dtype=object))
    return mine.assign(piece=piece, weight=1.0)


def label_peaks_of(
    samples: pd.DataFrame,
    products: Products,
    detector: Detector,
    *,
    device: str | None = None,
    progress: Callable[[str], Any] | None = None,
) -> LabelledPeaks:
    """Return the peaks of a detector's network at labelled sources, measured as when it detects.

    Parameters
    ----------
    samples:
        key, field, night, exposure_id, candidate_id, x, y, is_anomaly, anomaly_type, piece, weight.
    products:
        Where the difference images and candidates are; a night that is gone leaves its labels out.

    Raises
    ------
    MissingProductError
        If none of the nights has its difference images any more.
    """
    where = pick_device(device)
    found: list[pd.DataFrame] = []
    unseen: list[pd.DataFrame] = []
    for (field, night), of_night in samples.groupby(["field", "night"], sort=True):
        try:
            frames = products.frames("difference_images", str(field), str(night))
            candidates = products.table("candidates", f"{field}|{night}")
        except MissingProductError:
            continue
        for exposure, mine in of_night.groupby("exposure_id", sort=True):
            if exposure not in frames:
                continue
            difference = frames[str(exposure)]
            own = candidates[candidates["exposure_id"] == exposure].reset_index(drop=True)
            probability = predict(detector.inference_network, channels(difference), device=where)
            table = peak_table(
                probability, unusable(difference), difference.score, own, detector.peak_threshold
            )
            table = pd.concat([table, detector.score(table)], axis=1)
            at = _rows_of(mine, table, own)
            known = mine[["key", "is_anomaly", "anomaly_type", "piece", "weight"]].reset_index(drop=True)
            seen = at >= 0
            found.append(
                pd.concat(
                    [table.iloc[at[seen]].reset_index(drop=True), known[seen].reset_index(drop=True)], axis=1
                )
            )
            unseen.append(mine[~seen])
            if progress is not None:
                progress(f"{exposure}: {int(seen.sum())} of {len(mine)} labels at a peak")
    if not found:
        raise MissingProductError(
            "no labelled source has its difference image any more",
            where="difference_images",
            remedy="make the labelled nights again",
        )
    return LabelledPeaks(pd.concat(found, ignore_index=True), pd.concat(unseen, ignore_index=True))


def _rows_of(labels: pd.DataFrame, table: pd.DataFrame, candidates: pd.DataFrame) -> np.ndarray:
    """Return for each label the row of its peak, or -1: that of its candidate, else the nearest within reach."""
    out = np.full(len(labels), -1, np.int64)
    if not len(table):
        return out
    names = candidates["candidate_id"].to_numpy(object)
    row_of = {str(names[c]): i for i, c in enumerate(table["candidate"].to_numpy()) if c >= 0}
    places = table[["peak_x", "peak_y"]].to_numpy(float)
    for i, (name, x, y) in enumerate(zip(labels["candidate_id"], labels["x"], labels["y"], strict=True)):
        if name in row_of:
            out[i] = row_of[name]
            continue
        away = np.hypot(places[:, 0] - x, places[:, 1] - y)
        nearest = int(away.argmin())
        if away[nearest] <= MATCH_RADIUS:
            out[i] = nearest
    return out


@dataclass(frozen=True)
class InjectionsKept:
    """How many of the nights' injections two detectors find, and whether the newer one still finds them."""

    truths: int
    before: int
    after: int

    @property
    def passed(self) -> bool:
        """Whether the newer one's recall is not below the older one's beyond the 95 % interval."""
        return not self.truths or wilson(self.after, self.truths)[1] >= self.before / self.truths

    def __str__(self) -> str:
        if not self.truths:
            return "no injections to compare on"
        word = "as before" if self.passed else "fewer than before"
        return f"{self.after} of {self.truths} injections found against {self.before}: {word}"


def injections_kept(
    challenger: Detector,
    champion: Detector,
    products: Products,
    *,
    nights: int = 20,
    device: str | None = None,
) -> InjectionsKept:
    """Return how many injections of the latest nights' samples each of two detectors with one network finds.

    Labels say how good a detector is on what was shown to people; injections, whether it goes on finding what nobody
    has seen yet.
    """
    keys = sorted(products.partitions("training_samples"), key=lambda key: key.rpartition("|")[2])[-nights:]
    truths = before = after = 0
    for key in keys:
        shards = ShardSet(products.folder("training_samples", key))
        peaks = label_peaks(champion.inference_network, shards, device=device)
        right = (peaks["verdict"] == RIGHT).to_numpy()
        truths += int(right.sum())
        before += int((champion.score(peaks)["score"].to_numpy()[right] >= champion.threshold).sum())
        after += int((challenger.score(peaks)["score"].to_numpy()[right] >= challenger.threshold).sum())
    return InjectionsKept(truths, before, after)
