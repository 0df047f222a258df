"""How good images are, against the best that their field has had: what datasets and the daily health check ask."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.archives.base import Field
from astrid_pipeline.errors import MissingProductError

#: A score whose noise is off by this much loses 1/e of its worth; 5 % is where a night's check fails.
SCORE_SCALE = 0.1
#: Days over which a field's best decile is found: half a year holds every season's seeing but the worst.
HISTORY_DAYS = 180
#: What of a difference image's meta says how good it is, by the name that it has here.
_CONDITIONS = {
    "seeing": "seeing",
    "noise": "science_sky_sigma",
    "masked_fraction": "masked_fraction",
    "score_sigma": "score_sigma",
}
COLUMNS = ("exposure_id", "field", "night", "filter", "reference_id", *_CONDITIONS)


def image_quality(exposures: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return a score in 0-1 for each exposure: 1 at the best decile of its field and filter.

    The geometric mean of: the best decile of seeing over the seeing, the same of the sky's noise (both at most 1), the
    share of usable pixels, and exp(-|σ(score) - 1| / 0.1). NaN where one of them was not measured.

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


def conditions(products: Any, field: str, nights: Iterable[str]) -> pd.DataFrame:
    """Return a row for each difference image of a field's nights, columns `COLUMNS`; no pixels are read.

    Parameters
    ----------
    products:
        `resources.products.Products`.
    """
    rows = []
    for night in nights:
        try:
            metas = products.metas("difference_images", field, night)
        except MissingProductError:
            continue  # removed since it was listed
        for exposure, meta in metas.items():
            rows.append(
                {
                    "exposure_id": exposure,
                    "field": field,
                    "night": night,
                    "filter": meta.get("filter"),
                    "reference_id": meta.get("reference_id"),
                    **{name: meta.get(key) for name, key in _CONDITIONS.items()},
                }
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(_CONDITIONS, float))


def with_quality(products: Any, field: str, nights: Iterable[str], until: str | None = None) -> pd.DataFrame:
    """Return `conditions` of some nights of a field with `quality`, measured against all of the half year before.

    Parameters
    ----------
    nights:
        YYYY-MM-DD, those to return.
    until:
        End of the half year; default: the last of the nights.
    """
    wanted = sorted(nights)
    if not wanted:
        return conditions(products, field, []).assign(quality=[])
    last = dt.date.fromisoformat(until or wanted[-1])
    first = min(str(last - dt.timedelta(days=HISTORY_DAYS)), wanted[0])
    known = [n for n in products.nights("difference_images", field) if first <= n <= str(last)]
    table = conditions(products, field, sorted({*known, *wanted}))
    table["quality"] = image_quality(table)
    return table[table["night"].isin(wanted)].reset_index(drop=True)


def recent_quality(fields: Sequence[Field], products: Any, today: dt.date, days: int = 7) -> pd.DataFrame:
    """Return the images of the last `days` nights of all fields with their quality."""
    since = str(today - dt.timedelta(days=days))
    tables = []
    for field in fields:
        nights = [n for n in products.nights("difference_images", field.name) if since <= n <= str(today)]
        if nights:
            tables.append(with_quality(products, field.name, nights))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "quality"])
    return pd.concat(tables, ignore_index=True)


def poor_fields(images: pd.DataFrame, least: float) -> dict[str, str]:
    """Return the fields whose mean quality is below `least`, with what it is and which part of it is worst.

    Parameters
    ----------
    images:
        As `recent_quality` returns it. An image whose quality could not be measured counts as 0.
    """
    out: dict[str, str] = {}
    for field, mine in images.groupby("field"):
        mean = float(mine["quality"].fillna(0.0).mean())
        if mean < least:
            worst = mine.sort_values("quality", na_position="first").iloc[0]
            said = ", ".join(f"{name} {worst[name]:.3g}" for name in _CONDITIONS)
            out[str(field)] = (
                f"quality {mean:.2f} over {len(mine)} images of {mine['night'].nunique()} nights, under {least}; "
                f"the worst is {worst['exposure_id']} ({said})"
            )
    return out
