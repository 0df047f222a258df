"""Small skies with known answers, made without the simulator: Gaussian sources on white noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.learning.samples import labelled_truth, make_sample
from astrid_pipeline.learning.shards import ShardSet, write_manifest, write_shard

PSF_SIGMA = 1.1


def gaussian_psf(size: int = 21) -> PSF:
    r = np.arange(size) - size // 2
    g = np.exp(-(r**2) / (2 * PSF_SIGMA**2))
    return PSF.from_stamp(np.outer(g, g))


def _wcs(shape: tuple[int, int]) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 30.0]
    wcs.wcs.crpix = [shape[1] / 2, shape[0] / 2]
    wcs.wcs.cdelt = [-1 / 3600, 1 / 3600]
    return wcs


def toy_difference(
    seed: int,
    shape: tuple[int, int] = (96, 96),
    sources: int = 5,
    snr: tuple[float, float] = (8, 40),
    **meta: Any,
) -> tuple[Difference, pd.DataFrame]:
    """A difference of unit noise with sources of known S/N, and its truth; score and flux by the matched filter."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    height, width = shape
    psf = gaussian_psf()
    yy, xx = np.mgrid[:height, :width]
    norm = 1 / (2 * np.pi * PSF_SIGMA**2)
    error = float(np.sqrt(4 * np.pi) * PSF_SIGMA)  # 1 / √Σ P² for a Gaussian of unit noise
    rows = []
    image = np.zeros(shape)
    kinds = ("point", "variable", "moving")
    for i in range(sources):
        x, y = rng.uniform(6, width - 7), rng.uniform(6, height - 7)
        value = float(np.exp(rng.uniform(*np.log(snr))))
        flux = value * error
        image += flux * norm * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * PSF_SIGMA**2))
        rows.append({"x": x, "y": y, "flux": flux, "snr": value, "kind": kinds[i % 3] if i else "point"})
    noise = rng.standard_normal(shape)
    reference = rng.standard_normal(shape) * 0.5
    data = image + noise
    smooth = gaussian_filter(data, PSF_SIGMA, mode="constant")
    score = smooth * error
    mask = np.zeros(shape, np.int32)
    mask[:, 3] = int(Mask.BAD_COLUMN)
    base = {
        "exposure_id": f"toy-{seed}",
        "science_sky_sigma": 1.0,
        "reference_sky_sigma": 0.5,
        "field": "toy",
        "mjd": 61000.0,
        "filter": "r",
        "seeing": 2.6,
    }
    difference = Difference(
        data=data,
        variance=np.ones(shape),
        mask=mask,
        psf=psf,
        score=score,
        flux=smooth * error**2,
        flux_err=np.full(shape, error),
        science=data + reference,
        reference=reference,
        wcs=_wcs(shape),
        meta={**base, **meta},
    )
    return difference, pd.DataFrame(rows, columns=["x", "y", "flux", "snr", "kind"])


def toy_candidates(difference: Difference, threshold: float = 5.0) -> pd.DataFrame:
    """Local maxima of the score: what is needed of a candidate table to join and to rank."""
    from scipy.ndimage import maximum_filter

    score = difference.score
    rows, cols = np.nonzero(
        (score == maximum_filter(score, 5)) & (score > threshold) & (difference.mask == 0)
    )
    return pd.DataFrame(
        {"x": cols.astype(float), "y": rows.astype(float), "peak_score": score[rows, cols].astype(float)}
    )


def toy_set(folder: Path, seeds: range, shape: tuple[int, int] = (96, 96), **options: Any) -> ShardSet:
    samples = []
    for seed in seeds:
        difference, truth = toy_difference(seed, shape, **options)
        info = {"sky": f"toy-{seed}", "case": "toy", "source": "simulated", "seed": seed}
        known = labelled_truth(truth, difference, "simulated")
        samples.append(make_sample(difference, known, toy_candidates(difference), info))
    write_shard(folder, 0, samples)
    write_manifest(folder, [0], {"shape": list(shape)})
    return ShardSet(folder)
