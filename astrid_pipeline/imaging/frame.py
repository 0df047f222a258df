"""The two objects that the pipeline passes on: a `Frame`, and the `Difference` of two frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.mask import Mask, MaskArray, as_mask
from astrid_pipeline.imaging.psf_model import PSF

Image = npt.NDArray[np.float32]

#: What `Frame.meta` may say, in one normal form, whatever the header called it.
META_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "exposure_id": "name of the exposure, unique within its archive",
        "field": "name of the sky field",
        "night": "night it was taken, YYYY-MM-DD",
        "mjd": "middle of the exposure, MJD (UTC)",
        "exposure": "exposure time, s",
        "filter": "filter name",
        "instrument": "instrument name",
        "unit": "unit of the data: adu, electron, adu/s, electron/s, or nJy",
        "gain": "electrons per unit of the data",
        "read_noise": "electrons per pixel and read",
        "saturation": "level, in units of the data, above which pixels are not linear",
        "zero_point": "magnitude (AB) of a source of 1 unit of the data",
        "zero_point_err": "its error, mag",
        "zero_point_source": "how it was found: header, or the catalogue and number of stars",
        "pixel_scale": "arcsec per pixel",
        "seeing": "FWHM of the PSF, px",
        "seeing_arcsec": "FWHM of the PSF, arcsec",
        "sky": "median sky level before its removal, units of the data",
        "sky_sigma": "noise of the empty sky in one pixel, units of the data",
        "depth": "magnitude of a point source of S/N 5",
        "ellipticity": "1 - b/a of the PSF",
        "saturated_fraction": "share of pixels saturated or bled into",
        "masked_fraction": "share of pixels that are unusable",
        "n_stars": "stars the PSF was measured from",
        "noise_correlation": "how much wider the score gets because neighbouring pixels share noise; 1 if they do not",
        "gain_source": "header, or photon transfer of the image itself",
    }
)


def _plane(values: npt.ArrayLike) -> Image:
    return np.ascontiguousarray(values, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Frame:
    """One image with everything that is needed to use it. Immutable: `replace` makes another.

    Attributes
    ----------
    data:
        (height, width) float32 in `meta["unit"]`; the sky may be in it or not (`meta["sky_subtracted"]`).
    variance:
        (height, width) float32, unit², the detector's and the photons' noise; None if not known yet.
    mask:
        (height, width) int32 of `Mask` bits.
    psf:
        A `PSF`, or None if not measured yet. A 2-D stamp given here becomes a constant `PSF`.
    wcs:
        astropy WCS; None if not known.
    meta:
        What `META_KEYS` lists. Read-only.

    Pixels are zero-based, the centre of the first at (0, 0). Pixels that are not finite get `Mask.NO_DATA`
    and the value 0, so that no NaN travels further.

    Raises
    ------
    PixelError
        If the data are not 2-D, or nothing in them is finite.
    ValueError
        If shapes do not agree.
    """

    data: Image
    variance: Image | None = None
    mask: MaskArray = None  # type: ignore[assignment]  # None on the way in only
    psf: PSF | None = None
    wcs: WCS | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.meta.get("exposure_id")
        data = _plane(self.data)
        if data.ndim != 2:
            raise PixelError(
                f"the image has {data.ndim} axes, not 2", where=where, remedy="hand over one plane of it"
            )
        mask = as_mask(self.mask, data.shape)
        bad = ~np.isfinite(data)
        variance = None if self.variance is None else _plane(self.variance)
        if variance is not None:
            if variance.shape != data.shape:
                raise ValueError(f"variance has shape {variance.shape}, the data have {data.shape}")
            bad |= ~(np.isfinite(variance) & (variance > 0))
        if bad.all():
            raise PixelError(
                "no pixel has a finite value", where=where, remedy="check how the file was written"
            )
        if bad.any():
            data = np.where(bad, np.float32(0), data)
            mask = np.where(bad, mask | np.int32(Mask.NO_DATA), mask)
            if variance is not None:
                variance = np.where(bad, np.float32(np.median(variance[~bad])), variance)
        psf = self.psf
        if psf is not None and not isinstance(psf, PSF):
            psf = PSF.from_stamp(psf, shape=data.shape)
        for name, value in {"data": data, "variance": variance, "mask": mask, "psf": psf}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def name(self) -> str:
        """The exposure's name for messages."""
        return str(self.meta.get("exposure_id", "frame"))

    def replace(self, **changes: Any) -> Frame:
        """Return a copy with some attributes replaced; `meta` given here is merged into the present one."""
        if "meta" in changes:
            changes["meta"] = {**self.meta, **changes["meta"]}
        return dataclasses.replace(self, **changes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "meta": dict(self.meta)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, MappingProxyType(value) if name == "meta" else value)


@dataclass(frozen=True, eq=False)
class Difference:
    """What is left of a science frame when the reference has been taken away, and how significant it is.

    Attributes
    ----------
    data:
        The proper difference D, scaled so that a point source that brightened by f (units of the science frame)
        appears as f · P_D.
    variance, mask, psf:
        Of `data`. The mask holds the science bits, and the reference's shifted by `REFERENCE_SHIFT`.
    score:
        S_corr, the significance of a point source centred on each pixel; of unit variance where nothing changed.
    flux, flux_err:
        PSF flux of a point source centred on each pixel, units of the science frame, and its standard error.
    science, reference:
        The two images as they were subtracted: sky removed, the reference on the science grid, in its own shape,
        scaled to the science frame's flux.
    meta:
        The science frame's, and: `method`, `reference_id`, `flux_ratio`, `dx_rms`, `dy_rms` (px, registration
        left, per axis), `n_matched`, `score_sigma` (robust standard deviation of the score where nothing
        changed, as delivered), `score_sigma_raw` (before any rescaling), `science_sky_sigma` and
        `reference_sky_sigma` (noise of the empty sky in `science` and `reference`), `seconds`.
    """

    data: Image
    variance: Image
    mask: MaskArray
    psf: PSF
    score: Image
    flux: Image
    flux_err: Image
    science: Image
    reference: Image
    wcs: WCS | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("data", "variance", "score", "flux", "flux_err", "science", "reference"):
            object.__setattr__(self, name, _plane(getattr(self, name)))
        object.__setattr__(self, "mask", as_mask(self.mask, self.shape))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.data.shape[0], self.data.shape[1]

    def replace(self, **changes: Any) -> Difference:
        """Return a copy with some attributes replaced; `meta` given here is merged into the present one."""
        if "meta" in changes:
            changes["meta"] = {**self.meta, **changes["meta"]}
        return dataclasses.replace(self, **changes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "meta": dict(self.meta)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, MappingProxyType(value) if name == "meta" else value)
