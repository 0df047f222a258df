"""Differencing and finding: calibrated frames and references in, differences, candidates and detections out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import SubtractionError
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.night.outcome import Outcome, for_each
from astrid_pipeline.night.references import choose_reference

Progress = Callable[[str], Any] | None

#: |S/N| from which a find is told, whoever found it: the candidates' own threshold. The network sees deeper, but
#: where pixels are correlated (resampled stacks) most of what it sees between 3 and 5 σ is noise.
MIN_SNR = 5.0


@dataclass(frozen=True)
class Pair:
    """A science frame and the reference that judges it."""

    science: Frame
    reference: Frame


def pair_up(
    frames: Mapping[str, Frame], references: Mapping[str, Frame], night: str
) -> dict[str, Callable[[], Pair]]:
    """Return for each exposure a function that loads its `Pair` when its turn comes.

    The function raises NoReferenceError where no reference holds.
    """
    metas = {key: meta_of(references, key) for key in references}

    def choose(exposure_id: str) -> Callable[[], Pair]:
        def job() -> Pair:
            frame = frames[exposure_id]
            instrument = str(frame.meta.get("instrument") or "")
            chosen = choose_reference(metas, str(frame.meta["filter"]), night, instrument)
            return Pair(frame, references[chosen])

        return job

    return {exposure_id: choose(exposure_id) for exposure_id in frames}


def meta_of(frames: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the meta of one of several frames, without reading pixels where they lie on disk."""
    stored = getattr(frames, "meta", None)
    return stored(key) if callable(stored) else frames[key].meta


def difference_one(
    science: Frame,
    reference: Frame,
    method: str = "zogy",
    *,
    change: Callable[[Frame], Frame] | None = None,
) -> tuple[Difference, Frame]:
    """Align the reference to the science frame and subtract; return the difference and the aligned reference.

    `change` is done to the reference in between: light put into it is what has faded since.

    Raises
    ------
    RegistrationError, SubtractionError, PSFError
        As `align` and `subtract` do.
    """
    from astrid_pipeline.imaging import align, subtract

    started = time.perf_counter()
    aligned = align(reference, to=science)
    aligned = aligned if change is None else change(aligned)
    middle = time.perf_counter()
    difference = subtract(science, aligned, method=method)
    if not np.isfinite(difference.score).all():
        lost = float(1 - np.isfinite(difference.score).mean())
        raise SubtractionError(
            f"{lost:.1%} of the score is not finite",
            where=science.name,
            remedy="report it with the two frames: this is a defect of the subtraction",
        )
    registration = {
        k: aligned.meta[k] for k in ("dx_rms", "dy_rms", "n_matched", "coverage") if k in aligned.meta
    }
    return difference.replace(
        meta={
            **registration,
            "reference_id": reference.meta.get("exposure_id"),
            **({"reference_caveats": reference.meta["caveats"]} if reference.meta.get("caveats") else {}),
            "pixels": int(difference.mask.size),
            "good_pixels": int((difference.mask == 0).sum()),
            "fwhm": difference.psf.fwhm(),
            "seconds_align": middle - started,
            "seconds_subtract": time.perf_counter() - middle,
        }
    ), aligned


def difference_night(
    frames: Mapping[str, Frame],
    references: Mapping[str, Frame],
    night: str,
    method: str = "zogy",
    progress: Progress = None,
    into: MutableMapping[str, Difference] | None = None,
) -> Outcome[Difference]:
    """Subtract from every frame of a night the reference that holds for it.

    Parameters
    ----------
    frames:
        Calibrated frames by exposure id.
    references:
        The field's references by reference id.
    night:
        YYYY-MM-DD.
    method, progress, into:
        As in `subtract` and `for_each`.
    """

    def one(job: Callable[[], Pair]) -> Difference:
        pair = job()
        return difference_one(pair.science, pair.reference, method)[0]

    return for_each(
        pair_up(frames, references, night), one, stage="difference_images", progress=progress, into=into
    )


def find_night(
    differences: Mapping[str, Difference], threshold: float, progress: Progress = None
) -> Outcome[pd.DataFrame]:
    """Return the candidates of each difference, |S_corr| ≥ `threshold`."""
    from astrid_pipeline.imaging import find_candidates

    return for_each(
        ((key, key) for key in differences),
        lambda key: find_candidates(differences[key], threshold=threshold),
        stage="candidates",
        progress=progress,
    )


def detect_one(
    difference: Difference,
    candidates: pd.DataFrame,
    model: Any,
    device: str | None = None,
    min_snr: float = MIN_SNR,
    threshold: float | None = None,
    uncertainty: bool = True,
) -> pd.DataFrame:
    """Return the detections of |S/N| ≥ `min_snr` in one difference; `candidates` are its own.

    They are judged by this one difference; `threshold` is the least score, the model's own by default. Without
    `uncertainty`, the column is null and what it costs is saved: as much as all else of the detection, and more.
    """
    from astrid_pipeline.learning import detect

    passes = {} if uncertainty else {"passes": 0}
    table = detect(difference, candidates, model, device=device, threshold=threshold, **passes)
    return table[table.snr.abs() >= min_snr].reset_index(drop=True)


def detect_night(
    differences: Mapping[str, Difference],
    candidates: pd.DataFrame,
    model: Any,
    device: str | None = None,
    progress: Progress = None,
    min_snr: float = MIN_SNR,
) -> Outcome[pd.DataFrame]:
    """Return the detections of each difference, by the model on its pixels and candidates.

    A model with the part `epochs` judges them again by the night's other exposures (`night.epochs`).

    Parameters
    ----------
    differences:
        Differences by exposure id.
    candidates:
        The night's candidates, of every exposure.
    model:
        What `learning.load_model` returned.
    device:
        `cpu`, `cuda`, or None for what is there.
    min_snr:
        |S/N| from which a find is told.
    """
    again = model.epochs is not None
    outcome = for_each(
        ((key, key) for key in differences),
        lambda key: detect_one(
            differences[key],
            candidates[candidates.exposure_id == key],
            model,
            device,
            min_snr,
            model.floor if again else None,
        ),
        stage="detections",
        progress=progress,
    )
    if again:
        from astrid_pipeline.night.epochs import judge_by_the_night

        outcome.products = judge_by_the_night(dict(outcome.products), differences, model)
    return outcome
