"""What must be true of a night's products. A product that fails is kept and said to be bad, never hidden.

The checks run in the step that makes the product, while it is in memory; reading a night of frames back
from the store only to look at them again would double its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from astrid_pipeline.night.outcome import Outcome

#: S_corr has unit variance where nothing changed. 5 % off at a threshold of 5 σ changes the number of noise
#: peaks by a factor of 3.5: more, and a night's candidates cannot be compared with another's.
SCORE_SIGMA_TOLERANCE = 0.05
#: From 0.3 px on, the dipoles of ordinary stars pass 5 σ (0.25 px costs 72 false positives a megapixel in D).
REGISTRATION_LIMIT_PX = 0.3
#: Below this share, a night's search says little about its field.
COVERAGE_MINIMUM = 0.85
#: A frame with more saturated or bled pixels than this was exposed too long or looked at the Moon.
SATURATED_LIMIT = 0.02

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def _spec(asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name=name, asset=asset, description=description)


OBSERVATIONS = [
    _spec("observations", "night_not_empty", "The archive has exposures of this field in this night."),
    _spec("observations", "files_readable", "Every file of the night could be fetched and read."),
]
CALIBRATED_FRAMES = [
    _spec("calibrated_frames", "all_calibrated", "Every usable exposure became a calibrated frame."),
    _spec(
        "calibrated_frames", "not_saturated", f"At most {SATURATED_LIMIT:.0%} of the pixels are saturated."
    ),
]
REFERENCE_IMAGES = [
    _spec("reference_images", "has_reference", "There is a reference in every filter that was observed."),
    _spec(
        "reference_images", "coverage", f"Each reference covers at least {COVERAGE_MINIMUM:.0%} of its grid."
    ),
]
DIFFERENCE_IMAGES = [
    _spec("difference_images", "all_differenced", "Every calibrated frame became a difference image."),
    _spec(
        "difference_images",
        "score_noise",
        f"σ of the score is 1 ± {SCORE_SIGMA_TOLERANCE} where nothing changed.",
    ),
    _spec(
        "difference_images",
        "registration",
        f"Registration residual at most {REGISTRATION_LIMIT_PX} px an axis.",
    ),
    _spec(
        "difference_images",
        "reference_coverage",
        f"The reference covers {COVERAGE_MINIMUM:.0%} of each frame.",
    ),
]

DETECTIONS = [
    _spec(
        "detections",
        "like_the_training",
        "Features, scores, seeing, noise and match lie where those of the champion's training images do.",
    ),
]


def _result(
    name: str, bad: Mapping[str, Any], severity: dg.AssetCheckSeverity, remedy: str, **metadata: Any
) -> dg.AssetCheckResult:
    """Pass where nothing is `bad`; else name each exposure and its value, and what to do."""
    text = "; ".join(f"{key}: {value}" for key, value in bad.items())
    return dg.AssetCheckResult(
        check_name=name,
        passed=not bad,
        severity=severity,
        description=f"{text} — {remedy}" if bad else None,
        metadata={**metadata, **({"exposures": ", ".join(bad)} if bad else {})},
    )


def check_observations(table: pd.DataFrame) -> Iterable[dg.AssetCheckResult]:
    """Return the checks of `observations`."""
    yield dg.AssetCheckResult(
        check_name="night_not_empty",
        passed=bool(len(table)),
        severity=WARN,
        description=None if len(table) else "the archive has no exposure of this field in this night",
        metadata={"exposures": len(table)},
    )
    bad = table[table.problem.notna()]
    yield _result(
        "files_readable",
        dict(zip(bad.exposure_id, bad.problem, strict=True)),
        ERROR,
        "mend or remove the files; the others were taken",
    )


def _made(name: str, outcome: Outcome[Any]) -> dg.AssetCheckResult:
    return _result(
        name, {p.exposure_id: p.what for p in outcome.problems}, ERROR, "the other exposures were made"
    )


def check_calibrated(outcome: Outcome[Any]) -> Iterable[dg.AssetCheckResult]:
    """Return the checks of `calibrated_frames`."""
    yield _made("all_calibrated", outcome)
    share = {k: float(m.get("saturated_fraction") or 0.0) for k, m in outcome.metas.items()}
    yield _result(
        "not_saturated",
        {k: f"{v:.1%} saturated" for k, v in share.items() if v > SATURATED_LIMIT},
        ERROR,
        "expose shorter, or check the saturation level in the header",
        largest=max(share.values(), default=0.0),
    )


def check_references(outcome: Outcome[Any], filters: Iterable[str]) -> Iterable[dg.AssetCheckResult]:
    """Return the checks of `reference_images`; `filters` are those with calibrated frames."""
    have = {str(m["filter"]) for m in outcome.metas.values()}
    missing = sorted(set(filters) - have)
    # A reference that was tried and failed says why; one that was not tried has too few frames.
    reasons = {
        name: next((p.what for p in outcome.problems if f"_{name}_" in p.exposure_id), "too few frames")
        for name in missing
    }
    yield _result(
        "has_reference",
        reasons,
        WARN,
        "calibrate more nights, at least three frames an instrument and filter, or name a survey in the field's "
        "reference policy",
    )
    share = {k: float(m.get("coverage", 1.0)) for k, m in outcome.metas.items()}
    yield _result(
        "coverage",
        {k: f"covers {v:.0%}" for k, v in share.items() if v < COVERAGE_MINIMUM},
        ERROR,
        "add frames that cover the rest of the field",
    )


def check_differences(outcome: Outcome[Any]) -> Iterable[dg.AssetCheckResult]:
    """Return the checks of `difference_images`."""
    yield _made("all_differenced", outcome)
    metas = outcome.metas
    sigma = {k: float(m.get("score_sigma", np.nan)) for k, m in metas.items()}
    # `not (… <= …)` lets NaN fail: a noise that could not be measured is not a good noise.
    yield _result(
        "score_noise",
        {k: f"σ = {v:.3f}" for k, v in sigma.items() if not abs(v - 1) <= SCORE_SIGMA_TOLERANCE},
        ERROR,
        "look at gain and read noise of the frame, and at its registration",
        worst=_extreme(sigma),
    )
    residual = {
        k: max(float(m.get("dx_rms", np.nan)), float(m.get("dy_rms", np.nan))) for k, m in metas.items()
    }
    yield _result(
        "registration",
        {
            k: f"{v:.2f} px" if np.isfinite(v) else "not measured"
            for k, v in residual.items()
            if not v <= REGISTRATION_LIMIT_PX
        },
        # Without stars in common, or on one grid, the score alone tells whether the WCS was right.
        ERROR if any(v > REGISTRATION_LIMIT_PX for v in residual.values()) else WARN,
        "check the WCS, and whether the field has stars in common with its reference",
        unmeasured=sum(not np.isfinite(v) for v in residual.values()),
    )
    coverage = {k: float(m.get("coverage", np.nan)) for k, m in metas.items()}
    yield _result(
        "reference_coverage",
        {k: f"covers {v:.0%}" for k, v in coverage.items() if not v >= COVERAGE_MINIMUM},
        ERROR,
        "the exposure points elsewhere than its reference; add frames there",
    )


def _extreme(values: Mapping[str, float]) -> float | str:
    finite = [v for v in values.values() if np.isfinite(v)]
    return max(finite, key=lambda v: abs(v - 1)) if finite else "unknown"


def check_detections(drift: pd.DataFrame) -> Iterable[dg.AssetCheckResult]:
    """Return the check of `detections`: how far the night is from the training, as `learning.drift.compare`."""
    from astrid_pipeline.assets.common import preview
    from astrid_pipeline.night.drift import said

    text = said(drift)
    yield dg.AssetCheckResult(
        check_name="like_the_training",
        passed=not text,
        severity=WARN,
        description=f"{text} — look at the night; if it lasts, train on this survey's own nights"
        if text
        else None,
        metadata={
            "compared": len(drift),
            "drifted": int(drift["drifted"].sum()) if len(drift) else 0,
            "table": preview(drift, list(drift.columns), rows=40),
        },
    )
