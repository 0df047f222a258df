"""Centroids, widths and shapes of many sources at once, in a Gaussian window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Float = npt.NDArray[np.float64]

#: FWHM of a Gaussian of standard deviation 1.
GAUSS = 2.354820


@dataclass(frozen=True, eq=False)
class Moments:
    """Windowed moments of N stamps: centroid offsets (px from the middle pixel), width, shape, flux.

    `sigma` is the standard deviation (geometric mean of the axes) of the Gaussian that would give these moments,
    the window's width taken out; `elongation` is major over minor axis, `angle` of the major axis in degrees from
    +x towards +y. `flux` is that of the Gaussian.
    """

    dx: _Float
    dy: _Float
    sigma: _Float
    elongation: _Float
    angle: _Float
    flux: _Float


def window_moments(
    stamps: npt.NDArray[np.floating], weight: npt.NDArray[np.floating], sigma: float
) -> Moments:
    """Measure centroid and second moments of many stamps in a circular Gaussian window.

    Parameters
    ----------
    stamps:
        (N, S, S), S odd, sky removed; the sources within about 2 px of the middle.
    weight:
        (N, S, S) or (S, S): 1 for usable pixels, 0 for others.
    sigma:
        Standard deviation of the window, px, about the sources' own: there the S/N of the moments is best.

    Notes
    -----
    For a Gaussian of variance s² in a window of variance w² the windowed moments have variance
    s² w² / (s² + w²), and the windowed centroid moves by s² / (s² + w²) … of the offset, which the iteration
    doubles back, as Source Extractor's WIN positions do (Bertin & Arnouts 1996; SExtractor manual, XWIN_IMAGE).
    """
    number, size, _ = stamps.shape
    axis = np.arange(size, dtype=np.float32) - size // 2
    dx, dy = np.zeros(number, np.float32), np.zeros(number, np.float32)
    values = stamps * weight
    flux = m_xx = m_yy = m_xy = np.zeros(number, np.float32)
    for step in range(5):
        x, y = axis[None, :] - dx[:, None], axis[None, :] - dy[:, None]
        window_x, window_y = np.exp(-0.5 * np.square(x / sigma)), np.exp(-0.5 * np.square(y / sigma))
        # The window is separable, so every moment is two small products.
        columns = np.einsum("nij,nj->ni", values, window_x)
        first = np.einsum("nij,nj->ni", values, window_x * x)
        total = np.einsum("ni,ni->n", columns, window_y)
        total = np.where(total > 0, total, np.float32(np.nan))
        mean_x = np.einsum("ni,ni->n", first, window_y) / total
        mean_y = np.einsum("ni,ni->n", columns, window_y * y) / total
        if step < 4:
            dx = np.clip(np.nan_to_num(dx + 2 * mean_x), -2.5, 2.5)
            dy = np.clip(np.nan_to_num(dy + 2 * mean_y), -2.5, 2.5)
            continue
        second = np.einsum("nij,nj->ni", values, window_x * x * x)
        m_xx = np.einsum("ni,ni->n", second, window_y) / total - mean_x**2
        m_yy = np.einsum("ni,ni->n", columns, window_y * y * y) / total - mean_y**2
        m_xy = np.einsum("ni,ni->n", first, window_y * y) / total - mean_x * mean_y
        flux = total
    # Take the window out: M_source^-1 = M^-1 - 1 / w².
    inverse = _inverse(m_xx.astype(float), m_xy.astype(float), m_yy.astype(float))
    c_xx, c_xy, c_yy = _inverse(inverse[0] - sigma**-2, inverse[1], inverse[2] - sigma**-2)
    mean, half = (c_xx + c_yy) / 2, np.hypot((c_xx - c_yy) / 2, c_xy)
    with np.errstate(invalid="ignore"):
        major, minor = mean + half, mean - half
        real = (minor > 0) & (inverse[0] > sigma**-2) & (inverse[2] > sigma**-2)
        major, minor = np.where(real, major, np.nan), np.where(real, minor, np.nan)
        share = sigma**2 / np.sqrt((sigma**2 + major) * (sigma**2 + minor))
    return Moments(
        dx=dx.astype(float),
        dy=dy.astype(float),
        sigma=(major * minor) ** 0.25,
        elongation=np.sqrt(major / minor),
        angle=np.degrees(0.5 * np.arctan2(2 * c_xy, c_xx - c_yy)),
        flux=flux / share,
    )


def _inverse(a: _Float, b: _Float, c: _Float) -> tuple[_Float, _Float, _Float]:
    """Invert the symmetric matrices [[a, b], [b, c]]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = a * c - b * b
        return c / determinant, -b / determinant, a / determinant


def cut_stamps(
    image: npt.NDArray, x: npt.ArrayLike, y: npt.ArrayLike, size: int, fill: float = 0.0
) -> npt.NDArray:
    """Return (N, size, size) cut-outs centred on whole pixels; what lies outside the image is `fill`."""
    half = size // 2
    x, y = np.asarray(x, int), np.asarray(y, int)
    rows = y[:, None] + np.arange(-half, half + 1)
    columns = x[:, None] + np.arange(-half, half + 1)
    height, width = image.shape
    stamps = image[np.clip(rows, 0, height - 1)[:, :, None], np.clip(columns, 0, width - 1)[:, None, :]]
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]
    if outside.any():
        stamps[outside] = fill
    return stamps
