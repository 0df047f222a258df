"""Colour mosaics: a Bayer sensor's pixels of four colours made into pixels that can be compared and interpolated.

Neighbouring pixels of a mosaic see through different filters, so that nothing may be interpolated between them. A
superpixel adds up each block of two by two: one red, two green, one blue. Every superpixel then has the same response.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.wcs import WCS

from astrid_pipeline.errors import InputError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask

#: What can be made of a block: the sum of its four pixels, or that of its two green ones.
CHANNELS = ("all", "green")


def superpixels(frame: Frame, channel: str = "all") -> Frame:
    """Return a Bayer mosaic as a frame of half the size whose pixels all have the same colour response.

    Parameters
    ----------
    frame:
        With `meta["bayer"]` saying the order of colours from pixel (0, 0) on ("RGGB", "GBRG", …). A frame without it
        comes back as it is.
    channel:
        "all" adds the four pixels of a block: all the light there is. "green" adds the two green ones: one colour, for
        photometry.

    Returns
    -------
    Frame
        Flux, sky, saturation and gain as sums of pixels have them; mask bits of the pixels added; the WCS follows, its
        distortions included; no PSF, since it is another one. `meta["bayer"]` is None.

    Raises
    ------
    InputError
        If the channel or the pattern is not known.
    """
    pattern = frame.meta.get("bayer")
    if not pattern:
        return frame
    pattern = str(pattern).upper()
    if channel not in CHANNELS:
        raise InputError(f"no Bayer channel {channel!r}", remedy=f"one of {', '.join(CHANNELS)}")
    if sorted(pattern) != sorted("RGGB"):
        raise InputError(
            f"the Bayer pattern {pattern!r} is not one of red, two green and blue pixels", where=frame.name
        )
    height, width = (size // 2 for size in frame.shape)
    used = [
        (slice(k // 2, 2 * height, 2), slice(k % 2, 2 * width, 2))
        for k in range(4)
        if channel == "all" or pattern[k] == "G"
    ]
    meta: dict[str, Any] = {"bayer": None, "bayer_pattern": pattern, "bayer_channel": channel}
    for name in ("sky", "saturation"):
        if frame.meta.get(name) is not None:
            meta[name] = float(frame.meta[name]) * len(used)
    if frame.meta.get("sky_sigma") is not None:
        meta["sky_sigma"] = float(frame.meta["sky_sigma"]) * np.sqrt(len(used))
    if frame.meta.get("read_noise") is not None:
        meta["read_noise"] = float(frame.meta["read_noise"]) * np.sqrt(len(used))
    for name, factor in {"pixel_scale": 2.0, "seeing": 0.5}.items():
        if frame.meta.get(name) is not None:
            meta[name] = float(frame.meta[name]) * factor
    level = frame.meta.get("saturation")
    mask = np.bitwise_or.reduce([frame.mask[part] for part in used])
    # A block is spoilt as soon as one of its pixels is, whatever the sum says.
    if level is not None and not frame.meta.get("sky_subtracted"):
        over = np.any([frame.data[part] >= float(level) for part in used], axis=0)
        mask = np.where(over, mask | np.int32(Mask.SATURATED), mask)
    return Frame(
        data=np.sum([frame.data[part] for part in used], axis=0),
        variance=None if frame.variance is None else np.sum([frame.variance[part] for part in used], axis=0),
        mask=mask,
        wcs=None if frame.wcs is None else halved(frame.wcs),
        meta={**frame.meta, **meta},
    )


def halved(wcs: WCS) -> WCS:
    """Return the WCS of pixels twice as large: pixel (0, 0) covers what (0, 0) to (1, 1) did.

    Distortions that act on sky coordinates (TPV, ZPN) stay as they are, SIP terms act on pixels and are scaled.
    """
    from astropy.wcs import Sip

    new = wcs.deepcopy()
    # One-based FITS pixels: p_new = (p_old + 0.5) / 2.
    new.wcs.crpix = (np.asarray(wcs.wcs.crpix) + 0.5) / 2
    if new.wcs.has_cd():
        new.wcs.cd = np.asarray(wcs.wcs.cd) * 2
    else:
        new.wcs.cdelt = np.asarray(wcs.wcs.cdelt) * 2
    if wcs.sip is not None:
        scaled = [
            None if terms is None else _scaled_sip(terms)
            for terms in (wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp)
        ]
        new.sip = Sip(*scaled, new.wcs.crpix)
    new.wcs.set()
    if new.pixel_shape is not None:
        new.pixel_shape = tuple(size // 2 for size in new.pixel_shape)
    return new


def _scaled_sip(terms: np.ndarray) -> np.ndarray:
    """Return SIP coefficients for pixels twice as large: a_ij (2u)^i (2v)^j / 2."""
    order = np.add.outer(np.arange(terms.shape[0]), np.arange(terms.shape[1]))
    return terms * 2.0 ** (order - 1)
