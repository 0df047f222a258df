"""Opens FITS files and finds the images in them; whatever is wrong with a file becomes an error that names it."""

from __future__ import annotations

import lzma
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from astrid_pipeline.archives import geometry, hostile
from astrid_pipeline.errors import AstridError, PixelError, ReadError

#: Extension names of what stands beside an image.
_ERROR = {"ERR", "ERROR", "UNCERT", "SIGMA", "STD", "RMS", "NOISE", "STDDEV"}
_VARIANCE = {"VAR", "VARIANCE"}
_INVERSE = {"IVAR", "INVVAR", "WHT", "WEIGHT", "WT"}
_FLAGS = {"DQ", "MASK", "FLAGS", "BPM", "QUALITY", "MSK", "DQM"}
_SCIENCE = {"SCI", "IMAGE", "SCIENCE", "DATA"}

REMEDY = "fetch or copy the file again"

#: What reading a damaged file may raise, besides our own errors.
_DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    fits.VerifyError,
)


@dataclass(frozen=True)
class Detector:
    """The extensions that make up one detector of a file: science (one, or one an amplifier), and its companions."""

    science: tuple[int, ...]
    error: int | None = None
    variance: int | None = None
    inverse: int | None = None
    flags: int | None = None


@contextmanager
def opened(file: Path) -> Iterator[fits.HDUList]:
    """Open a file; whatever is wrong with it, then or while it is read, becomes a typed error that names it."""
    _check_readable(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # astropy only warns of a file that ends too early.
            warnings.filterwarnings("error", message=".*(truncated|Error validating header).*")
            with (
                hostile.plain(file) as (stream, size),
                fits.open(stream, memmap=False, lazy_load_hdus=False) as hdus,
            ):
                hostile.check_sizes(hdus, file)
                _check_length(hdus, file, size)
                hostile.check_tiles(stream, hdus, file)
                yield hdus
    except AstridError:
        raise
    except AstropyUserWarning as error:
        raise ReadError(f"is truncated: {error}", where=file, remedy=REMEDY) from error
    except _DAMAGE as error:
        raise ReadError(f"is damaged: {error}", where=file, remedy=REMEDY) from error


def _check_readable(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            head = stream.read(80)
        opener = hostile.unpacker(head)
        if opener is not None:
            with opener(file, "rb") as stream:
                head = stream.read(80)
    except FileNotFoundError as error:
        raise ReadError("is not there", where=file, remedy="check the path") from error
    except IsADirectoryError as error:
        raise ReadError("is a folder, not a file", where=file, remedy="name one FITS file") from error
    except PermissionError as error:
        raise ReadError("may not be read", where=file, remedy="give read permission (chmod +r)") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ReadError(f"is damaged: {error}", where=file, remedy=REMEDY) from error
    if not head:
        raise ReadError("is empty", where=file, remedy=REMEDY)
    if not re.match(rb"SIMPLE\s*=", head):
        what = "is a web page, not FITS" if head.lstrip()[:1] == b"<" else "is not a FITS file"
        raise ReadError(what, where=file, remedy=REMEDY)


def _check_length(hdus: fits.HDUList, file: Path, size: int) -> None:
    """Refuse a file whose plain bytes end before its last image does."""
    for hdu in hdus:
        info = hdu.fileinfo()
        if info is None:
            continue
        # The padding after the last image may be missing: no pixel is lost with it.
        needed = info["datLoc"] + hdu.size if not isinstance(hdu, fits.CompImageHDU) else 0
        needed = max(needed, info["datLoc"] + info["datSpan"] - 2879) if info["datSpan"] else needed
        if needed > size:
            raise ReadError(f"is truncated: it has {size} of {needed} bytes", where=file, remedy=REMEDY)


def _is_image(hdu: Any) -> bool:
    if not getattr(hdu, "is_image", False):
        return False
    axes = [hdu.header.get(f"NAXIS{i}", 0) for i in range(1, hdu.header.get("NAXIS", 0) + 1)]
    return len(axes) >= 2 and min(axes) > 0


def find_detectors(hdus: fits.HDUList, file: Path) -> list[Detector]:
    """Return the detectors of a file, each with its amplifiers and companions.

    Raises
    ------
    PixelError
        If no HDU holds an image.
    """
    images = [i for i, hdu in enumerate(hdus) if _is_image(hdu)]
    beside = _ERROR | _VARIANCE | _INVERSE | _FLAGS
    science = [i for i in images if hdus[i].name in _SCIENCE]
    if not science:
        science = [i for i in images if hdus[i].name not in beside]
        # Beside an image in the primary HDU, unnamed ones are more detectors, and named ones something derived.
        if science and science[0] == 0:
            science = [i for i in science if i == 0 or not hdus[i].name]
    if not science:
        raise PixelError(
            "no HDU holds an image", where=file, remedy="hand over a file with a two-dimensional image"
        )
    groups = _by_detector(hdus, science)
    out = []
    for group in groups:
        version = hdus[group[0]].header.get("EXTVER", 1)

        def beside_it(names: set[str], version: int = version, group: tuple[int, ...] = group) -> int | None:
            for i in images:
                same = len(groups) == 1 or hdus[i].header.get("EXTVER", 1) == version
                if hdus[i].name in names and i not in group and same:
                    return i
            return None

        out.append(
            Detector(group, beside_it(_ERROR), beside_it(_VARIANCE), beside_it(_INVERSE), beside_it(_FLAGS))
        )
    return out


def _by_detector(hdus: fits.HDUList, science: Sequence[int]) -> list[tuple[int, ...]]:
    """Group the extensions that are amplifiers of one detector: they say so, or their sections tile it."""
    if len(science) == 1:
        return [tuple(science)]
    named: dict[Any, list[int]] = {}
    for i in science:
        header = hdus[i].header
        amplifier = geometry.parse_cut(header.get("DETSEC")) is not None and (
            "BIASSEC" in header or "DATASEC" in header
        )
        name = header.get("CCDNAME", header.get("CCDNUM")) if amplifier else ("alone", i)
        named.setdefault(name, []).append(i)
    groups: list[tuple[int, ...]] = []
    for members in named.values():
        cuts = [geometry.parse_cut(hdus[i].header.get("DETSEC")) for i in members]
        if len(members) > 1 and geometry.tiles([cut.section for cut in cuts if cut is not None]):
            groups.append(tuple(members))
        else:
            groups.extend((i,) for i in members)
    return sorted(groups)
