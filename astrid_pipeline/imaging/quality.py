"""Making a frame ready to be differenced, and saying how good it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import PSFError
from astrid_pipeline.imaging.background import Background, measure_background
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.moments import cut_stamps
from astrid_pipeline.imaging.noise import (
    TOLERANCE,
    StarTransfer,
    add_photons,
    find_gain,
    gain_from_stars,
    header_gain,
    noise_correlation,
    settle_gain,
    sky_ratio,
    source_light,
)
from astrid_pipeline.imaging.peaks import TAPS, interpolate_stamps
from astrid_pipeline.imaging.psf import fit_psf
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.stars import (
    detect_stars,
    measure_sources,
    remember_sources,
    remembered_sources,
    saturation_above_sky,
)

#: What `prepare` leaves in meta; a frame that has all of it, and its planes, is not prepared again.
_PREPARED = ("sky", "sky_sigma", "seeing", "noise_correlation")
#: At least this many pixels at the very maximum of the data, of several stars, are a saturation level.
_PILED_UP = 12
#: How far a catalogue star may lie from a frame's, arcsec and in FWHM, whichever is more.
MATCH_ARCSEC = 1.0
#: S/N of stars for the zero point: their own error is then below 0.05 mag.
ZERO_POINT_SNR = 20.0


def prepare(frame: Frame) -> Frame:
    """Return the frame with its sky removed and everything measured that differencing needs.

    What the frame has is kept: a PSF always; a variance unless the empty sky scatters otherwise (by more than
    `noise.TOLERANCE`), then it is scaled to it. What it lacks is measured. A prepared frame comes back as it is.

    Returns
    -------
    Frame
        Sky-subtracted data, `variance`, `mask` (saturated pixels added where `meta["saturation"]`, or the data
        themselves, tell the level), `psf`, and in meta: `sky_subtracted`, `sky` (median level removed), `sky_sigma`,
        `sky_err` and `noise_error` (measured error of the level, in units of the data, and of the noise, relative),
        `noise_ratio` (scatter of the empty sky over the variance handed over), `noise_correlation`, `gain` (electrons
        per unit; absent if it cannot be known), `gain_source`, `seeing`, `ellipticity`, `n_stars`.

    Raises
    ------
    PixelError
        If there are too few usable pixels, or the image is constant.
    PSFError
        If a PSF has to be measured and there are no stars for it.
    """
    if is_prepared(frame):
        return frame
    meta: dict[str, Any] = {}
    mask = _saturated(frame, meta)
    sky = measure_background(frame.data, mask)
    level = float(np.median(sky.level[::8, ::8]))
    removed = bool(frame.meta.get("sky_subtracted"))
    # A frame whose sky somebody else took away may have kept a little of it: that little is removed too.
    data = frame.data - sky.level
    usable = ~is_set(mask) & ~sky.objects
    sigma = float(np.median(sky.rms[::8, ::8]))
    meta |= {
        "sky_subtracted": True,
        "sky": float(frame.meta.get("sky") or 0.0) if removed else level,
        "sky_sigma": sigma,
        "sky_err": sky.level_err,
    }
    removed = removed or abs(level) < 3 * sigma
    gain = header_gain(frame.meta) if removed else find_gain(frame.meta, level, sigma)
    if frame.variance is not None:
        variance, meta["noise_ratio"], meta["noise_error"] = _reconciled(data, frame.variance, usable)
    else:
        light = source_light(data, sky, mask)
        variance = add_photons(sky, light, gain.value if gain else np.inf)
    staged = Frame(data, variance, mask, frame.psf, frame.wcs, {**frame.meta, **meta})
    psf, sources = frame.psf, None
    if psf is None or frame.variance is None:
        psf, stars, sources = _psf_and_gain(staged, sky, wanted=frame.variance is None)
        settled = settle_gain(gain, stars)
        if frame.variance is None and settled is not None and settled != gain:
            variance = add_photons(sky, light, settled.value)
        gain = settled
    if frame.variance is None:
        _, meta["noise_error"] = sky_ratio(data, variance, usable)
    if "noise_correlation" in frame.meta:
        meta["noise_correlation"] = float(frame.meta["noise_correlation"])
    else:
        meta["noise_correlation"] = noise_correlation(data, variance, usable, psf)
    if gain is not None:
        meta |= {"gain": gain.value, "gain_source": gain.source}
    elif frame.variance is None:
        meta["gain_source"] = "unknown: the noise has no part from the sources' photons"
    meta |= _psf_meta(psf)
    prepared = Frame(data, variance, mask, psf, frame.wcs, {**frame.meta, **meta})
    remember_sources(prepared, sources)
    return prepared


def is_prepared(frame: Frame) -> bool:
    """Return whether `prepare` has nothing left to do."""
    planes = frame.variance is not None and frame.psf is not None
    return planes and bool(frame.meta.get("sky_subtracted")) and all(key in frame.meta for key in _PREPARED)


def _psf_meta(psf: PSF) -> dict[str, Any]:
    """Return what a PSF says about the frame's seeing."""
    meta: dict[str, Any] = {"seeing": psf.fwhm()}
    for name in ("ellipticity", "n_stars"):
        if name in psf.quality:
            meta[name] = psf.quality[name]
    return meta


def _saturated(frame: Frame, meta: dict[str, Any]) -> npt.NDArray[np.int32]:
    """Return the mask with saturated pixels in it; the level is put into `meta` if the data had to tell it."""
    if is_set(frame.mask, Mask.SATURATED).any():
        return frame.mask
    offset = float(frame.meta.get("sky") or 0.0) if frame.meta.get("sky_subtracted") else 0.0
    level = frame.meta.get("saturation")
    if level is None:
        level = saturation_of(frame.data, frame.mask)
        if level is None:
            return frame.mask
        meta |= {"saturation": level + offset, "saturation_source": "pile-up of the image's brightest pixels"}
    else:
        level = float(level) - offset
    return np.where(frame.data >= level, frame.mask | np.int32(Mask.SATURATED), frame.mask)


def saturation_of(data: Image, mask: npt.NDArray[np.int32]) -> float | None:
    """Return the level at which the data end abruptly, if they do: where many pixels share the very maximum.

    Unsaturated stars have one brightest pixel each, at different levels. A dozen pixels within 0.2 % of the maximum,
    far above the sky, are a converter's or a full well's end.
    """
    good = ~is_set(mask)
    top = float(data[good].max()) if good.any() else 0.0
    sky = float(np.median(data[::4, ::4]))
    level = top - 0.002 * (top - sky)
    piled = int(np.count_nonzero(good & (data >= level)))
    # A plateau holds most of what is above the last tenth; a lone bright star's profile does not.
    shoulder = int(np.count_nonzero(good & (data >= top - 0.1 * (top - sky))))
    return level if piled >= _PILED_UP and piled > 0.3 * shoulder and top > sky else None


def _reconciled(data: Image, variance: Image, usable: npt.NDArray[np.bool_]) -> tuple[Image, float, float]:
    """Return the variance, scaled if the empty sky denies it; the ratio that was found, and its spread."""
    ratio, spread = sky_ratio(data, variance, usable)
    if ratio > 0 and abs(ratio - 1) > TOLERANCE:
        return variance * np.float32(ratio**2), ratio, spread
    return variance, ratio, spread


def _psf_and_gain(
    frame: Frame, sky: Background, *, wanted: bool
) -> tuple[PSF, StarTransfer | None, pd.DataFrame]:
    """Measure the PSF and, if wanted, what the stars' scatter about it says of the gain. A PSF given stays.

    Returns the sources as well.
    """
    assert frame.variance is not None
    sources = measure_sources(frame.data, sky.rms, frame.mask, saturation=saturation_above_sky(frame))
    try:
        fit = fit_psf(frame.data, frame.variance, frame.mask, sources, where=frame.name)
    except PSFError:
        if frame.psf is None:
            raise
        return frame.psf, None, sources
    gain = None
    if wanted:
        noise = cut_stamps(np.square(sky.rms), np.rint(fit.x), np.rint(fit.y), fit.stamps.shape[1], fill=1.0)
        gain = gain_from_stars(fit.stamps, fit.model, fit.flux, noise, fit.fitted)
    return (frame.psf if frame.psf is not None else fit.psf), gain, sources


def assess(frame: Frame, catalogue: pd.DataFrame | None = None) -> Frame:
    """Return the frame, prepared, with what a person asks of it in meta.

    Parameters
    ----------
    frame:
        Any frame.
    catalogue:
        Stars with `ra`, `dec` (degrees) and `mag_<filter>` or `mag` (AB): the zero point comes from those matched.
        Without it, or with fewer than 3 matches, the header's zero point stays, if it has one.

    Returns
    -------
    Frame
        meta has, beyond what `prepare` says: `pixel_scale`, `seeing_arcsec` (with a WCS), `zero_point`,
        `zero_point_err`, `zero_point_source`, `depth` (with a zero point), `saturated_fraction`, `masked_fraction`.
    """
    frame = prepare(frame)
    assert frame.psf is not None
    meta: dict[str, Any] = {
        "saturated_fraction": float(is_set(frame.mask, Mask.SATURATED | Mask.BLEED).mean()),
        "masked_fraction": float(is_set(frame.mask, UNUSABLE).mean()),
    }
    if frame.wcs is not None and frame.wcs.has_celestial:
        from astropy.wcs.utils import proj_plane_pixel_scales

        scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(frame.wcs.celestial)))) * 3600
        meta |= {"pixel_scale": scale, "seeing_arcsec": float(frame.meta["seeing"]) * scale}
        if catalogue is not None and len(catalogue):
            meta |= _zero_point(frame, catalogue, scale)
    if "zero_point" not in meta and frame.meta.get("zero_point") is not None:
        meta["zero_point_source"] = frame.meta.get("zero_point_source") or "header"
    zero_point = meta.get("zero_point", frame.meta.get("zero_point"))
    if zero_point is not None:
        # The PSF flux has the noise of 1 / sum(P²) pixels, wider where pixels share it.
        flux_err = frame.meta["sky_sigma"] * np.sqrt(frame.psf.noise_area()) * frame.meta["noise_correlation"]
        meta["depth"] = float(zero_point - 2.5 * np.log10(5 * flux_err))
    assessed = frame.replace(meta=meta)
    remember_sources(assessed, remembered_sources(frame))
    return assessed


def _zero_point(frame: Frame, catalogue: pd.DataFrame, scale: float) -> dict[str, Any]:
    """Return the zero point from catalogue stars: the clipped median of mag + 2.5 log10(PSF flux)."""
    from scipy.spatial import cKDTree

    column = next((c for c in (f"mag_{frame.meta.get('filter')}", "mag") if c in catalogue.columns), None)
    if column is None or frame.wcs is None:
        return {}
    known = catalogue[np.isfinite(catalogue[["ra", "dec", column]].to_numpy(float)).all(axis=1)]
    if known.empty:
        return {}
    x, y = frame.wcs.celestial.all_world2pix(known["ra"], known["dec"], 0, quiet=True)
    stars = detect_stars(frame)
    stars = stars[stars["snr"] > ZERO_POINT_SNR]
    inside = np.isfinite(x) & np.isfinite(y)
    if stars.empty or not inside.any():
        return {}
    radius = max(MATCH_ARCSEC / scale, float(frame.meta["seeing"]))
    tree = cKDTree(np.column_stack([x[inside], y[inside]]))
    distance, index = tree.query(stars[["x", "y"]].to_numpy(), distance_upper_bound=radius)
    matched = np.isfinite(distance)
    if matched.sum() < 3:
        return {}
    flux, flux_err = psf_flux(frame, stars["x"].to_numpy()[matched], stars["y"].to_numpy()[matched])
    magnitude = known[column].to_numpy(float)[np.flatnonzero(inside)[index[matched]]]
    good = np.nan_to_num(flux) > ZERO_POINT_SNR * np.nan_to_num(flux_err)
    if good.sum() < 3:
        return {}
    points = magnitude[good] + 2.5 * np.log10(flux[good])
    for _ in range(5):
        middle = np.median(points)
        scatter = max(1.4826 * float(np.median(np.abs(points - middle))), 0.005)
        kept = points[np.abs(points - middle) < 3 * scatter]
        if len(kept) == len(points) or len(kept) < 3:
            break
        points = kept
    # The median of n values has 1.25 times the error of their mean.
    error = (
        1.2533
        * max(1.4826 * float(np.median(np.abs(points - np.median(points)))), 0.001)
        / np.sqrt(len(points))
    )
    return {
        "zero_point": float(np.median(points)),
        "zero_point_err": float(error),
        "zero_point_source": f"catalogue, {len(points)} stars",
    }


def psf_flux(frame: Frame, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return PSF fluxes and their errors at given positions of a prepared frame, units of the data.

    f = sum(P d) / sum(P²), with the variance sum(P² V) / sum(P²)²: weighted as by the empty sky's noise, so that bright
    stars' photons do not change the weights and bias the flux. The filtered image, smoother than the PSF, is what is
    interpolated to the position. NaN where over 2 % of the PSF's weight lie on unusable pixels.
    """
    assert frame.psf is not None
    assert frame.variance is not None
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    flux, error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    size = frame.psf.size
    unusable = is_set(frame.mask)
    for start in range(0, len(x), 64):
        some = slice(start, start + 64)
        column, row = np.rint(x[some]).astype(int), np.rint(y[some]).astype(int)
        stamps = frame.psf.stamps(x[some], y[some])
        wide = cut_stamps(frame.data, column, row, size + 2 * TAPS)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), axis=(1, 2))
        filtered = np.einsum("nabij,nij->nab", windows, stamps, optimize=True)
        area = np.square(stamps).sum(axis=(1, 2))
        at = interpolate_stamps(filtered, x[some] - column, y[some] - row)
        variance = cut_stamps(frame.variance, column, row, size)
        bad = cut_stamps(unusable, column, row, size, fill=True)
        whole = (np.square(stamps) * bad).sum(axis=(1, 2)) < 0.02 * area
        flux[some] = np.where(whole, at / area, np.nan)
        error[some] = np.where(whole, np.sqrt((np.square(stamps) * variance).sum(axis=(1, 2))) / area, np.nan)
    return flux, error
