"""The noise of every pixel: from the detector if it is known, and always in agreement with what the sky shows.

A header's gain may be absent, or be of another unit than the pixels (frames rescaled to a common zero point keep the
detector's gain), and a published variance may be of another world. What cannot be argued with is the scatter of the
empty sky; so the sky's variance is the measured one, and only what sources add to it is left to the gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.background import Background, clipped_statistics
from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import MaskArray, is_set
from astrid_pipeline.imaging.psf_model import PSF

_Float = npt.NDArray[np.float64]

#: A variance handed over is believed if the empty sky scatters within this share of its square root: what is left of
#: faint stars after masking makes 1 to 2 %.
TOLERANCE = 0.03
#: The photons of the sky alone must not be noisier than the sky is; this much is allowed for errors of either.
PHOTON_EXCESS = 1.15
#: Noise of the sky over that of its photons, in sigma, up to which the sky tells the gain: beyond, read noise or a
#: pedestal in the level decide, and the gain would be off by more than 20 %.
READ_SHARE = 1.1
#: The gain that stars' residuals tell is used if its own error is below this.
GAIN_ERROR = 0.25
#: Pixels of the noise-correlation measurement: 1.4 % error of its square, in windows spread over the frame.
WINDOW, WINDOWS = 128, 12


@dataclass(frozen=True)
class Gain:
    """Electrons per unit of the data; infinite if photon noise is unknown or none. `source` says how it was found."""

    value: float
    source: str


def header_gain(meta: Mapping[str, Any]) -> Gain | None:
    """Return the gain that the frame's meta state: as such, or by their unit."""
    gain = meta.get("gain")
    if gain is not None and np.isfinite(gain) and gain > 0:
        return Gain(float(gain), str(meta.get("gain_source") or "header"))
    if meta.get("unit") == "electron":
        return Gain(1.0, "unit")
    exposure = meta.get("exposure")
    if meta.get("unit") == "electron/s" and exposure and exposure > 0:
        return Gain(float(exposure), "unit and exposure time")
    return None


def find_gain(meta: Mapping[str, Any], level: float | None, rms: float) -> Gain | None:
    """Return the gain from header or sky, if it agrees with the noise of the sky; None if only stars can tell.

    Parameters
    ----------
    meta:
        The frame's; `gain`, `unit`, `exposure`, `read_noise` are looked at.
    level:
        Sky level in units of the data, None if the sky was taken away before.
    rms:
        Noise of one pixel of empty sky, units of the data.
    """
    stated = header_gain(meta)
    read = float(meta.get("read_noise") or 0.0)
    if level is None or level <= 0:
        return stated
    if stated is not None:
        photons = level / stated.value
        if photons <= PHOTON_EXCESS**2 * rms**2:
            return stated
    # rms² = level / g + (read / g)²: the photon transfer of the sky, a quadratic for 1 / g.
    inverse = (
        (-level + np.sqrt(level**2 + 4 * read**2 * rms**2)) / (2 * read**2) if read > 0 else rms**2 / level
    )
    found = Gain(1 / float(inverse), "photon transfer of the image's sky")
    if stated is None:
        return None if read == 0 and not _is_sky_limited(level, rms) else found
    return Gain(
        found.value, f"{found.source}; the stated {stated.value:.4g} would make the sky noisier than it is"
    )


def _is_sky_limited(level: float, rms: float) -> bool:
    """Return whether a gain read off the sky is one that detectors have, 0.05 to 50 e-/unit.

    A pedestal of the electronics in the level makes it look far larger; then the stars are asked instead.
    """
    return 0.05 < level / rms**2 < 50


def estimate_variance(
    data: Image, background: Background, gain: float, mask: MaskArray | None = None
) -> Image:
    """Return the variance of every pixel: the measured one of the sky, and the photons of sources on top.

    Parameters
    ----------
    data:
        (height, width), sky removed.
    background:
        From `measure_background`: its `rms` squared is the sky's variance, exactly.
    gain:
        Electrons per unit of the data; `inf` adds nothing for sources.
    mask:
        `Mask` bits; unusable pixels do not lend their values to their neighbours.

    Notes
    -----
    Sources' photon noise is (smoothed data) / gain where objects were found, 0 elsewhere. Smoothing over 3 x 3 pixels
    keeps a pixel's own fluctuation from setting its weight, which would bias weighted fluxes low.
    """
    from scipy.ndimage import uniform_filter

    variance = np.square(background.rms)
    if not np.isfinite(gain):
        return variance
    light = data if mask is None else np.where(is_set(mask), np.float32(0), data)
    smooth = uniform_filter(light, 3, mode="nearest")
    # The filter lowers a peak; the pixel itself may say more where it stands far over its noise.
    bright = np.maximum(smooth, np.where(light > 10 * background.rms, light, np.float32(0)))
    variance += np.where(background.objects, np.maximum(bright, 0) / np.float32(gain), np.float32(0))
    return variance


def sky_ratio(data: Image, variance: Image, usable: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the scatter of the empty sky over what `variance` says (in sigma), and how that varies over the frame.

    The second number is the robust spread of the ratio between parts of the frame, beyond what counting so few pixels
    in each makes: the error of the noise model.
    """
    side = 64
    height, width = (n // side * side for n in data.shape)
    if height < 2 * side or width < 2 * side:
        chi = (data / np.sqrt(variance))[usable]
        return float(clipped_statistics(chi[None].copy())[1][0]), float("nan")
    step = 2
    blocks = (height // side, side // step, width // side, side // step)
    cut = (slice(0, height, step), slice(0, width, step))
    chi = np.where(usable[cut], data[cut] / np.sqrt(variance[cut]), np.float32(np.inf))
    rows = chi.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1, (side // step) ** 2)
    _, sigma, count = clipped_statistics(np.ascontiguousarray(rows))
    enough = (count > 0.3 * (side // step) ** 2) & (sigma > 0)
    if enough.sum() < 4:
        return float(clipped_statistics(chi[np.isfinite(chi)][None].copy())[1][0]), float("nan")
    ratio = float(np.median(sigma[enough]))
    spread = 1.4826 * float(np.median(np.abs(sigma[enough] / ratio - 1)))
    counted = float(np.median(1 / np.sqrt(2 * count[enough])))
    return ratio, float(np.sqrt(max(spread**2 - counted**2, 0.0)))


def gain_from_stars(
    stamps: npt.NDArray[np.floating],
    model: npt.NDArray[np.floating],
    flux: _Float,
    sky_variance: npt.NDArray[np.floating],
    weight: npt.NDArray[np.floating],
) -> Gain | None:
    """Return the gain from how stars' pixels scatter about their PSF: the photon transfer of the image itself.

    The squared residual of a pixel with model signal m is sky + m / g + (e m)², e being the PSF's own error; g and e²
    follow from the medians of the residuals in bins of m, by weighted least squares. None if that says nothing.

    Parameters
    ----------
    stamps, model, weight, sky_variance:
        (N, S, S): sky-subtracted stars, their PSF at flux 1, usable pixels, variance of the empty sky there.
    flux:
        The stars' fluxes.
    """
    signal = (flux[:, None, None] * model).ravel()
    residual = (stamps - flux[:, None, None] * model).ravel()
    sky = np.broadcast_to(sky_variance, stamps.shape).ravel()
    use = (weight.ravel() > 0) & (signal > 0.5 * np.sqrt(sky))
    signal, excess, sky = signal[use], np.square(residual[use]), sky[use]
    if len(signal) < 200:
        return None
    order = np.argsort(signal)
    bins = [part for part in np.array_split(order, max(6, min(40, len(order) // 60))) if len(part)]
    # The median of a squared Gaussian is 0.4549 of its mean: neighbours and cosmic rays do not enter.
    mean = np.array([np.median(excess[b]) / 0.4549 - np.mean(sky[b]) for b in bins])
    middle = np.array([np.mean(signal[b]) for b in bins])
    total = np.array([np.median(excess[b]) / 0.4549 for b in bins])
    sigma = total * 2.3 / np.sqrt([len(b) for b in bins])
    design = np.stack([middle, middle**2], axis=1) / sigma[:, None]
    covariance = np.linalg.pinv(design.T @ design)
    inverse, square = covariance @ design.T @ (mean / sigma)
    if square < 0:
        inverse = float((middle * mean / sigma**2).sum() / (middle**2 / sigma**2).sum())
        covariance = np.array([[1 / float((middle**2 / sigma**2).sum())]])
    error = float(np.sqrt(covariance[0, 0]))
    if inverse <= 0 or error > GAIN_ERROR * inverse:
        return None
    return Gain(1 / float(inverse), f"photon transfer of the image's stars, to {100 * error / inverse:.0f} %")


def noise_correlation(data: Image, variance: Image, usable: npt.NDArray[np.bool_], psf: PSF) -> float:
    """Return how much wider PSF-filtered noise is than it would be if neighbouring pixels were independent.

    Empty sky is filtered with the PSF in windows over the frame; the width of sum(P d) is compared with
    sqrt(sum(P² V)). Only the lower half of the distribution is used: stars too faint to be masked raise the upper.
    1 for independent pixels, larger after resampling or stacking with interpolation.
    """
    from scipy.signal import fftconvolve

    height, width = data.shape
    side_y, side_x = min(WINDOW, height), min(WINDOW, width)
    across = max(1, min(4, width // side_x))
    down = max(1, min(WINDOWS // across, height // side_y))
    ratios = []
    for y0 in np.linspace(0, height - side_y, down).astype(int):
        for x0 in np.linspace(0, width - side_x, across).astype(int):
            window = (slice(y0, y0 + side_y), slice(x0, x0 + side_x))
            stamp = psf.stamp(x0 + side_x / 2, y0 + side_y / 2)
            # The core decides; wings would reach into every masked object.
            half = min(psf.size // 2, max(3, int(np.ceil(1.5 * psf.quality.get("fwhm", 3.0)))))
            middle = slice(psf.size // 2 - half, psf.size // 2 + half + 1)
            kernel = stamp[middle, middle].astype(np.float32)
            good = usable[window].astype(np.float32)
            near = fftconvolve(1 - good, kernel, mode="same") < 0.02
            near[:half] = near[-half:] = near[:, :half] = near[:, -half:] = False
            if near.sum() < 400:
                continue
            chi = fftconvolve(data[window] * good, kernel, mode="same")[near]
            chi = chi / np.sqrt(
                np.maximum(fftconvolve(variance[window], kernel**2, mode="same")[near], 1e-30)
            )
            low, middle_value = np.percentile(chi, [15.865, 50])
            ratios.append(float(middle_value - low))
    if not ratios:
        return 1.0
    return float(np.median(ratios))
