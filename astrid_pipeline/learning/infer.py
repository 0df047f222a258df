"""Detections of one difference image: the network's peaks, joined with the candidates, scored and measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.candidates import CANDIDATES
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import names
from astrid_pipeline.learning.channels import channels, unusable
from astrid_pipeline.learning.detector import Detector, load_model
from astrid_pipeline.learning.network import pick_device, predict, predict_batch
from astrid_pipeline.learning.peaks import (
    find_peaks,
    join,
    one_a_candidate,
    unet_features,
)
from astrid_pipeline.learning.schema import CLASSES, DETECTIONS
from astrid_pipeline.learning.surroundings import surroundings

#: Side of the crops in which dropout is sampled: a multiple of the network's stride, the peak in its middle.
_CROP = 64

#: Dropout is sampled this often; the spread of 8 is known to a quarter of itself.
PASSES = 8

#: A source the network found without a candidate has these candidate columns from forced photometry at its peak.
_FORCED = ("ra", "dec", "flux", "flux_err", "snr")


def peak_table(
    probability: npt.NDArray[np.float32],
    bad: npt.NDArray[np.bool_],
    score: npt.NDArray[np.floating],
    candidates: pd.DataFrame,
    threshold: float,
) -> pd.DataFrame:
    """Return the network's peaks with what the second stage looks at.

    That is the columns of `find_peaks` (x and y as ``peak_x``, ``peak_y``), those of `unet_features` and of
    `surroundings`, the candidate's own columns (NaN without one), ``candidate`` (its row number or -1), ``peak_snr``
    (the score at the peak's pixel) and ``peak_distance`` (px to the candidate).
    """
    peaks = find_peaks(probability, bad, threshold)
    known = np.where(bad, np.nan, score)
    keep, row = one_a_candidate(peaks, candidates, join(peaks, candidates, known), known)
    peaks, row = peaks[keep].reset_index(drop=True), row[keep]
    matched = candidates.reset_index(drop=True).reindex(np.where(row >= 0, row, -1))
    matched.index = peaks.index
    features = unet_features(peaks)
    height, width = bad.shape
    at = (
        np.clip(np.rint(peaks["y"].to_numpy()).astype(int), 0, height - 1),
        np.clip(np.rint(peaks["x"].to_numpy()).astype(int), 0, width - 1),
    )
    extra = pd.DataFrame(
        {
            "candidate": row,
            "peak_snr": score[at].astype(np.float64),
            "peak_distance": np.hypot(
                matched["x"].astype(float) - peaks["x"], matched["y"].astype(float) - peaks["y"]
            ),
        },
        index=peaks.index,
    )
    around = surroundings(score, bad, peaks["x"].to_numpy(), peaks["y"].to_numpy())
    around.index = peaks.index
    peaks = peaks.rename(columns={"x": "peak_x", "y": "peak_y"})
    return pd.concat([peaks, features, around, extra, matched], axis=1)


def dropout_spread(
    network: nn.Module,
    planes: npt.NDArray[np.float32],
    table: pd.DataFrame,
    *,
    passes: int,
    seed: int,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Return (rows,) standard deviations of the combined heat at each peak over `passes` of dropout.

    Gal & Ghahramani 2016: dropout at inference samples the posterior of the weights. Only crops around the peaks are
    computed. The same seed gives the same spreads.
    """
    if not len(table) or passes < 2:
        return np.full(len(table), np.nan)
    half = _CROP // 2
    padded = np.pad(planes, ((0, 0), (half, half), (half, half)))
    rows = np.clip(np.rint(table["peak_y"].to_numpy()).astype(int), 0, planes.shape[1] - 1)
    cols = np.clip(np.rint(table["peak_x"].to_numpy()).astype(int), 0, planes.shape[2] - 1)
    crops = np.stack([padded[:, r : r + _CROP, c : c + _CROP] for r, c in zip(rows, cols, strict=True)])
    dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout2d)]
    network = network.to(device)
    answers = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            for module in dropouts:
                module.train()
            for _ in range(passes):
                parts = [
                    predict_batch(network, part, device=device)
                    for part in np.array_split(crops, -(-len(crops) // 32))
                ]
                heat = np.concatenate(parts)[:, :-1, half - 1 : half + 2, half - 1 : half + 2]
                # The highest of 3 × 3: a peak that moves by a pixel is not a doubtful one.
                answers.append((1 - np.prod(1 - heat, axis=1)).max(axis=(1, 2)))
        finally:
            for module in dropouts:
                module.eval()
    return np.std(np.stack(answers), axis=0, ddof=1).astype(np.float64)


def detect(
    difference: Difference,
    candidates: pd.DataFrame,
    model: Detector | None = None,
    device: str | torch.device | None = None,
    *,
    threshold: float | None = None,
    passes: int = PASSES,
    orientations: int = 1,
) -> pd.DataFrame:
    """Return the detections in a difference image, table `DETECTIONS`.

    A detection is a peak of the network's heat maps whose score is at least `threshold`. A candidate within 3 px
    lends it its position, flux and shape; a peak without one gets forced photometry at its own position
    (``origin`` says which), its shape columns null.

    Parameters
    ----------
    candidates:
        `imaging.find_candidates` of the same difference.
    model:
        `load_model()` by default. A profile of the difference's instrument comes into use by itself.
    threshold:
        Least score; the model's own by default.
    passes:
        Samples of dropout for `uncertainty`; below 2, and for scores below the model's floor, it is null.
    orientations:
        1, 2, 4 or 8 turned and mirrored copies to average over: purer, and as many times slower.

    Raises
    ------
    ModelError
        If there is no usable model, or the difference or the candidates lack what it needs.
    """
    model = (load_model() if model is None else model).for_survey(difference.meta)
    where = pick_device(device)
    planes = channels(difference)
    bad = unusable(difference)
    network = model.inference_network
    probability = predict(network, planes, device=where, orientations=orientations)
    if not np.isfinite(probability).all():
        remedy = "fetch or train the model again"
        raise ModelError(
            "the network answered with values that are not finite", where=model.name, remedy=remedy
        )
    table = peak_table(probability, bad, difference.score, candidates, model.peak_threshold)
    table = pd.concat([table, model.score(table)], axis=1)
    least = model.threshold if threshold is None else threshold
    table = table[table["score"] >= least].sort_values(["score", "unet_raw"], ascending=False, kind="stable")
    table = table.reset_index(drop=True)
    if not len(table):
        return DETECTIONS.empty()
    # Far below the model's own threshold there can be thousands; only what it may hold for real is worth the passes.
    sure = (table["score"] >= model.floor).to_numpy()
    table["uncertainty"] = np.nan
    table.loc[sure, "uncertainty"] = dropout_spread(
        network, planes, table[sure], passes=passes, seed=0, device=where
    )
    shares = model.class_shares(table)
    for c, label in enumerate(CLASSES):
        table[f"p_{label}"] = shares[:, c]
    table["class"] = [CLASSES[c] for c in shares.argmax(axis=1)]
    table["origin"] = np.where(table["candidate"] >= 0, "candidate", "network")
    table["model_name"], table["model_version"] = model.name, model.version
    table = _measure_forced(_with_whole_numbers(table, candidates), difference)
    exposure = str(difference.meta.get("exposure_id", "difference"))
    table["detection_id"] = [f"{exposure}-D{i:04d}" for i in range(len(table))]
    return DETECTIONS.conform(table)


def _with_whole_numbers(table: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the candidates' whole numbers as they are: as floats, HEALPix indices lose digits."""
    from astrid_pipeline.imaging.candidates import CANDIDATES

    row = table["candidate"].to_numpy()
    for column in CANDIDATES.columns:
        if column.kind.startswith("int") and column.name in candidates:
            values = candidates[column.name].to_numpy()
            table[column.name] = [int(values[i]) if i >= 0 else 0 for i in row]
    return table


def _measure_forced(table: pd.DataFrame, difference: Difference) -> pd.DataFrame:
    """Fill the candidate columns of peaks without a candidate; the shape columns stay null."""
    alone = (table["candidate"] < 0).to_numpy()
    if not alone.any():
        return table
    from astrid_pipeline.imaging.photometry import forced_photometry

    meta = difference.meta
    x, y = table.loc[alone, "peak_x"].to_numpy(float), table.loc[alone, "peak_y"].to_numpy(float)
    forced = forced_photometry(difference, x=x, y=y)
    values: dict[str, Any] = {name: forced[name].to_numpy() for name in _FORCED if name in forced.columns}
    rows = np.clip(np.rint(y).astype(int), 0, difference.shape[0] - 1)
    cols = np.clip(np.rint(x).astype(int), 0, difference.shape[1] - 1)
    bits = difference.mask[rows, cols]
    values |= {
        "x": x,
        "y": y,
        "candidate_id": "",
        "exposure_id": str(meta.get("exposure_id", "difference")),
        "mjd": float(meta.get("mjd", np.nan)),
        "filter": str(meta.get("filter", "")),
        "sign": np.where(difference.score[rows, cols] < 0, -1, 1),
        "peak_score": difference.score[rows, cols].astype(float),
        "flags": bits,
        "flag_names": ["|".join(names(int(value))) for value in bits],
        "hpx29": _healpix(values.get("ra"), values.get("dec"), len(x)),
    }
    for column in CANDIDATES.columns:
        name, kind = column.name, column.kind
        # Whole numbers cannot be null: what was not measured (the count of pixels) is 0.
        given: Any = values.get(name, 0 if kind.startswith(("int", "bool")) else None)
        filled = table[name].astype(object) if name in table else pd.Series(None, table.index, object)
        filled[alone] = given if np.ndim(given) else [given] * int(alone.sum())
        table[name] = filled
    return table


def _healpix(ra: Any, dec: Any, count: int) -> npt.NDArray[np.int64]:
    """Return nested HEALPix pixels of order 29, -1 where there is no position on the sky."""
    out = np.full(count, -1, np.int64)
    if ra is None or dec is None:
        return out
    from astropy import units
    from astropy_healpix import HEALPix

    known = np.isfinite(ra) & np.isfinite(dec)
    grid = HEALPix(nside=2**29, order="nested")
    out[known] = grid.lonlat_to_healpix(np.asarray(ra)[known] * units.deg, np.asarray(dec)[known] * units.deg)
    return out
