"""How each survey's server is asked for a cut-out, and what its pixels mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives import hostile
from astrid_pipeline.archives.download import DiskCache, download
from astrid_pipeline.archives.web import BadAnswerError, Patience, open_session, persist, prepare
from astrid_pipeline.errors import NoReferenceError
from astrid_pipeline.imaging.mask import Mask

if TYPE_CHECKING:
    from astrid_pipeline.archives.survey_images import Piece

#: Bytes of cut-outs that are kept.
CACHE_BYTES = 5 * 10**9
#: Bits of a Pan-STARRS mask that make a pixel unusable: detector, flat, dark, blank, CTE, low, cosmic ray, spike,
#: ghost, streak, bad convolution (Waters et al. 2020, table 2); saturation is bit 0x20.
PS1_BAD = 0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0040 | 0x0100 | 0x0200 | 0x0400 | 0x0800 | 0x2000
PS1_SATURATED = 0x0020


@dataclass(frozen=True, eq=False)
class Cutout:
    """Pixels of linear flux with their WCS, mask (`Mask` bits), and what the server says of them."""

    data: npt.NDArray[np.floating[Any]]
    mask: npt.NDArray[np.int32]
    wcs: WCS
    source: str
    zero_point: float | None = None
    mjd_min: float | None = None
    mjd_max: float | None = None


def fetch_cutout(
    kind: str,
    server: str,
    band: str,
    piece: Piece,
    table: Mapping[str, Any],
    folder: Path,
    patience: Patience,
) -> Cutout:
    """Return one cut-out.

    Parameters
    ----------
    kind:
        ps1, legacy, hips or skyview.
    server, band:
        Of whom, and which of its bands.
    piece:
        Which part of the sky.
    table:
        What `reference_surveys.yaml` says of the survey.
    folder, patience:
        Where files are kept; how long to wait.

    Raises
    ------
    NoReferenceError
        If the survey has nothing there.
    ServiceError
        If the server does not answer.
    """
    ask = {"ps1": _ps1, "legacy": _legacy, "hips": _hips, "skyview": _skyview}[kind]
    return ask(server, band, piece, table, folder, patience)


def _file(url: str, folder: Path, patience: Patience) -> Path:
    cache = DiskCache(folder, CACHE_BYTES)
    if (there := cache.get(url)) is not None:
        return there
    path = download(url, cache.path(url), patience=patience, what="a cut-out")
    cache.trim([path])
    return path


def _planes(path: Path) -> list[tuple[npt.NDArray[np.floating[Any]], fits.Header]]:
    """Return the images of a file, of one band, each with its header."""
    out = []
    with hostile.plain(path) as (stream, _), fits.open(stream, memmap=False) as hdus:
        hostile.check_sizes(hdus, path)
        for hdu in hdus:
            if hdu.header.get("NAXIS", 0) >= 2:
                data = np.asarray(hdu.data)
                while data.ndim > 2:
                    data = data[0]  # one band was asked for
                out.append((data, hdu.header.copy()))
    if not out:
        raise NoReferenceError(
            "the survey has no image here", where=path, remedy="name another survey in the reference policy"
        )
    return out


def _ps1(
    server: str, band: str, piece: Piece, table: Mapping[str, Any], folder: Path, patience: Patience
) -> Cutout:
    """Return a stack cut-out; its pixels are asinh magnitudes of a kind and are made linear again."""
    names = _ps1_names(server, band, piece, patience)
    scale = float(table["pixel_scale"])
    where = {
        "ra": f"{piece.ra:.8f}",
        "dec": f"{piece.dec:.8f}",
        "size": math.ceil(piece.side * 3600 / scale),
        "format": "fits",
    }

    def cut(kind: str) -> Path:
        return _file(
            f"{server}/cgi-bin/fitscut.cgi?{urlencode({'red': names[kind], **where})}", folder, patience
        )

    data, header = _planes(cut("stack"))[0]
    flux = ps1_linear(data, header)
    mask = np.zeros(data.shape, np.int32)
    if "stack.mask" in names:
        bits = np.nan_to_num(_planes(cut("stack.mask"))[0][0]).astype(np.int64)
        mask |= np.where(bits & PS1_BAD, np.int32(Mask.BAD_PIXEL), np.int32(0))
        mask |= np.where(bits & PS1_SATURATED, np.int32(Mask.SATURATED), np.int32(0))
    exposure = float(header.get("EXPTIME", 1.0))
    times = [float(header[key]) for key in header if key.startswith("MJD_") and key[4:].isdigit()]
    return Cutout(
        flux,
        mask,
        WCS(header),
        f"{server}{names['stack']}",
        # Counts over the whole exposure: magnitude 25 is one count a second (Waters et al. 2020).
        zero_point=25.0 + 2.5 * math.log10(exposure),
        mjd_min=min(times, default=None),
        mjd_max=max(times, default=None),
    )


def _ps1_names(server: str, band: str, piece: Piece, patience: Patience) -> dict[str, str]:
    """Return the stack's file names at a position, by kind of plane."""
    session = open_session(patience)
    asked: dict[str, Any] = {"ra": piece.ra, "dec": piece.dec, "filters": band, "type": "stack,stack.mask"}

    def ask() -> list[str]:
        reply = session.get(f"{server}/cgi-bin/ps1filenames.py", params=asked)
        reply.raise_for_status()
        lines = reply.text.splitlines()
        if not lines or "filename" not in lines[0].split():
            raise BadAnswerError("no list of files came")
        return lines

    lines = persist(ask, "look up the stack's name", server, patience)
    head = lines[0].split()
    rows = [dict(zip(head, line.split(), strict=False)) for line in lines[1:] if line.strip()]
    names = {row["type"]: row["filename"] for row in rows if row.get("filter") == band}
    if "stack" not in names:
        raise NoReferenceError(
            f"Pan-STARRS1 has no {band} stack at RA {piece.ra:.4f}, Dec {piece.dec:+.4f} (it ends at Dec −30°)",
            where=server,
            remedy="name another survey in the field's reference policy",
        )
    return names


def ps1_linear(
    data: npt.NDArray[np.floating[Any]], header: Mapping[str, Any]
) -> npt.NDArray[np.floating[Any]]:
    """Return counts from a Pan-STARRS stack's compressed scale, v = α asinh((f − o) / 2s), α = 2.5 / ln 10.

    A stack without BSOFTEN and BOFFSET is linear already. See Waters et al. 2020, section 3.5.
    """
    if "BSOFTEN" not in header or "BOFFSET" not in header:
        return np.asarray(data, float)
    alpha = 2.5 / math.log(10)
    values = np.asarray(data, float) / alpha
    return float(header["BOFFSET"]) + float(header["BSOFTEN"]) * (np.exp(values) - np.exp(-values))


def _legacy(
    server: str, band: str, piece: Piece, table: Mapping[str, Any], folder: Path, patience: Patience
) -> Cutout:
    """Return a coadd in nanomaggies a pixel, masked where no exposure reaches."""
    scale = float(table["pixel_scale"])
    asked = {
        "ra": f"{piece.ra:.8f}",
        "dec": f"{piece.dec:.8f}",
        "size": math.ceil(piece.side * 3600 / scale),
        "layer": table["layer"],
        "pixscale": scale,
        "bands": band,
    }
    path = _file(f"{server}/viewer/cutout.fits?{urlencode(asked)}&invvar", folder, patience)
    (data, header), *rest = _planes(path)
    # A pixel that no exposure reached has no weight; where the server gave no weights it is exactly zero.
    empty = ~(rest[0][0] > 0) if rest and rest[0][0].shape == data.shape else data == 0
    return Cutout(
        np.where(empty, np.nan, data),
        np.zeros(data.shape, np.int32),
        WCS(header).celestial,
        path_source(server, asked),
    )


def path_source(server: str, asked: Mapping[str, Any]) -> str:
    """Return the address of what was asked for."""
    return f"{server}?{urlencode(asked)}"


def _hips(
    server: str, band: str, piece: Piece, table: Mapping[str, Any], folder: Path, patience: Patience
) -> Cutout:
    """Return a HiPS on the very grid; the service has no weights, and says nothing of epochs."""
    from astroquery.hips2fits import hips2fitsClass

    wcs, (height, width) = piece.grid
    asked = wcs.deepcopy()
    asked.pixel_shape = (width, height)
    client = hips2fitsClass()
    client.server = server
    payload = client.query_with_wcs(hips=band, wcs=asked, format="fits", get_query_payload=True)
    # The service is asked by our own request: its client returns what came, whole or not.
    path = _file(f"{server}?{urlencode(payload)}", folder, patience)
    data, _ = _planes(path)[0]
    if data.shape != (height, width):
        raise NoReferenceError(
            f"the service gave {data.shape[1]} × {data.shape[0]} pixels where {width} × {height} were asked for",
            where=server,
            remedy="make the field smaller",
        )
    blank = ~np.isfinite(data)
    return Cutout(np.where(blank, np.nan, data), np.zeros(data.shape, np.int32), wcs, f"{server}?hips={band}")


def _skyview(
    server: str, band: str, piece: Piece, table: Mapping[str, Any], folder: Path, patience: Patience
) -> Cutout:
    """Return a SkyView image around the piece, at the grid's own scale."""
    from astropy import units
    from astropy.coordinates import SkyCoord
    from astroquery.skyview import SkyViewClass

    wcs, _ = piece.grid
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    pixels = math.ceil(piece.side / scale)
    client = SkyViewClass()
    client.URL = server
    prepare(client._session, patience)

    def ask() -> str:
        try:
            found = client.get_image_list(
                position=SkyCoord(piece.ra, piece.dec, unit="deg"),
                survey=[band],
                pixels=str(pixels),
                width=piece.side * units.deg,
                height=piece.side * units.deg,
                cache=False,
            )
        except (AttributeError, TypeError) as error:
            raise BadAnswerError("another page came than the form") from error
        except ValueError as error:
            raise NoReferenceError(
                f"SkyView has no survey {band!r}", where=server, remedy="use a name of its list"
            ) from error
        if not found:
            raise BadAnswerError("no image is linked on the page")
        return str(found[0])

    url = persist(ask, f"ask for {band}", server, patience)
    path = download(url, folder / f"skyview-{abs(hash((url, json.dumps(piece.ra))))}.fits", patience=patience)
    try:
        data, header = _planes(path)[0]
    finally:
        path.unlink(missing_ok=True)
    # SkyView fills with zeros what a survey does not have.
    return Cutout(
        np.where(data == 0, np.nan, data),
        np.zeros(data.shape, np.int32),
        WCS(header).celestial,
        f"{server}?survey={band}",
    )
