"""Cut-outs as alert packets carry them: FITS bytes, gzipped or not, in a record or alone, or plain arrays."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

#: A cut-out is some 60² pixels; what unpacks to more than this is none, and would only fill the memory.
_MOST_BYTES = 32 * 2**20

_GZIP = b"\x1f\x8b"


class CutoutError(Exception):
    """A cut-out that cannot be used; its text says why."""


def decode_cutout(value: Any) -> npt.NDArray[np.float32]:
    """Return a cut-out as (height, width) float32; pixels outside the frame stay NaN.

    Parameters
    ----------
    value:
        FITS bytes, gzipped or not; a record with them under ``stampData``; or rows of numbers, or as many numbers as
        a square has pixels.

    Raises
    ------
    CutoutError
        If it is none of these, damaged, too large, without an image, or without a single finite pixel.
    """
    if isinstance(value, Mapping):
        value = value.get("stampData", value.get("data"))
    packed = isinstance(value, bytes | bytearray | memoryview)
    image = np.ascontiguousarray(_from_fits(bytes(value)) if packed else _from_numbers(value), np.float32)
    if not np.isfinite(image).any():
        raise CutoutError("all pixels of the cut-out are blank")
    return image


def _from_fits(data: bytes) -> npt.NDArray[Any]:
    from astropy.io import fits

    if not data:
        raise CutoutError("the cut-out is empty")
    if data[:2] == _GZIP:
        unpack = zlib.decompressobj(wbits=31)
        try:
            plain = unpack.decompress(data, _MOST_BYTES)
        except zlib.error as error:
            raise CutoutError(f"damaged gzip: {error}") from error
        if not unpack.eof:
            reason = "larger than any cut-out" if len(plain) >= _MOST_BYTES else "cut short"
            raise CutoutError(f"the gzipped cut-out is {reason}")
        data = plain
    if data[:6] != b"SIMPLE":
        raise CutoutError("the cut-out is no FITS image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # headers of many surveys bend the standard; only the pixels count
            with fits.open(io.BytesIO(data), memmap=False) as hdus:
                for hdu in hdus:
                    if getattr(hdu, "is_image", False) and hdu.data is not None and hdu.data.ndim == 2:
                        return np.array(hdu.data)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CutoutError(f"damaged FITS: {' '.join(str(error).split())}") from error
    raise CutoutError("the cut-out has no image of two axes")


def _from_numbers(value: Any) -> npt.NDArray[Any]:
    try:
        image = np.array(value, dtype=np.float32)  # None becomes NaN
    except (ValueError, TypeError) as error:
        raise CutoutError("the cut-out is neither FITS nor rows of equal length") from error
    if image.ndim == 1:
        side = round(image.size**0.5)
        if side * side != image.size:
            raise CutoutError(f"{image.size} numbers are no square cut-out")
        image = image.reshape(side, side)
    if image.ndim != 2 or min(image.shape) < 3:
        raise CutoutError(f"a cut-out of shape {image.shape} is no image")
    return image
