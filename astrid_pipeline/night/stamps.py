"""Cut-outs for people to look at: science, reference, difference, score, made while the difference is at hand.

All four planes of a stamp are in units of the noise: science and reference over the σ of their empty sky, D over its
own noise map, the score as it is. They are turned by quarters and mirrored, never resampled, so that north is up and
east is left as nearly as pixels allow; what is left of the turn is in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.night.alerts import CUTOUT_SIZE
from astrid_pipeline.tables import Column, TableSchema

PLANES = ("science", "reference", "difference", "score")

STAMPS = TableSchema(
    "stamps",
    "Where each source's stamp lies: file `stamps.npy`, (rows, 4, 63, 63) float16 in units of the noise",
    (
        Column("exposure_id", "string", "exposure"),
        Column("x", "float64", "column of the source", "px"),
        Column("y", "float64", "row of the source", "px"),
        Column("row", "int64", "place in the file"),
        Column("turns", "int32", "quarter turns (as numpy.rot90) from the frame, after mirroring"),
        Column("mirrored", "bool", "whether columns were reversed before turning"),
        Column(
            "north",
            "float64",
            "direction of north in the stamp, from up towards right; null without a WCS",
            "deg",
        ),
        Column("pixel_scale", "float64", "null without a WCS", "arcsec/px"),
        Column("science_sigma", "float64", "noise of the science image's sky, its units"),
        Column("reference_sigma", "float64", "the same of the reference"),
        Column("masked", "float64", "share of the stamp's pixels that are unusable in either frame"),
    ),
    sort_by=("row",),
)


def cut(plane: npt.ArrayLike, x: float, y: float, size: int = CUTOUT_SIZE) -> npt.NDArray[np.float32]:
    """Return `size`² pixels around (x, y), NaN outside the plane."""
    image = np.asarray(plane)
    half = size // 2
    column, row = round(float(x)) - half, round(float(y)) - half
    out = np.full((size, size), np.nan, np.float32)
    height, width = image.shape
    y0, y1, x0, x1 = max(row, 0), min(row + size, height), max(column, 0), min(column + size, width)
    if y1 > y0 and x1 > x0:
        out[y0 - row : y1 - row, x0 - column : x1 - column] = image[y0:y1, x0:x1]
    return out


def orientation(wcs: Any, x: float, y: float) -> tuple[bool, int, float, float]:
    """Return how to turn a stamp, shown with its first row at the top, so that north is up and east is left.

    Returns
    -------
    mirrored, turns, north, pixel_scale:
        Reverse the columns first if `mirrored`, then `numpy.rot90` by `turns`. `north` is what is left of the angle,
        degrees from up towards right, within ±45; `pixel_scale` in arcsec. Without a WCS: rows counted upwards (which
        is a mirroring and two quarter turns), NaN, NaN.
    """
    if wcs is None:
        return True, 2, float("nan"), float("nan")
    from astropy.wcs.utils import proj_plane_pixel_scales

    step = 1.0 / 3600.0
    ra, dec = (float(v) for v in wcs.all_pix2world(x, y, 0))
    north = np.asarray(wcs.all_world2pix(ra, min(dec + step, 90.0), 0), float) - (x, y)
    east = np.asarray(wcs.all_world2pix(ra + step / max(np.cos(np.radians(dec)), 1e-6), dec, 0), float) - (
        x,
        y,
    )
    # Array directions: right is +x, down is +y (the first row is at the top).
    n, e = np.array([north[0], -north[1]]), np.array([east[0], -east[1]])
    # With north up, east is left: turning from north to the left means a positive cross product.
    mirrored = bool(n[0] * e[1] - n[1] * e[0] < 0)
    if mirrored:
        n = n * (-1, 1)
    angle = np.degrees(np.arctan2(n[0], n[1]))  # from up towards right
    turns = round(angle / 90.0)  # numpy.rot90 turns to the left, and so takes 90° off this angle
    scale = float(np.mean(proj_plane_pixel_scales(wcs)) * 3600.0)
    return mirrored, turns % 4, float(angle - 90.0 * turns), scale


def turned(stamp: npt.NDArray[Any], mirrored: bool, turns: int) -> npt.NDArray[Any]:
    """Return the last two axes mirrored and turned as `orientation` says."""
    return np.rot90(stamp[..., ::-1] if mirrored else stamp, turns, axes=(-2, -1))


def planes_of(
    difference: Difference, x: float, y: float, size: int = CUTOUT_SIZE
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the (4, size, size) planes around a place, as the frame has them, and the share of unusable pixels."""
    from astrid_pipeline.imaging.mask import is_set

    noise = np.sqrt(cut(difference.variance, x, y, size))
    stack = np.stack(
        [
            cut(difference.science, x, y, size) / float(difference.meta["science_sky_sigma"]),
            cut(difference.reference, x, y, size) / float(difference.meta["reference_sky_sigma"]),
            cut(difference.data, x, y, size) / noise,
            cut(difference.score, x, y, size),
        ]
    )
    # Outside the frame counts as unusable: nothing was seen there.
    bad = cut(difference.mask, x, y, size)
    outside = ~np.isfinite(bad)
    unusable = outside | is_set(np.where(outside, 0, bad).astype(np.int32), reference=True)
    return stack, float(unusable.mean())


def write_stamps(folder: Path, differences: Mapping[str, Difference], places: pd.DataFrame) -> pd.DataFrame:
    """Write the stamps of all places into `folder` (stamps.npy, stamps.parquet) and return their table.

    Parameters
    ----------
    places:
        exposure_id, x, y of each source; each exposure is read once.
    """
    rows: list[dict[str, Any]] = []
    order = places.sort_values(["exposure_id", "y", "x"], kind="stable")
    order = order[order["exposure_id"].isin(list(differences))]
    path = folder / "stamps.npy"
    shape = (len(order), len(PLANES), CUTOUT_SIZE, CUTOUT_SIZE)
    stack = (
        np.lib.format.open_memmap(path, "w+", np.float16, shape)
        if len(order)
        else np.zeros(shape, np.float16)
    )
    largest = float(np.finfo(np.float16).max)
    for exposure, mine in order.groupby("exposure_id", sort=True):
        difference = differences[str(exposure)]
        for x, y in mine[["x", "y"]].to_numpy(float):
            mirrored, turns, north, scale = orientation(difference.wcs, x, y)
            planes, masked = planes_of(difference, x, y)
            stack[len(rows)] = np.clip(turned(planes, mirrored, turns), -largest, largest)
            rows.append(
                {
                    "exposure_id": exposure,
                    "x": x,
                    "y": y,
                    "row": len(rows),
                    "turns": turns,
                    "mirrored": mirrored,
                    "north": north,
                    "pixel_scale": scale,
                    "science_sigma": float(difference.meta["science_sky_sigma"]),
                    "reference_sigma": float(difference.meta["reference_sky_sigma"]),
                    "masked": masked,
                }
            )
    if isinstance(stack, np.memmap):
        stack.flush()
    else:
        np.save(path, stack, allow_pickle=False)
    table = STAMPS.conform(pd.DataFrame(rows))
    table.to_parquet(folder / "stamps.parquet", index=False)
    return table
