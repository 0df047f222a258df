"""What a night's exposures say of one another's detections: each is judged again by what is at its place in the others.

Only exposures of the same night are looked at, of all filters: they are at hand, and made in one go. Earlier nights
would say more (`learning.epochs` can be fitted to them), but a night's detections would then depend on which nights had
been made before it, and a backfill that makes nights side by side would give something else each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.learning.schema import DETECTIONS
from astrid_pipeline.night.differences import meta_of
from astrid_pipeline.resources.frames import Frames

Floats = npt.NDArray[np.float64]


def judge_by_the_night(
    found: Mapping[str, pd.DataFrame], differences: Mapping[str, Difference], model: Any
) -> dict[str, pd.DataFrame]:
    """Return the detections that hold when the night's other exposures are looked at.

    Of each exposure only the significance around the places in question is read.

    Parameters
    ----------
    found:
        Table `DETECTIONS` by exposure id, of scores down to `learning.epochs.FLOOR`.
    differences:
        Those exposures' differences.
    model:
        A detector with the part `epochs`.

    Returns
    -------
    dict
        Those of at least the model's threshold, the surest first, named anew. A detection whose place no other
        exposure covers keeps its score to the last bit.

    Raises
    ------
    ModelError
        If the detector's part wants what lies outside of the night.
    """
    from astrid_pipeline.learning.epochs import When, epoch_features

    _check(model)
    every = [found[key] for key in sorted(found) if len(found[key])]
    if not every:
        return dict(found)
    ra, dec = (np.concatenate([t[name].to_numpy(float) for t in every]) for name in ("ra", "dec"))
    seen: dict[str, tuple[When, Floats]] = {}
    for key in sorted(found):
        seen[key] = _look(key, differences, ra, dec)
    begin, out = 0, {}
    for key in sorted(found):
        table = found[key]
        here = slice(begin, begin + len(table))
        begin += len(table)
        if len(table) and len(seen) > 1:
            own, values = seen[key]
            # Beside an unusable pixel nothing can be told between the pixels: there is the candidate's own peak.
            peak = table["peak_score"].to_numpy(float)
            mine = np.where(np.isfinite(values[here]), values[here], peak)
            others = [(when, v[here]) for name, (when, v) in seen.items() if name != key]
            features = epoch_features(own, mine, others).set_index(table.index)
            table = table.assign(
                score=model.epochs(pd.concat([table, features], axis=1), table["score"].to_numpy(float))
            )
        out[key] = _kept(table, key, model.for_survey(meta_of(differences, key)).threshold)
    return out


def _check(model: Any) -> None:
    from astrid_pipeline.learning.epochs import GROUPS

    beyond = {*GROUPS["past"], *GROUPS["curve"]} & set(model.epochs.features)
    if beyond:
        raise ModelError(
            f"the detector wants {', '.join(sorted(beyond))}, which one night does not know",
            where=f"{model.name} {model.version}",
            remedy="fit its part for other epochs to the groups night and filters",
        )


def _look(key: str, differences: Mapping[str, Difference], ra: Floats, dec: Floats) -> tuple[Any, Floats]:
    """Return when an exposure was taken, and its significance at places of the sky."""
    from astrid_pipeline.learning.channels import unusable
    from astrid_pipeline.learning.epochs import When, places_in, significance_at

    planes = differences.score_near(key, ra, dec) if isinstance(differences, Frames) else differences[key]
    meta = planes.meta
    x, y = places_in(planes.wcs, ra, dec)
    values = significance_at(planes.score, unusable(planes), x, y)
    # All are of one night: what it is called does not matter.
    mjd = float(meta.get("mjd") or np.nan)
    return When(key, "this night", mjd, str(meta.get("filter") or "")), values


def _kept(table: pd.DataFrame, key: str, threshold: float) -> pd.DataFrame:
    kept = table[table["score"] >= threshold]
    kept = kept.sort_values("score", ascending=False, kind="stable")
    if not len(kept):
        return DETECTIONS.empty()
    names = [f"{key}-D{i:04d}" for i in range(len(kept))]
    return DETECTIONS.conform(kept.assign(detection_id=names).reset_index(drop=True))
