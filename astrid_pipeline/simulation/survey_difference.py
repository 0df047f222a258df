"""Pairs of frames as wide surveys take and subtract them: coarse pixels, and a plain difference that is a little wrong.

AstrID's own differences fit registration and PSF anew, carry a noise map and mask what is saturated. The cut-outs in
the alerts of other surveys come without all that: there stars leave residuals of hundreds of sigma, which ring from row
to row where the seeing is hardly sampled. What judges such cut-outs has to have seen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from astrid_pipeline.simulation.pair_options import random_options
from astrid_pipeline.simulation.pairs import SimulatedPair
from astrid_pipeline.simulation.psf import constant_psf

Floats = npt.NDArray[np.float64]

#: Pixels of a PSF's stamp, and by how many the frames are continued so that a filter has something at their edges.
_PSF_SIDE, _PAD = 65, 32

#: Share of the pairs that are subtracted by convolving one frame to the other's PSF; the others by ZOGY.
_CONVOLVED = 0.35

#: What keeps the division by a PSF's spectrum finite: below 3 % of its height noise would be blown up 30 times.
_LEAST_POWER = 1e-3


def survey_options(rng: np.random.Generator) -> dict[str, Any]:
    """Draw options of one pair as a wide survey takes it: seeing of 1.1 to 3.5 px, deep references, nothing masked.

    More than half of what changes are stars, as among the alerts of such surveys, and changes reach a S/N of 300.
    """
    seeing = float(np.exp(rng.uniform(np.log(1.1), np.log(3.5))))
    return random_options(rng) | {
        "science_fwhm": seeing,
        "reference_fwhm": float(np.clip(seeing * rng.lognormal(0, 0.15), 1.1, 3.6)),
        "reference_depth": int(rng.integers(10, 41)),
        "shift": (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        "distortion": float(abs(rng.normal(0, 0.06))),
        "stars": float(np.exp(rng.uniform(np.log(1500), np.log(14000)))),
        "bright_star": float(rng.uniform(9, 12)),
        "sky": float(np.exp(rng.uniform(np.log(100), np.log(1500)))),
        "clouds": float(rng.choice([0.0, 0.0, 0.0, 0.3])),
        "transients": 70.0,
        "variables": 140.0,
        "movers": 40.0,
        "fading": 0.3,
        "snr": (4.0, 300.0),
        "trail_length": (0.3, 8.0),
        "dipoles": float(rng.uniform(0, 20)),
        "cosmic_rays": float(rng.uniform(5, 40)),
        "hot_pixels": float(rng.uniform(0, 20)),
        "bad_columns": float(rng.uniform(0, 0.6)),
        "trails": int(rng.random() < 0.1),
        "masked": 0.0,
        "saturation_masked": False,
    }


@dataclass(frozen=True, eq=False)
class PlainDifference:
    """What `subtract_plainly` made, (height, width) each.

    Attributes
    ----------
    data:
        The difference, in units that nobody says.
    reference:
        The reference on the science frame's pixels, its sky left in.
    score:
        The difference filtered by its PSF, in units of the filtered sky's noise.
    flux:
        That of a point source at each pixel by the same filter, science electrons.
    """

    data: Floats
    reference: Floats
    score: Floats
    flux: Floats


def subtract_plainly(pair: SimulatedPair, rng: np.random.Generator) -> PlainDifference:
    """Subtract as a survey's pipeline does, with registration, PSFs and zero point a little wrong.

    The reference is resampled by Lanczos-3. Both frames are taken to have one PSF all over, round, of a width that is
    wrong by 1 to 10 % (one sigma; drawn once a pair); registration is wrong by 0.02 to 0.2 px, the zero point by 0.2
    to 3 %: the spans from a survey's good fields to those that its alerts come from. The difference is that of Zackay,
    Ofek & Gal-Yam (2016, ApJ 830, 27; eq. 13), or of Alard & Lupton's kind: the sharper frame convolved to the other.
    """
    o = pair.options
    off, blur, gain = (
        np.exp(rng.uniform(np.log(low), np.log(high)))
        for low, high in ((0.02, 0.2), (0.01, 0.1), (0.002, 0.03))
    )
    science = np.asarray(pair.science.data, float)
    dx, dy = np.asarray(o.shift) + rng.normal(0, off, 2)
    reference = resampled(np.asarray(pair.reference.data, float), float(dx), float(dy))
    level, noise = _sky(science)
    level_then, noise_then = _sky(reference)
    ratio = o.flux_ratio * (1 - o.clouds) * rng.lognormal(0, gain)
    new = np.pad(science - level, _PAD, mode="reflect")
    old = np.pad((reference - level_then) * ratio, _PAD, mode="reflect")
    noise_then *= ratio
    psf_new, psf_old = (
        _spectrum(fwhm * rng.lognormal(0, blur), o.beta, new.shape)
        for fwhm in (o.science_fwhm, o.reference_fwhm)
    )
    n, r = np.fft.rfft2(new), np.fft.rfft2(old)
    if rng.random() < _CONVOLVED:
        difference, psf, unit = _convolved(n, r, psf_new, psf_old)
    else:
        # The last term keeps the division finite where both PSFs have no power left.
        power = noise**2 * np.abs(psf_old) ** 2 + noise_then**2 * np.abs(psf_new) ** 2 + 1e-6 * noise**2
        unit = float(np.hypot(noise, noise_then))
        difference = (psf_old * n - psf_new * r) / np.sqrt(power)
        psf = psf_new * psf_old * unit / np.sqrt(power)
    inside = (slice(_PAD, -_PAD), slice(_PAD, -_PAD))
    data = np.fft.irfft2(difference, new.shape)[inside]
    filtered = np.fft.irfft2(np.fft.rfft2(np.pad(data, _PAD, mode="reflect")) * np.conj(psf), new.shape)[
        inside
    ]
    area = float(np.square(np.fft.irfft2(psf, new.shape)).sum())
    middle, spread = _sky(filtered)
    return PlainDifference(data, reference, (filtered - middle) / spread, filtered / area * unit)


def resampled(image: Floats, dx: float, dy: float) -> Floats:
    """Return the image by Lanczos-3 such that what stood at (x + dx, y + dy) stands at (x, y); |dx|, |dy| ≤ 1 px."""
    places = np.arange(-4, 5)
    for axis, move in ((1, dx), (0, dy)):
        at = places - move
        kernel = np.sinc(at) * np.sinc(at / 3) * (np.abs(at) < 3)
        image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode="nearest")
    return image


def _convolved(n: Any, r: Any, psf_new: Any, psf_old: Any) -> tuple[Any, Any, float]:
    """Return the difference's spectrum, its PSF's and the science electrons of its unit."""
    power_new, power_old = np.abs(psf_new) ** 2, np.abs(psf_old) ** 2
    if power_new.sum() > power_old.sum():
        return psf_old * np.conj(psf_new) / (power_new + _LEAST_POWER) * n - r, psf_old, 1.0
    return n - psf_new * np.conj(psf_old) / (power_old + _LEAST_POWER) * r, psf_new, 1.0


def _spectrum(fwhm: float, beta: float, shape: tuple[int, ...]) -> npt.NDArray[np.complex128]:
    """Return the half-plane spectrum of a round Moffat of unit flux at pixel (0, 0)."""
    stamp = constant_psf((_PSF_SIDE, _PSF_SIDE), fwhm, beta=beta).model(_PSF_SIDE).stamp()
    image = np.zeros(shape)
    image[:_PSF_SIDE, :_PSF_SIDE] = stamp / stamp.sum()
    half = _PSF_SIDE // 2
    return np.fft.rfft2(np.roll(image, (-half, -half), (0, 1)))


def _sky(image: Floats) -> tuple[float, float]:
    """Return median and noise of the empty sky; every second pixel tells it as well."""
    from astropy.stats import sigma_clipped_stats

    _, middle, noise = sigma_clipped_stats(image[::2, ::2], sigma=3.0, stdfunc="mad_std")
    return float(middle), float(noise)
