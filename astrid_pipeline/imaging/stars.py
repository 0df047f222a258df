"""Finding what shines in a frame, and which of it are stars fit to measure with.

sep (Source Extractor's algorithms) finds and deblends; positions and widths are then measured again, for all
sources at once, with a Gaussian window of the stars' own width, so that they do not depend on where an isophote
happens to lie.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.background import measure_background
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.moments import GAUSS, Moments, cut_stamps, window_moments

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

#: Detection threshold, sigma of the smoothed sky.
THRESHOLD = 5.0
#: A pixel over this threshold, and `MIN_AREA` of them together, make a source.
MIN_AREA = 5
#: Levels at which blends are looked for. sep's 32 find half a percent more sources in twice the time.
LEVELS = 16
#: Noise of independent pixels after smoothing with 1, 2, 1 along both axes: 6 / 16.
SMOOTHED = 0.375
#: Below this width nothing has passed an optical system: a single pixel's window width is 0.29 px, a cosmic ray's
#: mostly below 0.6, the sharpest PSF that a matched filter can use (FWHM 1.3 px) 0.62.
MIN_SIGMA = 0.6
#: The share of the saturation level above which a star's peak is not trusted to be linear.
LINEAR = 0.85
#: Stars are told from galaxies and blends by their width only where the noise leaves that to 5 %.
MIN_SNR = 20.0
#: How far a star's width may lie from the other stars' (relative), before their scatter is known. Real PSFs vary by
#: up to 12 % over a frame; a galaxy of 1.0 PSF widths half-light radius is 40 % wider.
WIDTH_TOLERANCE = 0.25
#: An object with this share of a frame's pixels is a crowd: a star of 10^5 sigma takes 0.1 % of 1024².
CROWD_SHARE = 0.02
#: From this many stars on, their widths are compared with a smooth surface over the frame.
ENOUGH_FOR_SURFACE = 40
#: A neighbour with this share of a star's flux within two FWHM spoils it.
NEIGHBOUR_SHARE = 0.10

#: How much higher the threshold is set, by and by, where sources overlap too much at the one that is wanted.
RAISED = (1.0, 2.0, 5.0, 20.0)
_OVERLAP = "the sources overlap too much to be told apart"

COLUMNS = (
    "x", "y", "flux", "flux_err", "snr", "peak", "sigma", "fwhm", "elongation", "angle", "npix", "flags", "star",
)  # fmt: skip


def _extract(image: Image, threshold: float, **options: Any) -> npt.NDArray[Any] | None:
    """Return sep's objects; None where they overlap too much for it.

    Raises
    ------
    PixelError
        If sep cannot work on the image, with sep's reason.
    """
    import sep

    # sep's limits are for small frames: a crowded or nebulous one overruns them and stops (sep issues 24, 72, 75).
    sep.set_extract_pixstack(max(1_000_000, image.size // 4))
    sep.set_sub_object_limit(20_000)
    try:
        found: npt.NDArray[Any] = sep.extract(image, threshold, **options)
    except MemoryError:
        # sep's has no text, and is no fault of the pixels.
        raise
    except Exception as error_of_sep:  # sep raises bare Exceptions
        if "deblending overflow" in str(error_of_sep) or "pixel buffer full" in str(error_of_sep):
            return None
        raise PixelError(
            f"no sources could be found: {error_of_sep}", remedy="check the frame's mask and values"
        ) from error_of_sep
    return found


def extract_plain(image: Image, sigma: float, mask: _Bool, threshold: float) -> npt.NDArray[Any]:
    """Return sep's own objects of 5 px or more over `threshold` times the noise; where they overlap too much, fewer.

    Raises
    ------
    PixelError
        If sep cannot work on the image, or everything in it overlaps.
    """
    whole = np.ascontiguousarray(image)
    for raised in RAISED:
        found = _extract(whole, threshold * raised, err=sigma, mask=mask, minarea=5)
        if found is not None:
            return found
    raise PixelError(_OVERLAP, remedy="check the sky level and the mask")


def find_sources(
    image: Image,
    noise: npt.NDArray[np.floating] | float,
    mask: _Bool | None = None,
    threshold: float = THRESHOLD,
) -> pd.DataFrame:
    """Find and deblend everything in a sky-subtracted image over `threshold` times the noise.

    The image in units of its noise is smoothed over 3 x 3 pixels (weights 1, 2, 1) and cut at `threshold` times the
    noise that is left of independent pixels' then.

    Returns
    -------
    DataFrame
        x, y (isophotal centroid), xpeak, ypeak, flux (isophotal), peak (brightest pixel), a, b, npix, flag (sep's),
        brightest first.

    Raises
    ------
    PixelError
        If sep cannot work on the image, with sep's reason.
    """
    # sep's own filter for uneven noise does the same in twice the time.
    scaled = np.ascontiguousarray(image / noise, dtype=np.float32)
    found = None
    # In a crowd everything is one object, in which deblending finds only what holds 0.5 % of it all, or gives up. A
    # higher threshold then finds more stars.
    for raised in RAISED:
        these = _extract(
            scaled,
            SMOOTHED * threshold * raised,
            mask=mask,
            minarea=MIN_AREA,
            clean=False,
            deblend_nthresh=LEVELS,
        )
        if these is None:
            continue
        if found is None or len(these) > len(found):
            found = these
        if not len(these) or these["npix"].max() < CROWD_SHARE * image.size:
            break
    if found is None:
        raise PixelError(_OVERLAP, remedy="check the sky level and the mask")
    names = ["x", "y", "xpeak", "ypeak", "flux", "peak", "a", "b", "npix", "flag"]
    table = pd.DataFrame({name: found[name] for name in names})
    at = (found["ypeak"], found["xpeak"])
    table["peak"] = image[at]
    table["flux"] = found["flux"] * np.broadcast_to(noise, image.shape)[at].astype(float)
    return table.sort_values("flux", ascending=False, kind="stable").reset_index(drop=True)


def detect_stars(
    frame: Frame, threshold: float = THRESHOLD, *, only_stars: bool = True, max_sources: int = 20_000
) -> pd.DataFrame:
    """Find the stars of a frame: point-like, unsaturated, not spoilt by neighbours or masked pixels.

    Parameters
    ----------
    frame:
        Its sky is measured and removed here unless `meta["sky_subtracted"]`.
    threshold:
        Detection threshold, in sigma of the empty sky smoothed over 3 x 3 pixels (see `find_sources`).
    only_stars:
        Leave out what is not a star; otherwise all sources come, and the column `star` tells.
    max_sources:
        At most the brightest so many are measured.

    Returns
    -------
    DataFrame
        x, y (px), flux and flux_err (of a Gaussian of the source's own width, units of the data), snr, peak, sigma
        and fwhm (px), elongation, angle (degrees from +x towards +y), npix, flags (`Mask` bits within one FWHM),
        star; brightest first. Empty if there is nothing.

    Raises
    ------
    PixelError
        If the frame has no usable pixels.
    """
    table = _known.get(frame) if threshold == THRESHOLD else None
    if table is not None:
        table = _with_noise_of(frame, table.head(max_sources))
        return table[table["star"]].reset_index(drop=True) if only_stars else table
    data, rms = sky_subtracted(frame)
    return measure_sources(
        data,
        rms,
        frame.mask,
        threshold,
        saturation=saturation_above_sky(frame),
        only_stars=only_stars,
        limit=max_sources,
    )


#: Sources measured when a frame was prepared, so that registration and photometry need not find them again.
_known: weakref.WeakKeyDictionary[Frame, pd.DataFrame] = weakref.WeakKeyDictionary()


def remember_sources(frame: Frame, sources: pd.DataFrame | None) -> None:
    """Keep all that `measure_sources` found on a prepared frame's pixels over `THRESHOLD`; None is nothing."""
    if sources is not None:
        _known[frame] = sources


def remembered_sources(frame: Frame) -> pd.DataFrame | None:
    """Return what `remember_sources` kept."""
    return _known.get(frame)


def _with_noise_of(frame: Frame, table: pd.DataFrame) -> pd.DataFrame:
    """Return sources measured against the sky's noise alone with the errors that the frame's variance gives them."""
    assert frame.variance is not None
    height, width = frame.shape
    row = np.clip(np.rint(table["y"].to_numpy()), 0, height - 1).astype(int)
    column = np.clip(np.rint(table["x"].to_numpy()), 0, width - 1).astype(int)
    flux_err = _flux_error(np.sqrt(frame.variance[row, column].astype(float)), table["sigma"].to_numpy())
    snr = table["flux"] / flux_err
    return table.assign(flux_err=flux_err, snr=snr, star=table["star"] & (snr > MIN_SNR))


def _flux_error(noise: _Float, sigma: _Float) -> _Float:
    """Return the error of fluxes matched to Gaussians of width sigma: 4 π σ² pixels of `noise` share it."""
    return noise * np.sqrt(4 * np.pi) * np.maximum(sigma, MIN_SIGMA)


def sky_subtracted(frame: Frame) -> tuple[Image, npt.NDArray[np.floating]]:
    """Return the frame's data without its sky, and the noise of one pixel of empty sky."""
    if frame.meta.get("sky_subtracted") and frame.variance is not None:
        return frame.data, np.sqrt(frame.variance)
    sky = measure_background(frame.data, frame.mask)
    return frame.data - sky.level, sky.rms


def saturation_above_sky(frame: Frame) -> float | None:
    """Return the level, in sky-subtracted units, above which a star's peak is not to be trusted."""
    level = frame.meta.get("saturation")
    if level is None or not np.isfinite(level):
        return None
    sky = (
        float(frame.meta.get("sky") or 0.0)
        if frame.meta.get("sky_subtracted")
        else float(np.median(frame.data[::4, ::4]))
    )
    return LINEAR * float(level) - sky


def measure_sources(
    data: Image,
    rms: npt.NDArray[np.floating],
    mask: npt.NDArray[np.int32],
    threshold: float = THRESHOLD,
    *,
    saturation: float | None = None,
    only_stars: bool = False,
    limit: int = 20_000,
) -> pd.DataFrame:
    """Do what `detect_stars` says, on sky-subtracted data with their noise."""
    unusable = is_set(mask)
    found = find_sources(data, rms, unusable if unusable.any() else None, threshold).head(limit)
    if found.empty:
        return pd.DataFrame({name: pd.Series(dtype=bool if name == "star" else float) for name in COLUMNS})
    x0, y0 = np.rint(found["x"]).astype(int).to_numpy(), np.rint(found["y"]).astype(int).to_numpy()
    np.clip(x0, 0, data.shape[1] - 1, out=x0)
    np.clip(y0, 0, data.shape[0] - 1, out=y0)
    noise = rms[y0, x0].astype(float)
    clear = found["flux"].to_numpy() > MIN_SNR * noise * np.sqrt(found["npix"].to_numpy())
    sigma, moments = _measure(data, unusable, x0, y0, found, clear)
    flux = moments.flux
    # The source's photons count where the noise map holds them already (a variance plane), else they are left out.
    flux_err = _flux_error(noise, moments.sigma)
    table = pd.DataFrame(
        {
            "x": x0 + moments.dx,
            "y": y0 + moments.dy,
            "flux": flux,
            "flux_err": flux_err,
            "snr": flux / flux_err,
            "peak": found["peak"].to_numpy(float),
            "sigma": moments.sigma,
            "fwhm": GAUSS * moments.sigma,
            "elongation": moments.elongation,
            "angle": moments.angle,
            "npix": found["npix"].to_numpy(np.int64),
        }
    )
    radius = max(2, round(GAUSS * sigma))
    around = cut_stamps(mask, x0, y0, 2 * radius + 1, fill=int(Mask.EDGE))
    table["flags"] = np.bitwise_or.reduce(around.reshape(len(around), -1), axis=1).astype(np.int32)
    table["star"] = _are_stars(table, found, data.shape, sigma, saturation)
    if only_stars:
        table = table[table["star"]]
    table = table[np.isfinite(table["flux"]) & np.isfinite(table["x"])]
    return table.sort_values("flux", ascending=False, kind="stable").reset_index(drop=True)[list(COLUMNS)]


def _measure(
    data: Image,
    unusable: _Bool,
    x0: npt.NDArray[np.int_],
    y0: npt.NDArray[np.int_],
    found: pd.DataFrame,
    clear: _Bool,
) -> tuple[float, Moments]:
    """Return the stars' width, from the `clear` sources if there are any, and all sources' moments in such a window."""
    bright = np.flatnonzero(clear if clear.sum() >= 3 else np.ones(len(found), bool))[:500]
    shape = np.sqrt((found["a"] * found["b"]).to_numpy())[bright]
    sigma = float(np.clip(np.median(shape), 0.8, 6.0))
    for _ in range(4):
        size = 2 * int(np.ceil(4 * sigma)) + 1
        stamps = cut_stamps(data, x0[bright], y0[bright], size)
        weight = 1 - cut_stamps(unusable, x0[bright], y0[bright], size, fill=True).astype(np.float32)
        widths = window_moments(stamps, weight, sigma).sigma
        usable = np.isfinite(widths) & (widths > MIN_SIGMA) & (found["flag"].to_numpy()[bright] <= 1)
        if not usable.any():
            usable = np.isfinite(widths) & (widths > MIN_SIGMA)
        if not usable.any():
            break
        new = float(np.clip(locus(widths[usable]), 0.8, 8.0))
        settled = abs(new / sigma - 1) < 0.03
        sigma = new
        if settled:
            break
    size = 2 * int(np.ceil(4 * sigma)) + 1
    parts = []
    for start in range(0, len(found), 2000):
        some = slice(start, start + 2000)
        weight = 1 - cut_stamps(unusable, x0[some], y0[some], size, fill=True).astype(np.float32)
        parts.append(window_moments(cut_stamps(data, x0[some], y0[some], size), weight, sigma))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in Moments.__dataclass_fields__
    }
    return sigma, Moments(**joined)


def locus(widths: _Float) -> float:
    """Return the width that the stars share: galaxies and blends scatter to larger ones, hardly any to smaller.

    It is the middle of a ± 7 % window. In a deep field more windows' worth of galaxies than of stars may be there, so
    the fullest window is not the one: of those that hold at least half as many, the narrowest leads to the stars, and
    the fullest that begins within its width is theirs.
    """
    values = np.sort(widths[np.isfinite(widths)])
    count = np.searchsorted(values, values * 1.15, side="right") - np.arange(len(values))
    narrowest = int(np.argmax(count >= 0.5 * count.max()))
    near = np.searchsorted(values, values[narrowest] * 1.15, side="right")
    first = narrowest + int(np.argmax(count[narrowest:near]))
    return float(np.median(values[first : first + count[first]]))


def _are_stars(
    table: pd.DataFrame, found: pd.DataFrame, shape: tuple[int, int], sigma: float, saturation: float | None
) -> _Bool:
    """Return which sources are stars fit to measure with."""
    fwhm = GAUSS * sigma
    x, y = table["x"].to_numpy(), table["y"].to_numpy()
    good = np.isfinite(table["sigma"].to_numpy()) & (table["snr"].to_numpy() > MIN_SNR)
    good &= (table["flags"].to_numpy() & int(UNUSABLE | Mask.EDGE)) == 0
    good &= (table["sigma"].to_numpy() > MIN_SIGMA) & (table["elongation"].to_numpy() < 1.6)
    good &= (x > fwhm) & (y > fwhm) & (x < shape[1] - 1 - fwhm) & (y < shape[0] - 1 - fwhm)
    if saturation is not None:
        good &= table["peak"].to_numpy() < saturation
    good &= isolated(x, y, table["flux"].to_numpy(), 2 * fwhm)
    ratio = np.log(np.where(good, table["sigma"].to_numpy(), sigma) / sigma)
    good &= np.abs(ratio) < WIDTH_TOLERANCE
    if good.sum() >= ENOUGH_FOR_SURFACE:
        good &= _near_surface(x, y, ratio, table["snr"].to_numpy(), good, shape)
    return good


def isolated(x: _Float, y: _Float, flux: _Float, radius: float, share: float = NEIGHBOUR_SHARE) -> _Bool:
    """Return which sources have no neighbour of `share` of their flux within `radius`."""
    from scipy.spatial import cKDTree

    alone = np.ones(len(x), bool)
    known = np.isfinite(x) & np.isfinite(y)
    index = np.flatnonzero(known)
    pairs = cKDTree(np.column_stack([x[known], y[known]])).query_pairs(radius, output_type="ndarray")
    first, second = index[pairs[:, 0]], index[pairs[:, 1]]
    bright = np.nan_to_num(flux)
    alone[first[bright[second] > share * bright[first]]] = False
    alone[second[bright[first] > share * bright[second]]] = False
    return alone


def _near_surface(
    x: _Float, y: _Float, ratio: _Float, snr: _Float, good: _Bool, shape: tuple[int, int]
) -> _Bool:
    """Return which log widths lie within 4 sigma of a quadratic surface through those of the brighter good ones.

    Among bright sources stars are many and galaxies resolved; fainter ones are judged by the surface, with the error
    that their noise gives their width.
    """
    u, v = 2 * x / max(shape[1] - 1, 1) - 1, 2 * y / max(shape[0] - 1, 1) - 1
    terms = np.nan_to_num(np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1))
    # In a Gaussian window the relative error of a width is about 1 / (S/N).
    noise = 1 / np.maximum(np.nan_to_num(snr, nan=1.0), 1.0)
    bright = good & (snr >= np.percentile(snr[good], 60))
    # Begin with those nearest to the common width, of which few are galaxies; a varying PSF draws the others in.
    keep = bright & (np.abs(ratio) < 0.08)
    if keep.sum() < 12:
        return good
    scatter = 0.01
    for _ in range(6):
        surface = terms @ np.linalg.lstsq(terms[keep], ratio[keep], rcond=None)[0]
        scatter = max(1.4826 * float(np.median(np.abs(ratio - surface)[keep])), 0.01)
        near = bright & (np.abs(ratio - surface) < 3 * scatter)
        if near.sum() < 12:
            break
        keep = near
    return good & (np.abs(ratio - surface) < 4 * np.hypot(scatter, noise))
