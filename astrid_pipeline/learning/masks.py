"""Which pixels a detection covers, and how well they overlap with those that really changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.learning.matching import FALSE, NEITHER, RIGHT, distance, match
from astrid_pipeline.learning.peaks import MASK_LEVEL, marked_regions
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.targets import POSITIVE_SNR, SOURCE_BIT, UNUSABLE_BIT

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Intersection and union, in pixels, of predicted and true masks on usable pixels; they add up over images.

    Attributes
    ----------
    inside, union:
        Of the masks of detections (`mask_of`) with the changes that count.
    network_inside, network_union:
        Of all that the network marks with all that is true, however faint.
    """

    inside: int = 0
    union: int = 0
    network_inside: int = 0
    network_union: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.inside + other.inside,
            self.union + other.union,
            self.network_inside + other.network_inside,
            self.network_union + other.network_union,
        )

    @property
    def iou(self) -> float:
        """Intersection over union of the masks of detections; NaN where there is nothing."""
        return self.inside / self.union if self.union else float("nan")

    @property
    def network_iou(self) -> float:
        """The same of the network's mask as it is."""
        return self.network_inside / self.network_union if self.network_union else float("nan")


def mask_of(
    probability: npt.NDArray[np.float32], x: npt.ArrayLike, y: npt.ArrayLike
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the mask of detections, and which part of it is whose.

    The network marks pixels one by one, detections are judged with more: what it marks where nothing is detected is no
    change's mask. A detection's is the connected region (8 neighbours) over `MASK_LEVEL` that its peak lies in, or
    within 1 px of; two in one region share it.

    Parameters
    ----------
    probability:
        (H, W) of the mask head.
    x, y:
        (N,) pixels of the detections' peaks.

    Returns
    -------
    (H, W) int32:
        Number of the region, 0 outside.
    (N,) int64:
        Number of each detection's region, 0 where it has none.
    """
    regions, areas = marked_regions(probability)
    own = np.zeros(len(np.atleast_1d(np.asarray(x, float))), np.int64)
    height, width = probability.shape
    columns = np.clip(np.rint(np.atleast_1d(np.asarray(x, float))).astype(int), 0, width - 1)
    rows = np.clip(np.rint(np.atleast_1d(np.asarray(y, float))).astype(int), 0, height - 1)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        near = regions[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        own[i] = near.ravel()[areas[near].argmax()]
    kept = np.zeros(len(areas), np.int32)
    kept[own] = own
    kept[0] = 0
    return kept[regions], own


def overlap(
    probability: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    truth: pd.DataFrame,
    found: pd.DataFrame,
) -> Overlap:
    """Return how the masks of one image's detections overlap with the true ones.

    Changes of S/N under `POSITIVE_SNR`, and those whose pixel cannot be used, count neither way, as in training and
    wherever detections are judged: neither their own pixels nor the mask of a detection that lies on one of them.

    Parameters
    ----------
    probability:
        (H, W) of the mask head.
    labels:
        (H, W) bits of `targets`.
    truth:
        Columns of `shards.TRUTH`.
    found:
        Detections: peak_x, peak_y, x, y, score.
    """
    usable = (labels & UNUSABLE_BIT) == 0
    true = ((labels & SOURCE_BIT) != 0) & usable
    marked = (probability > MASK_LEVEL) & usable
    verdict, _ = match(found, truth, min_snr=POSITIVE_SNR)
    regions, own = mask_of(probability, found["peak_x"], found["peak_y"])
    sure = np.unique(own[(verdict == RIGHT) | (verdict == FALSE)])
    unsure = np.setdiff1d(own[verdict == NEITHER], sure)
    counts = usable & ~np.isin(regions, unsure[unsure > 0]) & ~(true & _of_unsure(true, truth))
    mine = (regions > 0) & counts
    asked = true & counts
    return Overlap(
        inside=int((mine & asked).sum()),
        union=int((mine | asked).sum()),
        network_inside=int((marked & true).sum()),
        network_union=int((marked | true).sum()),
    )


def _of_unsure(true: Bools, truth: pd.DataFrame) -> Bools:
    """Return (H, W) bool: the true pixels whose nearest change counts neither way."""
    out = np.zeros(true.shape, bool)
    real = truth[truth["label"].isin(CLASSES)]
    counts = ((real["snr"] >= POSITIVE_SNR) & real["usable"]).to_numpy(bool)
    if counts.all():
        return out
    rows, columns = np.nonzero(true)
    if len(rows):
        nearest = distance(columns, rows, real).argmin(axis=1)
        out[rows, columns] = ~counts[nearest]
    return out
