"""Candidates: everything in a difference image that is too significant to be noise, with what tells it apart."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.candidate_shapes import around, measure_shapes, reference_sources, trails
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import Mask, is_set, names
from astrid_pipeline.imaging.peaks import (
    Peaks,
    correlation,
    find_peaks,
    shoulders,
    without_flanks,
)
from astrid_pipeline.imaging.placing import Profile, place
from astrid_pipeline.tables import Column, TableSchema

#: More candidates than this are not looked at by anybody; the strongest stay and a warning tells the rest.
MAX_CANDIDATES = 20_000
#: A peak on such a pixel, of either frame, is not listed: there is nothing there to be significant. All other bits
#: (saturation, cosmic rays, trails, ...) are told as flags, since a real transient may share its pixels with them.
NOWHERE = Mask.NO_DATA | Mask.EDGE

CANDIDATES = TableSchema(
    "candidates",
    "Peaks of |S_corr| over the threshold, of both signs, with their PSF photometry and features",
    (
        Column("candidate_id", "string", "exposure id, column and row of the peak; unique"),
        Column("exposure_id", "string", "science exposure"),
        Column("x", "float64", "column of the peak between the pixels, zero-based", "px"),
        Column("y", "float64", "row, zero-based", "px"),
        Column("ra", "float64", "right ascension, ICRS; null without a WCS", "deg"),
        Column("dec", "float64", "declination, ICRS", "deg"),
        Column("hpx29", "int64", "HEALPix index of order 29, nested; -1 without a WCS"),
        Column("mjd", "float64", "middle of the exposure, MJD (UTC)", "d"),
        Column("filter", "string", "filter of the science exposure"),
        Column("flux", "float64", "PSF flux of the change, negative if it faded, units of the science frame"),
        Column("flux_err", "float64", "its standard error"),
        Column("snr", "float64", "flux over its error"),
        Column("peak_score", "float64", "S_corr at the peak, signed", "sigma"),
        Column("sign", "int32", "1: brighter than in the reference, -1: fainter"),
        Column("mag", "float64", "AB magnitude of |flux|; null without a zero point", "mag"),
        Column("mag_err", "float64", "its error, the zero point's not included", "mag"),
        Column("fwhm", "float64", "width in D; null where noise leaves no shape", "px"),
        Column(
            "fwhm_ratio",
            "float64",
            "width over that of D's PSF measured alike, 0 where noise leaves no shape",
        ),
        Column("elongation", "float64", "major over minor axis, 1 where noise leaves no shape"),
        Column(
            "angle",
            "float64",
            "of the major axis, from +x towards +y; of the trail where there is one",
            "deg",
        ),
        Column(
            "dipole",
            "float64",
            "strongest |S_corr| of the other sign within 2 FWHM, over the peak's; 0: none",
        ),
        Column(
            "sharpness",
            "float64",
            "brightest pixel of D over that of the PSF with this flux; 1: a point source",
        ),
        Column("chi2", "float64", "reduced chi² of the PSF within 1.5 FWHM"),
        Column("neg_fraction", "float64", "share of the other sign in |D| over 1.5 sigma within 1.5 FWHM"),
        Column("trail", "float64", "length of the connected region over 3 sigma, beyond its width", "px"),
        Column("npix", "int32", "pixels of that region"),
        Column("n_near", "int32", "other candidates within 5 FWHM"),
        Column("ref_distance", "float64", "to the nearest source of the reference, at most 50", "px"),
        Column("ref_flux", "float64", "that source's flux, units of the science frame; 0 if there is none"),
        Column(
            "ref_ratio", "float64", "|flux| over the reference's light within one FWHM (at least its noise)"
        ),
        Column("mask_distance", "float64", "to the nearest unusable pixel of either frame, at most 20", "px"),
        Column("masked_fraction", "float64", "share of the PSF's weight on unusable pixels"),
        Column("flags", "int32", "mask bits of both frames within one FWHM, the reference's 12 bits higher"),
        Column("flag_names", "string", "the same in words, joined by |"),
    ),
    sort_by=("exposure_id", "y", "x"),
)

#: The columns that learning looks at: free of position, time and flux scale. All finite.
FEATURES: tuple[str, ...] = (
    "snr",
    "peak_score",
    "sign",
    "fwhm_ratio",
    "elongation",
    "dipole",
    "sharpness",
    "chi2",
    "neg_fraction",
    "trail",
    "npix",
    "n_near",
    "ref_distance",
    "ref_ratio",
    "mask_distance",
    "masked_fraction",
)


class TooManyCandidatesWarning(UserWarning):
    """A difference has so many peaks that only the strongest were kept: the subtraction or the noise failed."""


def find_candidates(difference: Difference, threshold: float = 5.0) -> pd.DataFrame:
    """Find everything significant in a difference image.

    Parameters
    ----------
    difference:
        From `subtract`.
    threshold:
        Of |S_corr| at the peak between the pixels, sigma. At 5, noise alone makes some 0.3 a megapixel and sign.

    Returns
    -------
    DataFrame
        Of schema `CANDIDATES`. Peaks on pixels of `NOWHERE` are not listed; on other masked pixels they are, with
        `flags`. A straight trail is one candidate, at its middle. `attrs["left_out"]` counts peaks beyond
        `MAX_CANDIDATES` (a `TooManyCandidatesWarning` is issued as well).

    Raises
    ------
    ValueError
        If the threshold is not positive.
    PixelError
        If the score has no finite value.
    """
    if not threshold > 0:
        raise ValueError(f"the threshold must be positive, not {threshold}")
    exposure = str(difference.meta.get("exposure_id") or "difference")
    score = difference.score
    finite = np.isfinite(score)
    if not finite.all():
        if not finite.any():
            raise PixelError(
                "the score has no finite value", where=exposure, remedy="look at the difference's mask"
            )
        score = np.where(finite, score, np.float32(0))
    fwhm = max(difference.psf.fwhm(), 1.0)
    profile = correlation(difference.psf)
    nowhere = is_set(difference.mask, int(NOWHERE), reference=True) | ~finite
    peaks, skipped = find_peaks(score, threshold, profile, max(2.0, 0.5 * fwhm), nowhere)
    left_out = skipped + max(0, len(peaks) - MAX_CANDIDATES)
    peaks = without_flanks(peaks.take(np.arange(min(len(peaks), MAX_CANDIDATES))), profile, threshold)
    if len(peaks) and not left_out:
        sources, _, own, _ = place(difference.flux, peaks, Profile.of(profile), fwhm)
        more = shoulders(
            difference.flux, difference.flux_err, sources, own, profile, threshold, max(2.0, fwhm), nowhere
        )
        peaks = peaks.joined(more) if len(more) else peaks
    if left_out:
        warnings.warn(
            TooManyCandidatesWarning(
                f"{exposure}: {left_out} peaks or pixels over {threshold:g} sigma were left out beside the strongest "
                f"{len(peaks)} candidates; the subtraction or its noise model failed"
            ),
            stacklevel=2,
        )
    if not len(peaks):
        table = CANDIDATES.empty()
    else:
        peaks, region = trails(score, peaks, fwhm)
        table = CANDIDATES.conform(_table(difference, score, peaks, region, fwhm, profile, exposure))
    table.attrs["left_out"] = int(left_out)
    return table


def _names(exposure: str, peaks: Peaks) -> list[str]:
    """Return unique names by pixel; the middle of a trail can fall on the pixel of another peak."""
    names = pd.Series([f"{exposure}-{c:05d}-{r:05d}" for c, r in zip(peaks.column, peaks.row, strict=True)])
    again = names.groupby(names).cumcount()
    return [name if k == 0 else f"{name}-{k}" for name, k in zip(names, again, strict=True)]


def _table(
    difference: Difference,
    score: npt.NDArray[np.float32],
    peaks: Peaks,
    region: pd.DataFrame,
    fwhm: float,
    profile: npt.NDArray[np.float64],
    exposure: str,
) -> pd.DataFrame:
    """Return the candidates' columns."""
    from scipy.spatial import cKDTree

    meta = difference.meta
    flux_err = difference.flux_err[peaks.row, peaks.column].astype(float)
    peaks, kept, flux, factor = place(difference.flux, peaks, Profile.of(profile), fwhm)
    flux_err, region = flux_err[kept] * factor, region.iloc[kept]
    sign = np.sign(peaks.value)
    table = pd.DataFrame(
        {
            "candidate_id": _names(exposure, peaks),
            "exposure_id": exposure,
            "x": peaks.x,
            "y": peaks.y,
            "mjd": float(meta["mjd"]) if meta.get("mjd") is not None else np.nan,
            "filter": meta.get("filter"),
            "flux": flux,
            "flux_err": flux_err,
            "snr": flux / np.maximum(flux_err, 1e-30),
            "peak_score": peaks.value,
            "sign": sign.astype(np.int32),
        }
    )
    table = table.assign(
        **_sky(difference, peaks.x, peaks.y), **_magnitudes(flux, flux_err, meta.get("zero_point"))
    )
    table = table.assign(
        **measure_shapes(difference, score, peaks, flux, fwhm, profile), **around(difference, peaks, fwhm)
    )
    long = region["trail"].to_numpy() > 2 * fwhm
    table["angle"] = np.where(long, region["angle"], table["angle"])
    table["trail"], table["npix"] = region["trail"].to_numpy(), region["npix"].to_numpy(np.int32)
    near = cKDTree(np.column_stack([peaks.x, peaks.y]))
    table["n_near"] = near.query_ball_point(near.data, 5 * fwhm, return_length=True) - 1
    table = table.assign(**reference_sources(difference, peaks, flux, fwhm))
    words = {value: "|".join(names(int(value))) for value in table["flags"].unique()}
    table["flag_names"] = table["flags"].map(words)
    return table


def _sky(difference: Difference, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return ra, dec and HEALPix index."""
    if difference.wcs is None or not difference.wcs.has_celestial:
        nan = np.full(len(x), np.nan)
        return {"ra": nan, "dec": nan, "hpx29": np.full(len(x), -1, np.int64)}
    from astropy import units
    from astropy_healpix import HEALPix

    ra, dec = difference.wcs.celestial.all_pix2world(x, y, 0)
    index = HEALPix(nside=2**29, order="nested").lonlat_to_healpix(ra * units.deg, dec * units.deg)
    return {"ra": ra % 360, "dec": dec, "hpx29": np.asarray(index, np.int64)}


def _magnitudes(flux: np.ndarray, flux_err: np.ndarray, zero_point: float | None) -> dict[str, np.ndarray]:
    """Return mag and mag_err, NaN without a zero point."""
    if zero_point is None or not np.isfinite(zero_point):
        nan = np.full(len(flux), np.nan)
        return {"mag": nan, "mag_err": nan}
    size = np.maximum(np.abs(flux), 1e-30)
    return {"mag": zero_point - 2.5 * np.log10(size), "mag_err": 2.5 / np.log(10) * flux_err / size}
