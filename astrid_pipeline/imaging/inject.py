"""Putting sources into a frame whose truth is then known: points, trails and dipoles, with its own PSF and noise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import InputError
from astrid_pipeline.imaging.frame import Frame

#: Points along a trail per pixel of its length: finer than any PSF.
PER_PIXEL = 4
#: Stamps are shifted on a grid this much larger than the PSF, so that nothing wraps around.
_ROOM = 4


def inject(frame: Frame, sources: pd.DataFrame, rng: np.random.Generator | None = None) -> Frame:
    """Return a copy of the frame with sources added.

    Parameters
    ----------
    frame:
        Must carry a PSF. The sky may be in it or not.
    sources:
        Columns x, y (zero-based pixels; off the frame is allowed), flux (units of the frame; negative takes away
        light), and for others than points: kind ``"trail"`` with length (px) and angle (radians from the x axis), x, y
        being its middle; or kind ``"dipole"``, what a star of that flux leaves that moved by length along angle: the
        flux half a length ahead of x, y, and its negative half a length behind.
    rng:
        Draws the photon noise of the added light; without it the expected light is added. Light that is taken away
        gets none.

    Returns
    -------
    A frame whose `variance`, where it has one, has grown by the added light's photon noise, |flux| / gain. Pixels at
    or above ``meta["saturation"]`` are cut there and get `Mask.SATURATED`.

    Raises
    ------
    InputError
        If the frame has no PSF, a column is missing, or a value is not finite.
    """
    from astrid_pipeline.imaging.mask import Mask

    light = render(frame, sources)
    gain = float(frame.meta.get("gain") or 1.0)
    added = light.copy()
    if rng is not None:
        bright = light > 0
        # Photons are counted in electrons.
        added[bright] = rng.poisson(light[bright].astype(np.float64) * gain) / gain
    data = frame.data + added
    mask = frame.mask
    saturation = frame.meta.get("saturation")
    if saturation is not None and np.isfinite(saturation):
        level = float(saturation)
        if frame.meta.get("sky_subtracted"):
            level -= float(frame.meta.get("sky") or 0.0)
        over = (data >= level) & (light > 0)
        data = np.where(over, np.maximum(frame.data, np.float32(level)), data)
        mask = np.where(over, mask | np.int32(Mask.SATURATED), mask)
    variance = None if frame.variance is None else frame.variance + np.abs(light) / np.float32(gain)
    return frame.replace(data=data.astype(np.float32), variance=variance, mask=mask)


def render(frame: Frame, sources: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the expected light of the sources on the frame's pixels, (height, width), units of the frame.

    Raises
    ------
    InputError
        As `inject`.
    """
    if frame.psf is None:
        raise InputError(
            "the frame has no PSF to draw sources with",
            where=frame.name,
            remedy="measure it first: prepare(frame)",
        )
    missing = {"x", "y", "flux"} - set(sources.columns)
    if missing:
        raise InputError(
            f"the sources lack {', '.join(sorted(missing))}",
            where=frame.name,
            remedy="give columns x, y and flux",
        )
    numbers = sources[["x", "y", "flux"]].to_numpy(float)
    if not np.isfinite(numbers).all():
        raise InputError("a source has no finite x, y or flux", where=frame.name, remedy="drop such rows")
    image = np.zeros(frame.shape, np.float32)
    kinds = sources["kind"] if "kind" in sources else pd.Series("point", index=sources.index)
    lengths = sources["length"] if "length" in sources else pd.Series(0.0, index=sources.index)
    angles = sources["angle"] if "angle" in sources else pd.Series(0.0, index=sources.index)
    for (x, y, flux), kind, length, angle in zip(numbers, kinds, lengths, angles, strict=True):
        extent = float(length) if np.isfinite(length) else 0.0
        direction = float(angle) if np.isfinite(angle) else 0.0
        if kind == "dipole":
            dx, dy = 0.5 * extent * math.cos(direction), 0.5 * extent * math.sin(direction)
            _add(image, frame, x + dx, y + dy, flux, 0.0, 0.0)
            _add(image, frame, x - dx, y - dy, -flux, 0.0, 0.0)
        else:
            _add(image, frame, x, y, flux, extent if kind == "trail" else 0.0, direction)
    return image


def flux_at_snr(
    frame: Frame, x: npt.ArrayLike, y: npt.ArrayLike, snr: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return the fluxes of point sources that have these S/N in a frame, their own photons counted.

    Parameters
    ----------
    frame:
        With PSF, variance and gain, prepared.
    x, y, snr:
        (N,) pixels and S/N; on a galaxy its photons count.

    Returns
    -------
    (N,) f with snr = f / √(σ² + f a / gain), σ the error of the PSF flux in the variance that is there and a the
    PSF's share of its own photons' noise, Σ P³ / (Σ P²)². NaN where over 2 % of the PSF lie on unusable pixels.

    Raises
    ------
    InputError
        If the frame lacks PSF or variance.
    """
    from astrid_pipeline.imaging.quality import psf_flux

    if frame.psf is None or frame.variance is None:
        raise InputError(
            "the S/N of a source needs the frame's PSF and variance",
            where=frame.name,
            remedy="measure them first: prepare(frame)",
        )
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    wanted = np.broadcast_to(np.asarray(snr, float), x.shape)
    _, sigma = psf_flux(frame, x, y)
    sigma = sigma * float(frame.meta.get("noise_correlation") or 1.0)
    gain = float(frame.meta.get("gain") or np.inf)
    own = np.empty(len(x))
    for start in range(0, len(x), 64):
        stamps = frame.psf.stamps(x[start : start + 64], y[start : start + 64])
        own[start : start + 64] = (stamps**3).sum((1, 2)) / np.square(stamps).sum((1, 2)) ** 2
    # f² = snr² (σ² + f a / g): the positive root.
    half = 0.5 * wanted**2 * own / gain
    return np.asarray(half + np.sqrt(half**2 + (wanted * sigma) ** 2))


def _add(
    image: npt.NDArray[np.float32], frame: Frame, x: float, y: float, flux: float, length: float, angle: float
) -> None:
    """Add one source: the PSF of its place, moved by Fourier's shift theorem, summed along the trail."""
    assert frame.psf is not None
    height, width = frame.shape
    stamp = frame.psf.stamp(min(max(x, 0), width - 1), min(max(y, 0), height - 1))
    n = max(1, math.ceil(length * PER_PIXEL))
    along = ((np.arange(n) + 0.5) / n - 0.5) * length
    reach = math.ceil(length / 2) + stamp.shape[0] // 2 + _ROOM
    if not (-reach < x < width + reach and -reach < y < height + reach):
        return
    cx, cy = round(x), round(y)
    size = 2 * reach + 1
    grid = np.zeros((size, size))
    s = stamp.shape[0]
    first = reach - s // 2
    grid[first : first + s, first : first + s] = stamp
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    dx = x - cx + along * math.cos(angle)
    dy = y - cy + along * math.sin(angle)
    # One point, or a line of points finer than the PSF.
    phase = np.zeros((size, size // 2 + 1), complex)
    for a, b in zip(dx, dy, strict=True):
        phase += np.exp(-2j * np.pi * (ky * b + kx * a))
    drawn = np.fft.irfft2(np.fft.rfft2(grid) * phase / n, s=(size, size)) * flux
    y0, x0 = cy - reach, cx - reach
    ys, xs = slice(max(y0, 0), min(y0 + size, height)), slice(max(x0, 0), min(x0 + size, width))
    if ys.start < ys.stop and xs.start < xs.stop:
        image[ys, xs] += drawn[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0].astype(np.float32)
