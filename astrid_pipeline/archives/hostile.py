"""Guards against files that are small and become huge: nothing from outside may fill the memory or the disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits

from astrid_pipeline.errors import PixelError, ReadError

#: What a compressed file may unpack to, bytes: four times the largest exposure file of the field (DECam's, 1.1 GB).
MOST_BYTES = 4 << 30
#: Pixels of one image, in one extension: 32768², more than any single detector or survey tile; 4 GB as float32.
MOST_PIXELS = 1 << 30
#: Up to this an unpacked file stays in memory, bytes.
IN_MEMORY = 256 << 20
_BLOCK = 1 << 20
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}

_REMEDY = "do not use it, or unpack it by hand if you trust who made it"


def unpacker(start: bytes) -> Any:
    """Return the function that opens a file of this compression; None for a plain file.

    Parameters
    ----------
    start:
        The first bytes of the file.
    """
    return _UNPACKERS.get(start[:2])


@contextmanager
def plain(file: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Give the plain bytes of a file, and how many they are; what is compressed is unpacked as far as is allowed.

    Raises
    ------
    ReadError
        If it unpacks to more than `MOST_BYTES`.
    """
    with file.open("rb") as stream:
        opener = unpacker(stream.read(2))
        stream.seek(0)
        if opener is None:
            yield stream, file.stat().st_size
            return
    with opener(file, "rb") as packed, tempfile.TemporaryDirectory(prefix="astrid-") as folder:
        first = _take(packed, min(IN_MEMORY, MOST_BYTES), io.BytesIO())
        if len(first.getbuffer()) < min(IN_MEMORY, MOST_BYTES):
            first.seek(0)
            yield first, len(first.getbuffer())
            return
        spilled = Path(folder) / "plain.fits"
        with spilled.open("wb") as out:
            out.write(first.getbuffer())
            del first
            _take(packed, MOST_BYTES + 1 - out.tell(), out)
            size = out.tell()
        if size > MOST_BYTES:
            raise ReadError(f"unpacks to more than {MOST_BYTES / 2**30:g} GiB", where=file, remedy=_REMEDY)
        with spilled.open("rb") as stream:
            yield stream, size


def _take(packed: IO[bytes], most: int, out: Any) -> Any:
    while most > 0 and (block := packed.read(min(_BLOCK, most))):
        out.write(block)
        most -= len(block)
    return out


def from_zip(file: Path, ending: str) -> bytes:
    """Return the one member of a zip whose name ends so; names are not used for anything else.

    Raises
    ------
    ValueError, zipfile.BadZipFile
        If there is not exactly one, or it is damaged.
    ReadError
        If it unpacks to more than `MOST_BYTES`, whatever its directory says.
    """
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(ending)]
        with archive.open(name) as member:
            out: io.BytesIO = _take(member, MOST_BYTES + 1, io.BytesIO())
    if len(out.getbuffer()) > MOST_BYTES:
        raise ReadError(f"unpacks to more than {MOST_BYTES / 2**30:g} GiB", where=file, remedy=_REMEDY)
    return out.getvalue()


def check_sizes(hdus: fits.HDUList, file: Path) -> None:
    """Refuse images that are larger than any camera's, before their pixels are touched.

    Raises
    ------
    PixelError
        If an image, or a tile of a compressed one, has more than `MOST_PIXELS` pixels.
    """
    for number, hdu in enumerate(hdus):
        if not getattr(hdu, "is_image", False):
            continue
        axes = [int(hdu.header.get(f"NAXIS{i}", 0)) for i in range(1, int(hdu.header.get("NAXIS", 0)) + 1)]
        tile = [int(n) for n in getattr(hdu, "tile_shape", ())]
        for what, shape in (("image", axes), ("tile", tile)):
            pixels = 1
            for length in shape:
                pixels *= max(length, 0)  # Python's integers: nothing overflows
            if shape and pixels > MOST_PIXELS:
                size = " × ".join(str(n) for n in shape)
                raise PixelError(
                    f"extension {number} claims an {what} of {size} pixels", where=file, remedy=_REMEDY
                )


def check_tiles(stream: IO[bytes], hdus: fits.HDUList, file: Path) -> None:
    """Refuse gzipped tiles of a compressed image that unpack to more than a tile; other codecs fill a given array.

    Raises
    ------
    ReadError
        If there is such a tile.
    """
    if not any(isinstance(hdu, fits.CompImageHDU) for hdu in hdus):
        return
    stream.seek(0)
    tables = fits.open(stream, memmap=False, disable_image_compression=True)
    try:
        for hdu in tables:
            if not hdu.header.get("ZIMAGE", False):
                continue
            names = ["GZIP_COMPRESSED_DATA"]
            if str(hdu.header.get("ZCMPTYPE", "")).upper().startswith("GZIP"):
                names.append("COMPRESSED_DATA")
            for name in names:
                if name in hdu.columns.names:
                    _check_column(hdu.data[name], _tile_bytes(hdu.header), file)
    finally:
        tables.close(closed=False)  # the stream is read further


def _tile_bytes(header: fits.Header) -> int:
    axes = [int(header[f"ZNAXIS{i}"]) for i in range(1, int(header["ZNAXIS"]) + 1)]
    tile = [int(header.get(f"ZTILE{i}", axes[0] if i == 1 else 1)) for i in range(1, len(axes) + 1)]
    # Eight bytes are the longest pixel there is.
    return 8 * int(np.prod(tile, dtype=object))


def _check_column(column: Any, most: int, file: Path) -> None:
    for row in column:
        packed = np.asarray(row).tobytes()
        if packed:
            unpack = zlib.decompressobj(wbits=47)
            left = most + 1
            while packed and left > 0:
                left -= len(unpack.decompress(packed, min(left, _BLOCK)))
                packed = unpack.unconsumed_tail
            if left <= 0:
                raise ReadError("a tile unpacks to more than its pixels", where=file, remedy=_REMEDY)
