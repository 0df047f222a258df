"""Frames, differences and master frames as FITS files, one file each.

A frame's file has an empty primary HDU whose header carries the metadata, and the image extensions SCI, VAR, DQ
and PSF. Every extension is an ordinary FITS image that DS9 and astropy open.

Images are compressed with RICE_1 in tiles of 256² pixels after subtractive dithering (Pence et al. 2009, PASP
121, 414; 2010, PASP 122, 1065). The quantisation step is one number for the whole image, a sixteenth of the
noise of its empty sky, so that no pixel is ever wrong by more than a thirty-second of that noise: estimating the
step from each tile, as the usual writers do, fails on tiles without noise.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.errors import ReadError
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.psf_model import PSF

if TYPE_CHECKING:
    from astrid_pipeline.imaging.calibrate.masters import MasterCalibration

#: Version of the layout; raised when a reader of the old one would misread the new one.
LAYOUT = 1

#: Side of a compression tile, pixels: cut-outs stay cheap, headers of tiles stay few.
TILE = 256

#: Steps per sky noise. 16 leaves an error of 0.018 σ rms; the score is cut at thresholds and gets 64.
LEVELS = 16
SCORE_LEVELS = 64

#: Steps per median variance. Variances are smooth; a thousandth of them is far below their own error.
VARIANCE_LEVELS = 1000

#: Metadata that people look for in a header, under the names that the field uses.
_CARDS = {
    "exposure_id": "EXPID",
    "field": "FIELD",
    "night": "NIGHT",
    "mjd": "MJD-AVG",
    "exposure": "EXPTIME",
    "filter": "FILTER",
    "instrument": "INSTRUME",
    "unit": "BUNIT",
    "gain": "GAIN",
    "read_noise": "RDNOISE",
    "saturation": "SATURATE",
    "zero_point": "MAGZERO",
    "seeing": "FWHM",
}


def write_frame(frame: Frame, path: str | Path) -> Path:
    """Write a frame to `path`, replacing what is there, and return the path.

    The PSF and the mask are kept without loss, data and variance as the module says. Same frame, same arrays.
    """
    hdus = [_primary("frame", frame.meta), _image("SCI", frame.data, frame.wcs)]
    if frame.variance is not None:
        hdus.append(_image("VAR", frame.variance, step=_variance_step(frame.variance)))
    hdus.append(_mask("DQ", frame.mask))
    if frame.psf is not None:
        hdus.append(_psf(frame.psf))
    return _write(hdus, path)


def read_frame(path: str | Path) -> Frame:
    """Read a frame that `write_frame` wrote.

    Raises
    ------
    ReadError
        If the file is absent, damaged, or not such a file.
    """
    meta, wcs, planes, psf = _read(path, "frame")
    return Frame(planes["SCI"], planes.get("VAR"), planes["DQ"], psf, wcs, meta)


def write_difference(difference: Difference, path: str | Path) -> Path:
    """Write a difference to `path`, replacing what is there, and return the path."""
    d = difference
    hdus = [
        _primary("difference", d.meta),
        _image("SCI", d.data, d.wcs),
        _image("VAR", d.variance, step=_variance_step(d.variance)),
        _mask("DQ", d.mask),
        _psf(d.psf),
        _image("SCORE", d.score, d.wcs, step=1 / SCORE_LEVELS),
        _image("FLUX", d.flux, d.wcs),
        _image("FLUX_ERR", d.flux_err, step=_variance_step(d.flux_err)),
        _image("SCIENCE", d.science, d.wcs),
        _image("REF", d.reference, d.wcs),
    ]
    return _write(hdus, path)


def read_difference(path: str | Path) -> Difference:
    """Read a difference that `write_difference` wrote.

    Raises
    ------
    ReadError
        If the file is absent, damaged, or not such a file.
    """
    meta, wcs, p, psf = _read(path, "difference")
    if psf is None:
        raise ReadError("the PSF is missing", where=path, remedy="make the difference again")
    return Difference(
        p["SCI"],
        p["VAR"],
        p["DQ"],
        psf,
        p["SCORE"],
        p["FLUX"],
        p["FLUX_ERR"],
        p["SCIENCE"],
        p["REF"],
        wcs,
        meta,
    )


def write_masters(masters: MasterCalibration, path: str | Path) -> Path:
    """Write master frames to `path`, without loss, replacing what is there, and return the path."""
    planes, info = masters.to_planes()
    hdus = [_primary("masters", info)]
    for name, plane in planes.items():
        hdus.append(_mask(name, plane) if plane.dtype == np.int32 else _image(name, plane, step=0.0))
    return _write(hdus, path)


def read_masters(path: str | Path) -> MasterCalibration:
    """Read master frames that `write_masters` wrote.

    Raises
    ------
    ReadError
        If the file is absent, damaged, or not such a file.
    """
    from astrid_pipeline.imaging.calibrate.masters import MasterCalibration

    info, _, planes, _ = _read(path, "masters")
    return MasterCalibration.from_planes(planes, info)


def is_astrid_file(header: Mapping[str, Any]) -> str | None:
    """Return "frame", "difference" or "masters" if a primary header is of a file written here, else None."""
    kind = header.get("ASTRID")
    return str(kind) if kind else None


def _primary(kind: str, meta: Mapping[str, Any]) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU()
    hdu.header["ASTRID"] = (kind, "what this file holds")
    hdu.header["ASTRIDV"] = (LAYOUT, "version of its layout")
    for key, card in _CARDS.items():
        value = _plain(meta.get(key))
        text = isinstance(value, str) and value.isascii() and value.isprintable()
        if text or (isinstance(value, int | float) and np.isfinite(value)):
            hdu.header[card] = value
    hdu.header["META"] = _encode(meta)
    return hdu


def _encode(meta: Mapping[str, Any]) -> str:
    """Return metadata as JSON that survives FITS' long strings.

    Quotes, ampersands and blanks have a meaning at the place where a long string is cut, so that they are
    written as escapes.
    """
    text = json.dumps({str(k): _plain(v) for k, v in meta.items()}, separators=(",", ":"), sort_keys=True)
    for character in "'& ":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    """Return `value` as what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def sky_noise(data: npt.NDArray[np.floating]) -> float:
    """Return a robust noise of one pixel, from differences between neighbours two columns apart.

    The difference of two pixels has √2 of the noise, and stars, gradients and the sky's level drop out; two
    columns apart, since interpolated frames have neighbours that share noise. 0 for an image without noise.
    """
    part = data[:: max(1, data.shape[0] // 512)]
    delta = (part[:, 2:] - part[:, :-2]).ravel() if data.shape[1] > 2 else np.zeros(0)
    delta = delta[np.isfinite(delta) & (delta != 0)]
    if delta.size < 16:
        return 0.0
    return float(np.median(np.abs(delta)) * 1.4826 / np.sqrt(2))


def _variance_step(variance: npt.NDArray[np.float32]) -> float:
    good = variance[np.isfinite(variance) & (variance > 0)]
    return float(np.median(good)) / VARIANCE_LEVELS if good.size else 0.0


def _image(
    name: str, plane: npt.NDArray[np.float32], wcs: WCS | None = None, *, step: float | None = None
) -> fits.CompImageHDU:
    """Return a compressed image HDU; `step` is the quantisation step, 0 for lossless, None to measure it."""
    if step is None:
        step = sky_noise(plane) / LEVELS
    header = _wcs_header(wcs)
    tile = (min(TILE, plane.shape[0]), min(TILE, plane.shape[1]))
    finite = plane[np.isfinite(plane)]
    # A range of more than 2^30 steps does not fit into the integers that RICE packs.
    span = float(finite.max() - finite.min()) if finite.size else 0.0
    if step <= 0 or not np.isfinite(step) or span / step > 2**30 or span == 0:
        return fits.CompImageHDU(
            plane, header, name=name, compression_type="GZIP_2", tile_shape=tile, quantize_level=0
        )
    # A negative level is an absolute step; method 2 keeps zeros, which masked pixels are filled with, exact.
    return fits.CompImageHDU(
        plane,
        header,
        name=name,
        compression_type="RICE_1",
        tile_shape=tile,
        quantize_level=-step,
        quantize_method=fits.hdu.compressed.SUBTRACTIVE_DITHER_2,
        dither_seed=-1,
    )


def _mask(name: str, plane: npt.NDArray[np.int32]) -> fits.CompImageHDU:
    tile = (min(TILE, plane.shape[0]), min(TILE, plane.shape[1]))
    return fits.CompImageHDU(plane, name=name, compression_type="RICE_1", tile_shape=tile)


def _psf(psf: PSF) -> fits.ImageHDU:
    hdu = fits.ImageHDU(psf.basis, name="PSF")
    hdu.header["META"] = _encode({"exponents": psf.exponents, "shape": psf.shape, "quality": psf.quality})
    return hdu


def _wcs_header(wcs: WCS | None) -> fits.Header:
    if wcs is None:
        return fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wcs.to_header(relax=True)


def _write(hdus: list[Any], path: str | Path) -> Path:
    path = Path(path)
    # So that a file that lost its end is told from one that never had more.
    hdus[0].header["PLANES"] = ",".join(hdu.name for hdu in hdus[1:])
    fits.HDUList(hdus).writeto(path, overwrite=True, checksum=True)
    return path


@contextmanager
def opened(path: str | Path, kind: str) -> Iterator[fits.HDUList]:
    """Give the HDUs of a file that was written here, of this kind ("frame", "difference" or "masters").

    Raises
    ------
    ReadError
        If the file is absent, damaged, or not such a file; also where that shows only while it is read.
    """
    remedy = "make the product again"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=False) as hdus:
                found = is_astrid_file(hdus[0].header)
                if found != kind or hdus[0].header.get("ASTRIDV") != LAYOUT:
                    what = f"holds no {kind} of this version, but {found or 'something else'}"
                    raise ReadError(what, where=path, remedy=remedy)
                yield hdus
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError("is not there", where=path, remedy=remedy) from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ReadError(f"cannot be read: {error}", where=path, remedy=remedy) from error


def _read(
    path: str | Path, kind: str
) -> tuple[dict[str, Any], WCS | None, dict[str, npt.NDArray[Any]], PSF | None]:
    planes: dict[str, npt.NDArray[Any]] = {}
    psf = wcs = None
    with opened(path, kind) as hdus:
        lost = set(hdus[0].header["PLANES"].split(",")) - {hdu.name for hdu in hdus}
        if lost:
            raise ReadError(
                f"is truncated: {', '.join(sorted(lost))} missing",
                where=path,
                remedy="make the product again",
            )
        meta = json.loads(hdus[0].header["META"])
        for hdu in hdus[1:]:
            if hdu.name == "PSF":
                info = json.loads(hdu.header["META"])
                exponents = tuple((i, j) for i, j in info["exponents"])
                psf = PSF(hdu.data, exponents, tuple(info["shape"]), info["quality"])
                continue
            dtype = np.int32 if hdu.header["BITPIX"] > 0 else np.float32
            planes[hdu.name] = np.ascontiguousarray(hdu.data, dtype=dtype)
            if hdu.name == "SCI" and "CTYPE1" in hdu.header:
                wcs = WCS(hdu.header)
    return meta, wcs, planes, psf
