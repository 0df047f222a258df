"""Artefacts of the science frame of a pair: planted, remembered, and masked or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from astrid_pipeline.imaging.mask import Mask, MaskArray
from astrid_pipeline.simulation import detector
from astrid_pipeline.simulation.psf import SkyPSF
from astrid_pipeline.simulation.sky import render

if TYPE_CHECKING:
    from astrid_pipeline.simulation.pair_options import PairOptions

Image = npt.NDArray[np.float32]
#: Artefacts so large that a point's S/N means nothing for them.
EXTENDED = ("bad_column", "bleed", "ghost", "satellite_trail", "bad_subtraction", "edge")


@dataclass(eq=False)
class Spoiled:
    """Artefacts on their way through the exposure.

    Attributes
    ----------
    mask:
        What calibration found of them.
    artefacts:
        Where they really are (mask bits).
    rows:
        Their truth rows.
    hits:
        Electrons that reach the detector without being light: cosmic rays and hot pixels.
    columns:
        Bad columns: (column, first row, end row, factor).
    """

    mask: MaskArray
    artefacts: MaskArray
    sky: float
    rows: list[dict[str, object]] = field(default_factory=list)
    hits: list[detector.Hit] = field(default_factory=list)
    columns: list[tuple[int, int, int, float]] = field(default_factory=list)

    def add_hits(self, data: Image, variance: Image) -> None:
        """Add what is no light to the counted electrons, and its shot noise to the variance."""
        for rows, columns, charge in self.hits:
            data[rows, columns] += charge.astype(np.float32)
            variance[rows, columns] += charge.astype(np.float32)
        for x, y0, y1, factor in self.columns:
            if factor < 1:
                data[y0:y1, x] *= factor
            else:
                data[y0:y1, x] += np.float32(self.sky * (factor - 1))

    def add_bleeding(
        self, saturated: npt.NDArray[np.bool_], bled: npt.NDArray[np.bool_], masked: bool
    ) -> None:
        """Record saturated stars and their bleeding."""
        bits = saturation_mask(saturated, bled)
        self.artefacts |= bits
        if masked:
            self.mask |= bits
        labels, n = ndimage.label(bits != 0, structure=np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(labels, n):
            # Cosmic rays that reach the full well have rows of their own.
            if rows.stop - rows.start >= 5:
                self.rows.append(
                    {
                        "x": (columns.start + columns.stop - 1) / 2,
                        "y": (rows.start + rows.stop - 1) / 2,
                        "kind": "artefact",
                        "class": "bleed",
                        "length": float(rows.stop - rows.start),
                        "angle": math.pi / 2,
                    }
                )

    def add(self, where: Any, bit: Mask, masked: bool, **row: object) -> None:
        """Record one artefact that covers `where` (an index into the frame)."""
        self.artefacts[where] |= np.int32(bit)
        if masked:
            self.mask[where] |= np.int32(bit)
        self.rows.append({"kind": "artefact", **row})


def saturation_mask(saturated: npt.NDArray[np.bool_], bled: npt.NDArray[np.bool_]) -> MaskArray:
    """Return SATURATED and BLEED bits; one pixel around is taken along, since charge spills sideways too."""
    near = ndimage.binary_dilation(saturated, np.ones((3, 3)))
    far = ndimage.binary_dilation(bled, np.ones((3, 3)))
    mask: MaskArray = near * np.int32(Mask.SATURATED) | far * np.int32(Mask.BLEED)
    return mask


def spoil(
    rng: np.random.Generator,
    science: Image,
    options: PairOptions,
    count: Callable[[float], int],
    stars_then: pd.DataFrame,
    stars: pd.DataFrame,
    psf: SkyPSF,
) -> Spoiled:
    """Plant the artefacts; what is light (ghosts, trails) is added to the expected electrons of `science` at once."""
    shape = (science.shape[0], science.shape[1])
    out = Spoiled(np.zeros(shape, np.int32), np.zeros(shape, np.int32), options.sky)

    def found() -> bool:
        return bool(rng.random() < options.masked)

    scale = options.flux_ratio * (1 - options.clouds)
    _dipoles(out, stars_then, stars, scale)
    # A star that has moved is a dipole already.
    still = stars[stars_then["moved"].to_numpy() == 0]
    _bad_subtractions(rng, science, out, still, psf, scale, count(options.bad_subtractions))
    for _ in range(count(options.ghosts)):
        _ghost(rng, science, out, options, found())
    for _ in range(options.trails):
        _trail(rng, science, out, options, found())
    for _ in range(options.edges):
        _edge(rng, science, out, found())
    for hit in detector.cosmic_rays(rng, shape, count(options.cosmic_rays)):
        rows, columns, charge = hit
        out.hits.append(hit)
        total = float(charge.sum())
        row = _row("cosmic_ray", float(columns @ charge) / total, float(rows @ charge) / total, total)
        out.add((rows, columns), Mask.COSMIC_RAY, found(), **row)
    for _ in range(count(options.hot_pixels)):
        y, x = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        dark = float(rng.lognormal(math.log(1000), 1.0))
        out.hits.append((np.array([y]), np.array([x]), np.array([dark])))
        out.add((y, x), Mask.BAD_PIXEL, found(), **_row("hot_pixel", x, y, dark))
    for column in detector.bad_columns(rng, shape, count(options.bad_columns)):
        x, y0, y1, factor = column
        out.columns.append(column)
        flux = (factor - 1) * options.sky * (y1 - y0)
        row = _row("bad_column", x, (y0 + y1 - 1) / 2, flux, length=float(y1 - y0), angle=math.pi / 2)
        out.add((slice(y0, y1), x), Mask.BAD_COLUMN, found(), **row)
    return out


def _row(name: str, x: float, y: float, flux: float, **more: object) -> dict[str, object]:
    return {"class": name, "x": float(x), "y": float(y), "flux": flux, **more}


def _dipoles(out: Spoiled, stars_then: pd.DataFrame, stars: pd.DataFrame, scale: float) -> None:
    for i in np.flatnonzero(stars_then["moved"].to_numpy()):
        star, then = stars.iloc[i], stars_then.iloc[i]
        x, y = (star["x"] + then["x"]) / 2, (star["y"] + then["y"]) / 2
        rows, columns = np.ogrid[: out.mask.shape[0], : out.mask.shape[1]]
        near = (columns - x) ** 2 + (rows - y) ** 2 < 5**2
        flux = float(star["flux"]) * scale
        # Nothing is wrong with the pixels, so that no mask can tell of it.
        row = _row("dipole", x, y, flux, star_flux=flux, length=then["moved"], angle=then["moved_angle"])
        out.add(near, Mask.SUSPECT, False, **row)


def _bad_subtractions(
    rng: np.random.Generator,
    science: Image,
    out: Spoiled,
    stars: pd.DataFrame,
    psf: SkyPSF,
    scale: float,
    n: int,
) -> None:
    """Give `n` of the brighter stars another width: what is left of them is a ring about a core of the other sign.

    Colour, brightness (the detector's charges repel one another) and focus do so, by some per cent of the FWHM.
    """
    if not n:
        return
    height, width = science.shape
    usable = (
        stars["mag"].between(13.0, 17.0)
        & stars["x"].between(8, width - 9)
        & stars["y"].between(8, height - 9)
    )
    for i in rng.permutation(np.flatnonzero(usable))[:n]:
        wider = 1 + float(rng.uniform(0.03, 0.2)) * float(rng.choice([-0.5, 1.0]))
        star = stars.iloc[[i]][["x", "y", "flux"]]
        flux = float(star["flux"].iloc[0]) * scale
        other = dataclasses.replace(psf, fwhm=tuple(wider * c for c in psf.fwhm), _spectra={})
        render(science, star.assign(flux=flux), other)
        render(science, star.assign(flux=-flux), psf)
        x, y = float(star["x"].iloc[0]), float(star["y"].iloc[0])
        rows, columns = np.ogrid[:height, :width]
        near = (columns - x) ** 2 + (rows - y) ** 2 < 5**2
        # Nothing is wrong with the pixels, so that no mask can tell of it; no light was added either.
        out.add(near, Mask.SUSPECT, False, **_row("bad_subtraction", x, y, 0.0, star_flux=flux))


def _ghost(
    rng: np.random.Generator, science: Image, out: Spoiled, options: PairOptions, masked: bool
) -> None:
    height, width = science.shape
    x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 25)
    disc = detector.ghost((height, width), x, y, radius)
    # Its surface brightness is 0.3 to 3 times the sky's noise in a pixel.
    noise = math.sqrt(options.sky + options.read_noise**2)
    flux = float(rng.uniform(0.3, 3) * noise * math.pi * radius**2)
    science += np.float32(flux) * disc
    out.add(disc > 0, Mask.CROSSTALK, masked, **_row("ghost", x, y, flux, length=2 * radius))


def _trail(
    rng: np.random.Generator, science: Image, out: Spoiled, options: PairOptions, masked: bool
) -> None:
    height, width = science.shape
    x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
    angle = float(rng.uniform(0, math.pi))
    # Satellites in low orbits are out of focus: a little wider than stars.
    light, where = detector.line_profile(
        (height, width), x, y, angle, options.science_fwhm * rng.uniform(1.0, 1.6)
    )
    ridge = rng.uniform(2, 40) * math.sqrt(options.sky + options.read_noise**2)
    science += np.float32(ridge) * light
    row = _row(
        "satellite_trail", x, y, float(ridge * light.sum()), length=math.hypot(height, width), angle=angle
    )
    out.add(where, Mask.TRAIL, masked, **row)


def _edge(rng: np.random.Generator, science: Image, out: Spoiled, masked: bool) -> None:
    """A border strip that got less light than the flat field said: 3 to 10 px wide, on one side."""
    side, width = int(rng.integers(4)), int(rng.integers(3, 11))
    loss = float(rng.uniform(0.1, 0.6))
    cut = slice(0, width) if side % 2 else slice(-width, None)
    where = (cut, slice(None)) if side < 2 else (slice(None), cut)
    light = float(science[where].sum())
    # The loss grows towards the border.
    ramp = np.linspace(loss, 0, width) if side % 2 else np.linspace(0, loss, width)
    science[where] *= (1 - (ramp[:, None] if side < 2 else ramp[None, :])).astype(np.float32)
    y = float(np.arange(science.shape[0])[cut].mean()) if side < 2 else (science.shape[0] - 1) / 2
    x = float(np.arange(science.shape[1])[cut].mean()) if side >= 2 else (science.shape[1] - 1) / 2
    row = _row(
        "edge",
        x,
        y,
        -light * loss / 2,
        length=float(max(science.shape)),
        angle=0.0 if side < 2 else math.pi / 2,
    )
    out.add(where, Mask.EDGE, masked, **row)
