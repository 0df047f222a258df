"""A canary: simulated skies that are the same for ever, in which a detector has to find what it found when it was made.

What it finds there is noted among its facts, and asked for whenever a changed machine, library or file is feared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astrid_pipeline.learning.detector import Detector

_CANARY_SEED, _CANARY_IMAGES, _CANARY_SHAPE = 20_261_128, 2, (256, 256)
#: Scores of the canary may differ so much between processors and precisions (bfloat16 has three digits).
CANARY_TOLERANCE = 0.05


@dataclass(frozen=True)
class Canary:
    """What a detector finds in the canary's skies.

    Attributes
    ----------
    scores:
        Of each true change of S/N ≥ 6 on usable pixels, the surest detection's there; 0 where there is none.
    false:
        Detections where nothing changed.
    """

    scores: tuple[float, ...]
    false: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a model's facts."""
        return {"scores": [round(score, 4) for score in self.scores], "false": self.false}


def canary(detector: Detector, *, device: str | None = None) -> Canary:
    """Return what a detector finds in two skies that are the same for ever (some seconds)."""
    from astrid_pipeline.learning.data import SURVEY_CHANGES, image_seed, simulate_difference
    from astrid_pipeline.learning.infer import detect
    from astrid_pipeline.learning.matching import FALSE, RIGHT, match

    scores: list[float] = []
    false = 0
    for number in range(_CANARY_IMAGES):
        sky = simulate_difference(
            image_seed(_CANARY_SEED, "canary", number), _CANARY_SHAPE, changes=6 * SURVEY_CHANGES
        )
        found = detect(sky.difference, sky.candidates, detector, device, passes=0)
        verdict, which = match(found, sky.truth, min_snr=6.0)
        asked = sky.truth[
            (sky.truth["label"] != "artefact") & sky.truth["usable"] & (sky.truth["snr"] >= 6.0)
        ]
        best = {
            int(w): float(s) for w, v, s in zip(which, verdict, found["score"], strict=True) if v == RIGHT
        }
        scores += [best.get(int(row), 0.0) for row in asked.index]
        false += int(((verdict == FALSE) & (found["score"] >= detector.threshold)).sum())
    return Canary(tuple(scores), false)


def canary_differs(seen: Canary, noted: Mapping[str, Any]) -> str | None:
    """Return in words how an answer differs from what was noted when the model was made; None where it does not.

    Scores may differ by `CANARY_TOLERANCE`; one of ten by more, since a peak near the edge of being one may fall either
    way.
    """
    before = np.asarray(noted.get("scores", ()), float)
    now = np.asarray(seen.scores, float)
    if before.shape != now.shape:
        return f"the canary holds {len(now)} changes, not the {len(before)} of before: the simulation has changed"
    off = np.abs(now - before) > CANARY_TOLERANCE
    if off.sum() > max(1, len(now) // 10):
        worst = int(np.abs(now - before).argmax())
        return (
            f"{int(off.sum())} of {len(now)} scores differ by more than {CANARY_TOLERANCE}, "
            f"one was {before[worst]:.2f} and is {now[worst]:.2f}"
        )
    if abs(seen.false - int(noted.get("false", 0))) > 2:
        return f"{seen.false} false detections, {noted.get('false')} before"
    return None
