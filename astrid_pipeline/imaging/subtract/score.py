"""From flux and variance to S_corr: what is left after matching, masks, and the noise checked on empty sky."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import norm

from astrid_pipeline.imaging.frame import Image
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, UNUSABLE, Mask, MaskArray
from astrid_pipeline.imaging.subtract.arrays import cells_with
from astrid_pipeline.imaging.subtract.fill import cells_of
from astrid_pipeline.imaging.subtract.surfaces import robust_sigma

#: Static sources brighter than this many sigma tell how well the frames match.
BRIGHT = 15.0
#: Fewer bright sources cannot tell an error of the match from a variable: of three, one may be.
FEWEST = 3
#: A source whose squared residual is this many times what is expected of it is a change: 3 sigma.
STANDS_OUT = 9.0
#: Static flux over the noise from which a source is a giant: half a per cent of mismatch, which is what ordinary
#: sources tell of, is one sigma there.
GIANT = 200.0
#: Pixels of a score that share their noise, about: the area of a Gaussian of FWHM 3.
CORRELATED = 10.0
#: Share of a point source's weight on unusable pixels above which a position is masked: its flux would be off by
#: as much.
TOUCHED = 0.10
#: The score is rescaled when its width on empty sky differs from 1 by more than this; below, the width of a megapixel's
#: score is not known better.
TOLERANCE = 0.02

#: Beyond the frame nothing is known of either image, so that even a small share of a star there shows.
TOUCHED_EDGE = 0.005
#: Light from beyond the frame, in units of a pixel's noise, above which a position counts as `Mask.EDGE`. Half of it is
#: matched anyway, and a PSF sums some ten pixels.
LEAK = 0.5

_Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Left:
    """What matching left: σ_x, σ_y (px), and the relative error of the PSF ratio."""

    sigma_x: float
    sigma_y: float
    shape: float


def variance_left(
    flux: Image, variance: Image, static: Image, bad: _Bool, changed: npt.NDArray[np.int64] | None = None
) -> tuple[Image, Left]:
    """Return the variance that imperfect matching adds, and what it is made of.

    V_ast = σ_x² (∂S/∂x)² + σ_y² (∂S/∂y)² (eqs 30-33), and ε² S² for PSF ratios that are off by ε. S is the reference's
    part of the score, static flux seen through the same filter; the relative shift counts once, since only the shift
    between the two frames leaves anything. The three numbers are those that make the squared residuals of bright
    sources equal to their variance. Each source has one voice, and those that stand out from all others have none: a
    star that vanished, or the one galaxy with a supernova, must not hide itself behind an error made of its own change.
    Neither have those at `changed` (k, 2), x and y, which the match itself found to have moved or varied.
    """
    gx, gy = (np.gradient(static, axis=axis) ** 2 for axis in (1, 0))
    # Around masks (saturated cores, bleeding) other things are left than shifts; `halos` measures those.
    chosen = (static**2 > BRIGHT**2 * variance) & ~near_bad(bad)
    labels, n = ndimage.label(chosen)
    heard = np.ones(n, bool)
    if changed is not None and len(changed):
        silent = labels[changed[:, 1], changed[:, 0]]
        heard[silent[silent > 0] - 1] = False
        if heard.sum() < FEWEST:
            heard[:] = True
    if n < FEWEST:
        return np.zeros_like(flux), Left(0.0, 0.0, 0.0)
    source, noise = labels[chosen] - 1, variance[chosen].astype(np.float64)
    columns = np.stack([gx[chosen], gy[chosen], static[chosen] ** 2]).astype(np.float64)
    squares = flux[chosen].astype(np.float64) ** 2
    part, number = heard[source], np.cumsum(heard) - 1
    solution = _robust_shares(columns[:, part], squares[part], noise[part], number[source[part]])
    extra = (solution[0] * gx + solution[1] * gy + solution[2] * static**2).astype(np.float32)
    share = _share_of_giants(columns[2], squares - extra[chosen], noise, source)
    if share is not None:
        giant, epsilon2 = share
        extra[chosen] += (epsilon2 * columns[2] * giant[source]).astype(np.float32)
    return extra, Left(*(float(np.sqrt(s)) for s in solution))


def _share_of_giants(
    light: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    source: npt.NDArray[np.intp],
) -> tuple[_Bool, float] | None:
    """Return which sources are giants, and the ε² that the median one shows beyond what the others say; None if few.

    Stars hundreds of times the noise show what ordinary ones do not: cores beyond the linear range, spikes that turn
    from night to night.
    """
    pixels = np.bincount(source)
    brightest = np.zeros(len(pixels))
    np.maximum.at(brightest, source, light / noise)
    giant = brightest > GIANT**2
    if giant.sum() < FEWEST:
        return None
    excess = np.bincount(source, squares / noise) / pixels - 1
    ratio = np.maximum(excess, 0) / (np.bincount(source, light / noise) / pixels)
    return giant, float(np.median(ratio[giant])) / 0.455


def _robust_shares(
    columns: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    source: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """Return the shares θ ≥ 0, (3,), with squares ≈ noise + θ · columns, without the sources that stand out.

    Parameters
    ----------
    columns, squares, noise:
        (3, n_pixels), and (n_pixels,) squared residuals and variances without what is looked for.
    source:
        Number of each pixel's source.
    """
    from scipy.optimize import nnls

    pixels = np.bincount(source)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(source, values / noise) / pixels, np.float64)

    excess, shapes = mean(squares) - 1, np.stack([mean(c) for c in columns])
    error = np.sqrt(2 * CORRELATED / pixels)  # what noise alone scatters a source's mean square by
    # To begin with, what the median source shows is put on each of the three alike. A source's residual is one draw:
    # half of the squares of a Gaussian are below 0.455 of their mean.
    ratio = np.median(np.maximum(excess, 0) / np.maximum(shapes, 1e-30), axis=1)
    solution = np.asarray(ratio / 0.455 / len(columns), np.float64)
    for _ in range(12):
        use = (excess < STANDS_OUT * (solution @ shapes + error))[source]
        if not use.any():
            break
        weight = 1 / (noise + solution @ columns)[use]
        new, _ = nnls((columns[:, use] * weight).T, (squares[use] - noise[use]) * weight)
        if np.allclose(new, solution, rtol=0.02, atol=1e-12):
            break
        solution = new
    return solution


def near_bad(bad: _Bool, cell: int = 8) -> _Bool:
    """Return the cells of a coarse grid that hold bad pixels, and their neighbours: within 8 to 16 px of one."""
    height, width = bad.shape
    coarse = cells_with(bad, cell)
    coarse = ndimage.binary_dilation(coarse, np.ones((3, 3), bool))
    return np.repeat(np.repeat(coarse, cell, axis=0), cell, axis=1)[:height, :width]


def empty_sky(static: Image, variance: Image, bad: _Bool) -> _Bool:
    """Return where neither static sources nor masks are."""
    return (np.abs(static) < 5 * np.sqrt(variance)) & ~bad


def score_width(flux: Image, variance: Image, empty: _Bool) -> float:
    """Return the robust standard deviation of the score flux / √variance on empty sky; 1 where there is none of it."""
    step = max(1, int(np.sqrt(empty.size / 400_000)))
    sparse = (slice(None, None, step), slice(None, None, step))
    chosen = empty[sparse]
    if chosen.sum() < 100:
        return 1.0
    return robust_sigma(flux[sparse][chosen] / np.sqrt(variance[sparse][chosen]))


def difference_mask(science: MaskArray, reference: MaskArray, fwhm: float) -> MaskArray:
    """Return the mask of the difference: both frames' bits, spread to the pixels that unusable ones touch.

    A position is touched where more than `TOUCHED` of a point source's weight lies on unusable pixels. Where more than
    `TOUCHED_EDGE` lies beyond the frame, it is `Mask.EDGE`.
    """
    out = science | (reference << np.int32(REFERENCE_SHIFT))
    both = np.int32(int(UNUSABLE) | (int(UNUSABLE) << REFERENCE_SHIFT))
    # The weight P² of a Gaussian PSF is a Gaussian narrower by √2.
    width = fwhm / 2.355 / math.sqrt(2)
    bad = (out & both) != 0
    touched = np.zeros(bad.shape, bool)
    for cell, box in cells_of(bad, math.ceil(3 * width) + 1, beside=True):
        blurred = ndimage.gaussian_filter(bad[box].astype(np.float32), width, truncate=3.0)
        own = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(cell, box, strict=True))
        touched[cell] = blurred[own] > TOUCHED
    if touched.any():
        out = out | np.where(touched, _spread(out & both, math.ceil(2 * width) + 1), np.int32(0))
    band = 0
    while norm.cdf(-(band + 0.5) / width) > TOUCHED_EDGE:
        band += 1
    edge = np.ones(out.shape, bool)
    edge[band : out.shape[0] - band, band : out.shape[1] - band] = False
    out[edge] |= np.int32(Mask.EDGE)
    return out


def edge_leak(science: Image, reference: Image, psf: npt.NDArray[np.float64], sigma: float) -> _Bool:
    """Return where light from beyond the frame matters, (height, width) bool.

    A star whose centre lies outside cannot be matched, since each image would need of it what only the other's PSF
    spreads inside. What is beyond is taken to mirror what is inside, and spread by the PSF; where it gives more than
    `LEAK` of a pixel's noise, the score is not to be trusted.
    """
    from scipy.signal import fftconvolve

    out = np.zeros(science.shape, bool)
    reach = psf.shape[0] // 2
    if min(science.shape) <= 2 * reach:
        return np.ones(science.shape, bool)
    for axis, end in ((0, False), (0, True), (1, False), (1, True)):
        turned = [np.moveaxis(image, axis, 0) for image in (science, reference)]
        strip = np.maximum(*(image[::-1][:reach] if end else image[:reach] for image in turned))
        beyond = np.concatenate([np.maximum(strip[::-1], 0), np.zeros_like(strip)])
        leak = fftconvolve(beyond, psf, mode="same")[reach:]
        target = np.moveaxis(out, axis, 0)
        target = target[::-1] if end else target
        target[:reach] |= leak > LEAK * sigma
    return out


def _spread(bits: MaskArray, reach: int) -> MaskArray:
    """Return each pixel's bits joined with those of all pixels within `reach` along rows and columns."""
    if not bits.any():
        return bits
    for axis in (0, 1):
        out = bits.copy()
        for step in range(1, reach + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            out[tuple(ahead)] |= bits[tuple(behind)]
            out[tuple(behind)] |= bits[tuple(ahead)]
        bits = out
    return bits
