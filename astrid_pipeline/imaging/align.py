"""Bringing a reference onto a science frame's grid, with its variance, mask and PSF."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS

from astrid_pipeline.errors import InputError, RegistrationError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.interpolation import kernel, noise_widening
from astrid_pipeline.imaging.mask import Mask, MaskArray, is_set
from astrid_pipeline.imaging.pixel_map import Floats, PixelMap, monomials
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.registration import Registration, register
from astrid_pipeline.imaging.resample import resample

#: Widths taken for a frame in which nothing told the seeing: only the noise correlation hangs on it, by a percent.
USUAL_FWHM = 3.0


def align(reference: Frame, to: Frame, *, refine: bool = True, method: str = "quintic") -> Frame:
    """Return `reference` on the pixel grid of `to`: flux kept, with variance, mask and PSF carried along.

    Parameters
    ----------
    reference:
        The frame to move. It is prepared first (`quality.prepare`: sky removed; variance and PSF measured if it has
        none), since noise cannot be measured from single pixels once they share it.
    to:
        The frame whose grid is wanted.
    refine:
        Whether stars correct the WCS; without it the WCS of both is believed.
    method:
        Interpolation kernel: "quintic", "lanczos3" or "lanczos4".

    Returns
    -------
    Frame
        With the WCS of `to` (or, where that has none, one fitted to the reference's), and in its meta:
        dx_rms, dy_rms (px per axis, of stars left out of the fit in turn), n_matched, n_stars_science,
        n_stars_reference, coverage (share of the grid that the reference covers), registration (where the map came
        from), registration_degree, flux_scale (area of a target pixel in source pixels at the middle),
        noise_correlation (see `interpolation.noise_widening`; what the reference had before is in it).

    Raises
    ------
    RegistrationError
        If the frames do not overlap or have too few common stars, with the counts.
    InputError
        If a frame is a Bayer mosaic, whose neighbouring pixels are of different colours.
    """
    for frame in (reference, to):
        if frame.meta.get("bayer"):
            raise InputError(
                f"the frame is a Bayer mosaic ({frame.meta['bayer']}): its pixels cannot be interpolated",
                where=frame.name,
                remedy="make superpixels of both frames first (astrid_pipeline.imaging.bayer.superpixels)",
            )
    from astrid_pipeline.imaging.quality import prepare

    reference = prepare(reference)
    registration = register(reference, to, refine=refine)
    return apply(reference, to, registration, method=method)


def apply(reference: Frame, to: Frame, registration: Registration, *, method: str = "quintic") -> Frame:
    """Resample `reference` onto the grid of `to` along a registration found before; see `align`."""
    meta = {
        "dx_rms": registration.dx_rms,
        "dy_rms": registration.dy_rms,
        "n_matched": registration.n_matched,
        "n_stars_science": registration.n_science,
        "n_stars_reference": registration.n_reference,
        "registration": registration.source,
        "registration_degree": registration.degree,
    }
    if registration.is_identity:
        wcs = to.wcs if to.wcs is not None else reference.wcs
        coverage = _coverage(reference.mask)
        return reference.replace(wcs=wcs, meta={**meta, "coverage": coverage, "flux_scale": 1.0})
    pixel_map = PixelMap.tabulate(registration.function, to.shape)
    moved = resample(reference.data, reference.variance, reference.mask, pixel_map, method=method)
    if moved.coverage == 0:
        raise RegistrationError(
            "the two frames do not overlap",
            where=f"{reference.name} onto {to.name}",
            remedy="check the pointing in both headers",
        )
    middle = ((to.shape[1] - 1) / 2, (to.shape[0] - 1) / 2)
    area = float(abs(np.linalg.det(pixel_map.jacobian(*middle))))
    fwhm = next(
        (
            float(value)
            for value in (reference.meta.get("seeing"), registration.fwhm)
            if value is not None and np.isfinite(value) and value > 0
        ),
        USUAL_FWHM,
    )
    widening = noise_widening(kernel(method), fwhm / np.sqrt(area))
    meta |= {
        "coverage": _coverage(moved.mask),
        "flux_scale": area,
        "noise_correlation": float(reference.meta.get("noise_correlation") or 1.0) * widening,
    }
    meta |= _levels(reference, area)
    return Frame(
        data=moved.data,
        variance=moved.variance,
        mask=moved.mask,
        psf=None if reference.psf is None else move_psf(reference.psf, pixel_map, reference.shape),
        wcs=to.wcs if to.wcs is not None else _carried_wcs(reference, pixel_map),
        meta={**reference.meta, **meta},
    )


def _coverage(mask: MaskArray) -> float:
    """Return the share of pixels that have data: holes in the reference itself do not cover the grid."""
    return 1 - float(is_set(mask, Mask.NO_DATA).mean())


def _levels(reference: Frame, area: float) -> dict[str, float]:
    """Return the meta that change with the size of a pixel: levels per pixel and lengths in pixels."""
    levels = {}
    for name, power in {
        "saturation": 1.0,
        "sky": 1.0,
        "sky_sigma": 0.5,
        "seeing": -0.5,
        "pixel_scale": 0.5,
    }.items():
        value = reference.meta.get(name)
        if value is not None:
            levels[name] = float(value) * area**power
    return levels


def move_psf(psf: PSF, pixel_map: PixelMap, source_shape: tuple[int, int]) -> PSF:
    """Return a frame's PSF as it is after resampling along `pixel_map`.

    At points of the target frame the source's stamp is read along the local linear map, P_t(u) = |J| P_s(J u), and
    polynomials of the PSF's own degree are fitted through them.
    """
    height, width = pixel_map.shape
    degree = max(i + j for i, j in psf.exponents)
    number = 1 if degree == 0 else 2 * degree + 3
    columns = [(width - 1) / 2] if number == 1 else np.linspace(0, width - 1, number)
    rows = [(height - 1) / 2] if number == 1 else np.linspace(0, height - 1, number)
    x, y = (grid.ravel() for grid in np.meshgrid(columns, rows))
    u, v = pixel_map.function(x, y)
    jacobian = pixel_map.jacobian(x, y)
    # A polynomial must not be asked beyond the frame it was fitted on.
    u, v = np.clip(u, 0, source_shape[1] - 1), np.clip(v, 0, source_shape[0] - 1)
    # One size for all nodes: they become one basis. Less than half a pixel at the edge is not worth another ring.
    half = psf.size // 2
    scale = float(np.sqrt(np.abs(np.linalg.det(jacobian)).min()))
    half_out = half if abs(half / scale - half) < 0.5 else max(2, int(np.ceil(half / scale)))
    stamps = np.array(
        [_move_stamp(psf.stamp(a, b), j, half_out) for a, b, j in zip(u, v, jacobian, strict=True)]
    )
    if number == 1:
        return PSF(stamps, shape=pixel_map.shape, quality=dict(psf.quality))
    exponents = tuple((i, total - i) for total in range(degree + 1) for i in range(total, -1, -1))
    scaled = monomials(degree, 2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1, (0.0, 0.0), 1.0)
    basis = np.linalg.lstsq(scaled, stamps.reshape(len(stamps), -1), rcond=None)[0]
    size = stamps.shape[1]
    return PSF(basis.reshape(-1, size, size), exponents, pixel_map.shape, dict(psf.quality))


def _move_stamp(stamp: Floats, jacobian: Floats, half_out: int) -> Floats:
    """Return the stamp read along a linear map about its centre, (2 half_out + 1)² px, scaled to sum 1."""
    from scipy.ndimage import map_coordinates

    half = stamp.shape[0] // 2
    # Under a fiftieth of a pixel at the stamp's edge nothing changes that its noise would let one see.
    if half_out == half and np.abs(jacobian - np.eye(2)).max() * half < 0.02:
        return stamp
    v, u = np.mgrid[-half_out : half_out + 1, -half_out : half_out + 1]
    at_x = jacobian[0, 0] * u + jacobian[0, 1] * v + half
    at_y = jacobian[1, 0] * u + jacobian[1, 1] * v + half
    moved = map_coordinates(stamp, [at_y, at_x], order=5, mode="constant")
    return moved / moved.sum()


def _carried_wcs(reference: Frame, pixel_map: PixelMap) -> WCS | None:
    """Return a WCS for a grid that has none, fitted to the reference's sky positions there."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import fit_wcs_from_points

    if reference.wcs is None:
        return None
    height, width = pixel_map.shape
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, width - 1, 12), np.linspace(0, height - 1, 12)))
    lon, lat = reference.wcs.celestial.all_pix2world(*pixel_map.function(x, y), 0)
    if not np.isfinite(lon).all():
        return None
    sky = SkyCoord(lon, lat, unit="deg")
    # Three orders of SIP take up the distortion of the reference and of the map.
    return fit_wcs_from_points((x, y), sky, proj_point="center", projection="TAN", sip_degree=3)
