"""Where pixels of an amplifier belong: IRAF sections, overscan, flips, and the WCS that follows the trimming."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.errors import HeaderError
from astrid_pipeline.imaging.raw import Section

#: Names of amplifiers when one image holds several: keywords such as DATASECA or BIASSEC2.
_SUFFIXES = tuple("ABCDEFGH") + tuple("12345678")


@dataclass(frozen=True)
class Cut:
    """An IRAF section "[x1:x2,y1:y2]" in zero-based, end-exclusive form; a reversed range is a flip."""

    section: Section
    flip_x: bool = False
    flip_y: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        y0, y1, x0, x1 = self.section
        return y1 - y0, x1 - x0


@dataclass(frozen=True)
class AmplifierPlan:
    """Sections of one amplifier, as in `Amplifier`; `suffix` is what its keywords end with."""

    data: Section
    overscan: Section | None
    detector: Section
    flip_x: bool = False
    flip_y: bool = False
    suffix: str = ""


def parse_cut(text: Any) -> Cut | None:
    """Return the section that a header value describes, or None if it is not one."""
    match = re.fullmatch(r"\s*\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]\s*", str(text))
    if match is None:
        return None
    xa, xb, ya, yb = (int(group) for group in match.groups())
    if min(xa, xb, ya, yb) < 1:
        return None
    section = (min(ya, yb) - 1, max(ya, yb), min(xa, xb) - 1, max(xa, xb))
    return Cut(section, flip_x=xa > xb, flip_y=ya > yb)


def _inside(section: Section, shape: tuple[int, int]) -> bool:
    return section[1] <= shape[0] and section[3] <= shape[1]


def plan_single(header: Mapping[str, Any], shape: tuple[int, int], where: str) -> list[AmplifierPlan]:
    """Return the amplifiers of an image that stands alone in its file, from its section keywords.

    Raises
    ------
    HeaderError
        If a section does not fit into the image.
    """
    several = [
        s for s in _SUFFIXES if parse_cut(header.get(f"DATASEC{s}")) and parse_cut(header.get(f"BIASSEC{s}"))
    ]
    if len(several) > 1:
        return _plan_suffixes(header, shape, several, where)
    trim = parse_cut(header.get("TRIMSEC")) or parse_cut(header.get("DATASEC"))
    overscan = parse_cut(header.get("BIASSEC"))
    whole = (0, shape[0], 0, shape[1])
    if trim is None or trim.shape == shape:
        # Nothing to trim, or trimmed already and the keyword left standing.
        data = whole
    elif _inside(trim.section, shape):
        data = trim.section
    else:
        raise HeaderError(
            f"the section {header.get('TRIMSEC') or header.get('DATASEC')} is larger than the image of "
            f"{shape[1]} × {shape[0]} pixels",
            where=where,
            remedy="correct TRIMSEC or DATASEC",
        )
    bias = None
    if overscan is not None and data != whole:
        if not _inside(overscan.section, shape):
            raise HeaderError(
                f"the overscan {header.get('BIASSEC')} is outside of the image",
                where=where,
                remedy="correct BIASSEC",
            )
        if not _overlap(overscan.section, data):
            bias = overscan.section
    return [AmplifierPlan(data, bias, (0, data[1] - data[0], 0, data[3] - data[2]))]


def _overlap(a: Section, b: Section) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _plan_suffixes(
    header: Mapping[str, Any], shape: tuple[int, int], suffixes: Sequence[str], where: str
) -> list[AmplifierPlan]:
    """Plan an image whose amplifiers lie side by side in it, each with keywords of its own."""
    cuts = []
    for suffix in suffixes:
        data = parse_cut(header.get(f"TRIMSEC{suffix}")) or parse_cut(header[f"DATASEC{suffix}"])
        bias = parse_cut(header[f"BIASSEC{suffix}"])
        if (
            data is None
            or bias is None
            or not (_inside(data.section, shape) and _inside(bias.section, shape))
        ):
            raise HeaderError(
                f"the sections of amplifier {suffix} are not inside the image",
                where=where,
                remedy=f"correct DATASEC{suffix}, BIASSEC{suffix}",
            )
        cuts.append((suffix, data.section, bias.section))
    # Overscan between or around the data goes; what is left is pushed together, column by column, row by row.
    columns = _packed([(data[2], data[3]) for _, data, _ in cuts])
    rows = _packed([(data[0], data[1]) for _, data, _ in cuts])
    plans = []
    for suffix, area, overscan in cuts:
        y0, x0 = rows[area[0]], columns[area[2]]
        place = (y0, y0 + area[1] - area[0], x0, x0 + area[3] - area[2])
        plans.append(AmplifierPlan(area, overscan, place, suffix=suffix))
    _check_tiling([plan.detector for plan in plans], where)
    return plans


def _packed(spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return where each span begins when the distinct spans are laid end to end."""
    out, at = {}, 0
    for begin, end in sorted(set(spans)):
        out[begin] = at
        at += end - begin
    return out


def plan_several(
    headers: Sequence[fits.Header], shapes: Sequence[tuple[int, int]], where: str
) -> list[AmplifierPlan]:
    """Return the amplifiers of a detector that is read into several extensions, from their own keywords.

    DETSEC (or CCDSEC) says where DATASEC goes on the detector, in unbinned pixels; a reversed range says that the
    amplifier was read the other way round.

    Raises
    ------
    HeaderError
        If sections are missing, do not fit, or do not tile a detector.
    """
    found: list[tuple[Section, Section | None, tuple[float, float, float, float], bool, bool]] = []
    for header, shape in zip(headers, shapes, strict=True):
        detector = parse_cut(header.get("DETSEC")) or parse_cut(header.get("CCDSEC"))
        if detector is None:
            raise HeaderError("an amplifier lacks DETSEC", where=where, remedy="add DETSEC to each extension")
        data = parse_cut(header.get("DATASEC"))
        full = data.section if data is not None else (0, shape[0], 0, shape[1])
        trim = parse_cut(header.get("TRIMSEC"))
        keep = trim.section if trim is not None else full
        bias = parse_cut(header.get("BIASSEC"))
        if not _inside(full, shape) or not _inside(keep, shape):
            raise HeaderError("DATASEC is outside of the image", where=where, remedy="correct DATASEC")
        y0, y1, x0, x1 = detector.section
        by, bx = (y1 - y0) / (full[1] - full[0]), (x1 - x0) / (full[3] - full[2])
        # Where the kept part goes when it is less than the data section, counted from the side that is read first.
        low_y, high_y = keep[0] - full[0], full[1] - keep[1]
        low_x, high_x = keep[2] - full[2], full[3] - keep[3]
        if detector.flip_y:
            low_y, high_y = high_y, low_y
        if detector.flip_x:
            low_x, high_x = high_x, low_x
        place = (y0 / by + low_y, y1 / by - high_y, x0 / bx + low_x, x1 / bx - high_x)
        overscan = bias.section if bias is not None and _inside(bias.section, shape) else None
        if overscan is not None and _overlap(overscan, keep):
            overscan = None
        found.append((keep, overscan, place, detector.flip_x, detector.flip_y))
    oy, ox = min(f[2][0] for f in found), min(f[2][2] for f in found)
    plans = []
    for keep, overscan, place, flip_x, flip_y in found:
        y0, x0 = round(place[0] - oy), round(place[2] - ox)
        target = (y0, y0 + keep[1] - keep[0], x0, x0 + keep[3] - keep[2])
        plans.append(AmplifierPlan(keep, overscan, target, flip_x, flip_y))
    _check_tiling([plan.detector for plan in plans], where)
    return plans


def _check_tiling(sections: Sequence[Section], where: str) -> None:
    if not tiles(sections):
        raise HeaderError(
            "the amplifiers' sections overlap or leave gaps", where=where, remedy="correct DETSEC and DATASEC"
        )


def tiles(sections: Sequence[Section]) -> bool:
    """Return whether sections fill their common rectangle without gap or overlap."""
    if any(_overlap(a, b) for i, a in enumerate(sections) for b in sections[:i]):
        return False
    box = (
        min(s[0] for s in sections),
        max(s[1] for s in sections),
        min(s[2] for s in sections),
        max(s[3] for s in sections),
    )
    return sum((s[1] - s[0]) * (s[3] - s[2]) for s in sections) == (box[1] - box[0]) * (box[3] - box[2])


def read_wcs(header: fits.Header, hdus: fits.HDUList | None = None) -> WCS | None:
    """Return the celestial WCS of a header, or None if it has none that can be used.

    A WCS counts only if it inverts: the position of the image's centre must come back to it within a pixel.
    """
    if not any("RA" in str(header.get(f"CTYPE{i}", "")).upper() for i in (1, 2)) and not any(
        "LON" in str(header.get(f"CTYPE{i}", "")).upper() for i in (1, 2)
    ):
        return None
    tables = any(key in header for key in ("CPDIS1", "D2IMDIS1", "D2IM1.EXTVER"))
    clean = header.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wcs = WCS(clean, fobj=hdus if tables else None, naxis=2)
            if not wcs.has_celestial:
                return None
            at = np.array([[header.get("NAXIS1", 2) / 2, header.get("NAXIS2", 2) / 2]])
            sky = wcs.all_pix2world(at, 0)
            back = wcs.wcs_world2pix(sky, 0) if wcs.sip is not None else wcs.all_world2pix(sky, 0, quiet=True)
        except (ValueError, KeyError, TypeError, IndexError, AssertionError, np.linalg.LinAlgError):
            return None
    # Without the inverse of its distortion a SIP WCS is off by the distortion itself: some tens of pixels at most.
    tolerance = 100.0 if wcs.sip is not None else 1.0
    return wcs if np.isfinite(sky).all() and np.abs(back - at).max() < tolerance else None


def moved_wcs(wcs: WCS, plan: AmplifierPlan) -> WCS | None:
    """Return the WCS of the assembled image from that of one amplifier's pixels as read; None if it cannot be.

    Pixel (x, y) as read becomes (x − x0 + X0, …), or counted from the other side where the amplifier is flipped.
    """
    if plan.data[::2] == plan.detector[::2] and not (plan.flip_x or plan.flip_y):
        return wcs
    if (plan.flip_x or plan.flip_y) and (wcs.sip is not None or wcs.wcs.ctype[0].endswith(("TPV", "ZPN"))):
        return None
    out = wcs.deepcopy()
    crpix = np.array(out.wcs.crpix, float)
    flips = (plan.flip_x, plan.flip_y)
    for axis, (low, target_low, target_high) in enumerate(
        ((plan.data[2], *plan.detector[2:]), (plan.data[0], *plan.detector[:2]))
    ):
        # FITS pixels count from one: x_FITS = x + 1.
        if flips[axis]:
            crpix[axis] = target_high - 1 + low - (crpix[axis] - 1) + 1
        else:
            crpix[axis] += target_low - low
    out.wcs.crpix = crpix
    if any(flips):
        sign = np.where(flips, -1.0, 1.0)
        if out.wcs.has_cd():
            out.wcs.cd = out.wcs.cd * sign[None, :]
        else:
            out.wcs.pc = out.wcs.get_pc() * sign[None, :]
    if out.sip is not None:
        from astropy.wcs import Sip

        out.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, crpix)
    out.wcs.set()
    return out
