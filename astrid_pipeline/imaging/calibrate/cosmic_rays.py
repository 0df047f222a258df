"""Cosmic rays in single frames: what is sharper than the point spread function allows.

Like L.A.Cosmic (van Dokkum 2001, PASP 113, 1420), this looks for edges that no star can have, but it asks the
frame's own PSF how sharp a star may be instead of a fixed contrast, and it asks only the pixels that stand out of
the sky, so that it costs a small part of the time.

In the core of a star the logarithm of the light falls like a parabola, whatever the star's position within its
pixel. Hence a pixel c and its neighbours a and b on opposite sides obey

    c ≤ r · √(a b) ≤ r · (a + b) / 2,        r = exp(d² / 2 s²),

s being the Gaussian width of the (pixel-integrated) PSF and d the distance of the neighbours; in the wings, where
the profile is convex, c is even below the mean. A pixel that exceeds r (a + b) / 2 in any of the four directions
(row, column, both diagonals) by more than noise explains is no star. A track is sharp across, if not along.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.frame import Image

#: σ above the sky that a pixel must have. A single pixel of 10 σ reaches 5 σ in a matched filter, less does no harm.
SIGNAL = 4.5

#: σ by which a pixel must be sharper than a star can be. With `SIGNAL` it leaves less than one pixel in 10⁶ to chance;
#: stars are kept by `MARGIN`, which puts them below zero on average.
SHARPNESS = 3.5

#: The same for pixels that adjoin one found already: first for the rest of the track, then for its faint skirts.
TRACK = (2.5, 2.5)
SKIRTS = (2.0, 0.0)

#: Stars may be this much sharper than the frame's typical one (PSFs vary by some 10 % over a frame).
MARGIN = 0.85

#: Relative error of the bound on bright stars: what a PSF's core deviates from a Gaussian's.
TOLERANCE = 0.03

#: FWHM (px) taken for granted where too few stars tell it: sharper than what a ground-based camera samples.
UNKNOWN_FWHM = 1.5

_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))

_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


def find_cosmic_rays(
    data: Image,
    variance: Image | float,
    unusable: npt.NDArray[np.bool_],
    fwhm: float | None = None,
    *,
    rounds: int = 4,
) -> npt.NDArray[np.bool_]:
    """Return the pixels hit by cosmic rays.

    Parameters
    ----------
    data:
        (h, w), sky removed.
    variance:
        (h, w) or one number, in units of the data squared.
    unusable:
        Pixels that are masked already: neither tested nor believed as neighbours.
    fwhm:
        Of the stars, in pixels; None if not known, which finds only what is sharper than `UNKNOWN_FWHM`.
    rounds:
        How often the neighbours of what was found are looked at again.
    """
    width = data.shape[1]
    variances = np.broadcast_to(np.asarray(variance, np.float32), data.shape)
    stands_out = (data > SIGNAL * np.sqrt(variances)) & ~unusable
    image = np.pad(data, 1)
    noise2 = np.pad(variances, 1)
    usable = np.pad(~unusable, 1)
    found = np.zeros_like(usable)
    step = width + 2
    at = np.flatnonzero(np.pad(stands_out, 1))
    scale = MARGIN * max(fwhm or UNKNOWN_FWHM, 1.0)
    at = at[_excess(image, noise2, usable, at, step, scale) > SHARPNESS]
    hits = at
    for signal, sharpness in (*(TRACK for _ in range(rounds)), SKIRTS):
        found.ravel()[at] = True
        usable.ravel()[at] = False
        # Skirts are looked for along all of what was found, a track's rest where it was last found.
        source = hits if (signal, sharpness) == SKIRTS else at
        near = np.unique(np.concatenate([source + dy * step + dx for dy, dx in _NEIGHBOURS]))
        near = near[usable.ravel()[near]]
        near = near[image.ravel()[near] > signal * np.sqrt(noise2.ravel()[near])]
        at = near[_excess(image, noise2, usable, near, step, scale) > sharpness]
        hits = np.concatenate([hits, at])
    found.ravel()[at] = True
    return found[1:-1, 1:-1]


def _excess(
    image: Image,
    variance: Image,
    usable: npt.NDArray[np.bool_],
    at: npt.NDArray[np.intp],
    step: int,
    fwhm: float,
) -> npt.NDArray[np.float32]:
    """Return by how many σ the pixels `at` (flat indices) are sharper than a star, in the direction that says most.

    With one neighbour masked the other alone is compared, with r³: a star in the corner of its pixel is that steep.
    """
    values, noise2, good = image.ravel(), variance.ravel(), usable.ravel()
    centre, own = values[at], noise2[at]
    best = np.full(at.size, -np.inf, np.float32)
    s2 = (fwhm / 2.3548) ** 2
    for dy, dx in _DIRECTIONS:
        r = np.exp((dy * dy + dx * dx) / (2 * s2))
        a, b = at + dy * step + dx, at - dy * step - dx
        wa, wb = good[a], good[b]
        count = wa.astype(np.float32) + wb
        known = count > 0
        count = np.maximum(count, 1)
        pair = (np.where(wa, values[a], 0) + np.where(wb, values[b], 0)) / count
        pair_noise2 = (np.where(wa, noise2[a], 0) + np.where(wb, noise2[b], 0)) / count**2
        bound = np.where(count == 2, r, r**3)
        limit = bound * np.maximum(pair, 0)
        error2 = own + bound**2 * pair_noise2 + (TOLERANCE * limit) ** 2
        score = np.where(known, (centre - limit) / np.sqrt(error2), -np.inf)
        np.maximum(best, score, out=best)
    return best


def typical_fwhm(
    data: Image, variance: Image | float, unusable: npt.NDArray[np.bool_], *, minimum: int = 5
) -> float | None:
    """Return the FWHM (px) of a frame's stars, the pixel's own width included; None with fewer than `minimum` stars.

    From the curvature of the logarithm at bright local maxima, ln c² − ln a b = 1 / s² along rows and columns, which
    does not depend on where in the pixel the star is. Cosmic rays are not round, or have neighbours in the noise;
    galaxies are wider: the most frequent width is the stars'.
    """
    variances = np.broadcast_to(np.asarray(variance, np.float32), data.shape)
    core = data[1:-1, 1:-1]
    peaks = (core > 30 * np.sqrt(variances[1:-1, 1:-1])) & ~unusable[1:-1, 1:-1]
    y, x = (index + 1 for index in np.nonzero(peaks))
    if y.size < minimum:
        return None
    ring = np.stack([data[y + dy, x + dx] for dy, dx in _NEIGHBOURS])
    bad = np.stack([unusable[y + dy, x + dx] for dy, dx in _NEIGHBOURS]).any(axis=0)
    centre = data[y, x]
    good = ~bad & (ring <= centre).all(axis=0) & (ring > 3 * np.sqrt(variances[y, x])).all(axis=0)
    if good.sum() < minimum:
        return None
    ring, centre = ring[:, good], centre[good]
    # _NEIGHBOURS in order: up-left, up, up-right, left, right, down-left, down, down-right.
    ky = 2 * np.log(centre) - np.log(ring[1]) - np.log(ring[6])
    kx = 2 * np.log(centre) - np.log(ring[3]) - np.log(ring[4])
    round_ones = (ky > 0) & (kx > 0) & (np.abs(np.log(np.maximum(ky, 1e-6) / np.maximum(kx, 1e-6))) < 0.5)
    if round_ones.sum() < minimum:
        return None
    widths = np.sort(2.3548 / (ky[round_ones] * kx[round_ones]) ** 0.25)
    return float(np.exp(_half_sample_mode(np.log(widths))))


def _half_sample_mode(values: npt.NDArray[np.floating]) -> float:
    """Return where sorted values lie densest, by halving to the narrowest half (Bickel & Frühwirth 2006)."""
    while values.size > 4:
        half = (values.size + 1) // 2
        spans = values[half - 1 :] - values[: values.size - half + 1]
        begin = int(np.argmin(spans))
        values = values[begin : begin + half]
    return float(values.mean())
