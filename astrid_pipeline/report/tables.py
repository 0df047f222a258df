"""Writing what was found: Parquet, CSV and DS9 regions, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import StoreError

#: Radius of a region: some three times a usual PSF, so that the circle does not cover what it marks.
_RADIUS_PX = 8.0
_COLOURS = {"detection": "green", "candidate": "yellow"}


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary name beside `path`, then give the file its name; return `path`.

    Raises
    ------
    StoreError
        If the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write: {error.strerror or error}",
            where=path,
            remedy="check the disk and its permissions",
        ) from error
    return path


def write_parquet(table: pd.DataFrame, path: Path) -> Path:
    """Write `table` as Parquet."""
    return write_whole(path, lambda name: table.to_parquet(name, index=False))


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write `table` as CSV, floats to seven digits, positions and times to twelve (1 µas)."""
    shown = table.copy()
    for column in [name for name in shown if pd.api.types.is_float_dtype(shown[name])]:
        digits = 12 if column in ("ra", "dec", "mjd") else 7
        shown[column] = [f"{v:.{digits}g}" if np.isfinite(v) else "" for v in shown[column].astype(float)]
    return write_whole(path, lambda name: shown.to_csv(name, index=False))


def write_regions(table: pd.DataFrame, path: Path, *, radius: float = _RADIUS_PX) -> Path:
    """Write DS9 regions: green where the model says detection, dashed yellow for the other candidates.

    Regions are in image coordinates (DS9 counts pixels from 1) when a row has no ra and dec, else ICRS.

    Parameters
    ----------
    table:
        `x`, `y`, `ra`, `dec`, and where known `is_detection`, `score`, `class`, `snr`, `sign`.
    radius:
        Pixels for image regions; half as many arcsec for those on the sky.
    """
    lines = ["# Region file format: DS9 version 4.1", 'global font="helvetica 10 normal roman" width=1']
    for number, row in enumerate(table.to_dict("records"), 1):
        detected = bool(row.get("is_detection", False))
        colour = _COLOURS["detection" if detected else "candidate"]
        text = " ".join(str(part) for part in _label(number, row))
        style = f"color={colour} text={{{text}}}" + ("" if detected else " dash=1")
        if np.isfinite(row.get("ra", np.nan)) and np.isfinite(row.get("dec", np.nan)):
            lines.append(f'icrs; circle({row["ra"]:.7f},{row["dec"]:.7f},{radius / 2:.2f}") # {style}')
        else:
            lines.append(f"image; circle({row['x'] + 1:.2f},{row['y'] + 1:.2f},{radius:.1f}) # {style}")
    return write_whole(path, lambda name: name.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _label(number: int, row: Mapping[Any, Any]) -> list[str]:
    parts = [str(number)]
    if row.get("is_detection") and isinstance(row.get("class"), str):
        parts.append(str(row["class"]))
    snr = row.get("snr")
    if isinstance(snr, float | int | np.floating) and np.isfinite(snr):
        parts.append(f"S/N {snr:.1f}")
    return parts
