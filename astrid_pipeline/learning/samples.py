"""One labelled image: what is true of a difference, as the columns and planes of a training set, whole or in tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.learning.channels import channels, unusable
from astrid_pipeline.learning.shards import MATCH_COLUMNS, Sample
from astrid_pipeline.learning.targets import SOURCE_BIT, UNUSABLE_BIT, footprint

#: What a truth table's kinds are called here.
KIND_LABELS: Mapping[str, str] = {
    "point": "transient",
    "transient": "transient",
    "variable": "variable",
    "moving": "moving",
    "trail": "moving",
    "artefact": "artefact",
}

#: A mover's trail of so many FWHM can be seen: it makes the image a quarter longer than wide (a line of length L adds
#: L²/12 to the variance along it, a Gaussian's own is FWHM²/5.5). Shorter ones are points, whatever they are.
TRAIL_FWHM = 1.0


def labelled_truth(truth: pd.DataFrame, difference: Difference, source: str) -> pd.DataFrame:
    """Return the rows of a truth table with the columns of `shards.TRUTH`, but image_id.

    `truth` has x, y, flux, kind (a key of `KIND_LABELS`), and may have class, snr, length and angle. Where there is
    no S/N it is |flux| over the difference's own flux error at that pixel. What moved by less than `TRAIL_FWHM` is
    labelled a transient, since one image cannot tell; its kind stays.

    Raises
    ------
    ModelError
        If a kind is unknown.
    """
    kinds = truth["kind"].astype(str)
    unknown = sorted(set(kinds) - set(KIND_LABELS))
    if unknown:
        remedy = f"use one of {', '.join(KIND_LABELS)}"
        raise ModelError(
            f"the truth names the kinds {', '.join(unknown)}", where="training data", remedy=remedy
        )
    height, width = difference.shape
    rows = np.clip(np.rint(truth["y"].to_numpy(float)).astype(int), 0, height - 1)
    cols = np.clip(np.rint(truth["x"].to_numpy(float)).astype(int), 0, width - 1)
    own = np.abs(truth["flux"].to_numpy(float)) / np.maximum(difference.flux_err[rows, cols], 1e-30)
    given = truth["snr"].to_numpy(float) if "snr" in truth else np.full(len(truth), np.nan)
    snr = np.where(np.isfinite(given), given, own)
    label = kinds.map(KIND_LABELS).to_numpy(object)
    if "length" in truth:
        seen = truth["length"].to_numpy(float) >= TRAIL_FWHM * difference.psf.fwhm()
        label = np.where((label == "moving") & ~seen, "transient", label)
    return pd.DataFrame(
        {
            "x": truth["x"].to_numpy(float),
            "y": truth["y"].to_numpy(float),
            "flux": truth["flux"].to_numpy(float),
            "snr": snr,
            # The least error that two frames allow knows nothing of how well they could be matched; this pair's does.
            "snr_here": np.minimum(snr, own) * _astrometric_loss(difference, rows, cols),
            "position_bound": _least_widths(difference, rows, cols) / np.maximum(snr, 1e-30),
            "label": label,
            "kind": truth.get("class", kinds).astype(str).to_numpy(object),
            "length": truth["length"].to_numpy(float) if "length" in truth else np.full(len(truth), np.nan),
            "angle": truth["angle"].to_numpy(float) if "angle" in truth else np.full(len(truth), np.nan),
            "usable": ~unusable(difference)[rows, cols],
            "label_source": source,
        }
    )


def _astrometric_loss(
    difference: Difference, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return √(V / (V + V_ast)) at some pixels: what is left of a change's S/N beside a badly registered star.

    Score and flux / flux_err have the same numerator S (eqs 25 and 41-43 of Zackay et al. 2016), so that their
    quotient is free of what there is at the pixel.
    """
    significance = np.abs(difference.flux[rows, cols] / np.maximum(difference.flux_err[rows, cols], 1e-30))
    score = np.abs(difference.score[rows, cols])
    known = np.isfinite(significance) & np.isfinite(score) & (significance > 1e-3)
    return np.where(known, np.clip(score / np.where(known, significance, 1.0), 0.0, 1.0), 1.0)


def _least_widths(
    difference: Difference, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the least error of a position per axis, px, times the S/N, of a point at each of some pixels.

    That is √(Σ P² / Σ ½|∇P|²), by the Fisher information of a profile P in white noise, as D's is (for a Gaussian of
    width s, √2 s). The slopes' sum is taken from the transform, Σ k² |P̂|² (Parseval): differences of neighbouring
    pixels would see them too flat.
    """
    out = np.empty(len(rows))
    for i, (row, col) in enumerate(zip(rows, cols, strict=True)):
        stamp = difference.psf.stamp(float(col), float(row))
        ky, kx = (2 * np.pi * np.fft.fftfreq(n) for n in stamp.shape)
        light = np.abs(np.fft.fft2(stamp)) ** 2
        out[i] = np.sqrt(light.sum() / (0.5 * ((ky[:, None] ** 2 + kx**2) * light).sum()))
    return out


def make_sample(
    difference: Difference, truth: pd.DataFrame, candidates: pd.DataFrame, info: Mapping[str, Any]
) -> Sample:
    """Return one whole difference image as a sample; `truth` is that of `labelled_truth`."""
    labels = np.where(unusable(difference), np.uint8(UNUSABLE_BIT), np.uint8(0))
    labels |= np.where(footprint(difference, truth), np.uint8(SOURCE_BIT), np.uint8(0))
    meta = difference.meta
    about = {
        "night": str(meta.get("night", "")),
        "seeing": float(meta.get("seeing", np.nan)),
        # What has to be watched of the match (`drift.IMAGE_QUANTITIES`); unmeasured where it was too small for that.
        **{name: float(meta.get(name, np.nan)) for name in MATCH_COLUMNS},
        "seed": -1,
        **info,
    }
    return Sample(channels(difference), labels, truth, candidates, about)


def no_truth() -> pd.DataFrame:
    """Return the truth of a difference in which nothing is known to have changed."""
    names = ("x", "y", "flux", "snr", "snr_here", "position_bound", "length", "angle")
    empty: dict[str, Any] = {name: np.zeros(0) for name in names}
    return pd.DataFrame(
        {
            **empty,
            "label": np.zeros(0, object),
            "kind": np.zeros(0, object),
            "usable": np.zeros(0, bool),
            "label_source": "",
        }
    )


def tiles(whole: Sample, tile: int, name: str) -> list[Sample]:
    """Return the tiles of a sample, smaller frames padded with unusable pixels; `name` is the field's."""
    _, height, width = whole.planes.shape
    planes, labels = whole.planes, whole.labels
    below, right = max(tile - height, 0), max(tile - width, 0)
    if below or right:
        planes = np.pad(planes, ((0, 0), (0, below), (0, right)))
        labels = np.pad(labels, ((0, below), (0, right)), constant_values=UNUSABLE_BIT)
    out = []
    for y0 in _starts(planes.shape[1], tile):
        for x0 in _starts(planes.shape[2], tile):
            out.append(
                Sample(
                    planes[:, y0 : y0 + tile, x0 : x0 + tile],
                    labels[y0 : y0 + tile, x0 : x0 + tile],
                    _inside(whole.truth, x0, y0, tile),
                    _inside(whole.candidates, x0, y0, tile),
                    {**whole.info, "sky": f"{name}/{y0}-{x0}"},
                )
            )
    return out


def _starts(size: int, tile: int) -> list[int]:
    """Return where tiles begin: as few as cover the axis, without overlap but for the last."""
    return sorted({min(i, size - tile) for i in range(0, size, tile)})


def _inside(table: pd.DataFrame, x0: int, y0: int, tile: int) -> pd.DataFrame:
    """Return the rows whose pixel lies in the tile, positions relative to it."""
    inside = table["x"].between(x0 - 0.5, x0 + tile - 0.5, inclusive="left") & table["y"].between(
        y0 - 0.5, y0 + tile - 0.5, inclusive="left"
    )
    part = table[inside]
    return part.assign(x=part["x"] - x0, y=part["y"] - y0)
