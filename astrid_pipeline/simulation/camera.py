"""A made-up CCD camera: bias structure, dark current, flat fields, and the reading of an exposure into counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from astrid_pipeline.simulation import detector

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """One detector, always the same for the same seed.

    Attributes
    ----------
    shape:
        (height, width) of the imaging area; `overscan` columns follow at the right.
    gain, read_noise, full_well:
        Electrons per count, electrons, electrons.
    bias:
        Mean bias level, counts.
    dark_rate:
        Dark current, electrons per second and pixel; `hot_share` of the pixels have 10 to 1000 times that and more.
    """

    seed: int = 1
    shape: tuple[int, int] = (1024, 1024)
    name: str = "SIMCAM"
    overscan: int = 32
    gain: float = 1.5
    read_noise: float = 6.0
    full_well: float = 85_000.0
    bias: float = 1000.0
    dark_rate: float = 0.03
    hot_share: float = 3e-4
    n_bad_columns: int = 3
    temperature: float = -20.0

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 9000 + purpose])

    @property
    def saturation(self) -> float:
        """Counts, bias included, at which the well is full."""
        return self.full_well / self.gain + self.bias

    @cached_property
    def bias_structure(self) -> Image:
        """Counts by which each pixel's bias departs from the overscan: columns, and a glow in one corner."""
        rng = self._rng(1)
        height, width = self.shape
        columns = rng.normal(0, 1.2, width)
        y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
        return (columns + 6 * np.exp(-(x + y) / 0.08) + 1.5 * y).astype(np.float32)

    @cached_property
    def dark(self) -> Image:
        """Electrons per second."""
        rng = self._rng(2)
        rate = np.full(self.shape, self.dark_rate, np.float32) * rng.lognormal(0, 0.1, self.shape).astype(
            np.float32
        )
        hot = rng.random(self.shape) < self.hot_share
        rate[hot] += rng.lognormal(math.log(4.0), 1.3, int(hot.sum())).astype(np.float32)
        return rate

    @cached_property
    def bad_columns(self) -> list[tuple[int, int, int, float]]:
        """(column, first row, end row, factor): traps pass on a share of the light, leaks
        (factor over 1) add the same charge to every exposure."""
        return detector.bad_columns(self._rng(3), self.shape, self.n_bad_columns)

    def flat(self, band: str) -> Image:
        """Relative response with median 1: vignetting, pixel response of 1 %, dust rings that differ by filter."""
        return _flat(self, band)

    def read(
        self, rng: np.random.Generator, expected: Image, exposure: float, hits: list[detector.Hit]
    ) -> npt.NDArray[np.uint16]:
        """Expose and read out.

        Parameters
        ----------
        expected:
            Electrons that light is expected to leave in each pixel, the flat field applied.
        exposure:
            Seconds in which the dark current ran.
        hits:
            Cosmic rays.

        Returns
        -------
        (height, width + overscan) uint16 counts.
        """
        total = expected + self.dark * np.float32(exposure)
        for x, y0, y1, factor in self.bad_columns:
            if factor < 1:
                total[y0:y1, x] *= np.float32(factor)
            else:
                total[y0:y1, x] += np.float32(400 * factor)
        electrons = detector.photon_noise(rng, total)
        for rows, columns, charge in hits:
            electrons[rows, columns] += charge.astype(np.float32)
        detector.bleed(electrons, self.full_well)
        height, width = self.shape
        counts = np.zeros((height, width + self.overscan), np.float32)
        counts[:, :width] = electrons / np.float32(self.gain) + self.bias_structure
        # The level drifts from exposure to exposure and slowly along the rows; only the overscan knows.
        level = self.bias + rng.normal(0, 3.0)
        drift = np.cumsum(rng.normal(0, 0.02, height)) + rng.normal(0, 0.3) * np.sin(np.arange(height) / 90)
        counts += (level + drift).astype(np.float32)[:, None]
        counts += rng.standard_normal(counts.shape, np.float32) * np.float32(self.read_noise / self.gain)
        return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)


@lru_cache(maxsize=16)
def _flat(camera: Camera, band: str) -> Image:
    from scipy.special import expit

    height, width = camera.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = (2 * x - width) / width, (2 * y - height) / height
    r2 = (u - 0.05) ** 2 + (v + 0.03) ** 2
    # Pixel response belongs to the silicon; the filter brings its own dust and tilt.
    response = 1 + camera._rng(4).normal(0, 0.01, camera.shape)
    rng = np.random.default_rng([camera.seed, 9005, *band.encode()])
    flat = (1 - 0.10 * r2 - 0.02 * r2**2) * response * (1 + rng.normal(0, 0.01) * u + rng.normal(0, 0.01) * v)
    for _ in range(8):
        cx, cy, radius = (
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(10, 35) * max(width / 1024, 0.25),
        )
        distance = np.hypot(x - cx, y - cy)
        ring = expit((radius - distance) / 1.5) - 0.6 * expit((0.4 * radius - distance) / 1.5)
        flat *= 1 - rng.uniform(0.01, 0.05) * ring
    return (flat / np.median(flat)).astype(np.float32)
