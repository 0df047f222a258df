"""What a detector is meant to reach, and whether an evaluation reached it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astrid_pipeline.learning import kinds
from astrid_pipeline.learning.evaluate import Evaluation
from astrid_pipeline.learning.metrics import Value


@dataclass(frozen=True)
class Goal:
    """One figure that is asked for.

    Attributes
    ----------
    name, text:
        Short, and in words.
    wanted:
        The bound.
    least:
        Whether more is better.
    of:
        The figure of an evaluation.
    """

    name: str
    text: str
    wanted: float
    least: bool
    of: Callable[[Evaluation], Value]

    def reached(self, evaluation: Evaluation) -> bool:
        """Tell whether the measured value is on the right side; what could not be measured is not."""
        value = self.of(evaluation).value
        return bool(np.isfinite(value) and (value >= self.wanted if self.least else value <= self.wanted))

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"{'≥' if self.least else '≤'} {self.wanted:g}"


def _worst_artefact(evaluation: Evaluation) -> Value:
    table = evaluation.artefacts
    if not len(table):
        return Value(float("nan"))
    worst = table.iloc[int(table["rejected"].to_numpy(float).argmin())]
    return Value(float(worst["rejected"]), float(worst["low"]), float(worst["high"]))


#: From the field's requirements: Rubin asks for 95 % purity and 90 % completeness at S/N 6; surveys that people read
#: live from fewer than one false alarm an image and from scores that mean what they say.
GOALS: tuple[Goal, ...] = (
    Goal("ap", "average precision", 0.975, True, lambda e: e.best["ap"]),
    Goal(
        "recall_at_precision_95",
        "recall where 95 % are real",
        0.95,
        True,
        lambda e: e.best["recall_at_precision_95"],
    ),
    Goal("snr_half", "S/N at which half are found", 5.5, False, lambda e: Value(e.snr_half)),
    Goal(
        "false_per_mpix_at_recall_90",
        "false alarms a megapixel where 90 % are found",
        0.1,
        False,
        lambda e: e.best["false_per_mpix_at_recall_90"],
    ),
    Goal("artefacts", "rejected of the artefact that passes most often", 0.995, True, _worst_artefact),
    Goal("ece", "calibration error of scores over 0.1", 0.02, False, lambda e: Value(e.ece)),
    Goal(
        "position_over_bound",
        "position error of points over its bound",
        1.15,
        False,
        lambda e: e.best["position_over_bound"],
    ),
    Goal("iou", "overlap of the masks (IoU)", 0.6, True, lambda e: Value(e.iou)),
    Goal(
        "types",
        "point, trail or artefact told right",
        0.96,
        True,
        lambda e: Value(kinds.share_right(e.types)),
    ),
    Goal(
        "looking_load",
        "share of the candidates to look at, 1 % lost, one change a megapixel",
        0.1,
        False,
        lambda e: Value(float(e.sparse["looking_load"])),
    ),
)
