"""Labelled stamps as other surveys' alerts bring them, from simulated pairs that are subtracted as surveys do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import ndimage

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import stamps
from astrid_pipeline.learning.data import image_seed
from astrid_pipeline.learning.matching import distance
from astrid_pipeline.learning.stamps import Stamp
from astrid_pipeline.simulation.pairs import simulate_pair
from astrid_pipeline.simulation.survey_difference import PlainDifference, subtract_plainly, survey_options

#: Surveys send alerts of 5 sigma and more.
THRESHOLD = 5.0

#: A detection this near (px) to a true change is its; one up to `_DOUBTFUL` beside it may be a piece of it or not.
_OWN, _DOUBTFUL = 2.5, 8.0

#: A change on a star whose residual is as large is rightly called either: it counts only if the flux that is measured
#: is within this factor of what was put there; a trail's flux in the filter of a point is less.
_FACTOR, _FACTOR_MOVING = 2.0, 5.0

#: Fainter true changes are neither real nor bogus (as for AstrID's own stamps).
_REAL_SNR = 4.0

#: Stamps of each kind that one pair gives at most, lest a crowded field outweigh all others.
_MOST_REAL, _MOST_BOGUS = 30, 32

#: Pixels from the frame's edge within which surveys send nothing.
_BORDER = 9

#: Share of the stamps that come without their template.
_NO_TEMPLATE = 0.05


def survey_stamps(
    n_pairs: int,
    seed: int = 0,
    *,
    split: str = "alerts",
    shape: tuple[int, int] = (512, 512),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Stamp], pd.DataFrame]:
    """Return stamps of what is found in simulated pairs, each pair drawn from (seed, split, its number).

    A pair of 512² takes some two seconds and gives about 55 stamps.

    Returns
    -------
    stamps, table
        The table has image_id, real (bool), label (``bogus``, or what it truly is) and kind of each.

    Raises
    ------
    ModelError
        If no pair is asked for.
    """
    if n_pairs < 1:
        raise ModelError(
            f"{n_pairs} pairs give no stamps", where="survey stamps", remedy="ask for one or more"
        )
    out: list[Stamp] = []
    rows: list[tuple[str, bool, str, str]] = []
    for number in range(n_pairs):
        rng = np.random.default_rng(image_seed(seed, f"survey-{split}", number))
        pair = simulate_pair(rng, shape, **survey_options(rng))
        made = subtract_plainly(pair, rng)
        found = detections(made, pair.changes)
        frames = [np.asarray(f, np.float32) for f in (made.data, pair.science.data, made.reference)]
        for real, most in ((True, _MOST_REAL), (False, _MOST_BOGUS)):
            mine = np.flatnonzero(found["real"] == float(real))
            for i in rng.permutation(mine)[:most]:
                x, y = float(found["x"].iloc[i]), float(found["y"].iloc[i])
                try:
                    stamp = stamps.make_stamp(*(stamps.cut_out(frame, x, y) for frame in frames))
                except ValueError:
                    continue  # half of it beyond the frame or all alike: no survey sends such a stamp
                out.append(replace(stamp, template=None) if rng.random() < _NO_TEMPLATE else stamp)
                row = found.iloc[i]
                rows.append((f"survey-{split}-{seed}-{number}", real, row["label"], row["kind"]))
        if progress is not None:
            progress(number + 1, n_pairs)
    return out, pd.DataFrame(rows, columns=["image_id", "real", "label", "kind"])


def detections(made: PlainDifference, changes: pd.DataFrame) -> pd.DataFrame:
    """Return what a survey would find in a difference: x, y, score, real (1, 0, NaN: neither), label and kind.

    Peaks of either sign over `THRESHOLD`, the highest within 3 px. The brightest detection within `_OWN` of a true
    change is that change.

    Parameters
    ----------
    changes:
        True changes of the pair, columns of `simulation.truth.TRUTH`.
    """
    strength = np.abs(made.score)
    peak = (strength == ndimage.maximum_filter(strength, 7)) & (strength > THRESHOLD)
    inner = np.zeros_like(peak)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    y, x = np.nonzero(peak & inner)
    order = np.argsort(-strength[y, x], kind="stable")
    x, y = x[order], y[order]
    known = changes.reset_index(drop=True)
    near = distance(x, y, known.assign(label=known["kind"]))
    real = np.zeros(len(x))
    label, kind = np.full(len(x), "bogus", object), np.full(len(x), "", object)
    taken = np.zeros(len(known), bool)
    for i in range(len(x)):
        free = np.where(taken, np.inf, near[i])
        j = int(free.argmin()) if len(free) else -1
        if j >= 0 and free[j] <= _OWN:
            taken[j] = True
            real[i] = 1.0 if _is_seen(float(made.flux[y[i], x[i]]), known.iloc[j]) else np.nan
            label[i], kind[i] = known["kind"].iloc[j], known["class"].iloc[j]
        elif len(free) and near[i].min() <= _DOUBTFUL:
            real[i] = np.nan
    return pd.DataFrame({"x": x, "y": y, "score": strength[y, x], "real": real, "label": label, "kind": kind})


def _is_seen(flux: float, change: pd.Series) -> bool:
    if not change["snr"] >= _REAL_SNR or not change["flux"]:
        return False
    ratio = flux / float(change["flux"])
    return 1 / (_FACTOR_MOVING if change["kind"] == "moving" else _FACTOR) < ratio < _FACTOR
