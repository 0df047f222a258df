"""Whether a training dataset is fit to learn from: checks that can fail, each with its figure and its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.night.data_quality import image_quality

__all__ = ["Check", "as_rows", "checks", "image_quality", "night_of", "refused"]

#: A classifier of a few thousand weights learns nothing from fewer.
LEAST_SAMPLES = 20
#: Outside, one class teaches nothing.
RATIO = (0.1, 0.9)
LEAST_IMAGE_QUALITY = 0.7
#: Below, two people agree little better than by chance ("fair", Landis & Koch 1977).
LEAST_KAPPA = 0.4
#: Nights without which nothing can be held out by night: one each to learn from, to choose by, to test on.
LEAST_NIGHTS = 3
#: Spread over fewer nights, weighed by their samples, most of what is learned is the weather of one.
LEAST_SPREAD = 2.0


@dataclass(frozen=True)
class Check:
    """One check: its figure, whether it passed, what it asks, and whether a dataset that fails it is refused."""

    name: str
    value: float | None
    passed: bool
    asks: str
    refuses: bool = True


def night_of(samples: pd.DataFrame) -> pd.Series:
    """Return the field and night of each sample: what is observed under one sky."""
    return samples["field"].astype(str) + "|" + samples["night"].astype(str)


def checks(
    samples: pd.DataFrame, kappa: float | None, shared: int, surveys: Iterable[Any] | None = None
) -> list[Check]:
    """Return the checks of a table of samples.

    Parameters
    ----------
    samples:
        is_anomaly, quality, object, sha256, split, night, field, survey_id.
    kappa, shared:
        Agreement between people over sources that two or more voted on, and their number.
    surveys:
        Surveys that were asked for, or that have something in the window; None for those of the samples.
    """
    n = len(samples)
    ratio = float(samples["is_anomaly"].mean()) if n else None
    quality = float(samples["quality"].mean()) if n and samples["quality"].notna().any() else None
    nights = night_of(samples) if n else pd.Series(dtype=object)
    by_night = bool(nights.nunique() >= LEAST_NIGHTS)
    torn = _across(samples.assign(of=nights), "of") if n else 0
    doubled = _across(samples, "sha256") + _across(samples, "object")
    covered, asked = _coverage(samples, surveys)
    spread = _effective_number(nights)
    thin = _splits_without_both(samples)
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
        Check(
            "duplicates across splits", float(doubled), doubled == 0, "no pixels and no object in two splits"
        ),
        Check(
            "nights across splits",
            float(torn),
            not by_night or torn == 0,
            f"none, where there are {LEAST_NIGHTS} nights or more",
        ),
        Check(
            "temporal distribution",
            spread,
            spread is not None and spread >= LEAST_SPREAD,
            f"as if evenly from {LEAST_SPREAD:g} nights or more",
            refuses=False,
        ),
        Check(
            "survey coverage", covered, covered is not None and covered >= 1, f"all of {asked} surveys", False
        ),
        Check("splits without both classes", float(thin), thin == 0, "none of train, valid, test", False),
    ]


def _across(samples: pd.DataFrame, name: str) -> int:
    """Return how many values of a column are in more than one split."""
    return (
        int((samples.dropna(subset=[name]).groupby(name)["split"].nunique() > 1).sum()) if len(samples) else 0
    )


def _effective_number(values: pd.Series) -> float | None:
    """Return exp of the entropy of the values' shares: how many equal ones would be spread as widely."""
    if not len(values):
        return None
    shares = values.value_counts(normalize=True).to_numpy(float)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _coverage(samples: pd.DataFrame, surveys: Iterable[Any] | None) -> tuple[float | None, int]:
    have = set(samples["survey_id"].dropna().astype(int)) if len(samples) else set()
    asked = have if surveys is None else {int(survey) for survey in surveys}
    return (len(have & asked) / len(asked) if asked else None), len(asked)


def _splits_without_both(samples: pd.DataFrame) -> int:
    if not len(samples):
        return 3
    both = samples.groupby("split")["is_anomaly"].nunique()
    return sum(int(both.get(name, 0)) < 2 for name in ("train", "valid", "test"))


def refused(found: Iterable[Check]) -> list[Check]:
    """Return the failed checks for which a dataset is refused."""
    return [check for check in found if check.refuses and not check.passed]


def as_rows(found: Iterable[Check]) -> list[dict[str, Any]]:
    """Return checks as plain rows."""
    return [asdict(check) for check in found]
