"""Splits of a dataset by field, object and night: what is tested on shows no sky and no night that was learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.catalog import sky
from astrid_pipeline.learning.data import split_of
from astrid_pipeline.review.quality import LEAST_NIGHTS, night_of

SHARES: Mapping[str, float] = {"train": 0.7, "valid": 0.15, "test": 0.15}
#: HEALPix order of the pieces of sky that splits are made of: 52″.
_ORDER = 12


def pieces(samples: pd.DataFrame) -> pd.Series:
    """Return the piece of sky of each sample, that of its object where it has one; of its exposure without a place."""
    index = samples["object_hpx"].fillna(samples["hpx29"]).astype(object)
    shift = 2 * (sky.ORDER - _ORDER)
    names = [
        f"{field}:{exposure if hpx is None or hpx != hpx else int(hpx) >> shift}"
        for field, exposure, hpx in zip(samples["field"], samples["exposure_id"], index, strict=True)
    ]
    return pd.Series(names, samples.index, object)


def splits(samples: pd.DataFrame, seed: int = 0) -> tuple[pd.Series, str]:
    """Return the split of each sample, None for those to leave out, and what was split by.

    With `quality.LEAST_NIGHTS` nights of a field or more, every night belongs to one split, and so does every piece of
    sky: to one of those in whose nights it was seen, drawn by the splits' shares. Samples of a piece in nights of
    another split are left out, for they would tell one split about the other: none of what was seen once, half of what
    is seen every night. With fewer nights the pieces alone are split.

    Parameters
    ----------
    samples:
        field, night, exposure_id, hpx29, object_hpx.
    """
    piece = pieces(samples)
    nights = night_of(samples)
    if nights.nunique() < LEAST_NIGHTS:
        return pd.Series([split_of(name, SHARES, seed) for name in piece], samples.index, object), "sky"
    of_night = nights.map(_shared_out(nights.value_counts().to_dict(), seed))
    seen: dict[str, set[str]] = {}
    for name, one in zip(piece, of_night, strict=True):
        seen.setdefault(name, set()).add(one)
    of_piece = piece.map({name: _one_of(name, names, seed) for name, names in seen.items()})
    return of_night.astype(object).where(of_night == of_piece, None), "sky and night"


def _one_of(piece: str, names: Collection[str], seed: int) -> str:
    """Return one of some splits for a piece of sky, by its hash, with the splits' shares."""
    total = sum(SHARES[name] for name in names)
    shares = {name: share / total for name, share in SHARES.items() if name in names}
    return split_of(piece, shares, seed)


def _shared_out(sizes: Mapping[Any, int], seed: int) -> dict[str, str]:
    """Give each night to the split that lacks most, the largest first, so that none goes without."""
    total = sum(sizes.values())
    have = dict.fromkeys(SHARES, 0.0)
    order = sorted(sizes, key=lambda n: (-sizes[n], hashlib.sha256(f"{seed}:{n}".encode()).hexdigest()))
    result: dict[str, str] = {}
    for position, night in enumerate(order):
        lacks = {name: share - have[name] / total for name, share in SHARES.items()}
        empty = [name for name in SHARES if not have[name]]
        # As many nights as there are empty splits are left: each gets one.
        if empty and len(order) - position <= len(empty):
            lacks = {name: lacks[name] for name in empty}
        chosen = max(lacks, key=lambda name: lacks[name])
        have[chosen] += sizes[night]
        result[str(night)] = chosen
    return result


def left_out(split: pd.Series) -> int:
    """Return how many samples a split leaves out."""
    return int(np.asarray(split.isna()).sum())
