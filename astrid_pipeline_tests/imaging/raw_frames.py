"""Raw exposures with known light, for the tests of calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.imaging.raw import Amplifier, Kind, RawExposure

#: Columns of overscan.
OVERSCAN = 24


class Camera:
    """A CCD of two amplifiers side by side, the right one read from the other side, with its faults."""

    def __init__(self, seed: int = 0, shape: tuple[int, int] = (200, 240)) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.half = shape[1] // 2
        self.gains = (1.6, 1.4)
        self.read_noise = 5.0
        self.levels = (1000.0, 1040.0)
        y, x = np.mgrid[: shape[0], : shape[1]]
        self.flat = 1 + 0.1 * np.cos(x / 60) * np.cos(y / 50) + rng.normal(0, 0.01, shape)
        self.flat /= np.median(self.flat)
        self.bias = 3 * np.sin(x / 7.0)
        self.dark = rng.gamma(2, 0.02, shape)  # electrons a second
        self.hot = rng.choice(shape[0] * shape[1], 40, replace=False)
        self.dark.ravel()[self.hot] += 20
        self.dead = np.setdiff1d(rng.choice(shape[0] * shape[1], 40, replace=False), self.hot)
        self.flat.ravel()[self.dead] = 0.1
        self.trap = 77
        self.bias[:, self.trap] += 60
        self.drift = 4 * np.linspace(-1, 1, shape[0])  # of the zero level along the rows

    def gain_map(self) -> npt.NDArray[np.float64]:
        """Electrons per count."""
        out = np.full(self.shape, self.gains[0])
        out[:, self.half :] = self.gains[1]
        return out

    def expose(
        self,
        rng: np.random.Generator,
        light: npt.NDArray[Any] | float,
        seconds: float,
        kind: Kind = Kind.LIGHT,
        *,
        extra: npt.NDArray[Any] | float = 0.0,
        gain_in_header: bool = True,
        saturation: float = 60_000.0,
        **meta: Any,
    ) -> RawExposure:
        """Return counts of `light` electrons a pixel (before the flat) and `extra` (that no flat changes)."""
        expected = np.broadcast_to(light, self.shape) * self.flat + self.dark * seconds + extra
        electrons = rng.poisson(expected) + rng.normal(0, self.read_noise, self.shape)
        amplifiers = []
        for i, part in enumerate((np.s_[:, : self.half], np.s_[:, self.half :])):
            zero = self.levels[i] + self.drift[:, None]
            counts = electrons[part] / self.gains[i] + self.bias[part] + zero
            noise = rng.normal(0, self.read_noise / self.gains[i], (self.shape[0], OVERSCAN))
            pixels = np.hstack([counts if i == 0 else counts[:, ::-1], noise + zero])
            pixels = np.clip(np.round(pixels), 0, 65535).astype(np.float32)
            amplifiers.append(
                Amplifier(
                    pixels,
                    (0, self.shape[0], 0, self.half),
                    (0, self.shape[0], i * self.half, (i + 1) * self.half),
                    (0, self.shape[0], self.half, self.half + OVERSCAN),
                    self.gains[i] if gain_in_header else None,
                    None,
                    flip_x=i == 1,
                )
            )
        said = {
            "exposure_id": f"{kind}-{rng.integers(10**9)}",
            "instrument": "twin",
            "binning": "1x1",
            "filter": "r",
            "exposure": seconds,
            "mjd": 60000.2,
            "temperature": -20.0,
            "saturation": saturation,
            "unit": "adu",
        }
        return RawExposure(tuple(amplifiers), kind, False, None, {**said, **meta})

    def calibrations(self, rng: np.random.Generator, **options: Any) -> list[RawExposure]:
        """Return five bias frames, five darks of 300 s and five flats in r."""
        frames = [self.expose(rng, 0, 0, Kind.BIAS, **options) for _ in range(5)]
        frames += [self.expose(rng, 0, 300, Kind.DARK, **options) for _ in range(5)]
        return frames + [self.expose(rng, 30_000, 5, Kind.FLAT, **options) for _ in range(5)]


def star_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    fwhm: float,
    n: int,
    *,
    faintest: float = 300.0,
    brightest: float = 3e5,
    beta: float = 3.0,
    ellipticity: float = 0.08,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return an image of Moffat stars whose FWHM grows by 20 % from left to right, and their x, y, flux."""
    image = np.zeros(shape)
    radius = 20
    yy, xx = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    table = []
    for _ in range(n):
        x = rng.uniform(radius + 1, shape[1] - radius - 2)
        y = rng.uniform(radius + 1, shape[0] - radius - 2)
        flux = float(np.exp(rng.uniform(np.log(faintest), np.log(brightest))))
        ix, iy = round(x), round(y)
        width = fwhm * (0.9 + 0.2 * x / shape[1]) / (2 * np.sqrt(2 ** (1 / beta) - 1))
        stamp = np.zeros(xx.shape)
        for oy in (-0.4, -0.2, 0.0, 0.2, 0.4):
            for ox in (-0.4, -0.2, 0.0, 0.2, 0.4):
                dx, dy = xx + ox - (x - ix), yy + oy - (y - iy)
                r2 = dx * dx * (1 + ellipticity) + dy * dy * (1 - ellipticity)
                stamp += (1 + r2 / width**2) ** -beta
        place = np.s_[iy - radius : iy + radius + 1, ix - radius : ix + radius + 1]
        image[place] += stamp / stamp.sum() * flux
        table.append((x, y, flux))
    return image, np.array(table)


def ray_field(rng: np.random.Generator, shape: tuple[int, int], n: int) -> npt.NDArray[np.float64]:
    """Return electrons of `n` cosmic rays: straight tracks, a little diffused."""
    from scipy import ndimage

    image = np.zeros(shape)
    for _ in range(n):
        x, y = rng.uniform(5, shape[1] - 6), rng.uniform(5, shape[0] - 6)
        length, angle = rng.exponential(6), rng.uniform(0, np.pi)
        charge = rng.uniform(80, 1500) * (0.5 + rng.exponential(0.5)) * max(length, 1)
        steps = max(1, int(length * 5))
        for t in np.linspace(0, length, steps):
            column, row = round(x + t * np.cos(angle)), round(y + t * np.sin(angle))
            if 0 <= column < shape[1] and 0 <= row < shape[0]:
                image[row, column] += charge / steps
    return ndimage.gaussian_filter(image, 0.3)
