"""Which sources two frames are matched on, and what each of them says: flux ratio, shift, PSF difference.

Stars and galaxies serve alike, since image is compared with image: P_r ∗ N and P_n ∗ R show every constant source with
one and the same profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.imaging.subtract.arrays import (
    fast_length,
    normalised_coefficients,
    spectra,
)
from astrid_pipeline.imaging.subtract.inputs import Pair, parts

if TYPE_CHECKING:
    import torch

#: Side of the cells of which each gives at most one source: the sources are spread over the frame.
CELL = 24
#: Peak of a pixel over its noise, in both frames: a star of FWHM 2.5 px has then S/N 35, and a position to 0.03 px.
MIN_PEAK = 10.0
#: The most sources that are used. 1500 fix 50 parameters of a smooth surface to 0.2 of a single source's error.
MAX_SOURCES = 1500


@dataclass(eq=False)
class Stamps:
    """Cut-outs around sources, (n, L, L) on the device, L a fast length with room for the PSFs around the middle.

    Attributes
    ----------
    x, y:
        Integer positions of the middle pixels `L // 2`.
    reach:
        Only pixels within `reach` of the middle are compared; beyond, convolutions lack pixels.
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    reach: int
    science: torch.Tensor
    reference: torch.Tensor
    science_variance: torch.Tensor
    reference_variance: torch.Tensor
    psf_science: torch.Tensor
    psf_reference: torch.Tensor

    @property
    def size(self) -> int:
        """L."""
        return int(self.science.shape[-1])

    def middle(self, image: torch.Tensor) -> torch.Tensor:
        """Return the compared part, (..., 2 reach + 1, 2 reach + 1)."""
        c = self.size // 2
        part = slice(c - self.reach, c + self.reach + 1)
        return image[..., part, part]

    def take(self, chosen: npt.NDArray[np.bool_]) -> Stamps:
        """Return some of the stamps."""
        import torch

        index = torch.as_tensor(np.flatnonzero(chosen), device=self.science.device)
        return Stamps(
            self.x[chosen],
            self.y[chosen],
            self.reach,
            *(
                getattr(self, name)[index]
                for name in (
                    "science",
                    "reference",
                    "science_variance",
                    "reference_variance",
                    "psf_science",
                    "psf_reference",
                )
            ),
        )


def reach_of(pair: Pair) -> tuple[int, int]:
    """Return (pixels around a source that are compared, pixels that the PSFs reach beyond)."""
    fwhm = max(parts(frame)[1].fwhm() for frame in (pair.science, pair.reference))
    size = max(parts(frame)[1].size for frame in (pair.science, pair.reference))
    # 2.5 FWHM hold 97 % of a star; four FWHM of a PSF's wings more add nothing to a source of S/N < 1000.
    return math.ceil(2.5 * fwhm), min(size // 2, math.ceil(4 * fwhm))


def find_sources(pair: Pair, border: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return x, y of the brightest clean pixel of each cell that holds a source of both frames, brightest first."""
    variance_n, variance_r = parts(pair.science)[0], parts(pair.reference)[0]
    height, width = pair.shape
    rows, columns = (height - 2 * border) // CELL, (width - 2 * border) // CELL
    if rows < 1 or columns < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    window = (slice(border, border + rows * CELL), slice(border, border + columns * CELL))

    def cells(image: npt.NDArray) -> npt.NDArray:
        return image[window].reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows, columns, -1)

    peak = cells(np.where(pair.bad, -np.inf, pair.reference.data))
    where = peak.argmax(2)
    y = border + np.arange(rows)[:, None] * CELL + where // CELL
    x = border + np.arange(columns)[None, :] * CELL + where % CELL
    x, y = x.ravel(), y.ravel()
    snr_r = pair.reference.data[y, x] / np.sqrt(variance_r[y, x])
    snr_n = pair.science.data[y, x] / np.sqrt(variance_n[y, x])
    snr = np.minimum(snr_r, snr_n)
    keep = (snr > MIN_PEAK) & ~pair.bad[y, x]
    x, y, snr = x[keep], y[keep], snr[keep]
    # A cell's maximum at its border can be the flank of a brighter source next door: it must be a peak of its own.
    data = pair.reference.data
    peak_around = np.max([data[y + j, x + i] for j in (-1, 0, 1) for i in (-1, 0, 1)], axis=0)
    keep = data[y, x] >= peak_around
    order = np.argsort(-snr[keep], kind="stable")
    return x[keep][order].astype(np.int64), y[keep][order].astype(np.int64)


def clean(pair: Pair, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], half: int) -> npt.NDArray[np.bool_]:
    """Return which positions have no unusable pixel within `half` of them."""
    offsets = np.arange(-half, half + 1)
    rows = np.clip(y[:, None, None] + offsets[:, None], 0, pair.shape[0] - 1)
    columns = np.clip(x[:, None, None] + offsets, 0, pair.shape[1] - 1)
    return np.asarray(~pair.bad[rows, columns].any((1, 2)))


def cut_stamps(pair: Pair, device: torch.device) -> Stamps:
    """Return the stamps that the two frames are matched on; there may be none."""
    import torch

    reach, margin = reach_of(pair)
    size = fast_length(2 * (reach + margin) + 1)
    # Near the border a stamp looks beyond the frame, where both images are 0: a surface needs sources there too.
    x, y = (v[: 3 * MAX_SOURCES] for v in find_sources(pair, reach + 3))
    keep = clean(pair, x, y, reach + margin // 2) if len(x) else np.zeros(0, bool)
    x, y = x[keep][:MAX_SOURCES], y[keep][:MAX_SOURCES]
    offsets = np.arange(size) - size // 2
    rows, columns = y[:, None, None] + offsets[:, None], x[:, None, None] + offsets
    height, width = pair.shape
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    index = (np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))

    def cut(image: npt.NDArray, beyond: float | None = None) -> torch.Tensor:
        stamps = image[index]
        if beyond is not None:
            stamps = np.where(outside, np.float32(beyond), stamps)
        return torch.as_tensor(stamps, device=device)

    def local(frame_psf: PSF) -> torch.Tensor:
        c = torch.as_tensor(normalised_coefficients(frame_psf, x, y), device=device).to(torch.complex64)
        basis = spectra(frame_psf.basis, size, device)
        return torch.einsum("nk,kij->nij", c, basis)

    variance_n, psf_n = parts(pair.science)
    variance_r, psf_r = parts(pair.reference)
    return Stamps(
        x,
        y,
        reach,
        cut(pair.science.data, 0.0),
        cut(pair.reference.data, 0.0),
        cut(variance_n),
        cut(variance_r),
        local(psf_n),
        local(psf_r),
    )
