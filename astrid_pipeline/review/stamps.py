"""Stamps for the page and the API: found in the store, stretched, written as PNG or FITS."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night.stamps import PLANES
from astrid_pipeline.report import stretch
from astrid_pipeline.resources.folders import get_folder, read_folder_index
from astrid_pipeline.resources.store import Store

Stretch = Literal["asinh", "linear", "zscale"]

#: Nights whose tables are kept in memory; the pixels themselves are mapped, not read.
_NIGHTS = 256
#: Seconds for which a night's stamps are taken for the latest, without asking the store for its index.
_FRESH = 2.0
#: A stamp belongs to a source within this many pixels.
_SAME_PX = 2.0


#: One table of 256 colours for both scales: a byte a pixel is written and sent three times as fast as RGB, and steps of
#: a hundredth of the scale drown in the noise. The scale around zero has an odd number, so that zero has one.
_MASKED, _FIRST_GREY, _GREYS, _FIRST_COLOUR, _COLOURS = 0, 1, 128, 129, 127


def _palette() -> bytes:
    grey, colour = (
        table[np.linspace(0, 255, n).round().astype(int)]
        for table, n in zip(stretch.TABLES, (_GREYS, _COLOURS), strict=True)
    )
    return np.concatenate([[stretch.MASKED], grey, colour]).astype(np.uint8).tobytes()


_PALETTE = _palette()


@dataclass(frozen=True)
class Stamp:
    """One source's planes, (4, side, side) in units of the noise, north up, and its row of the table."""

    planes: npt.NDArray[np.float32]
    about: Mapping[str, Any]


@dataclass
class _Night:
    token: str
    asked: float
    about: dict[str, npt.NDArray[Any]]
    rows: dict[str, npt.NDArray[np.float64]]
    pixels: npt.NDArray[np.float16]


class StampStore:
    """The stamps in a store, by field and night."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nights: OrderedDict[tuple[str, str, str], _Night] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: Mapping[str, Any]) -> Stamp:
        """Return the stamp of a source (field, night, exposure_id, x, y).

        Raises
        ------
        MissingProductError
            If the night's stamps were never made, or hold none for this source.
        """
        # Another survey's alert brings its own cut-outs, and says of which survey it is.
        own = "alert_stamps" if (source.get("features") or {}).get("survey") else "stamps"
        asset = "gold_standard" if source.get("injected") else own
        night = (str(source["field"]), str(source["night"]))
        found = _find(self._night(asset, *night, fresh=False), source)
        # What is not there may have been made a moment ago.
        found = found or _find(self._night(asset, *night, fresh=True), source)
        if found is not None:
            return found
        raise MissingProductError(
            "the night's stamps hold none for this source",
            where=f"{source['field']}|{source['night']}",
            remedy=f"materialize {asset} for this partition",
        )

    def _night(self, asset: str, field: str, night: str, *, fresh: bool) -> _Night:
        from astrid_pipeline.resources.frames import file_name

        now = time.monotonic()
        with self._lock:
            kept = self._nights.get((asset, field, night))
            if kept is not None and not fresh and now - kept.asked < _FRESH:
                self._nights.move_to_end((asset, field, night))
                return kept
        path = f"{asset}/{file_name(field)}/{file_name(night)}"
        index = read_folder_index(self._store, path)
        token = "" if index is None else str(index["files"].get("stamps.npy", {}).get("sha256"))
        if kept is None or kept.token != token:
            kept = _open(get_folder(self._store, path), token)
        with self._lock:
            kept.asked = now
            self._nights[asset, field, night] = kept
            self._nights.move_to_end((asset, field, night))
            while len(self._nights) > _NIGHTS:
                self._nights.popitem(last=False)
        return kept


def _find(night: _Night, source: Mapping[str, Any]) -> Stamp | None:
    mine = night.rows.get(str(source["exposure_id"]))
    if mine is None or not len(mine):
        return None
    away = np.hypot(mine[:, 0] - source["x"], mine[:, 1] - source["y"])
    best = int(np.argmin(away))
    if away[best] > _SAME_PX:
        return None
    row = int(mine[best, 2])
    about = {name: values[row].item() for name, values in night.about.items()}
    return Stamp(np.asarray(night.pixels[row], np.float32), about)


def _open(folder: Path, token: str) -> _Night:
    table = pd.read_parquet(folder / "stamps.parquet")
    rows = {
        str(exposure): mine[["x", "y", "row"]].to_numpy(float)
        for exposure, mine in table.groupby("exposure_id")
    }
    about = {str(name): table[name].to_numpy() for name in table.columns if name != "exposure_id"}
    return _Night(token, 0.0, about, rows, np.load(folder / "stamps.npy", mmap_mode="r", allow_pickle=False))


def sprite_png(stamp: Stamp, how: Stretch = "asinh") -> bytes:
    """Return the four planes side by side as one PNG, a pixel a pixel; outside the frame is violet.

    Parameters
    ----------
    how:
        `asinh` (linear in the noise, stars stay finite), `linear` (−2 to +10 σ), `zscale` (2nd to 99.7th percentile of
        science and reference together). Science and reference share one stretch; difference and score have that of
        ±8 σ around zero in `asinh`, and ±20 σ, ±4 σ in the others.
    """
    from PIL import Image

    science, reference, change, score = stamp.planes
    both = np.concatenate([plane[np.isfinite(plane)] for plane in (science, reference)])
    top = float(both.max()) if both.size else 1.0
    low, high = (-2.0, 10.0) if how == "linear" else _percentiles(both) if how == "zscale" else (0.0, 1.0)
    tiles = []
    for plane in (science, reference):
        clean = np.nan_to_num(plane)
        share = (
            stretch.grey_share(clean, 0.0, 1.0, top)
            if how == "asinh"
            else np.clip((clean - low) / (high - low), 0, 1)
        )
        tiles.append(_FIRST_GREY + share * (_GREYS - 0.5))
    limit = {"asinh": stretch.SCORE_LIMIT, "linear": 20.0, "zscale": 4.0}[how]
    for plane in (change, score):
        share = stretch.diverging_share(plane, limit)
        tiles.append(_FIRST_COLOUR + (share + 1) / 2 * (_COLOURS - 1) + 0.5)
    for plane, tile in zip(stamp.planes, tiles, strict=True):
        tile[~np.isfinite(plane)] = _MASKED
    image = Image.fromarray(np.concatenate(tiles, axis=1).astype(np.uint8))
    image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    # Level 1 is twice as fast as 4 and hardly larger: the pixels are noise.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _percentiles(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [2, 99.7])
    return float(low), float(max(high, low + 1.0))


def plane_png(stamp: Stamp, plane: str, how: Stretch = "asinh") -> bytes:
    """Return one plane as PNG."""
    from PIL import Image

    side = stamp.planes.shape[-1]
    number = PLANES.index(plane)
    whole = Image.open(io.BytesIO(sprite_png(stamp, how)))
    buffer = io.BytesIO()
    whole.crop((number * side, 0, (number + 1) * side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def stamp_fits(stamp: Stamp, source: Mapping[str, Any]) -> bytes:
    """Return the four planes as FITS extensions, in units of the noise, turned back to the frame's orientation."""
    from astropy.io import fits

    about = stamp.about
    primary = fits.PrimaryHDU()
    for key, value, comment in (
        ("EXPOSURE", source["exposure_id"], "exposure"),
        ("FIELD", source["field"], "field"),
        ("NIGHT", str(source["night"]), "night"),
        ("XPOS", float(source["x"]), "[px] column in the frame, zero-based"),
        ("YPOS", float(source["y"]), "[px] row in the frame, zero-based"),
        ("RA_OBJ", source["ra"], "[deg] ICRS"),
        ("DEC_OBJ", source["dec"], "[deg] ICRS"),
        ("SCISIGMA", float(about["science_sigma"]), "noise of the science image's sky"),
        ("REFSIGMA", float(about["reference_sigma"]), "noise of the reference's sky"),
    ):
        primary.header[key] = (value, comment)
    hdus: list[Any] = [primary]
    for name, plane in zip(PLANES, stamp.planes, strict=True):
        back = np.rot90(plane, -int(about["turns"]))
        back = back[:, ::-1] if about["mirrored"] else back
        hdu = fits.ImageHDU(np.ascontiguousarray(back, np.float32), name=name.upper())
        hdu.header["BUNIT"] = ("sigma", "in units of the noise")
        hdus.append(hdu)
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer)
    return buffer.getvalue()
