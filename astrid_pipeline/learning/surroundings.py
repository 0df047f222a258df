"""What lies around a peak, farther out than the network and the candidate's own stamp look.

A satellite's trail, a bad column, the edge of a detector and a ghost each leave peaks that look like points from near
by. From farther off they do not: along some line, or all around, there is more of the same. The significance image is
sampled along rays from the peak and in a ring around it, clipped so that one bright neighbour does not pass for a line.

How far the frame's edge is away is no feature on purpose: simulated sources keep off the edges, so that a model would
learn that nothing real happens there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating]

#: Rays over the half circle. A trail of 3 px is crossed by its nearest ray for 80 px at 2° off.
RAYS = 48
#: Where a ray begins and ends, px from the peak: outside of what a point and its side lobes reach, and shorter than
#: the trails of satellites but longer than those of asteroids.
RAY = (14.0, 80.0)
#: Step along a ray, px: about the correlation length of the significance.
RAY_STEP = 2.0
#: Beside columns and rows what is wrong begins nearer: these are looked at from here on, px.
AXIS = (5.0, 60.0)
#: The ring that ghosts and halos fill, px.
RING = (12.0, 30.0)
#: Disc in which unusable pixels are counted, px.
DISC = 14.0
#: Peaks looked at in one go: a bad frame has tens of thousands, each with some 3,000 places around it.
CHUNK = 1000
#: A pixel counts as no more than this many σ.
CLIP = 5.0

SURROUNDINGS: tuple[str, ...] = (
    "line_one",
    "line_both",
    "line_opposite",
    "line_column",
    "line_row",
    "ring_mean",
    "ring_rms",
    "bad_near",
)


def surroundings(score: Floats, bad: npt.NDArray[np.bool_], x: Floats, y: Floats) -> pd.DataFrame:
    """Return a row of `SURROUNDINGS` for each peak.

    Parameters
    ----------
    score:
        (height, width) significance, σ.
    bad:
        (height, width) unusable pixels: they count as nothing.
    x, y:
        (N,) the peaks, px.

    Returns
    -------
    DataFrame
        ``line_one`` and ``line_both``: the highest mean of the significance along a ray, in the direction of the
        peak's own sign, on one side and on both (the weaker of them counts); ``line_opposite``: on both, against the
        peak's sign, as beside a bright trail; ``line_column``, ``line_row``: along the column and the row, both sides
        together; ``ring_mean``, ``ring_rms``: in the ring; ``bad_near``: share of
        unusable pixels in the disc, as far as it lies on the frame.
    """
    height, width = score.shape
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(x):
        return pd.DataFrame({name: np.zeros(0) for name in SURROUNDINGS})
    clipped = np.where(bad, 0, np.clip(np.nan_to_num(score), -CLIP, CLIP)).astype(np.float32)
    # Outside of the frame there is nothing, which is what the padding says.
    pad = int(RAY[1]) + 2
    clipped = np.pad(clipped, pad)
    usable = np.pad(~bad, pad)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    column, row = np.clip(column, 0, width - 1) + pad, np.clip(row, 0, height - 1) + pad
    on_frame = np.pad(np.ones(score.shape, bool), pad)
    tables = [
        _around(clipped, usable, on_frame, column[part], row[part])
        for part in (slice(start, start + CHUNK) for start in range(0, len(x), CHUNK))
    ]
    return pd.concat(tables, ignore_index=True)


def _around(
    clipped: Floats,
    usable: npt.NDArray[np.bool_],
    on_frame: npt.NDArray[np.bool_],
    column: npt.NDArray[np.int_],
    row: npt.NDArray[np.int_],
) -> pd.DataFrame:
    """Return the rows of some peaks; the planes are padded, so that every place around a peak is in them."""
    own = np.where(clipped[row, column] < 0, -1.0, 1.0)

    def mean(dx: Floats, dy: Floats) -> npt.NDArray[np.float64]:
        """Mean over the last axis of offsets, in the direction of the peak's sign; NaN where little is usable."""
        at = (
            row.reshape(-1, *[1] * dx.ndim) + np.rint(dy).astype(int),
            column.reshape(-1, *[1] * dx.ndim) + np.rint(dx).astype(int),
        )
        count = usable[at].sum(axis=-1)
        total = clipped[at].sum(axis=-1) * own.reshape(-1, *[1] * (dx.ndim - 1))
        return np.where(4 * count >= dx.shape[-1], total / np.maximum(count, 1), np.nan)

    def places(grid: Floats, inner: float, outer: float) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
        """Pixels of a ring around each peak."""
        dx, dy = (part.ravel() for part in np.meshgrid(grid, grid))
        within = (np.hypot(dx, dy) >= inner) & (np.hypot(dx, dy) <= outer)
        return row[:, None] + dy[within].astype(int), column[:, None] + dx[within].astype(int)

    out: dict[str, npt.NDArray[np.float64]] = {}
    angle = np.pi * np.arange(RAYS) / RAYS
    along = np.arange(RAY[0], RAY[1], RAY_STEP)
    cos, sin = np.cos(angle)[:, None] * along, np.sin(angle)[:, None] * along
    one, other = mean(cos, sin), mean(-cos, -sin)
    # At the frame's edge one side has to do.
    weaker, stronger = np.fmin(one, other), np.fmax(one, other)
    out["line_one"] = _highest(stronger)
    out["line_both"] = _highest(weaker)
    out["line_opposite"] = _highest(-stronger)
    axis = np.arange(AXIS[0], AXIS[1])
    axis = np.concatenate([-axis[::-1], axis])
    out["line_column"] = np.nan_to_num(mean(np.zeros_like(axis), axis))
    out["line_row"] = np.nan_to_num(mean(axis, np.zeros_like(axis)))
    ring = places(np.arange(-RING[1], RING[1] + 1, 2.0), *RING)
    count, values = np.maximum(usable[ring].sum(axis=1), 1), clipped[ring].astype(float)
    out["ring_mean"] = values.sum(axis=1) * own / count
    out["ring_rms"] = np.sqrt((values**2).sum(axis=1) / count)
    disc = places(np.arange(-DISC, DISC + 1), 0.0, DISC)
    out["bad_near"] = 1 - usable[disc].sum(axis=1) / on_frame[disc].sum(axis=1)
    return pd.DataFrame(out)


def _highest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the highest of each row; 0 where there is none."""
    return np.nan_to_num(np.where(np.isnan(values), -np.inf, values).max(axis=1), neginf=0.0)
