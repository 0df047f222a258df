"""Cutting a dataset's stamps: raw, calibrated, science, reference, difference, score, and the mask of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import AstridError, MissingProductError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.learning.labelled import CALIBRATED, IMAGES, MASKS, RAW
from astrid_pipeline.night.data_quality import with_quality
from astrid_pipeline.night.stamps import cut, planes_of
from astrid_pipeline.resources.products import Products


def cut_samples(products: Products, samples: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Cut every sample's stamps into `folder`; those whose difference image is gone are left out.

    Parameters
    ----------
    samples:
        key, field, night, exposure_id, x, y and what else is known; each exposure is read once.

    Returns
    -------
    DataFrame
        The samples that were cut, with `row` (place in the arrays), `sha256` of the four planes, `has_calibrated`,
        `has_raw` (NaN planes where not), and of the exposure `quality`, `seeing`, `noise`, `masked_fraction`,
        `score_sigma`, `reference_id` and the digest of the raw file, `raw_sha256`.
    """
    stacks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (IMAGES, MASKS, CALIBRATED, RAW)}
    rows: list[dict[str, Any]] = []
    about: list[pd.DataFrame] = []
    for (field, night), of_night in samples.groupby(["field", "night"], sort=True):
        try:
            frames = products.frames("difference_images", str(field), str(night))
        except MissingProductError:
            continue
        about.append(with_quality(products, str(field), [str(night)]))
        calibrated = _frames_or_none(products, str(field), str(night))
        files = _raw_files(products, str(field), str(night))
        for exposure, mine in of_night.groupby("exposure_id", sort=True):
            name = str(exposure)
            if name not in frames:
                continue
            difference = frames[name]
            frame = calibrated[name].data if name in calibrated else None
            raw = _raw_image(products, files.get(name))
            for row in mine.to_dict(orient="records"):
                x, y = row["x"], row["y"]
                planes, _ = planes_of(difference, x, y)
                mask = cut(difference.mask, x, y)
                stacks[IMAGES].append(planes)
                # Outside the frame: NO_DATA, as everywhere.
                stacks[MASKS].append(np.where(np.isfinite(mask), mask, int(Mask.NO_DATA)).astype(np.int32))
                for stack, image in ((CALIBRATED, frame), (RAW, raw)):
                    stacks[stack].append(
                        np.full(mask.shape, np.nan, np.float32) if image is None else cut(image, x, y)
                    )
                rows.append(
                    {
                        **{str(k): v for k, v in row.items()},
                        "row": len(rows),
                        "sha256": hashlib.sha256(planes.tobytes()).hexdigest(),
                        "has_calibrated": frame is not None,
                        "has_raw": raw is not None,
                        "raw_sha256": None if name not in files else str(files[name]["sha256"]),
                    }
                )
    if not rows:
        return pd.DataFrame(columns=[*samples.columns, "row", "sha256", "quality"])
    for file, stamps in stacks.items():
        np.save(folder / file, np.stack(stamps), allow_pickle=False)
    exposures = pd.concat(about, ignore_index=True).drop(columns=["night", "filter"])
    return pd.DataFrame(rows).merge(exposures, on=["exposure_id", "field"], how="left")


def _frames_or_none(products: Products, field: str, night: str) -> Mapping[str, Any]:
    try:
        return products.frames("calibrated_frames", field, night)
    except MissingProductError:
        return {}


def _raw_files(products: Products, field: str, night: str) -> dict[str, pd.Series]:
    """Return the rows of a night's raw files that can be used, by exposure."""
    from astrid_pipeline.night.ingest import usable

    try:
        table = usable(products.table("observations", f"{field}|{night}"))
    except MissingProductError:
        return {}
    return {str(row["exposure_id"]): row for _, row in table.iterrows()}


def _raw_image(products: Products, row: pd.Series | None) -> npt.NDArray[np.float32] | None:
    """Return the counts as they were read, amplifiers in their places without their overscan; None if they are gone."""
    from astrid_pipeline.imaging.calibrate.amplifiers import assemble
    from astrid_pipeline.night.ingest import read_raw

    if row is None:
        return None
    try:
        return assemble(read_raw(products.store, row)).peak
    except AstridError:
        # A file that is gone or damaged: the sample's other planes are there, and `has_raw` says so.
        return None
