"""Which detections belong together: at one spot over nights and filters, or along a straight path within a night.

Plain functions on positions, without a database.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Two detections this near are of one thing: centroids of S/N 5 and the scatter of astrometry both stay below a
#: third of it, and fields that are not crowded hold few neighbours within it.
RADIUS_ARCSEC = 1.5
#: Where pixels are coarse, centroids are as well.
RADIUS_PX = 1.5
#: Fastest motion that is linked: main-belt asteroids move up to 50″ an hour, near-Earth ones some times that.
MAX_RATE = 300.0
#: A track needs this many exposures: two make a line of any two false alarms.
MIN_TRACK = 3


@dataclass(frozen=True)
class Motion:
    """A straight path: its detections (indices), position at `mjd` (deg), rates (arcsec an hour), rms (arcsec)."""

    members: Ints
    mjd: float
    ra: float
    dec: float
    rate_ra: float
    rate_dec: float
    rms: float


def unit_vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> Floats:
    """Return (n, 3) unit vectors of positions in degrees."""
    lon, lat = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def chord(arcsec: float) -> float:
    """Return the distance of two unit vectors that are `arcsec` apart."""
    return 2.0 * float(np.sin(np.radians(arcsec / 3600.0) / 2))


def nearest(
    ra: npt.ArrayLike, dec: npt.ArrayLike, other_ra: npt.ArrayLike, other_dec: npt.ArrayLike, radius: float
) -> Ints:
    """Return for each position the index of the nearest of the others within `radius` arcsec, or -1."""
    here = unit_vectors(ra, dec)
    there = unit_vectors(other_ra, other_dec)
    if not len(here) or not len(there):
        return np.full(len(here), -1, np.int64)
    _, index = cKDTree(there).query(here, distance_upper_bound=chord(radius))
    return np.where(index < len(there), index, -1).astype(np.int64)


def groups(ra: npt.ArrayLike, dec: npt.ArrayLike, weight: npt.ArrayLike, radius: float) -> Ints:
    """Return a group number for each position: the heaviest takes all within `radius` arcsec, then the next.

    Unlike friends of friends, no chain of neighbours can make a group wider than twice the radius.
    """
    vectors = unit_vectors(ra, dec)
    group = np.full(len(vectors), -1, np.int64)
    if not len(vectors):
        return group
    tree = cKDTree(vectors)
    number = 0
    for i in np.argsort(-np.nan_to_num(np.asarray(weight, float)), kind="stable"):
        if group[i] >= 0:
            continue
        near = np.asarray(tree.query_ball_point(vectors[i], chord(radius)), np.int64)
        group[near[group[near] < 0]] = number
        number += 1
    return group


def mean_position(ra: npt.ArrayLike, dec: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[float, float]:
    """Return the weighted mean position (degrees), right across 0h and near the poles."""
    x, y, z = np.average(unit_vectors(ra, dec), axis=0, weights=np.maximum(np.asarray(weight, float), 1e-9))
    return float(np.degrees(np.arctan2(y, x)) % 360.0), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def find_tracks(
    ra: npt.ArrayLike,
    dec: npt.ArrayLike,
    mjd: npt.ArrayLike,
    exposure: npt.ArrayLike,
    tolerance: float = RADIUS_ARCSEC,
    max_rate: float = MAX_RATE,
) -> list[Motion]:
    """Return the straight paths at constant rate among detections of one night, the longest first.

    Parameters
    ----------
    ra, dec, mjd:
        Positions (degrees) and times.
    exposure:
        Which exposure each is on: a path takes at most one detection of each.
    tolerance:
        Greatest distance from the path, arcsec.
    max_rate:
        Arcsec an hour.

    Notes
    -----
    Every pair of exposures proposes a path through two detections; the others' nearest to it are taken, and the line
    is fitted again. A path with more members wins, then the one with less scatter; members are not shared.
    """
    lon, lat, times = np.asarray(ra, float), np.asarray(dec, float), np.asarray(mjd, float)
    names = np.asarray(exposure)
    if len(lon) < MIN_TRACK or len(set(names.tolist())) < MIN_TRACK:
        return []
    ra0, dec0 = mean_position(lon, lat, np.ones(len(lon)))
    plane = _tangent(lon, lat, ra0, dec0)
    hours = (times - times.mean()) * 24.0
    proposals: dict[tuple[int, ...], float] = {}
    for i, j in _pairs(plane, hours, names, tolerance, max_rate):
        rate = (plane[j] - plane[i]) / (hours[j] - hours[i])
        members = _along(plane, hours, names, plane[i] - rate * hours[i], rate, tolerance)
        if len(members) >= MIN_TRACK:
            _, rate, rms = _line(plane[members], hours[members])
            # All at one spot is no path.
            if float(np.hypot(*rate)) * float(np.ptp(hours[members])) > 2 * tolerance:
                proposals[tuple(members)] = rms
    taken: set[int] = set()
    found = []
    for path, rms in sorted(proposals.items(), key=lambda item: (-len(item[0]), item[1])):
        if taken & set(path):
            continue
        taken |= set(path)
        index = np.asarray(path, np.int64)
        origin, rate, _ = _line(plane[index], hours[index])
        middle = float(hours[index].mean())
        at = _sky(origin + rate * middle, ra0, dec0)
        when = float(times.mean() + middle / 24.0)
        found.append(Motion(index, when, *at, float(rate[0]), float(rate[1]), rms))
    return found


def _pairs(
    plane: Floats, hours: Floats, names: npt.NDArray[np.object_], tolerance: float, max_rate: float
) -> list[tuple[int, int]]:
    tree = cKDTree(plane)
    reach = max_rate * float(np.ptp(hours))
    pairs = []
    for i, j in sorted(tree.query_pairs(max(reach, tolerance))):
        apart, step = abs(hours[j] - hours[i]), float(np.hypot(*(plane[j] - plane[i])))
        if names[i] != names[j] and apart > 0 and tolerance < step <= max_rate * apart:
            pairs.append((i, j))
    return pairs


def _along(
    plane: Floats,
    hours: Floats,
    names: npt.NDArray[np.object_],
    origin: Floats,
    rate: Floats,
    tolerance: float,
) -> list[int]:
    away = np.hypot(*(plane - (origin + np.outer(hours, rate))).T)
    best: dict[object, int] = {}
    for k in np.flatnonzero(away <= tolerance):
        name = names[k]
        if name not in best or away[k] < away[best[name]]:
            best[name] = int(k)
    return sorted(best.values())


def _line(plane: Floats, hours: Floats) -> tuple[Floats, Floats, float]:
    design = np.column_stack([np.ones(len(hours)), hours])
    solution, *_ = np.linalg.lstsq(design, plane, rcond=None)
    residual = plane - design @ solution
    return solution[0], solution[1], float(np.sqrt((residual**2).sum(1).mean()))


def _tangent(ra: Floats, dec: Floats, ra0: float, dec0: float) -> Floats:
    """Return (n, 2) gnomonic offsets east and north, arcsec."""
    vectors = unit_vectors(ra, dec)
    east, north, out = _basis(ra0, dec0)
    along = vectors @ out
    return np.degrees(np.column_stack([vectors @ east / along, vectors @ north / along])) * 3600.0


def _sky(offset: Floats, ra0: float, dec0: float) -> tuple[float, float]:
    east, north, out = _basis(ra0, dec0)
    x, y = np.radians(offset / 3600.0)
    vector = out + x * east + y * north
    return (
        float(np.degrees(np.arctan2(vector[1], vector[0])) % 360.0),
        float(np.degrees(np.arctan2(vector[2], np.hypot(vector[0], vector[1])))),
    )


def _basis(ra0: float, dec0: float) -> tuple[Floats, Floats, Floats]:
    a, d = np.radians(ra0), np.radians(dec0)
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    out = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    return east, north, out
