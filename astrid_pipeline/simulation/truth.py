"""The truth table: what was put into a simulated frame, and how significant it is at best."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.tables import Column, TableSchema

#: Kinds of true change. `artefact` rows say where false ones come from.
KINDS = ("point", "variable", "moving", "artefact")

#: Classes of true change, by kind.
CLASSES = {
    "point": ("supernova", "hostless", "fading"),
    "variable": ("variable_star", "agn"),
    "moving": ("asteroid", "trail"),
}

#: Classes of artefacts.
ARTEFACTS = (
    "dipole",
    "cosmic_ray",
    "hot_pixel",
    "bad_column",
    "bleed",
    "ghost",
    "satellite_trail",
    "bad_subtraction",
    "edge",
)

TRUTH = TableSchema(
    "truth",
    "What changed between the science frame and the reference, and which artefacts there are",
    (
        Column("x", "float64", "column of the centre (middle of the exposure)", "px"),
        Column("y", "float64", "row of the centre", "px"),
        Column(
            "flux",
            "float64",
            "science minus reference; of an artefact, what it adds",
            "units of the science frame",
        ),
        Column(
            "snr",
            "float64",
            "|flux| over the error of the best matched flux that both frames allow; null if extended",
        ),
        Column("snr_science", "float64", "the same if the reference had no noise at all"),
        Column("kind", "string", "point, variable, moving or artefact"),
        Column(
            "class",
            "string",
            "what it is: supernova, hostless, fading, variable_star, agn, asteroid, trail, …",
        ),
        Column("on_galaxy", "bool", "whether it sits on a galaxy"),
        Column("host_flux", "float64", "flux of that galaxy", "units of the science frame"),
        Column("host_re", "float64", "effective radius of that galaxy", "px"),
        Column("host_distance", "float64", "distance from that galaxy's centre", "px"),
        Column(
            "star_flux", "float64", "mean flux of the variable star, or of the star an artefact comes from"
        ),
        Column("length", "float64", "length of the trail, column, or diameter of the ghost", "px"),
        Column("angle", "float64", "its direction, anticlockwise from the x axis", "rad"),
        Column("masked", "bool", "whether the mask of either frame covers its centre"),
    ),
)

#: Side of the patches in which the noise of a flux is worked out: the kernels are a few FWHM wide.
_PATCH = 48


def ideal_flux_error(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    psf: PSF,
    variance: npt.NDArray[np.floating],
    reference: tuple[PSF, npt.NDArray[np.floating], float] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the standard error of the best PSF-weighted flux of a point source at (x, y).

    Without `reference` it is that of optimal photometry on the frame alone, √(Σ P² V) / Σ P². With `reference` (its
    PSF, its variance and F_r/F_n, the reference's flux scale over the science frame's) it is σ_α of Zackay, Ofek &
    Gal-Yam 2016 (eqs 41-43): kernels from the mean noise around the source, noise from the variance of each pixel.

    Parameters
    ----------
    x, y:
        n positions, zero-based pixels; the noise is taken at the nearest pixel.
    psf, variance:
        Of the science frame; (height, width), its units squared, everything included that makes noise.

    Returns
    -------
    (n,) errors in units of the science frame.
    """
    xs, ys = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    out = np.empty(len(xs))
    for start in range(0, len(xs), 64):
        part = slice(start, start + 64)
        p_n = _patches_of(psf, xs[part], ys[part])
        v_n = _patches(variance, xs[part], ys[part])
        if reference is None:
            square = p_n**2
            out[part] = np.sqrt((square * v_n).sum((1, 2))) / square.sum((1, 2))
            continue
        psf_r, variance_r, ratio = reference
        out[part] = _alpha_error(
            p_n, _patches_of(psf_r, xs[part], ys[part]), v_n, _patches(variance_r, xs[part], ys[part]), ratio
        )
    return out


def _alpha_error(
    p_n: npt.NDArray[np.float64],
    p_r: npt.NDArray[np.float64],
    v_n: npt.NDArray[np.float64],
    v_r: npt.NDArray[np.float64],
    ratio: float,
) -> npt.NDArray[np.float64]:
    def mean_noise(p: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((p**2 * v).sum((1, 2)) / (p**2).sum((1, 2)))[:, None, None]

    hat_n, hat_r = np.fft.rfft2(p_n), np.fft.rfft2(p_r)
    den = mean_noise(p_n, v_n) * ratio**2 * np.abs(hat_r) ** 2 + mean_noise(p_r, v_r) * np.abs(hat_n) ** 2
    shape = (_PATCH, _PATCH)
    # How much each pixel weighs in S at the source: the kernels of eqs 28-29, turned round (no conjugate).
    k_n = np.fft.irfft2(ratio**2 * hat_n * np.abs(hat_r) ** 2 / den, s=shape)
    k_r = np.fft.irfft2(ratio * hat_r * np.abs(hat_n) ** 2 / den, s=shape)
    f_s = np.fft.irfft2(ratio**2 * np.abs(hat_n) ** 2 * np.abs(hat_r) ** 2 / den, s=shape)[:, 0, 0]
    return np.sqrt((k_n**2 * v_n).sum((1, 2)) + (k_r**2 * v_r).sum((1, 2))) / f_s


def _patches_of(psf: PSF, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    terms = psf.coefficients(x, y)
    stamps = np.tensordot(terms, psf.basis, axes=1)
    if psf.size > _PATCH - 1:
        cut = (psf.size - (_PATCH - 1)) // 2
        stamps = stamps[:, cut : psf.size - cut, cut : psf.size - cut]
    size = stamps.shape[1]
    out = np.zeros((len(x), _PATCH, _PATCH))
    low = _PATCH // 2 - size // 2
    out[:, low : low + size, low : low + size] = stamps / stamps.sum((1, 2), keepdims=True)
    return out


def _patches(
    image: npt.NDArray[np.floating], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return (n, _PATCH, _PATCH) cut-outs around the nearest pixels; beyond the border the edge is repeated."""
    offset = np.arange(_PATCH) - _PATCH // 2
    rows = np.clip(np.rint(y).astype(int)[:, None] + offset, 0, image.shape[0] - 1)
    columns = np.clip(np.rint(x).astype(int)[:, None] + offset, 0, image.shape[1] - 1)
    return image[rows[:, :, None], columns[:, None, :]].astype(np.float64)


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Return a truth table of these rows; what they do not say is False or NaN."""
    frame = pd.DataFrame(rows)
    for column in TRUTH.columns:
        if column.kind == "bool" and len(frame):
            values = frame[column.name] if column.name in frame else [False] * len(frame)
            frame[column.name] = [value is not None and value == value and bool(value) for value in values]
    return TRUTH.conform(frame, extra=True)
