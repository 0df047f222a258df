"""What a difference's numbers mean, in words: what is not as it should be, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: S_corr has unit variance where nothing changed. 5 % off at a threshold of 5 σ changes the number of noise peaks
#: by a factor of 3.5.
SCORE_SIGMA_TOLERANCE = 0.05
#: From 0.3 px on, the dipoles of ordinary stars pass 5 σ.
REGISTRATION_LIMIT_PX = 0.3
#: Below this share of common sky, a search says little about the frame.
COVERAGE_MINIMUM = 0.85
#: More saturated pixels than this: exposed too long, or the Moon.
SATURATED_LIMIT = 0.02
#: A rescaled score means that the noise model missed something; 10 % is worth a word.
_RAW_SIGMA_TOLERANCE = 0.10
#: Of the flux ratio, relative: a star of S/N 100 that is scaled wrongly by this much leaves a residual of 5 σ.
_FLUX_SCALE_TOLERANCE = 0.05
#: Fewer stars than this leave the PSF to the noise.
_FEW_STARS = 10


@dataclass(frozen=True)
class Remark:
    """One thing worth knowing: `level` is ``warning`` (results suffer) or ``note`` (only to know)."""

    level: str
    about: str
    text: str


def number(meta: Mapping[str, Any], key: str) -> float | None:
    """Return `meta[key]` as a finite float, else None."""
    try:
        value = float(meta.get(key))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def remarks(
    difference: Mapping[str, Any],
    science: Mapping[str, Any],
    reference: Mapping[str, Any],
    *,
    has_wcs: bool = True,
) -> list[Remark]:
    """Return what a reader of the results should know, warnings first.

    Parameters
    ----------
    difference, science, reference:
        `meta` of the difference and of the two frames it was made from (as calibrated).
    has_wcs:
        Whether positions on the sky are known.
    """
    found = [*_of_difference(difference), *_of_frame("science", science), *_of_frame("reference", reference)]
    if not has_wcs:
        found.append(
            Remark(
                "warning",
                "position",
                "The science frame has no WCS: positions are pixels only, ra and dec are empty.",
            )
        )
    if number(science, "zero_point") is None:
        unit = science.get("unit") or "the science frame's unit"
        found.append(
            Remark(
                "note",
                "zero point",
                f"The science frame has no photometric zero point: fluxes are in {unit}, without magnitudes.",
            )
        )
    if science.get("filter") and reference.get("filter") and science["filter"] != reference["filter"]:
        found.append(
            Remark(
                "warning",
                "filter",
                f"The filters differ ({science['filter']} and {reference['filter']}): stars of other colours than the "
                "average leave residuals.",
            )
        )
    return sorted(found, key=lambda remark: remark.level != "warning")


def _of_difference(meta: Mapping[str, Any]) -> list[Remark]:
    found = []
    sigma, raw = number(meta, "score_sigma"), number(meta, "score_sigma_raw")
    if sigma is not None and abs(sigma - 1) > SCORE_SIGMA_TOLERANCE:
        found.append(
            Remark(
                "warning",
                "score noise",
                f"The score's noise is {sigma:.3f} where nothing changed, not 1: S/N values are off by that factor. "
                "Check the gain and the read noise in the header.",
            )
        )
    elif raw is not None and abs(raw - 1) > _RAW_SIGMA_TOLERANCE:
        found.append(
            Remark(
                "note",
                "score noise",
                f"The score was rescaled on empty sky (its noise was {raw:.2f} before): pixels are correlated, or the "
                "gain in the header does not describe these data.",
            )
        )
    shifts = [value for key in ("dx_rms", "dy_rms") if (value := number(meta, key)) is not None]
    if shifts and max(shifts) > REGISTRATION_LIMIT_PX:
        found.append(
            Remark(
                "warning",
                "registration",
                f"The frames are registered to {max(shifts):.2f} px only (limit {REGISTRATION_LIMIT_PX}): expect "
                "false pairs of bright and dark at stars.",
            )
        )
    ratio, error = number(meta, "flux_ratio"), number(meta, "flux_ratio_error")
    if ratio and error is not None and error / abs(ratio) > _FLUX_SCALE_TOLERANCE:
        share, used = error / abs(ratio), number(meta, "n_matched") or 0
        found.append(
            Remark(
                "warning",
                "flux scale",
                f"The frames' flux ratio is known to {share:.0%} only, from {used:.0f} sources in common: stars "
                f"over an S/N of {5 / share:.0f} may be left as false changes. Use frames with more stars in "
                "common, or mask what is no star (satellites, blooming).",
            )
        )
    coverage = number(meta, "coverage")
    if coverage is not None and coverage < COVERAGE_MINIMUM:
        found.append(
            Remark(
                "warning",
                "coverage",
                f"The reference covers {coverage:.0%} of the science frame; nothing is found elsewhere.",
            )
        )
    return found


def _of_frame(name: str, meta: Mapping[str, Any]) -> list[Remark]:
    found = []
    saturated = number(meta, "saturated_fraction")
    if saturated is not None and saturated > SATURATED_LIMIT:
        found.append(
            Remark(
                "warning",
                "saturation",
                f"{saturated:.1%} of the {name} frame is saturated and was not searched.",
            )
        )
    stars = number(meta, "n_stars")
    if stars is not None and stars < _FEW_STARS:
        found.append(
            Remark(
                "note",
                "psf",
                f"The {name} frame's PSF comes from {stars:.0f} stars: bright sources may leave residuals.",
            )
        )
    source = str(meta.get("gain_source") or "")
    # The header's gain, that of data in electrons, and that of the masters are what was told; others were inferred.
    if source and source.split()[0].rstrip(":,") not in ("header", "unit", "masters", "flats", "flat"):
        found.append(Remark("note", "gain", f"The {name} frame's gain is not its header's but the {source}."))
    if meta.get("bayer"):
        found.append(
            Remark(
                "warning",
                "bayer",
                f"The {name} frame has a colour (Bayer) matrix: its pixels do not share one filter.",
            )
        )
    return found
