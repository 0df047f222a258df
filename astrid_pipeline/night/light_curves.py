"""Light curves: the flux at every object's place in every difference image of its field, seen or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import UNUSABLE, is_set
from astrid_pipeline.imaging.photometry import forced_photometry
from astrid_pipeline.resources.frames import Frames

if TYPE_CHECKING:
    from astrid_pipeline.imaging.flux_planes import FluxPlanes

#: From this S/N on a point is a measurement with a magnitude; below, it is an upper limit.
MEASURED_SNR = 3.0


def measure_exposure(difference: Difference | FluxPlanes, objects: pd.DataFrame) -> pd.DataFrame:
    """Return the forced photometry of one difference image at the objects' places.

    Parameters
    ----------
    difference:
        Whole, or what was read of it for just these objects.
    objects:
        id, ra, dec (ICRS degrees).

    Returns
    -------
    DataFrame
        object_id, exposure_id, mjd, filter, flux, flux_err, snr, upper_limit, zero_point, mag, mag_err, mag_limit,
        flags: a row an object whose place is on the frame and usable. `mag` is that of |flux| (AB, where the zero
        point is known) and null below `MEASURED_SNR`; `mag_limit` that of `upper_limit`.
    """
    if difference.wcs is None or not len(objects):
        return pd.DataFrame()
    meta = difference.meta
    forced = forced_photometry(difference, objects["ra"].to_numpy(float), objects["dec"].to_numpy(float))
    forced = forced.assign(object_id=objects["id"].to_numpy(int))
    usable = np.isfinite(forced["flux"]) & (forced["flux_err"] > 0)
    usable &= ~is_set(forced["flags"].to_numpy(np.int32), int(UNUSABLE), reference=True)
    forced = forced[usable]
    zero = meta.get("zero_point")
    zero_point = float(zero) if zero is not None and np.isfinite(zero) else np.nan
    seen = forced["snr"].abs() >= MEASURED_SNR
    with np.errstate(invalid="ignore", divide="ignore"):
        mag = np.where(seen, zero_point - 2.5 * np.log10(forced["flux"].abs()), np.nan)
        limit = zero_point - 2.5 * np.log10(forced["upper_limit"])
    return pd.DataFrame(
        {
            "object_id": forced["object_id"],
            "exposure_id": str(meta.get("exposure_id")),
            "mjd": float(meta["mjd"]),
            "filter": meta.get("filter"),
            **{name: forced[name] for name in ("flux", "flux_err", "snr", "upper_limit")},
            "zero_point": zero_point,
            "mag": mag,
            "mag_err": np.where(seen, 2.5 / np.log(10) / forced["snr"].abs(), np.nan),
            "mag_limit": limit,
            "flags": forced["flags"],
        }
    ).reset_index(drop=True)


def measure_night(differences: Mapping[str, Difference], objects: pd.DataFrame) -> pd.DataFrame:
    """Return `measure_exposure` of every exposure, one below the other; of stored ones only what is needed is read."""
    if not len(objects):
        return pd.DataFrame()
    ra, dec = (objects[name].to_numpy(float) for name in ("ra", "dec"))
    parts = []
    for key in sorted(differences):
        if isinstance(differences, Frames):
            parts.append(measure_exposure(differences.near(key, ra, dec), objects))
        else:
            parts.append(measure_exposure(differences[key], objects))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def nights_to_measure(objects: pd.DataFrame, nights: Iterable[str], now: str) -> dict[str, Any]:
    """Return for each night the ids of the objects to measure on it: all on `now`, else those without points.

    Parameters
    ----------
    objects:
        id and `nights` (dates that they have points of).
    nights:
        Nights of the field that have difference images.
    now:
        The night that was made.
    """
    wanted: dict[str, Any] = {}
    for night in nights:
        if night == now:
            ids = objects["id"].to_numpy(int)
        else:
            known = objects["nights"].map(lambda dates, night=night: night in {str(date) for date in dates})
            ids = objects.loc[~known.to_numpy(bool), "id"].to_numpy(int)
        if len(ids):
            wanted[night] = ids
    return wanted


#: Nights before that a known source gets points of: enough to look like any other.
KNOWN_NIGHTS = 30


def measure_known(
    objects: pd.DataFrame,
    before: Mapping[str, Mapping[str, Difference]],
    night: str,
    changed: Difference,
) -> dict[str, pd.DataFrame]:
    """Return by night the points of sources that were put into one exposure: of earlier nights, and of that exposure.

    The night's other exposures are left out: a transient that is gone from them would rightly be called bogus.

    Parameters
    ----------
    objects:
        id, ra, dec of what was put in.
    before:
        Differences of earlier nights; the last `KNOWN_NIGHTS` count.
    night:
        The night of the exposure.
    changed:
        The difference that holds the sources.
    """
    result = {date: measure_night(before[date], objects) for date in sorted(before)[-KNOWN_NIGHTS:]}
    result[night] = measure_night({str(changed.meta.get("exposure_id")): changed}, objects)
    return result
