"""The way of a subtraction, whatever the method: match, fill, filter, and account for what is left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.frame import Difference, Image
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.subtract.artefacts import mark_cosmic_rays, mark_lines
from astrid_pipeline.imaging.subtract.engine import Filters, Scene, filter_tiles
from astrid_pipeline.imaging.subtract.fill import fill_pair
from astrid_pipeline.imaging.subtract.halos import raise_variance
from astrid_pipeline.imaging.subtract.inputs import Pair, parts
from astrid_pipeline.imaging.subtract.match import Match, solve_match
from astrid_pipeline.imaging.subtract.score import (
    TOLERANCE,
    difference_mask,
    edge_leak,
    empty_sky,
    score_width,
    variance_left,
)

if TYPE_CHECKING:
    import torch


def make_difference(pair: Pair, filters: Filters, device: torch.device) -> Difference:
    """Return the difference of a pair by the method that the filters are of."""
    pair = mark_cosmic_rays(pair) if pair.search else pair
    match = solve_match(pair, device)
    pair = mark_lines(pair, match.ratio.image(), match.sky.image()) if pair.search else pair
    scene = build_scene(pair, match, device)
    filtered = filter_tiles(scene, filters)
    flux, variance, static, plain = (
        image.cpu().numpy()
        for image in (filtered.flux, filtered.variance, filtered.static, filtered.difference)
    )
    # Fluxes count all the light of the PSF that was given, also what lies beyond the filters' reach.
    for image, times in ((flux, 1), (static, 1), (variance, 2)):
        image /= np.float32(pair.light**times)
    science_mask, reference_mask = pair.science.mask, pair.reference.mask
    mask = difference_mask(science_mask, reference_mask, filtered.psf.fwhm())
    pixels = scene.science.cpu().numpy(), scene.reference.cpu().numpy()
    broad = max((scene.psf_science, scene.psf_reference), key=lambda psf: psf.fwhm())
    leak = edge_leak(*pixels, broad.stamp(), scene.science_sigma)
    mask[leak] |= np.int32(Mask.EDGE)
    bad = is_set(mask, int(UNUSABLE | Mask.EDGE), reference=True)
    empty = empty_sky(static, variance, bad)
    # Correlated pixels, or a variance that is off, widen the score everywhere alike. They are taken out first, lest
    # they pass for errors of the match.
    raw = score_width(flux, variance, empty)
    scale = raw if abs(raw - 1) > TOLERANCE else 1.0
    variance *= np.float32(scale**2)
    extra, left = variance_left(flux, variance, static, bad, match.changed)
    variance += extra
    halos = raise_variance(flux, variance, static, bad, filtered.psf.fwhm() * math.sqrt(2))
    score = np.asarray(flux / np.sqrt(variance), np.float32)
    # A source that is there adds its own photons' noise.
    own = np.float32(filtered.own_noise / pair.light) * np.maximum(flux, 0)
    flux_err = np.sqrt(variance + own)
    ratio = match.ratio.image()
    reference_variance = parts(pair.reference)[0] * ratio**2
    a, b = filtered.difference_weights
    data_variance = np.float32(a) * parts(pair.science)[0] + np.float32(b) * reference_variance
    return Difference(
        data=plain,
        variance=data_variance * np.float32(scale**2),
        mask=mask,
        psf=filtered.psf,
        score=score,
        flux=flux,
        flux_err=flux_err,
        science=pixels[0],
        reference=pixels[1],
        wcs=pair.science.wcs,
        meta={
            **pair.science.meta,
            **match_meta(pair, match),
            "astrometric_sigma_x": left.sigma_x,
            "astrometric_sigma_y": left.sigma_y,
            "psf_ratio_error": left.shape,
            "bright_stars_left": halos,
            "score_sigma_raw": raw,
            "score_rescaled": scale != 1.0,
            "score_sigma": score_width(flux, variance, empty),
            "masked_fraction": float(bad.mean()),
        },
    )


def match_meta(pair: Pair, match: Match) -> dict[str, Any]:
    """Return what a difference's meta says of the match."""
    height, width = pair.shape
    beta = float(np.mean(match.ratio.at((width - 1) / 2, (height - 1) / 2)))
    shift = match.shift.at((width - 1) / 2, (height - 1) / 2)
    return {
        "flux_ratio": beta,
        "flux_ratio_error": match.ratio_error,
        "flux_ratio_scatter": match.ratio_scatter,
        "shift_x": float(shift[0]),
        "shift_y": float(shift[1]),
        "dx_rms": match.dx_rms,
        "dy_rms": match.dy_rms,
        "n_matched": match.n_matched,
        "sky_offset": float(match.sky.surface.at((width - 1) / 2, (height - 1) / 2)),
        "science_sky_sigma": pair.science_sigma,
        "reference_sky_sigma": pair.reference_sigma * beta,
        "match_notes": "; ".join(match.notes),
    }


def build_scene(pair: Pair, match: Match, device: torch.device) -> Scene:
    """Return the frames as the filters want them: sky gone, the reference in the science frame's flux, holes filled."""
    import torch

    ratio = match.ratio.image()
    height, width = pair.shape
    beta = float(np.mean(match.ratio.at((width - 1) / 2, (height - 1) / 2)))
    variance_n, psf_n = parts(pair.science)
    variance_r, psf_r = parts(pair.reference)
    science, reference = fill_pair(
        pair.science.data - match.sky.image(),
        pair.reference.data * ratio,
        pair.bad_science,
        pair.bad_reference,
        match.psf,
        psf_r,
        match.shift,
        (pair.science_sigma, pair.reference_sigma * beta),
        device,
    )
    slopes = [
        count_slope(frame.data, parts(frame)[0], bad, sigma)
        for frame, bad, sigma in (
            (pair.science, pair.bad_science, pair.science_sigma),
            (pair.reference, pair.bad_reference, pair.reference_sigma),
        )
    ]
    slopes[1] *= beta
    plain_n = _plain_variance(variance_n, science, slopes[0], pair.science_sigma, pair.bad_science)
    plain_r = _plain_variance(
        variance_r * ratio**2, reference, slopes[1], pair.reference_sigma * beta, pair.bad_reference
    )

    def send(image: Image) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(image, np.float32), device=device)

    return Scene(
        send(science),
        send(reference),
        send(plain_n),
        send(plain_r),
        slopes[0],
        slopes[1],
        pair.science_sigma,
        pair.reference_sigma * beta,
        psf_n,
        match.psf,
        psf_r,
        match.shift,
    )


def _plain_variance(
    variance: Image, data: Image, slope: float, sigma: float, bad: npt.NDArray[np.bool_]
) -> Image:
    """Return the variance without the counts' own part; bad pixels, which were filled, have the sky's."""
    plain = variance - np.float32(slope) * data if slope else variance
    return np.where(bad, np.float32(sigma**2), plain)


def count_slope(data: Image, variance: Image, bad: npt.NDArray[np.bool_], sigma: float) -> float:
    """Return by how much the variance map rises with the noise of the data, per unit of data.

    1 / gain where each pixel's variance was estimated from its own counts, 0 where it is an expectation. Measured on
    differences of neighbouring pixels of empty sky, where there is nothing but noise.
    """
    # A million pixels know the slope to a thousandth of the noise.
    step = max(1, data.size // 1_000_000)
    data, variance, bad = data[::step], variance[::step], bad[::step]
    good = ~bad & (np.abs(data) < 3 * sigma)
    good = good[:, 1:] & good[:, :-1]
    change, change_of_variance = (
        np.diff(image, axis=1)[good].astype(np.float64) for image in (data, variance)
    )
    power = float((change**2).sum())
    return max(float((change * change_of_variance).sum()) / power, 0.0) if power > 0 else 0.0
