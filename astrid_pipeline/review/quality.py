"""Whether a training dataset is fit to learn from: checks that can fail, each with its figure and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

#: A classifier of a few thousand weights learns nothing from fewer.
LEAST_SAMPLES = 20
#: Outside, one class teaches nothing.
RATIO = (0.1, 0.9)
LEAST_IMAGE_QUALITY = 0.7
#: Below, two people agree little better than by chance ("fair", Landis & Koch 1977).
LEAST_KAPPA = 0.4
#: A score whose noise is off by this much loses 1/e of its worth; 5 % is where a night's check fails.
SCORE_SCALE = 0.1


@dataclass(frozen=True)
class Check:
    """One check: its figure, whether it passed, what it asks."""

    name: str
    value: float | None
    passed: bool
    asks: str


def image_quality(exposures: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return a score in 0-1 for each exposure: 1 at the best decile of its field and filter.

    The geometric mean of: the best decile of seeing over the seeing, the same of the sky's noise (both at most 1), the
    share of usable pixels, and exp(-|σ(score) - 1| / 0.1).

    Parameters
    ----------
    exposures:
        field, filter, seeing (px), noise, masked_fraction, score_sigma.
    """
    parts = []
    for name in ("seeing", "noise"):
        best = exposures.groupby(["field", "filter"], dropna=False)[name].transform(lambda v: v.quantile(0.1))
        parts.append(np.minimum(1.0, (best / exposures[name]).to_numpy(float)))
    parts.append(1.0 - exposures["masked_fraction"].to_numpy(float))
    parts.append(np.exp(-np.abs(exposures["score_sigma"].to_numpy(float) - 1.0) / SCORE_SCALE))
    return np.asarray(np.prod(np.clip(np.stack(parts), 0.0, 1.0), axis=0) ** 0.25)


def checks(samples: pd.DataFrame, kappa: float | None, shared: int) -> list[Check]:
    """Return the checks of a table of samples.

    Parameters
    ----------
    samples:
        is_anomaly, quality, object, sha256, split, night, field.
    kappa, shared:
        Agreement between people over sources that two or more voted on, and their number.
    """
    n = len(samples)
    ratio = float(samples["is_anomaly"].mean()) if n else None
    quality = float(samples["quality"].mean()) if n else None
    across = samples.groupby("sha256")["split"].nunique()
    objects = samples.dropna(subset=["object"]).groupby("object")["split"].nunique()
    doubled = int((across > 1).sum() + (objects > 1).sum())
    nights = samples["night"].nunique() if n else 0
    return [
        Check("total", n, n >= LEAST_SAMPLES, f"at least {LEAST_SAMPLES} samples"),
        Check(
            "anomaly ratio",
            ratio,
            ratio is not None and RATIO[0] <= ratio <= RATIO[1],
            f"within {RATIO[0]}-{RATIO[1]}",
        ),
        Check(
            "image quality",
            quality,
            quality is not None and quality >= LEAST_IMAGE_QUALITY,
            f"at least {LEAST_IMAGE_QUALITY}",
        ),
        # Where nobody looked twice there is nothing to fail on; the figure then says so by being absent.
        Check(
            "label agreement",
            kappa,
            kappa is None or kappa >= LEAST_KAPPA,
            f"Fleiss' kappa {LEAST_KAPPA} or more, over {shared} sources with two votes",
        ),
        Check("nights", float(nights), nights >= 1, "at least one night"),
        Check("fields", float(samples["field"].nunique() if n else 0), n > 0, "at least one field"),
        Check("duplicates across splits", float(doubled), doubled == 0, "none"),
    ]


def as_rows(found: list[Check]) -> list[dict[str, Any]]:
    """Return checks as plain rows."""
    return [{"name": c.name, "value": c.value, "passed": c.passed, "asks": c.asks} for c in found]
