"""Astrometry against a star catalogue: the header's WCS corrected by the stars that are in the image.

A telescope points to some arcseconds, and its camera turns a little; a header's WCS is no better. The
correction is an affine map in pixels, put into CRPIX and the CD matrix, so that distortion terms that act after
them (TPV, ZPN) stay exactly as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from astrid_pipeline.errors import RegistrationError
from astrid_pipeline.imaging.frame import Frame

#: How far off a header's pointing may be. Small telescopes point to an arcminute or better.
SEARCH_RADIUS_ARCSEC = 90.0
#: An affine map has six unknowns, three stars; twice that many must agree before it is believed.
MIN_MATCHES = 6
#: Brightest sources used: enough for 0.01 px in the mean, few enough that chance pairs stay rare.
MAX_STARS = 300
#: Final matching radius, px: several times the centroid error of a faint star, a fraction of the stars' distance.
MATCH_RADIUS = 1.5

Array = npt.NDArray[np.float64]


def solve(frame: Frame, catalogue: pd.DataFrame) -> Frame:
    """Return the frame with its WCS fitted to the catalogue's stars.

    Parameters
    ----------
    frame:
        Sky-subtracted, with a WCS that is right to `SEARCH_RADIUS_ARCSEC` and a few degrees.
    catalogue:
        Columns ra, dec (ICRS, deg) and one or more mag_<filter>.

    Returns
    -------
    Frame
        Its meta has `astrometry_rms` (px, per axis, of the matched stars) and `astrometry_stars`.

    Raises
    ------
    RegistrationError
        With the numbers of sources, catalogue stars and matches, where too few agree.
    """
    from astrid_pipeline.imaging.stars import detect_stars

    if frame.wcs is None:
        raise RegistrationError(
            "no WCS to start from", where=frame.name, remedy="solve the field with a plate solver"
        )
    wcs: WCS = frame.wcs
    found = detect_stars(frame).sort_values("flux", ascending=False).head(MAX_STARS)
    seen = found[["x", "y"]].to_numpy(float)
    scale = float(np.mean(wcs.proj_plane_pixel_scales()[0].to_value("arcsec")))
    reach = SEARCH_RADIUS_ARCSEC / scale
    expected = _project(wcs, _brightest(catalogue, frame), frame.shape, reach)
    matrix, offset, matched = _match(seen, expected, reach)
    if matched < MIN_MATCHES:
        raise RegistrationError(
            f"only {matched} of {len(seen)} sources agree with the {len(expected)} catalogue stars of this place",
            where=frame.name,
            remedy="check the pointing and pixel scale in the header, or give the field's true centre",
        )
    residual = _residuals(seen, expected, matrix, offset)
    return frame.replace(
        wcs=_corrected(wcs, matrix, offset),
        meta={
            "astrometry_rms": float(np.sqrt(np.mean(residual**2))),
            "astrometry_stars": int(matched),
        },
    )


def _brightest(catalogue: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    name = f"mag_{frame.meta.get('filter')}"
    if name not in catalogue:
        names = [c for c in catalogue.columns if c.startswith("mag_")]
        if not names:
            return catalogue
        name = names[0]
    return catalogue.sort_values(name)


def _project(wcs: WCS, catalogue: pd.DataFrame, shape: tuple[int, int], reach: float) -> Array:
    x, y = wcs.world_to_pixel_values(catalogue["ra"].to_numpy(float), catalogue["dec"].to_numpy(float))
    points = np.column_stack([x, y])
    inside = (
        np.isfinite(points).all(axis=1)
        & (points > -reach).all(axis=1)
        & (points[:, 0] < shape[1] + reach)
        & (points[:, 1] < shape[0] + reach)
    )
    return points[inside][: 2 * MAX_STARS]


def _match(seen: Array, expected: Array, reach: float) -> tuple[Array, Array, int]:
    """Find seen ≈ matrix · expected + offset: the shift by vote, then ever closer pairs and an affine fit."""
    identity = np.eye(2)
    if len(seen) < 3 or len(expected) < 3:
        return identity, np.zeros(2), 0
    offset = _vote(seen, expected, reach)
    matrix = identity
    # A rotation of a degree moves the edge of 1000 px by 9 px: begin wider than the vote's bin.
    for radius in (12.0, 8.0, 5.0, 3.0, MATCH_RADIUS, MATCH_RADIUS):
        i, j = _pairs(seen, expected @ matrix.T + offset, radius)
        if len(i) < 3:
            return matrix, offset, 0
        matrix, offset = _affine(expected[j], seen[i], full=len(i) >= MIN_MATCHES)
    i, _ = _pairs(seen, expected @ matrix.T + offset, MATCH_RADIUS)
    # Some pairs agree by chance; what counts is how many more than that do.
    area = np.ptp(seen, axis=0).prod() or 1.0
    chance = len(seen) * len(expected) * np.pi * MATCH_RADIUS**2 / area
    return matrix, offset, len(i) if len(i) > chance + 3 * np.sqrt(chance) else 0


def _vote(seen: Array, expected: Array, reach: float) -> Array:
    """Return the shift that most pairs have in common, to about 2 px."""
    difference = (seen[:, None, :] - expected[None, :, :]).reshape(-1, 2)
    difference = difference[(np.abs(difference) <= reach).all(axis=1)]
    if not len(difference):
        return np.zeros(2)
    # 4 px: a small rotation spreads the right shift over some pixels.
    bins = max(3, int(np.ceil(2 * reach / 4.0)))
    counts, xe, ye = np.histogram2d(
        difference[:, 0], difference[:, 1], bins=bins, range=[[-reach, reach]] * 2
    )
    from scipy.ndimage import uniform_filter

    smooth = uniform_filter(counts, 3, mode="constant")
    bx, by = np.unravel_index(np.argmax(smooth), smooth.shape)
    centre = np.array([(xe[bx] + xe[bx + 1]) / 2, (ye[by] + ye[by + 1]) / 2])
    near = difference[(np.abs(difference - centre) < 8).all(axis=1)]
    return np.median(near, axis=0) if len(near) else centre


def _pairs(
    seen: Array, predicted: Array, radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs that are each other's nearest within the radius."""
    forward, backward = cKDTree(predicted), cKDTree(seen)
    distance, j = forward.query(seen, distance_upper_bound=radius)
    good = np.isfinite(distance)
    i, j = np.nonzero(good)[0], j[good]
    _, back = backward.query(predicted[j])
    mutual = back == i
    return i[mutual], j[mutual]


def _affine(source: Array, target: Array, full: bool) -> tuple[Array, Array]:
    """Return the map source → target by least squares, outliers of over 3 robust σ left out; or the mean shift."""
    if not full:
        return np.eye(2), np.median(target - source, axis=0)
    keep = np.ones(len(source), bool)
    design = np.column_stack([source, np.ones(len(source))])
    for _ in range(3):
        solution, *_ = np.linalg.lstsq(design[keep], target[keep], rcond=None)
        distance = np.linalg.norm(target - design @ solution, axis=1)
        limit = 3 * 1.2 * np.median(distance[keep]) + 1e-3  # 1.2: σ per axis → median of a Rayleigh distance
        if (new := distance <= max(limit, 0.05)).sum() < MIN_MATCHES:
            break
        keep = new
    return np.asarray(solution[:2].T, float), np.asarray(solution[2], float)


def _residuals(seen: Array, expected: Array, matrix: Array, offset: Array) -> Array:
    i, j = _pairs(seen, expected @ matrix.T + offset, MATCH_RADIUS)
    return (seen[i] - (expected[j] @ matrix.T + offset)).ravel()


def _corrected(wcs: WCS, matrix: Array, offset: Array) -> WCS:
    """Return a WCS that puts at pixel `matrix · p + offset` what `wcs` puts at p.

    With s = CD (p − CRPIX): CD' = CD · matrix⁻¹ and CRPIX' = matrix · CRPIX + offset, zero-based.
    """
    new = wcs.deepcopy()
    cd = wcs.pixel_scale_matrix @ np.linalg.inv(matrix)
    if new.wcs.has_cd():
        new.wcs.cd = cd
    else:
        new.wcs.pc = np.diag(1 / np.asarray(new.wcs.cdelt)) @ cd
    new.wcs.crpix = matrix @ (np.asarray(wcs.wcs.crpix) - 1) + offset + 1
    new.wcs.set()
    return new
