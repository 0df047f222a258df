"""From a raw exposure to a frame in electrons with its noise and its mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import CalibrationError, PixelError
from astrid_pipeline.imaging.bayer import halved
from astrid_pipeline.imaging.calibrate import cosmic_rays, defects, saturation, trails
from astrid_pipeline.imaging.calibrate.amplifiers import Assembled, assemble
from astrid_pipeline.imaging.calibrate.masters import MasterCalibration
from astrid_pipeline.imaging.calibrate.reduction import DEAD, Reduction
from astrid_pipeline.imaging.frame import Frame, Image
from astrid_pipeline.imaging.io import sky_noise
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, MaskArray
from astrid_pipeline.imaging.raw import Kind, RawExposure

#: Pixels at the border that filters and Lanczos-3 resampling cannot serve in full.
EDGE = 4

#: Factor within which a frame's noise must agree with what its header predicts for the prediction to be believed.
NOISE_AGREEMENT = 1.3

#: Box of the sky that is taken away for finding masks (not from the frame), px: wider than any star.
_SKY_BOX = 48

#: What a raw exposure says of itself that a frame need not repeat.
_NOT_KEPT = ("saturation_source", "kind", "path")


def calibrate(
    raw: RawExposure,
    masters: MasterCalibration | None = None,
    *,
    find_trails: bool = True,
    find_cosmic_rays: bool = True,
) -> Frame:
    """Return the frame of a light exposure.

    A raw exposure is freed of overscan, bias, dark (scaled by exposure time) and flat, made linear, and multiplied
    by its amplifiers' gains, as far as `masters` and its header allow; `meta["calibration"]` lists what was done.
    The result is in electrons (gain 1) with the sky left in; where the gain is not known it stays in counts.
    The variance is the detector's, V = (R² + signal) / f² + that of the masters, in electrons². It is None where it
    cannot be known (no gain, no zero level, no read noise): `prepare` then measures it from the frame.

    An exposure that its archive has calibrated keeps its pixels, unit, variance and mask. Noise and masks are added
    only as far as the header allows: a sky that was taken away took its photon noise's measure with it, and pixels
    that were interpolated no longer show the sharp edges of cosmic rays.

    Exposures through a Bayer mosaic become the sum of each 2 × 2 cell, with the filter name of the mosaic: a pixel
    of its own colour differs from its neighbours in what it sees, and interpolation would share noise.

    Raises
    ------
    CalibrationError
        If the exposure is no light frame, or the masters do not match it.
    PixelError
        If nothing can be used.
    """
    name = raw.meta.get("exposure_id")
    if raw.kind is not Kind.LIGHT:
        raise CalibrationError(f"is a {raw.kind} frame", where=name, remedy="calibrate light frames only")
    if raw.calibrated:
        data, variance, mask, meta = _from_archive(raw)
        peak, level = data, meta.get("saturation")
    else:
        if masters is not None:
            masters.matches(raw)
        data, variance, mask, meta, peak, level = _from_detector(raw, masters)
    finite = np.isfinite(data)
    if not finite.any():
        raise PixelError("no pixel has a finite value", where=name, remedy="check how the file was written")
    if not finite.all():
        mask[~finite] |= np.int32(Mask.NO_DATA)
        data = np.where(finite, data, np.float32(np.median(data[finite])))
    wcs = raw.wcs
    if "bayer" in meta and not raw.calibrated:
        data, variance, mask, peak = _sum_cells(data, variance, mask, peak)
        # A slice of a WCS would leave SIP terms as they are, and be off by a hundred pixels.
        wcs = None if wcs is None else halved(wcs)
        # What comes out is no mosaic any more: it may be interpolated.
        meta["bayer_pattern"] = meta.pop("bayer")
        for key, factor in (("pixel_scale", 2.0), ("read_noise", 2.0)):
            if key in meta:
                meta[key] *= factor
    _add_masks(data, variance, mask, meta, peak, level, find_trails, find_cosmic_rays)
    meta["saturated_fraction"] = float(((mask & int(Mask.SATURATED | Mask.BLEED)) != 0).mean())
    meta["masked_fraction"] = float(((mask & int(UNUSABLE)) != 0).mean())
    return Frame(data, variance, mask, None, wcs, {k: v for k, v in meta.items() if k not in _NOT_KEPT})


def _from_archive(raw: RawExposure) -> tuple[Image, Image | None, MaskArray, dict[str, Any]]:
    """Return data, variance, mask and metadata of an exposure that was calibrated before."""
    assembled = assemble(raw)
    meta = dict(raw.meta)
    mask = np.zeros(assembled.data.shape, np.int32) if raw.mask is None else raw.mask.copy()
    variance = None
    if raw.variance is not None:
        variance = raw.variance.astype(np.float32)
        mask[~(np.isfinite(variance) & (variance > 0))] |= np.int32(Mask.NO_DATA)
    elif _noise_is_known(meta):
        gain, read_noise = meta["gain"], meta["read_noise"]
        predicted = np.maximum(assembled.data, 0) / np.float32(gain) + np.float32((read_noise / gain) ** 2)
        ratio = sky_noise(assembled.data) / float(np.sqrt(np.median(predicted)))
        # A header that says nothing of a sky that was removed, or of pixels that were interpolated or averaged, still
        # cannot hide it: the noise is another than predicted. `prepare` measures it then.
        if 1 / NOISE_AGREEMENT < ratio < NOISE_AGREEMENT:
            variance = predicted.astype(np.float32)
        meta["noise_ratio"] = ratio
    meta["calibration"] = "archive"
    return assembled.data, variance, mask, meta


def _noise_is_known(meta: dict[str, Any]) -> bool:
    """Return whether gain and read noise tell the noise: sky still in, one exposure, pixels not interpolated."""
    changed = any(meta.get(key) for key in ("sky_subtracted", "resampled")) or meta.get("n_combined", 1) > 1
    return not changed and "gain" in meta and "read_noise" in meta


def _from_detector(
    raw: RawExposure, masters: MasterCalibration | None
) -> tuple[Image, Image | None, MaskArray, dict[str, Any], Image, float | None]:
    """Return data, variance, mask, metadata, the counts as read and the level at which those saturate."""
    assembled = assemble(raw, nonlinearity=masters.nonlinearity if masters else None)
    meta = dict(raw.meta)
    done = ["overscan"] if assembled.has_zero_level else []
    exposure = float(meta.get("exposure") or 0.0)
    wanted = str(meta.get("filter", "none"))
    if masters is not None and masters.nonlinearity:
        done.append("linearity")
    pedestal = 0.0
    if masters is not None and masters.bias is not None:
        done.append("bias")
    elif not assembled.has_zero_level and meta.get("pedestal") is not None:
        # The camera's software says what to add for a true zero.
        pedestal = float(meta["pedestal"])
        done.append("pedestal")
    if masters is not None and masters.dark is not None:
        if not exposure:
            raise CalibrationError(
                "the exposure time is not known, and the dark has to be scaled by it",
                where=meta.get("exposure_id"),
                remedy="set EXPTIME",
            )
        done.append("dark")
    gains = (
        masters.gains if masters is not None and all(masters.gains) else tuple(a.gain for a in raw.amplifiers)
    )
    known_gain = bool(gains) and all(gains)
    read_noise = _read_noise(raw, assembled, masters, gains if known_gain else None)
    zeroed = bool({"overscan", "bias", "pedestal"} & set(done))
    flat = masters.flats.get(wanted) if masters is not None else None
    if flat is not None:
        done.append("flat")
    reduction = Reduction(
        sections=assembled.sections,
        gains=tuple(float(g) for g in gains if g) if known_gain else None,
        read_noise=tuple(read_noise) if known_gain and zeroed and read_noise is not None else None,
        pedestal=pedestal,
        exposure=exposure,
        bias=masters.bias if masters else None,
        bias_variance=masters.bias_variance if masters else None,
        dark=masters.dark if masters else None,
        dark_variance=masters.dark_variance if masters else None,
        flat=flat,
        flat_variance=masters.flat_variances[wanted] if masters is not None and flat is not None else None,
    )
    data, variance = reduction.apply(assembled.data)
    mask = np.zeros(data.shape, np.int32) if masters is None or masters.bad is None else masters.bad.copy()
    if flat is not None:
        mask[flat <= DEAD] |= np.int32(Mask.BAD_PIXEL)
    if known_gain:
        meta.update(unit="electron", gain=1.0)
        meta["gain_source"] = masters.gain_source if masters is not None and all(masters.gains) else "header"
        meta["detector_gain"] = float(np.mean([g for g in gains if g]))
    if read_noise is not None:
        # In counts where there is no gain; nobody can turn it into electrons then.
        meta["read_noise"] = float(np.mean(read_noise))
    level = meta.get("saturation")
    if level is not None:
        curves = masters.nonlinearity if masters is not None else ()
        meta["saturation"] = reduction.saturation(float(level), assembled.levels, curves)
    meta["calibration"] = ",".join(done) if done else "none"
    return data, variance, mask, meta, assembled.peak, level


def _read_noise(
    raw: RawExposure,
    assembled: Assembled,
    masters: MasterCalibration | None,
    gains: tuple[float | None, ...] | None,
) -> list[float] | None:
    """Return each amplifier's read noise in electrons (counts without gain): measured, else the header's."""
    if masters is not None and masters.read_noise and all(masters.read_noise):
        return [float(value) for value in masters.read_noise if value]
    header = [a.read_noise for a in raw.amplifiers]
    if all(header):
        return [float(value) for value in header if value]
    if gains and all(assembled.overscan_noise):
        return [float(n) * float(g) for n, g in zip(assembled.overscan_noise, gains, strict=True) if n and g]
    return None


def _sum_cells(
    data: Image, variance: Image | None, mask: MaskArray, peak: Image
) -> tuple[Image, Image | None, MaskArray, Image]:
    """Return images summed over cells of 2 × 2 pixels: flux and noise add up, masks unite, the peak is the highest."""
    height, width = (n // 2 * 2 for n in data.shape)

    def cells(image: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        part = image[:height, :width]
        return [part[::2, ::2], part[::2, 1::2], part[1::2, ::2], part[1::2, 1::2]]

    total = sum(cells(data))
    noise = None if variance is None else sum(cells(variance))
    bits = np.bitwise_or.reduce(cells(mask))
    return (
        np.asarray(total),
        None if noise is None else np.asarray(noise),
        bits,
        np.maximum.reduce(cells(peak)),
    )


def _add_masks(
    data: Image,
    variance: Image | None,
    mask: MaskArray,
    meta: dict[str, Any],
    peak: Image,
    level: float | None,
    with_trails: bool,
    with_cosmic_rays: bool,
) -> None:
    """Set the bits of saturation, bleeding, cosmic rays, trails and edges in `mask`; note in `meta` what was found."""
    # Every second pixel of a box tells its median to 0.05 of a pixel's noise.
    residual = defects.local_median(data, _SKY_BOX, step=2)
    np.subtract(data, residual, out=residual)
    if variance is not None:
        noise: Image | float = np.sqrt(variance)
        square: Image | float = variance
    else:
        noise = _empirical_noise(residual, data, meta)
        square = np.square(noise)
    mask |= saturation.saturation_mask(residual, noise, peak, level)
    unusable = (mask & int(UNUSABLE)) != 0
    if meta.get("resampled"):
        # Interpolation has smeared cosmic rays into something as wide as stars, and made stars' cores uneven.
        with_cosmic_rays = False
    fwhm = cosmic_rays.typical_fwhm(residual, square, unusable)
    if with_cosmic_rays:
        hits = cosmic_rays.find_cosmic_rays(residual, square, unusable, fwhm)
        mask[hits] |= np.int32(Mask.COSMIC_RAY)
        meta["cosmic_ray_fraction"] = float(hits.mean())
        unusable |= hits
    columns = defects.light_columns(residual, noise, unusable)
    mask[columns] |= np.int32(Mask.BAD_COLUMN)
    unusable |= columns
    if with_trails:
        found = trails.find_trails(residual, noise, unusable, fwhm=fwhm)
        mask[trails.trail_mask(data.shape, found)] |= np.int32(Mask.TRAIL)
        meta["n_trails"] = len(found)
    for edge in (np.s_[:EDGE], np.s_[-EDGE:]):
        mask[edge] |= np.int32(Mask.EDGE)
        mask[:, edge] |= np.int32(Mask.EDGE)


def _empirical_noise(residual: Image, data: Image, meta: dict[str, Any]) -> Image | float:
    """Return a pixel's σ from the frame itself: the sky's scatter, and photons where the gain tells them."""
    sigma = sky_noise(residual)
    if sigma <= 0:
        sigma = float(np.std(residual)) or 1.0
    gain = meta.get("gain")
    if not gain:
        # Photon noise that nobody can tell is taken for a tenth of the light: no star is sharper by that.
        return np.hypot(np.float32(sigma), np.float32(0.1) * np.maximum(residual, 0))
    return np.sqrt(np.float32(sigma**2) + np.maximum(residual, 0) / np.float32(gain))
