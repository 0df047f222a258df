"""Which source a person should look at next: the one whose label would teach most.

Worth is uncertainty × diversity × rarity. A label teaches where the model does not know (Lewis & Gale 1994), where it
has not been told the like of it already (batches of look-alikes are the bane of uncertainty sampling: Settles 2009,
§3.6), and a little more where such sources are few. What is picked first lowers the worth of what is like it, so that
the order is that of a batch: each next one is the best in view of those before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

#: Of so many nearest sources: how far the last of them is says how rare a source is.
NEIGHBOURS = 10
#: The commonest source has so much of the rarest one's worth: rare ones first among equals, not before all others.
COMMON = 0.5
#: So many are put in order one by one; the rest follow, as their worth is in view of these.
BATCH = 200


def feature_space(rows: Floats) -> Floats:
    """Return (n, columns) ranks between 0 and 1, column by column: features have no common scale, ranks have.

    A missing value (NaN) ranks below all others.
    """
    from scipy.stats import rankdata

    if not len(rows):
        return rows
    known = np.where(np.isnan(rows), -np.inf, rows)
    return np.asarray(rankdata(known, axis=0) - 0.5) / len(rows)


def uncertainty(probability: npt.ArrayLike) -> Floats:
    """Return 2 √(p (1 - p)): 1 where real and bogus are as likely, still 0.2 at p = 0.99.

    Shares of a classifier that has seen few labels are too near 0 and 1; the root lets none vanish beside another.
    """
    p = np.clip(np.asarray(probability, float), 0.0, 1.0)
    return np.asarray(2.0 * np.sqrt(p * (1.0 - p)))


def worth(
    space: Floats, probability: npt.ArrayLike, labelled: npt.ArrayLike, *, batch: int = BATCH
) -> pd.DataFrame:
    """Return what a label of each source would teach, 0 to 1, and why.

    Parameters
    ----------
    space:
        (n, columns) of `feature_space`, of all sources, labelled ones among them.
    probability:
        (n,) of being real, by the model as it is.
    labelled:
        (n,) whether a source's label is known already; its worth is 0.
    batch:
        So many are picked one by one.

    Returns
    -------
    DataFrame
        (n rows) worth, uncertainty, diversity (how unlike what is labelled or comes before), rarity.
    """
    n, known = len(space), np.asarray(labelled, bool)
    out = pd.DataFrame(0.0, index=range(n), columns=["worth", "uncertainty", "diversity", "rarity"])
    rest = np.flatnonzero(~known)
    if not len(rest):
        return out
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS + 1, n)
    far = NearestNeighbors(n_neighbors=count).fit(space).kneighbors(space[rest])[0][:, -1]
    scale = max(float(np.median(far)), 1e-9)
    rarity = COMMON + (1 - COMMON) * _ranks(far)
    sure = uncertainty(np.asarray(probability, float)[rest])
    nearest = np.full(len(rest), np.inf)
    if known.any():
        nearest = NearestNeighbors(n_neighbors=1).fit(space[known]).kneighbors(space[rest])[0][:, 0]
    squares = (space[rest] ** 2).sum(axis=1)
    diversity = np.ones(len(rest))
    open_ = np.ones(len(rest), bool)
    for _ in range(min(batch, len(rest))):
        value = np.where(open_, sure * rarity * _unlike(nearest, scale), -1.0)
        best = int(np.argmax(value))
        diversity[best] = _unlike(nearest[best : best + 1], scale)[0]
        open_[best] = False
        here = space[rest[best]]
        away = np.sqrt(np.maximum(squares - 2 * space[rest] @ here + here @ here, 0.0))
        nearest = np.minimum(nearest, away)
    diversity[open_] = _unlike(nearest[open_], scale)
    out.iloc[rest] = np.column_stack([sure * diversity * rarity, sure, diversity, rarity])
    return out


def _unlike(distance: Floats, scale: float) -> Floats:
    return np.asarray(1.0 - np.exp(-((distance / scale) ** 2)))


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 0.5) / len(values))
