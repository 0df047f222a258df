"""Reads anybody's FITS file as a `RawExposure`: plain or compressed, one image or many, raw or calibrated.

A file may hold several detectors; each is an exposure of its own, named like the file with the number of its
first extension in brackets, ``mosaic.fits[3]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from astrid_pipeline.archives import geometry
from astrid_pipeline.archives.base import safe_name
from astrid_pipeline.archives.fits_files import REMEDY, Detector, find_detectors, opened
from astrid_pipeline.archives.headers import Reader, merged_header, normal_unit, normalise
from astrid_pipeline.archives.keywords import Keywords, flag, load_keywords
from astrid_pipeline.errors import HeaderError, PixelError, ReadError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.raw import Amplifier, Kind, RawExposure

#: Endings that a FITS file's name may have.
SUFFIX = re.compile(r"\.(fits?|fts)(\.(fz|gz|bz2|xz))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Summary:
    """What a file's headers say of one of its detectors, without its pixels."""

    path: Path
    key: int | None
    meta: Mapping[str, Any]
    shape: tuple[int, int]
    centre: tuple[float, float] | None
    radius: float | None

    @property
    def url(self) -> str:
        """The name to read it by."""
        return str(self.path) if self.key is None else f"{self.path}[{self.key}]"


def split_url(path: str | Path) -> tuple[Path, int | None]:
    """Return the file and the extension of ``file.fits[3]``; None where no extension is named."""
    match = re.fullmatch(r"(.*)\[(\d+)\]", str(path))
    if match and not Path(path).exists():
        return Path(match[1]), int(match[2])
    return Path(path), None


def exposure_id_of(path: str | Path) -> str:
    """Return an exposure id made from a file's name: without FITS endings, with safe characters only."""
    file, key = split_url(path)
    name = safe_name(SUFFIX.sub("", file.name))
    return name if key is None else f"{name}.{key}"


def read_exposure(path: str | Path, *, aliases: str | Path | Mapping[str, Any] | None = None) -> RawExposure:
    """Read one exposure.

    Parameters
    ----------
    path:
        A FITS file, plain, .fz, .gz, .bz2 or .xz; ``file.fits[3]`` names one of several detectors.
    aliases:
        A table of keyword aliases (YAML file or mapping) to use before AstrID's own.

    Returns
    -------
    RawExposure
        With counts as read (overscan included) for raw frames, and with the archive's own variance and mask where
        it gives them for calibrated ones. `meta` is as in `headers.normalise`, with `exposure_id`, `path`, `unit`.

    Raises
    ------
    ReadError
        If the file is absent, may not be read, is not FITS, is truncated or damaged.
    HeaderError
        If the header says something impossible: unknown BUNIT, zero exposure time, sections outside of the image,
        several detectors where none was named.
    PixelError
        If there is no image, or it is a cube, or all NaN, or constant.
    """
    file, key = split_url(path)
    keywords = load_keywords(aliases)
    with opened(file) as hdus:
        detector = _choose(find_detectors(hdus, file), key, file)
        return _exposure(hdus, detector, keywords, path)


def summarise(path: str | Path, keywords: Keywords) -> list[Summary]:
    """Return what the headers of a file say, one entry for each detector. Pixels are not read.

    Raises
    ------
    ReadError, HeaderError, PixelError
        As `read_exposure` does for what headers can show.
    """
    file, _ = split_url(path)
    out = []
    with opened(file) as hdus:
        detectors = find_detectors(hdus, file)
        for detector in detectors:
            header, plans, _ = _layout(hdus, detector, keywords, str(path))
            key = detector.science[0] if len(detectors) > 1 else None
            meta = normalise(header, keywords, where=str(path))
            normal_unit(
                header.get("BUNIT"), keywords, pixel_area_sr=header.get("PIXAR_SR", 1.0), where=str(path)
            )
            height = max(plan.detector[1] for plan in plans)
            width = max(plan.detector[3] for plan in plans)
            centre, radius = _footprint(hdus, detector, header, plans, meta, (height, width))
            out.append(Summary(file, key, meta, (height, width), centre, radius))
    return out


def read_pixels(path: str | Path) -> npt.NDArray[np.float32]:
    """Return the pixels of an exposure's first science extension, for comparing files.

    Raises
    ------
    ReadError, HeaderError, PixelError
        As `read_exposure` does for what keeps pixels from being read.
    """
    file, key = split_url(path)
    with opened(file) as hdus:
        index = _choose(find_detectors(hdus, file), key, file).science[0]
        return _pixels(hdus, index, _shape(hdus[index].header, str(path)), str(path))


def _choose(detectors: Sequence[Detector], key: int | None, file: Path) -> Detector:
    if key is not None:
        for detector in detectors:
            if key in detector.science:
                return detector
        known = ", ".join(str(d.science[0]) for d in detectors)
        raise HeaderError(f"extension {key} is no detector's image", where=file, remedy=f"use one of {known}")
    if len(detectors) > 1:
        first = detectors[0].science[0]
        raise HeaderError(
            f"holds the images of {len(detectors)} detectors",
            where=file,
            remedy=f"name one of them by its extension, as in {file.name}[{first}]",
        )
    return detectors[0]


def _layout(
    hdus: fits.HDUList, detector: Detector, keywords: Keywords, where: str
) -> tuple[fits.Header, list[geometry.AmplifierPlan], bool]:
    """Return the merged header, the amplifiers, and whether the archive has calibrated the pixels."""
    own = [hdus[i].header for i in detector.science]
    header = merged_header(hdus[0].header, own[0])
    shapes = [_shape(head, where) for head in own]
    meta_like = Reader(header, keywords)
    calibrated = is_calibrated(hdus, detector, header, meta_like)
    if len(own) > 1:
        return header, geometry.plan_several(own, shapes, where), calibrated
    if calibrated:
        return header, [geometry.AmplifierPlan(_whole(shapes[0]), None, _whole(shapes[0]))], calibrated
    # Sections in the primary header of a multi-extension file describe something else than this extension.
    return header, geometry.plan_single(own[0], shapes[0], where), calibrated


def is_calibrated(hdus: fits.HDUList, detector: Detector, header: fits.Header, reader: Reader) -> bool:
    """Return whether bias, dark and flat have been removed by whoever wrote the file.

    The header says so; or a noise plane stands beside the image; or the unit is not counts; or the pixels are
    scaled by something else than the offset of unsigned integers, which no camera does.
    """
    if flag(header, reader.keywords.calibrated) or detector.error or detector.variance or detector.inverse:
        return True
    unit = re.sub(r"\s+", "", str(header.get("BUNIT") or "")).lower()
    if unit and unit not in reader.keywords.units.get("adu", ()):
        return True
    return header.get("BITPIX", 16) > 0 and hdus[detector.science[0]].header.get("BSCALE", 1) != 1


def _whole(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    return (0, shape[0], 0, shape[1])


def _shape(header: fits.Header, where: str) -> tuple[int, int]:
    axes = [int(header[f"NAXIS{i}"]) for i in range(header["NAXIS"], 0, -1)]
    while len(axes) > 2 and axes[0] == 1:
        axes = axes[1:]  # an axis of length one is no cube
    if len(axes) > 2:
        raise PixelError(
            f"is a cube of {' × '.join(str(n) for n in axes)}",
            where=where,
            remedy="write each plane as a file of its own",
        )
    return axes[0], axes[1]


def _pixels(hdus: fits.HDUList, index: int, shape: tuple[int, int], where: str) -> npt.NDArray[np.float32]:
    data = hdus[index].data
    if data is None or data.size != shape[0] * shape[1]:
        raise ReadError(f"is truncated: extension {index} has too few pixels", where=where, remedy=REMEDY)
    return np.ascontiguousarray(data.reshape(shape), dtype=np.float32)


def _exposure(hdus: fits.HDUList, detector: Detector, keywords: Keywords, path: str | Path) -> RawExposure:
    where = str(path)
    header, plans, calibrated = _layout(hdus, detector, keywords, where)
    meta = {"exposure_id": exposure_id_of(path), "path": where, **normalise(header, keywords, where=where)}
    kind = Kind(meta.pop("kind"))
    area = header.get("PIXAR_SR")
    unit, factor = normal_unit(header.get("BUNIT"), keywords, pixel_area_sr=area, where=where)
    meta["unit"] = unit
    planes = []
    for i in detector.science:
        plane = _pixels(hdus, i, _shape(hdus[i].header, where), where)
        planes.append(plane if factor == 1 else plane * np.float32(factor))
    _check_pixels(planes, where)
    if len(planes) == 1 and len(plans) > 1:
        planes = planes * len(plans)
    amplifiers = tuple(
        _amplifier(plane, plan, merged_header(hdus[0].header, hdus[i].header), keywords)
        for plane, plan, i in zip(planes, plans, _cycle(detector.science, len(plans)), strict=True)
    )
    if "saturation" not in meta and not calibrated and header.get("BITPIX") == 16:
        # The converter's ceiling. Unsigned integers are stored with an offset, which astropy has undone by now.
        meta["saturation"] = 32767.0 if hdus[detector.science[0]].data.dtype.kind == "i" else 65535.0
        meta["saturation_source"] = "converter"
    elif "saturation" in meta:
        meta["saturation"] *= factor
    meta.pop("gain", None)
    meta.update(_gain(meta, unit, amplifiers))
    wcs = _wcs(hdus, detector, header, plans)
    if wcs is not None:
        meta["pixel_scale"] = _scale(wcs)
    variance, mask = (
        (None, None) if not calibrated else _companions(hdus, detector, planes[0], factor, header, keywords)
    )
    return RawExposure(amplifiers, kind, calibrated, wcs, meta, variance, mask)


def _cycle(science: Sequence[int], count: int) -> list[int]:
    return list(science) if len(science) == count else [science[0]] * count


def _check_pixels(planes: Sequence[npt.NDArray[np.float32]], where: str) -> None:
    finite = [plane[np.isfinite(plane)] for plane in planes]
    if not any(values.size for values in finite):
        raise PixelError("no pixel has a finite value", where=where, remedy="check how the file was written")
    low = min(float(values.min()) for values in finite if values.size)
    high = max(float(values.max()) for values in finite if values.size)
    if low == high:
        raise PixelError(
            f"every pixel has the value {low:g}",
            where=where,
            remedy="check the shutter, or how the file was written",
        )


def _amplifier(
    plane: npt.NDArray[np.float32], plan: geometry.AmplifierPlan, header: fits.Header, keywords: Keywords
) -> Amplifier:
    reader = Reader(header, keywords)

    def of_amplifier(name: str) -> float | None:
        for key in reader.keys.get(name, ()):
            value = header.get(f"{key}{plan.suffix}") if plan.suffix else None
            if isinstance(value, int | float) and value > 0:
                return float(value)
        return reader.number(name, positive=True)

    return Amplifier(
        plane,
        plan.data,
        plan.detector,
        plan.overscan,
        of_amplifier("gain"),
        of_amplifier("read_noise"),
        plan.flip_x,
        plan.flip_y,
    )


def _gain(meta: Mapping[str, Any], unit: str, amplifiers: Sequence[Amplifier]) -> dict[str, Any]:
    """Return electrons per unit of the data, and where that comes from; nothing where it is not known."""
    exposure = meta.get("exposure")
    gains = [a.gain for a in amplifiers if a.gain is not None]
    if unit == "electron":
        return {"gain": 1.0, "gain_source": "unit"}
    if unit == "electron/s" and exposure:
        # One electron a second is as many electrons as the exposure had seconds.
        return {"gain": float(exposure), "gain_source": "unit"}
    if len(gains) < len(amplifiers) or unit not in ("adu", "adu/s"):
        return {}
    gain = float(np.mean(gains))
    if unit == "adu/s":
        return {"gain": gain * exposure, "gain_source": "header"} if exposure else {}
    return {"gain": gain, "gain_source": "header"}


def _wcs(
    hdus: fits.HDUList, detector: Detector, header: fits.Header, plans: Sequence[geometry.AmplifierPlan]
) -> Any:
    own = [hdus[i].header for i in detector.science]
    for head, plan in zip(own, plans, strict=False):
        if "CTYPE1" in head:
            wcs = geometry.read_wcs(merged_header(hdus[0].header, head), hdus)
            moved = geometry.moved_wcs(wcs, plan) if wcs is not None else None
            if moved is not None:
                return moved
    # In a file of amplifiers, a WCS that stands in the primary header is that of the assembled image.
    return geometry.read_wcs(header, hdus) if not any("CTYPE1" in head for head in own) else None


def _scale(wcs: Any) -> float:
    from astropy.wcs.utils import proj_plane_pixel_scales

    return float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs.celestial))) * 3600)


def _footprint(
    hdus: fits.HDUList,
    detector: Detector,
    header: fits.Header,
    plans: Sequence[geometry.AmplifierPlan],
    meta: Mapping[str, Any],
    shape: tuple[int, int],
) -> tuple[tuple[float, float] | None, float | None]:
    """Return the centre (ra, dec) and half the diagonal in degrees, as far as the header tells them."""
    wcs = _wcs(hdus, detector, header, plans)
    half = float(np.hypot(*shape)) / 2
    if wcs is not None:
        sky = wcs.all_pix2world([[(shape[1] - 1) / 2, (shape[0] - 1) / 2]], 0)[0]
        return (float(sky[0]) % 360, float(sky[1])), half * _scale(wcs) / 3600
    centre = (meta["ra"], meta["dec"]) if "ra" in meta and "dec" in meta else None
    return centre, half * meta["pixel_scale"] / 3600 if "pixel_scale" in meta else None


def _companions(
    hdus: fits.HDUList,
    detector: Detector,
    data: npt.NDArray[np.float32],
    factor: float,
    header: fits.Header,
    keywords: Keywords,
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int32] | None]:
    """Return the archive's variance and mask, where there are planes of the image's size."""

    def plane(index: int | None) -> npt.NDArray[np.float32] | None:
        if index is None or hdus[index].data is None or hdus[index].data.size != data.size:
            return None
        return hdus[index].data.reshape(data.shape)

    variance = None
    error, var, inverse = plane(detector.error), plane(detector.variance), plane(detector.inverse)
    with np.errstate(divide="ignore", invalid="ignore"):
        if error is not None:
            variance = np.square(error.astype(np.float32))
        elif var is not None:
            variance = var.astype(np.float32)
        elif inverse is not None and hdus[detector.inverse].name not in ("WHT", "WEIGHT", "WT"):
            variance = 1 / inverse.astype(np.float32)  # a weight is only proportional to it
    if variance is not None:
        variance = np.where(variance > 0, variance * np.float32(factor) ** 2, np.nan).astype(np.float32)
        if not np.isfinite(variance).any():
            variance = None
    flags = plane(detector.flags)
    if flags is None:
        return variance, None
    if header.get("ASTRID") == "frame":
        return variance, flags.astype(np.int32)
    return variance, _translate_flags(flags.astype(np.int64), Reader(header, keywords).fixed.get("dq"))


def _translate_flags(flags: npt.NDArray[np.int64], table: Mapping[str, int] | None) -> npt.NDArray[np.int32]:
    """Return a data-quality plane in AstrID's bits; without a table every bit makes a pixel unusable."""
    if table is None:
        return np.where(flags != 0, np.int32(Mask.BAD_PIXEL | Mask.SUSPECT), np.int32(0))
    mask = np.zeros(flags.shape, np.int32)
    for name, bits in table.items():
        mask |= np.where(flags & int(bits), np.int32(Mask[name]), np.int32(0))
    return mask
