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
#: The gain that stars' residuals tell is used if its own error is below this.
GAIN_ERROR = 0.25
#: And if signal, photons and a PSF error in proportion to the signal explain the scatter, in reduced chi².
GAIN_CHI2 = 2.5
#: How much more photon noise a stated gain may mean than the stars show, before it is refuted.
ALLOWED = 1.5
#: Rows treated at once.
_ROWS = 32
#: Parts of a frame in which the noise model is compared with the sky, at most: their spread is then known to 3 %.
BLOCKS = 600
#: Side of the windows that the noise's correlation is measured in, and how many there are at most along an axis: their
#: 200,000 pixels give it to 1 %.
WINDOW, WINDOWS = 128, 4
#: Resampling kernels reach 3 px to either side, stacks of dithered frames little more.
MAX_LAG = 4
FAR_LAGS = ((6, 0), (0, 6), (5, 5), (5, -5), (7, 0), (0, 7))


@dataclass(frozen=True)
class StarTransfer:
    """What the stars' pixels say of the gain: the gain, if it can be told, and the least that they allow (3 sigma)."""

    gain: Gain | None
    least: float


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
        return found
    return Gain(
        found.value, f"{found.source}; the stated {stated.value:.4g} would make the sky noisier than it is"
    )


def settle_gain(stated: Gain | None, stars: StarTransfer | None) -> Gain | None:
    """Return the gain to use, given what header or sky state and what the stars' pixels say.

    Photon noise cannot exceed the scatter that is seen: a stated gain below `stars.least` is refuted (a frame rescaled
    to another zero point whose header kept the old gain). The stars refute no higher gain, since a PSF's errors
    scatter their pixels too.
    """
    if stars is None:
        return stated
    if stated is not None and stated.value >= stars.least:
        return stated
    # Too much noise hides little; too little floods.
    found = stars.gain or Gain(stars.least, "least gain that the scatter of the image's stars allows")
    if stated is None:
        return found
    return Gain(
        found.value, f"{found.source}; the stated {stated.value:.4g} would make stars noisier than they are"
    )


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
    if not np.isfinite(gain):
        return np.square(background.rms)
    return add_photons(background, source_light(data, background, mask), gain)


def add_photons(background: Background, light: Image, gain: float) -> Image:
    """Return the variance of every pixel: the sky's, and the photons' of `light` (from `source_light`)."""
    variance = np.square(background.rms)
    if np.isfinite(gain):
        variance += light * np.float32(1 / gain)
    return variance


def source_light(data: Image, background: Background, mask: MaskArray | None = None) -> Image:
    """Return the expected light of the sources, (height, width), 0 where no object was found.

    The parameters are `estimate_variance`'s. The mean of 3 x 3 pixels; the filter lowers a peak, so that a pixel over
    10 sigma of the sky speaks for itself where it says more.
    """
    light = data
    if mask is not None and (bad := is_set(mask)).any():
        light = np.where(bad, np.float32(0), data)
    out = np.empty(light.shape, np.float32)
    height = len(light)
    # Some rows at a time, which stay in the processor's cache.
    for start in range(0, height, _ROWS):
        stop = min(start + _ROWS, height)
        part = light[max(start - 1, 0) : stop + 1]
        part = np.pad(part, ((int(start == 0), int(stop == height)), (1, 1)), mode="edge")
        rows = part[:-2] + part[1:-1]
        rows += part[2:]
        mean = rows[:, :-2] + rows[:, 1:-1]
        mean += rows[:, 2:]
        mean *= np.float32(1 / 9)
        own = part[1:-1, 1:-1]
        bright = own > np.float32(10) * background.rms[start:stop]
        np.maximum(mean, own, out=mean, where=bright)
        np.maximum(mean, 0, out=mean)
        np.multiply(mean, background.objects[start:stop], out=out[start:stop])
    return out


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
    down, across = height // side, width // side
    # Rows of blocks are skipped where there are many, diagonally, so that all of the frame has its say.
    skip = max(1, down * across // BLOCKS)
    blocks = (side // step, across, side)
    parts = []
    for row in range(down):
        strip = (slice(row * side, (row + 1) * side, step), slice(0, width))

        def chosen(plane: npt.NDArray[Any], strip: Any = strip, first: int = row % skip) -> npt.NDArray[Any]:
            cells = plane[strip].reshape(blocks)[:, first::skip, ::step]
            return cells.transpose(1, 0, 2).reshape(-1, (side // step) ** 2)

        chi = chosen(data) / np.sqrt(chosen(variance))
        parts.append(np.where(chosen(usable), chi, np.float32(np.inf)))
    rows = np.concatenate(parts)
    _, sigma, count = clipped_statistics(rows)
    enough = (count > 0.3 * (side // step) ** 2) & (sigma > 0)
    if enough.sum() < 4:
        return float(clipped_statistics(rows[np.isfinite(rows)][None].copy())[1][0]), float("nan")
    ratio = float(np.median(sigma[enough]))
    spread = 1.4826 * float(np.median(np.abs(sigma[enough] / ratio - 1)))
    counted = float(np.median(1 / np.sqrt(2 * count[enough])))
    return ratio, float(np.sqrt(max(spread**2 - counted**2, 0.0)))


def gain_from_stars(
    stamps: npt.NDArray[np.floating],
    model: npt.NDArray[np.floating],
    flux: _Float,
    sky_variance: npt.NDArray[np.floating],
    fitted: npt.NDArray[np.floating],
) -> StarTransfer | None:
    """Return the gain from how stars' pixels scatter about their PSF: the photon transfer of the image itself.

    The squared residual of a pixel with model signal m is a · sky + b · m / g + (e m)²: a and b, below 1, are what
    fitting the star's flux and position left of the noise, e is the PSF's own error. g and e² follow from the medians
    of the residuals in bins of m, by weighted least squares. None if that says nothing.

    Parameters
    ----------
    stamps, model, sky_variance:
        (N, S, S): sky-subtracted stars, their PSF at flux 1, variance of the empty sky there.
    flux:
        The stars' fluxes.
    fitted:
        (N, S, S) weights by which flux and position were fitted; pixels of weight 0 are not used.
    """
    signal = flux[:, None, None] * model
    residual = (stamps - signal).reshape(len(flux), -1)
    sky = np.broadcast_to(sky_variance, stamps.shape).reshape(len(flux), -1)
    of_sky, of_photons = _left_of_noise(model, fitted, sky, np.maximum(signal, 0).reshape(len(flux), -1))
    signal = signal.reshape(len(flux), -1)
    use = (fitted.reshape(len(flux), -1) > 0) & (signal > 0.5 * np.sqrt(sky)) & (of_photons > 0.1 * signal)
    signal, excess = signal[use], np.square(residual[use])
    of_sky, of_photons = of_sky[use], of_photons[use]
    if len(signal) < 200:
        return None
    order = np.argsort(signal)
    bins = [part for part in np.array_split(order, max(6, min(40, len(order) // 60))) if len(part)]
    middle = np.array([np.mean(of_photons[b]) for b in bins])
    square = np.array([np.mean(signal[b] ** 2) for b in bins])
    offset = np.array([np.mean(of_sky[b]) for b in bins])
    inverse, mismatch, error, misfit = 0.0, 0.0, np.inf, np.zeros(len(bins))
    for _ in range(4):
        # The median of a squared Gaussian is 0.4549 of its mean: neighbours and cosmic rays do not enter. What pixels
        # of one bin differ in by expectation is divided out first.
        expected = of_sky + max(inverse, 0.0) * of_photons + max(mismatch, 0.0) * signal**2
        total = np.array([np.median(excess[b] / expected[b]) * np.mean(expected[b]) / 0.4549 for b in bins])
        # The median of n squared Gaussians has 2.3 / sqrt(n) of their mean as its error.
        sigma = total * 2.3 / np.sqrt([len(b) for b in bins])
        design = np.stack([middle, square], axis=1) / sigma[:, None]
        covariance = np.linalg.pinv(design.T @ design)
        inverse, mismatch = covariance @ design.T @ ((total - offset) / sigma)
        if mismatch < 0:
            covariance = np.array([[1 / float(np.square(middle / sigma).sum())]])
            inverse = float(covariance[0, 0] * (middle * (total - offset) / sigma**2).sum())
        error = float(np.sqrt(covariance[0, 0]))
        misfit = (total - offset) / sigma - design @ np.maximum([inverse, mismatch], 0)
    # All that is over the sky taken for photons: the most noise they can have.
    most = float((middle * (total - offset) / sigma**2).sum() / np.square(middle / sigma).sum())
    most = max(most, 0.0) + 3 / float(np.sqrt(np.square(middle / sigma).sum()))
    least = 1 / (ALLOWED * most)
    if inverse <= 0 or error > GAIN_ERROR * inverse or np.mean(np.square(misfit)) > GAIN_CHI2:
        return StarTransfer(None, least)
    gain = Gain(1 / float(inverse), f"photon transfer of the image's stars, to {100 * error / inverse:.0f} %")
    return StarTransfer(gain, least)


def _left_of_noise(
    model: npt.NDArray[np.floating],
    weight: npt.NDArray[np.floating],
    sky: npt.NDArray[np.floating],
    photons: npt.NDArray[np.floating],
) -> tuple[_Float, _Float]:
    """Return what is expected of `sky` and `photons` variances (N, S²) in the residuals of a linear fit.

    With r = (1 - H) n and H = D (D'WD)^-1 D'W, pixel p keeps v_p (1 - 2 H_pp) + sum_q H_pq² v_q.
    """
    slope_y, slope_x = np.gradient(model, axis=(1, 2))
    design = np.stack([model, slope_x, slope_y], axis=-1).reshape(len(model), -1, 3).astype(float)
    w = weight.reshape(len(model), -1).astype(float)
    weighted = design * w[:, :, None]
    normal = weighted.transpose(0, 2, 1) @ design
    trace = np.einsum("nii->n", normal)
    inverse = np.linalg.inv(normal + (1e-10 * trace + 1e-30)[:, None, None] * np.eye(3))
    solved = design @ inverse
    leverage = np.einsum("npk,npk->np", solved, weighted)
    left = []
    for variance in (sky, photons):
        spread = weighted.transpose(0, 2, 1) @ (weighted * variance[:, :, None])
        left.append(variance * (1 - 2 * leverage) + np.einsum("npk,nkl,npl->np", solved, spread, solved))
    return left[0], left[1]


def noise_correlation(data: Image, variance: Image, usable: npt.NDArray[np.bool_], psf: PSF) -> float:
    """Return how much wider PSF-filtered noise is than it would be if neighbouring pixels were independent.

    The correlation r of the empty sky's pixels is measured lag by lag up to `MAX_LAG`; what is left at `FAR_LAGS` is
    structure of the sky (faint stars, flat field), which a difference does not contain, and is taken off. A filter P
    then widens the noise by sqrt(sum over lags of r (P * P)(lag) / sum(P²)).

    1 for independent pixels, larger after resampling or stacking with interpolation, smaller where a filter has made
    neighbours repel each other.
    """
    from scipy.signal import fftconvolve

    stamp = psf.stamp()
    profile = fftconvolve(stamp, stamp[::-1, ::-1], mode="same")
    middle = psf.size // 2
    profile = profile / profile[middle, middle]
    near = [(dy, dx) for dy in range(MAX_LAG + 1) for dx in range(-MAX_LAG, MAX_LAG + 1) if dy > 0 or dx > 0]
    sums = np.zeros((len(near) + len(FAR_LAGS), 2))
    height, width = data.shape
    side_y, side_x = min(WINDOW, height), min(WINDOW, width)
    across, down = (int(np.clip(n // s, 1, WINDOWS)) for n, s in ((width, side_x), (height, side_y)))
    for y0 in np.linspace(0, height - side_y, down).astype(int):
        for x0 in np.linspace(0, width - side_x, across).astype(int):
            window = (slice(y0, y0 + side_y), slice(x0, x0 + side_x))
            chi = data[window] / np.sqrt(variance[window])
            good = usable[window] & (np.abs(chi) < 4)
            if good.sum() < 400:
                continue
            chi = np.where(good, chi - chi[good].mean(), np.float32(0))
            weight = good.astype(np.float32)
            power = float(np.square(chi).sum()) / float(good.sum())
            for k, (dy, dx) in enumerate((*near, *FAR_LAGS)):
                low, high = _overlap(side_y, side_x, dy, dx)
                sums[k] += (
                    float((chi[low] * chi[high]).sum()) / power,
                    float((weight[low] * weight[high]).sum()),
                )
    if sums[0, 1] < 400:
        return 1.0
    r = sums[:, 0] / np.maximum(sums[:, 1], 1)
    structure = float(np.mean(r[len(near) :]))
    total = 1.0
    for value, (dy, dx) in zip(r, near, strict=False):
        if max(dy, abs(dx)) <= middle:
            total += 2 * (value - structure) * profile[middle + dy, middle + dx]
    return float(np.sqrt(max(total / (1 - structure), 0.01)))


def _overlap(height: int, width: int, dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the two views of a (height, width) image that lie (dy, dx) apart, dy not negative."""
    left, right = max(-dx, 0), width - max(dx, 0)
    return (slice(0, height - dy), slice(left, right)), (slice(dy, height), slice(left + dx, right + dx))
