"""What a candidate looks like, and what lies beside it: shape, dipole, trail, reference sources, mask bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Difference, Image
from astrid_pipeline.imaging.mask import REFERENCE_SHIFT, UNUSABLE
from astrid_pipeline.imaging.moments import GAUSS, cut_stamps, window_moments
from astrid_pipeline.imaging.peaks import Peaks
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.psf_pixels import shift_matrix
from astrid_pipeline.imaging.stars import find_sources

_Float = npt.NDArray[np.float64]

#: How far the nearest reference source and the nearest unusable pixel are looked for, px.
REFERENCE_REACH, MASK_REACH = 50.0, 20.0
#: Significance of a pixel that belongs to a candidate's region.
REGION_SIGMA = 3.0
#: A region is a trail, one candidate, if it is this long (FWHM), this many times longer than wide, and no wider than
#: this (standard deviation in FWHM) across: a point source blurred by the matched filter is 0.6 wide.
TRAIL_LENGTH, TRAIL_RATIO, TRAIL_WIDTH = 3.0, 3.0, 0.8
#: Candidates measured in one go, so that memory stays small in the worst frame.
_CHUNK = 2000


def trails(score: Image, peaks: Peaks, fwhm: float) -> tuple[Peaks, pd.DataFrame]:
    """Measure the connected region of each peak and make one peak of a straight trail.

    Returns
    -------
    The peaks, trails' moved to the middle, and for each: `trail` (length beyond the width, px), `angle` (degrees) and
    `npix` of its region over 3 sigma.
    """
    lengths = pd.DataFrame(
        index=range(len(peaks)), columns=["trail", "angle", "npix", "middle_x", "middle_y"], dtype=float
    )
    lengths["straight"] = False
    lengths["region"] = -1
    sign = np.sign(peaks.value)
    for side in (1, -1):
        own = np.flatnonzero(sign == side)
        if len(own):
            measured = _regions(score * np.float32(side), peaks.row[own], peaks.column[own], fwhm)
            measured["region"] = measured["region"] * 2 + (side < 0)
            lengths.loc[own, measured.columns] = measured.to_numpy()
    # Peaks come strongest first: the first of a straight region stands for it.
    straight = lengths["straight"].to_numpy(bool)
    again = straight & lengths["region"].where(straight).duplicated().to_numpy()
    kept = np.flatnonzero(~again)
    lengths, peaks = lengths.iloc[kept].reset_index(drop=True), peaks.take(kept)
    straight = straight[kept]
    if straight.any():
        height, width = score.shape
        x = np.where(straight, lengths["middle_x"], peaks.x)
        y = np.where(straight, lengths["middle_y"], peaks.y)
        column = np.clip(np.rint(x), 0, width - 1).astype(int)
        row = np.clip(np.rint(y), 0, height - 1).astype(int)
        peaks = Peaks(x, y, column, row, peaks.value)
    return peaks, lengths[["trail", "angle", "npix"]].astype(float)


def _regions(score: Image, row: np.ndarray, column: np.ndarray, fwhm: float) -> pd.DataFrame:
    """Return length, angle, size, middle and straightness of the regions over 3 sigma that hold the pixels."""
    from scipy.ndimage import label

    labels, count = label(score >= REGION_SIGMA, np.ones((3, 3), int))
    at = labels[row, column]
    wanted = np.zeros(count + 1, bool)
    wanted[at] = True
    wanted[0] = False
    pixels = np.flatnonzero(wanted[labels])
    member = labels.flat[pixels]
    y, x = np.divmod(pixels, score.shape[1])
    size = np.bincount(member, minlength=count + 1)
    # Weighted with the square of the score, a bright trail's region is no wider than a faint one's, wings and all.
    weight = np.square(score.flat[pixels].astype(float))
    total = np.maximum(np.bincount(member, weight, minlength=count + 1), 1e-30)

    def mean(values: np.ndarray) -> _Float:
        return np.bincount(member, weight * values, minlength=count + 1) / total

    mx, my = mean(x), mean(y)
    dx, dy = x - mx[member], y - my[member]
    xx, yy, xy = mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy)
    half, middle = np.hypot((xx - yy) / 2, xy), (xx + yy) / 2
    major, minor = middle + half, np.maximum(middle - half, 1 / 12)
    # A uniform line of length L has variance L² / 12 along it; the width adds to both axes.
    length = np.sqrt(12 * np.maximum(major - minor, 0))
    straight = (length > TRAIL_LENGTH * fwhm) & (np.sqrt(major / minor) > TRAIL_RATIO)
    straight &= np.sqrt(minor) < TRAIL_WIDTH * fwhm
    return pd.DataFrame(
        {
            "trail": length[at],
            "angle": np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))[at],
            "npix": size[at].astype(float),
            "middle_x": mx[at],
            "middle_y": my[at],
            "straight": straight[at] & (at > 0),
            "region": at,
        }
    )


def measure_shapes(
    difference: Difference, score: Image, peaks: Peaks, flux: _Float, fwhm: float, profile: _Float
) -> dict[str, np.ndarray]:
    """Return fwhm, fwhm_ratio, elongation, angle, dipole, sharpness, chi2 and neg_fraction of D at each peak."""
    parts = []
    for start in range(0, len(peaks), _CHUNK):
        some = np.arange(start, min(start + _CHUNK, len(peaks)))
        parts.append(_shapes(difference, score, peaks.take(some), flux[some], fwhm, profile))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _shapes(
    difference: Difference, score: Image, peaks: Peaks, flux: _Float, fwhm: float, profile: _Float
) -> dict[str, np.ndarray]:
    psf = difference.psf
    half = min(psf.size // 2, max(4, int(np.ceil(2 * fwhm))))
    size = 2 * half + 1
    sign = np.sign(peaks.value)[:, None, None].astype(np.float32)
    data = cut_stamps(difference.data, peaks.column, peaks.row, size) * sign
    noise = np.sqrt(
        np.maximum(cut_stamps(difference.variance, peaks.column, peaks.row, size, fill=1.0), 1e-30)
    )
    point = _points(psf, peaks, half)
    axis = np.arange(size) - half
    radius = np.hypot(axis[:, None], axis[None])
    core = radius <= max(1.5 * fwhm, 2.0)

    window = max(fwhm / GAUSS, 0.7)
    moments = window_moments(data, np.ones((1, 1, 1), np.float32), window)
    still = window_moments(
        psf.stamp()[None, *_middle(psf, half)].astype(np.float32), np.ones((1, 1, 1)), window
    )
    unit = float(still.sigma[0]) if np.isfinite(still.sigma[0]) else window
    ratio = np.clip(np.nan_to_num(moments.sigma / unit), 0.0, 10.0)

    expected = np.abs(flux)[:, None, None] * point
    misfit = np.square((data - expected) / noise)[:, core]
    top = data[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2))
    point_top = point[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2)) * np.abs(flux)
    seen = np.where(np.abs(data) > 1.5 * noise, data, 0.0)[:, core]
    total = np.abs(seen).sum(axis=1)
    return {
        "fwhm": GAUSS * moments.sigma,
        "fwhm_ratio": ratio,
        "elongation": np.clip(np.nan_to_num(moments.elongation, nan=1.0), 1.0, 20.0),
        "angle": np.nan_to_num(moments.angle),
        "dipole": _dipole(score, peaks, fwhm, profile),
        "sharpness": np.clip(top / np.maximum(point_top, 1e-30), -20.0, 20.0),
        "chi2": np.clip(misfit.mean(axis=1), 0.0, 1e6),
        "neg_fraction": np.where(total > 0, -np.minimum(seen, 0).sum(axis=1) / np.maximum(total, 1e-30), 0.0),
    }


def _middle(psf: PSF, half: int) -> tuple[slice, slice]:
    centre = psf.size // 2
    return (slice(centre - half, centre + half + 1),) * 2


def _points(psf: PSF, peaks: Peaks, half: int) -> np.ndarray:
    """Return (N, S, S) stamps of the PSF at the peaks' places between the pixels."""
    local = psf.stamp()[None] if psf.is_constant else psf.stamps(peaks.x, peaks.y)
    rows = shift_matrix(peaks.y - peaks.row, psf.size)
    columns = shift_matrix(peaks.x - peaks.column, psf.size)
    return (rows @ local @ columns.transpose(0, 2, 1))[:, *_middle(psf, half)]


def _dipole(score: Image, peaks: Peaks, fwhm: float, profile: _Float) -> np.ndarray:
    """Return the strongest score of the other sign within 2 FWHM over the peak's, the PSF's own lobes taken out."""
    reach = min(len(profile) // 2, max(3, int(np.ceil(2 * fwhm))))
    size = 2 * reach + 1
    near = (
        cut_stamps(score, peaks.column, peaks.row, size).astype(float) * np.sign(peaks.value)[:, None, None]
    )
    middle = len(profile) // 2
    lobes = np.minimum(profile[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1], 0)
    own = np.abs(peaks.value)
    axis = np.arange(size) - reach
    inside = np.hypot(axis[:, None], axis[None]) <= 2 * fwhm
    other = np.where(inside, own[:, None, None] * lobes - near, 0).max(axis=(1, 2))
    # Noise alone reaches 2.5 sigma somewhere among so many pixels.
    return np.clip(np.where(other > REGION_SIGMA, other / own, 0.0), 0.0, 10.0)


def around(difference: Difference, peaks: Peaks, fwhm: float) -> dict[str, np.ndarray]:
    """Return flags (bits within one FWHM), mask_distance and masked_fraction."""
    half = int(MASK_REACH)
    axis = np.arange(2 * half + 1) - half
    radius = np.hypot(axis[:, None], axis[None])
    near = radius <= max(fwhm, 2.0)
    unusable = np.int32(int(UNUSABLE) | (int(UNUSABLE) << REFERENCE_SHIFT))
    weight = np.zeros_like(radius)
    reach = min(half, difference.psf.size // 2)
    weight[half - reach : half + reach + 1, half - reach : half + reach + 1] = np.square(
        difference.psf.stamp()[_middle(difference.psf, reach)]
    )
    weight /= weight.sum()
    flags, distance, fraction = [], [], []
    for start in range(0, len(peaks), _CHUNK):
        part = slice(start, start + _CHUNK)
        bits = cut_stamps(difference.mask, peaks.column[part], peaks.row[part], 2 * half + 1)
        flags.append(np.bitwise_or.reduce(bits[:, near], axis=1))
        bad = (bits & unusable) != 0
        distance.append(np.where(bad, radius, MASK_REACH).min(axis=(1, 2)))
        fraction.append((bad * weight).sum(axis=(1, 2)))
    return {
        "flags": np.concatenate(flags).astype(np.int32),
        "mask_distance": np.concatenate(distance),
        "masked_fraction": np.concatenate(fraction),
    }


def reference_sources(
    difference: Difference, peaks: Peaks, flux: _Float, fwhm: float
) -> dict[str, np.ndarray]:
    """Return the nearest reference source's distance and flux, and the change relative to the light that was there."""
    from scipy.spatial import cKDTree

    reference = difference.reference
    sigma = difference.meta.get("reference_sky_sigma")
    if sigma is None or not np.isfinite(sigma) or sigma <= 0:
        sigma = 1.4826 * float(np.median(np.abs(reference[::3, ::3] - np.median(reference[::3, ::3])))) or 1.0
    sources = find_sources(reference, float(sigma))
    distance = np.full(len(peaks), REFERENCE_REACH)
    light = np.zeros(len(peaks))
    if len(sources):
        tree = cKDTree(sources[["x", "y"]].to_numpy())
        found, index = tree.query(np.column_stack([peaks.x, peaks.y]), distance_upper_bound=REFERENCE_REACH)
        known = np.isfinite(found)
        distance[known] = found[known]
        light[known] = sources["flux"].to_numpy()[index[known]]
    half = max(2, round(fwhm))
    inside = np.hypot(*np.meshgrid(np.arange(-half, half + 1), np.arange(-half, half + 1))) <= max(fwhm, 1.5)
    local = (cut_stamps(reference, peaks.column, peaks.row, 2 * half + 1) * inside).sum(axis=(1, 2))
    floor = float(sigma) * np.sqrt(inside.sum())
    return {
        "ref_distance": distance,
        "ref_flux": light,
        "ref_ratio": np.clip(np.abs(flux) / np.maximum(local, floor), 0.0, 1e4),
    }
