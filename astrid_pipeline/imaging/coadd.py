"""Stacking frames of one field and filter into one deeper frame: a reference image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.errors import AstridError, InputError, PSFError, RegistrationError
from astrid_pipeline.imaging.align import apply
from astrid_pipeline.imaging.combine import combine
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.mask import is_set
from astrid_pipeline.imaging.pixel_map import Lattice
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.registration import BRIGHT_SNR, register, registration_stars

#: Stars that tell the flux ratio, at most: 300 of S/N 50 give it to 0.1 %.
SCALE_STARS = 300
#: Stars needed to believe a flux ratio; with fewer the zero points decide.
MIN_SCALE_STARS = 3
#: Radius, in FWHM, of the circles in which fluxes are compared: seeing that differs by a fifth then changes what is in
#: them by a percent at most, and no PSF model has to be right.
APERTURE = 2.5
#: Side, in pixels, of the cells in which the empty sky's variance is followed over the frame.
CELL = 64


@dataclass(frozen=True, eq=False)
class _Layer:
    """One frame on the common grid: `frame` in its own flux units, times `scale` in the anchor's."""

    frame: Frame
    scale: float
    scale_source: str


def coadd(
    frames: Sequence[Frame],
    *,
    grid: tuple[WCS, tuple[int, int]] | None = None,
    clip: float | None = 4.0,
) -> Frame:
    """Register, scale and average frames of one field and filter.

    Parameters
    ----------
    frames:
        At least one; prepared here if they are not. Frames that cannot be registered or scaled are left out and named
        in the result's meta; only if none but one is left of several, that is an error.
    grid:
        (WCS, (height, width)) to stack on; default is the grid of the deepest frame.
    clip:
        Values so many σ off the other frames' are left out: cosmic rays nobody masked, satellites, moving objects.
        See `combine`.

    Returns
    -------
    Frame
        In the units and to the zero point of the deepest frame, sky removed, prepared (`quality.prepare` leaves it as
        it is). Weights are 1 / (σ² · noise area of the PSF) of the empty sky, the best for faint point sources. meta:
        `inputs` (JSON list of exposure ids used), `rejected` (JSON: id -> why), `n_frames`, `mjd` (weighted mean),
        `mjd_min`, `mjd_max`, `exposure` (sum), `coverage`, `flux_scales` (JSON), `dx_rms`, `dy_rms` (worst of the
        frames), `psf_source`.

    Raises
    ------
    InputError
        If there is no frame.
    RegistrationError
        If of several frames none could be registered with the deepest one, with each one's reason.
    """
    if not frames:
        raise InputError("there is no frame to stack", remedy="hand over at least one calibrated frame")
    ready, rejected = _prepared(frames)
    anchor = max(ready, key=_depth)
    base = anchor if grid is None else _on_grid(anchor, grid)
    layers = [_Layer(base, 1.0, "anchor")]
    stars = _scale_stars(base)
    for frame in ready:
        if frame is anchor:
            continue
        try:
            moved = apply(frame, base, register(frame, base))
            layers.append(_Layer(moved, *_scale(moved, base, stars)))
        except AstridError as problem:
            rejected[frame.name] = str(problem)
    if len(layers) == 1 and len(frames) > 1:
        reasons = "; ".join(f"{name}: {why}" for name, why in rejected.items())
        raise RegistrationError(
            f"none of the other {len(frames) - 1} frames could be stacked on {anchor.name}: {reasons}",
            where=anchor.name,
            remedy="check that all are of one field and filter",
        )
    # In the order they were handed over, so that the stack does not hang on which is deepest.
    order = {frame.name: i for i, frame in enumerate(frames)}
    layers.sort(key=lambda layer: order.get(layer.frame.name, 0))
    return _stack(layers, base, rejected, clip)


def _prepared(frames: Sequence[Frame]) -> tuple[list[Frame], dict[str, str]]:
    from astrid_pipeline.imaging.quality import prepare

    ready, rejected = [], {}
    problem: AstridError | None = None
    for frame in frames:
        try:
            ready.append(prepare(frame))
        except AstridError as found:
            rejected[frame.name] = str(found)
            problem = found
    if not ready and problem is not None:
        raise problem
    return ready, rejected


def _depth(frame: Frame) -> float:
    """Return a number that is larger for deeper frames, comparable among frames of one field and filter."""
    assert frame.psf is not None
    noise = float(frame.meta["sky_sigma"]) * np.sqrt(frame.psf.noise_area())
    zero_point, exposure = frame.meta.get("zero_point"), frame.meta.get("exposure")
    if zero_point is not None and np.isfinite(zero_point):
        return float(zero_point) - 2.5 * np.log10(noise)
    # Without zero points the S/N of the same stars: their total light grows with the exposure.
    light = float(exposure or 1.0) if str(frame.meta.get("unit", "")).find("/s") < 0 else 1.0
    return 2.5 * np.log10(light / noise)


def _on_grid(anchor: Frame, grid: tuple[WCS, tuple[int, int]]) -> Frame:
    """Return the anchor on a given grid, by its WCS alone: the others are registered with it there."""
    wcs, shape = grid
    blank = Frame(np.zeros(shape, np.float32), wcs=wcs, meta={"exposure_id": "the grid"})
    return apply(anchor, blank, register(anchor, blank, refine=False))


def _scale_stars(base: Frame) -> pd.DataFrame:
    """Return the anchor's stars that flux ratios are taken from."""
    table = registration_stars(base)
    bright = table[table["star"].astype(bool) & (table["snr"] > BRIGHT_SNR)]
    chosen = bright if len(bright) >= MIN_SCALE_STARS else table
    return chosen.head(SCALE_STARS)


def _scale(moved: Frame, base: Frame, stars: pd.DataFrame) -> tuple[float, str]:
    """Return the factor that brings a frame on the grid to the anchor's flux, and where it comes from."""
    if len(stars):
        x, y = stars["x"].to_numpy(float), stars["y"].to_numpy(float)
        radius = APERTURE * max(float(moved.meta["seeing"]), float(base.meta["seeing"]))
        here, here_err, good = _aperture_flux(moved, x, y, radius)
        there, there_err, also = _aperture_flux(base, x, y, radius)
        good &= also & (here > 5 * here_err) & (there > 5 * there_err)
        if good.sum() >= MIN_SCALE_STARS:
            ratio = np.log(there[good] / here[good])
            error = np.hypot(here_err[good] / here[good], there_err[good] / there[good])
            return float(np.exp(_robust_mean(ratio, np.hypot(error, 0.01)))), f"{good.sum()} stars"
    own, wanted = moved.meta.get("zero_point"), base.meta.get("zero_point")
    if own is not None and wanted is not None:
        return float(10 ** (0.4 * (float(wanted) - float(own)))), "zero points"
    raise RegistrationError(
        f"its flux cannot be compared: fewer than {MIN_SCALE_STARS} common stars and no zero points",
        where=moved.name,
        remedy="give both frames a zero point (assess with a catalogue)",
    )


def _aperture_flux(
    frame: Frame, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating], radius: float
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
    """Return fluxes in circles, their errors, and where no masked pixel is in the circle."""
    import sep

    flux, error, flag = sep.sum_circle(frame.data, x, y, radius, var=frame.variance, mask=is_set(frame.mask))
    return flux, error, (flag & (sep.APER_HASMASKED | sep.APER_TRUNC)) == 0


def _robust_mean(values: npt.NDArray[np.floating], error: npt.NDArray[np.floating]) -> float:
    """Return the weighted mean without what lies over 3 robust σ off: variable stars, blends."""
    middle = float(np.median(values))
    for _ in range(5):
        spread = max(1.4826 * float(np.median(np.abs(values - middle))), 1e-6)
        near = np.abs(values - middle) <= 3 * np.maximum(spread, error)
        middle = float(np.average(values[near], weights=error[near] ** -2.0))
    return middle


def _stack(layers: list[_Layer], base: Frame, rejected: dict[str, str], clip: float | None) -> Frame:
    """Combine layers on one grid, and say what went into it."""
    weights: list[npt.NDArray[np.floating] | float] = []
    data, variance = [], []
    for layer in layers:
        frame = layer.frame
        assert frame.psf is not None
        assert frame.variance is not None
        scale = np.float32(layer.scale)
        data.append(frame.data * scale)
        variance.append(frame.variance * scale**2)
        weights.append(1 / (_sky_variance(frame) * np.float32(layer.scale**2 * frame.psf.noise_area())))
    result = combine(
        data,
        variance,
        [layer.frame.mask for layer in layers],
        weights,
        widths=[float(layer.frame.meta.get("seeing") or layer.frame.psf.fwhm()) for layer in layers],  # type: ignore[union-attr]
        clip=clip,
    )
    share = np.array([float(np.median(w)) for w in weights])
    share /= share.sum()
    meta = _meta(layers, share, base, rejected)
    meta |= {"coverage": result.coverage, "clipped_fraction": max(result.clipped)}
    usable = ~is_set(result.mask)
    meta["sky_sigma"] = float(np.sqrt(np.median(result.variance[usable if usable.any() else slice(None)])))
    frame = Frame(result.data, result.variance, result.mask, None, base.wcs, {**base.meta, **meta})
    psf, source = _psf(frame, layers, share)
    extra = {"seeing": psf.fwhm(), "psf_source": source}
    extra |= {name: psf.quality[name] for name in ("ellipticity", "n_stars") if name in psf.quality}
    return frame.replace(psf=psf, meta=extra)


def _sky_variance(frame: Frame) -> Image:
    """Return the empty sky's variance over the frame: cell medians, which stars do not lift, joined smoothly."""
    assert frame.variance is not None
    height, width = frame.shape
    rows, columns = max(1, height // CELL), max(1, width // CELL)
    cells = np.array(
        [
            [np.median(part[::2, ::2]) for part in np.array_split(strip, columns, axis=1)]
            for strip in np.array_split(frame.variance, rows, axis=0)
        ],
        float,
    )
    if min(cells.shape) < 4:
        return np.full(frame.shape, float(np.median(cells)), np.float32)
    # Large galaxies fill whole cells: a median over neighbouring cells takes them out.
    from scipy.ndimage import median_filter

    cells = median_filter(cells, 3, mode="nearest")
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    surface = Lattice(x, y, np.log(cells)).rows(np.arange(height, dtype=float), np.arange(width, dtype=float))
    return np.exp(surface).astype(np.float32)


def _meta(
    layers: list[_Layer], share: npt.NDArray[np.floating], base: Frame, rejected: dict[str, str]
) -> dict[str, object]:
    """Return what the stack's meta say about its inputs, `share` being their weights, 1 in sum."""
    metas = [layer.frame.meta for layer in layers]
    scales = np.array([layer.scale for layer in layers])
    meta: dict[str, object] = {
        "inputs": json.dumps([layer.frame.name for layer in layers]),
        "rejected": json.dumps(rejected),
        "n_frames": len(layers),
        "flux_scales": json.dumps({la.frame.name: [round(la.scale, 6), la.scale_source] for la in layers}),
        "sky_subtracted": True,
    }

    def values(name: str) -> npt.NDArray[np.floating] | None:
        found = [m.get(name) for m in metas]
        if any(v is None or not np.isfinite(float(v)) for v in found):
            return None
        return np.array(found, float)

    if (mjd := values("mjd")) is not None:
        meta |= {"mjd": float(mjd @ share), "mjd_min": float(mjd.min()), "mjd_max": float(mjd.max())}
    if (exposure := values("exposure")) is not None:
        meta["exposure"] = float(exposure.sum())
    if (sky := values("sky")) is not None:
        meta["sky"] = float((sky * scales) @ share)
    if (correlation := values("noise_correlation")) is not None:
        meta["noise_correlation"] = float(np.sqrt(correlation**2 @ share))
    gain = values("gain")
    if gain is not None:
        # Poisson noise of a source of flux f in the mean: Σ share² scale f / gain, so that the mean's gain is:
        together = float(1 / np.sum(share**2 * scales / gain))
        meta["gain"] = together
        if (read := values("read_noise")) is not None:
            meta["read_noise"] = float(together * np.sqrt(np.sum((share * scales * read / gain) ** 2)))
    if (saturation := values("saturation")) is not None:
        # The level of the sky that was taken away counts: it is the detector that saturates.
        meta["saturation"] = float(np.min(saturation * scales))
    for name in ("dx_rms", "dy_rms"):
        found = [float(m[name]) for m in metas if np.isfinite(m.get(name, np.nan))]
        if found:
            meta[name] = max(found)
    return meta


def _psf(frame: Frame, layers: list[_Layer], share: npt.NDArray[np.floating]) -> tuple[PSF, str]:
    """Return the stack's PSF: from its own stars, or, where these do not suffice, from the inputs' PSFs."""
    from astrid_pipeline.imaging.psf import measure_psf

    try:
        return measure_psf(frame), "stars of the stack"
    except PSFError:
        pass
    # The mean of frames has the mean of their PSFs, as far as registration is exact.
    size = max(layer.frame.psf.size for layer in layers)  # type: ignore[union-attr]
    stamp = np.zeros((size, size))
    for layer, weight in zip(layers, share, strict=True):
        own = layer.frame.psf.stamp()  # type: ignore[union-attr]
        edge = (size - len(own)) // 2
        stamp[edge : size - edge, edge : size - edge] += weight * own
    return PSF.from_stamp(stamp, shape=frame.shape), "mean of the inputs' PSFs"
