"""Pairs of calibrated frames of one field at two epochs, on one grid, with the truth of what changed between them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import MaskArray
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.simulation import changes, detector, spoil
from astrid_pipeline.simulation.pair_options import (
    CASE_SHAPE,
    CASES,
    PairOptions,
    random_options,
    spoiled_options,
)
from astrid_pipeline.simulation.psf import SkyPSF, constant_psf, varying_psf
from astrid_pipeline.simulation.sky import draw_galaxies, draw_magnitudes, render
from astrid_pipeline.simulation.truth import ideal_flux_error, table

__all__ = [
    "CASES",
    "CASE_SHAPE",
    "PairOptions",
    "SimulatedPair",
    "random_options",
    "simulate_pair",
    "spoiled_options",
]

#: Magnitude of a source of one electron in the reference.
ZERO_POINT = 25.0

#: Sources are drawn this far outside the frame too, px: their light reaches in, and shifts bring them in.
MARGIN = 48


@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """Two calibrated frames on one grid, and the truth.

    Attributes
    ----------
    science, reference:
        Electrons (the reference's: per exposure of its mean), sky left in.
    truth:
        A table of `truth.TRUTH`, true changes first, then artefacts.
    science_psf, reference_psf:
        The true PSFs, whatever the frames carry.
    artefacts:
        (height, width) int32: mask bits where artefacts really are, masked or not.
    options:
        How it was made.
    """

    science: Frame
    reference: Frame
    truth: pd.DataFrame
    science_psf: PSF
    reference_psf: PSF
    artefacts: MaskArray
    options: PairOptions

    @property
    def changes(self) -> pd.DataFrame:
        """The truth without the artefacts."""
        return self.truth[self.truth["kind"] != "artefact"].reset_index(drop=True)


def simulate_pair(
    rng: np.random.Generator, shape: tuple[int, int] = (512, 512), **options: Any
) -> SimulatedPair:
    """Make up a pair of calibrated frames; see `PairOptions` for what can be chosen, `CASES` for known choices.

    Raises
    ------
    ConfigError
        If an option is not known.
    """
    unknown = set(options) - {f.name for f in dataclasses.fields(PairOptions)}
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(sorted(unknown))}",
            where="simulate_pair",
            remedy="see the fields of simulation.pairs.PairOptions",
        )
    return Builder(rng, (int(shape[0]), int(shape[1])), PairOptions(**options)).build()


class Builder:
    """The steps of one pair, in the order in which light meets them."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], options: PairOptions) -> None:
        self.rng, self.shape, self.o = rng, shape, options
        self.area = shape[0] * shape[1] / 2**20
        self.scale = options.flux_ratio * (1 - options.clouds)  # science electrons per reference electron
        self.science_psf = self._psf(options.science_fwhm)
        self.reference_psf = self._psf(options.reference_fwhm)
        self.warp = Warp(rng, shape, options.shift, options.distortion)

    def build(self) -> SimulatedPair:
        o = self.o
        stars, galaxies = self._catalogue()
        stars_then = self.warp.table(
            changes.displace_some(self.rng, stars, self._count(o.dipoles), self.shape)
        )
        science = self._draw(self.science_psf, [stars, galaxies], self.scale)
        reference = self._draw(self.reference_psf, [stars_then, self.warp.table(galaxies)], 1.0)
        science += self._sky(o.gradient)
        reference += np.float32(o.sky)

        planted = changes.plant(self._scene(science, reference), stars, galaxies, o, self._count)
        render(
            science,
            planted[planted["flux_science"] != 0].assign(flux=lambda t: t["flux_science"]),
            self.science_psf,
        )
        then = self.warp.table(planted[planted["flux_reference"] != 0])
        render(reference, then.assign(flux=then["flux_reference"]), self.reference_psf)

        spoiled = spoil.spoil(self.rng, science, o, self._count, stars_then, stars, self.science_psf)
        science_frame = self._expose(science, spoiled, 1)
        reference_frame = self._expose(reference, None, o.reference_depth)
        science_psf, reference_psf = self.science_psf.model(), self.reference_psf.model()
        rows = changes.rows(planted) + spoiled.rows
        truth = self._measure(table(rows), science_frame, reference_frame, science_psf, reference_psf)
        keep = {"true": "variance", "data": "variance", "none": ""}[o.variance]
        frames = []
        for frame, psf in ((science_frame, science_psf), (reference_frame, reference_psf)):
            variance = frame.variance if keep else None
            if o.variance == "data":
                gain, read = frame.meta["gain"], frame.meta["read_noise"]
                variance = np.maximum(frame.data, 0) / gain + np.float32((read / gain) ** 2)
            frames.append(frame.replace(variance=variance, psf=psf if o.psf == "true" else None))
        return SimulatedPair(frames[0], frames[1], truth, science_psf, reference_psf, spoiled.artefacts, o)

    def _psf(self, fwhm: float) -> SkyPSF:
        o = self.o
        if o.psf_variation or o.psf_ellipticity:
            return varying_psf(
                self.rng,
                self.shape,
                fwhm,
                variation=o.psf_variation,
                ellipticity=o.psf_ellipticity,
                beta=o.beta,
            )
        return constant_psf(self.shape, fwhm, beta=o.beta)

    def _count(self, per_megapixel: float) -> int:
        """Return how many of something there are: the expected number, its fraction decided by chance."""
        return int(per_megapixel * self.area + self.rng.random())

    def _catalogue(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        height, width = self.shape
        grown = (height + 2 * MARGIN) * (width + 2 * MARGIN) / 2**20

        def place(table: pd.DataFrame) -> pd.DataFrame:
            table["x"] = self.rng.uniform(-MARGIN, width + MARGIN, len(table))
            table["y"] = self.rng.uniform(-MARGIN, height + MARGIN, len(table))
            table["flux"] = 10 ** (0.4 * (ZERO_POINT - table["mag"]))
            return table

        n_stars, n_galaxies = (int(self.rng.poisson(n * grown)) for n in (self.o.stars, self.o.galaxies))
        stars = pd.DataFrame({"mag": draw_magnitudes(self.rng, n_stars, self.o.bright_star, 22.0, 0.2)})
        galaxies = draw_galaxies(self.rng, n_galaxies, 15.0, 21.5, pixel_scale=self.o.pixel_scale)
        return place(stars), place(galaxies)

    def _draw(self, psf: SkyPSF, tables: list[pd.DataFrame], scale: float) -> npt.NDArray[np.float32]:
        image = np.zeros(self.shape, np.float32)
        for sources in tables:
            render(image, sources.assign(flux=sources["flux"] * scale), psf)
        return image

    def _sky(self, gradient: float) -> npt.NDArray[np.float32]:
        v, u = np.meshgrid(*(np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in self.shape), indexing="ij")
        angle = self.rng.uniform(0, 2 * math.pi)
        slope = gradient / (abs(math.cos(angle)) + abs(math.sin(angle)))
        # Clouds scatter light as well as take it.
        level = self.o.sky * (1 + 0.5 * self.o.clouds)
        return (level * (1 + slope * (u * math.cos(angle) + v * math.sin(angle)))).astype(np.float32)

    def _scene(self, science: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> changes.Scene:
        o = self.o
        return changes.Scene(
            self.rng,
            science + np.float32(o.read_noise**2),
            (reference + np.float32(o.read_noise**2)) / np.float32(o.reference_depth),
            self.science_psf.model(),
            self.reference_psf.model(),
            self.scale,
            o.reference_depth,
            self.science_psf,
            o.full_well,
        )

    def _expose(
        self, expected: npt.NDArray[np.float32], spoiled: spoil.Spoiled | None, exposures: int
    ) -> Frame:
        o = self.o
        science = spoiled is not None
        data = detector.photon_noise(self.rng, expected, exposures)
        variance = (expected + np.float32(o.read_noise**2)) / np.float32(exposures)
        if spoiled is not None:
            spoiled.add_hits(data, variance)
        saturated, bled = detector.bleed(data, o.full_well)
        data += self.rng.standard_normal(self.shape, np.float32) * np.float32(
            o.read_noise / math.sqrt(exposures)
        )
        if spoiled is None:
            mask = spoil.saturation_mask(saturated, bled)
        else:
            spoiled.add_bleeding(saturated, bled, o.saturation_masked)
            mask = spoiled.mask
        scale = self.scale if science else 1.0
        meta = {
            "exposure_id": "science" if science else "reference",
            "mjd": 61000.0 if science else 60940.0,
            "exposure": 60.0,
            "filter": "r",
            "instrument": "simulated",
            "unit": "electron",
            # One unit of a mean of n exposures stands for n electrons that were counted.
            "gain": float(exposures),
            "read_noise": o.read_noise * math.sqrt(exposures),
            "saturation": o.full_well,
            "zero_point": ZERO_POINT + 2.5 * math.log10(scale),
            "zero_point_source": "simulation",
            "pixel_scale": o.pixel_scale,
        }
        return Frame(data, variance, mask, wcs=_wcs(self.shape, o.pixel_scale), meta=meta)

    def _measure(
        self, truth: pd.DataFrame, science: Frame, reference: Frame, psf: PSF, psf_reference: PSF
    ) -> pd.DataFrame:
        """Fill in S/N from the true noise, and what the mask covers."""
        if not len(truth):
            return truth
        assert science.variance is not None
        assert reference.variance is not None
        x, y = truth["x"].to_numpy(), truth["y"].to_numpy()
        alone = ideal_flux_error(x, y, psf, science.variance)
        both = ideal_flux_error(
            x, y, psf, science.variance, (psf_reference, reference.variance, 1 / self.scale)
        )
        # A trail is matched with a trail; what is larger than that has no one S/N.
        flux = truth["flux"].abs()
        moving = truth["kind"] == "moving"
        length, angle = truth.loc[moving, "length"], truth.loc[moving, "angle"]
        flux[moving] *= self.science_psf.trail_loss(length * np.cos(angle), length * np.sin(angle))
        flux[truth["class"].isin(spoil.EXTENDED)] = np.nan
        columns = np.clip(np.rint(x).astype(int), 0, self.shape[1] - 1)
        rows = np.clip(np.rint(y).astype(int), 0, self.shape[0] - 1)
        return truth.assign(
            snr=flux / both,
            snr_science=flux / alone,
            masked=(science.mask | reference.mask)[rows, columns] != 0,
        )


class Warp:
    """Where a source of the science frame stands in the reference: a shift and a smooth distortion."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int], shift: tuple[float, float], distortion: float
    ) -> None:
        self.shape, self.shift = shape, shift
        # Waves of one to two periods over the frame: what is left after a good low-order fit.
        self.waves = rng.normal(0, 1, (2, 3, 2)), rng.uniform(0, 2 * np.pi, (2, 3))
        self.distortion = distortion

    def table(self, sources: pd.DataFrame) -> pd.DataFrame:
        x, y = sources["x"].to_numpy(), sources["y"].to_numpy()
        dx, dy = (self._wave(axis, x, y) + self.shift[axis] for axis in (0, 1))
        return sources.assign(x=x + dx, y=y + dy)

    def _wave(
        self, axis: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        if not self.distortion:
            return np.zeros(len(x))
        direction, phase = self.waves[0][axis], self.waves[1][axis]
        angle = np.arctan2(direction[:, 1], direction[:, 0])
        u, v = x / self.shape[1], y / self.shape[0]
        total = np.zeros(len(x))
        for a, p, periods in zip(angle, phase, (0.7, 1.2, 1.8), strict=True):
            total += np.sin(2 * np.pi * periods * (u * np.cos(a) + v * np.sin(a)) + p)
        # Three sines of amplitude 1 have an rms of √(3/2).
        return self.distortion * total / math.sqrt(1.5)


def _wcs(shape: tuple[int, int], pixel_scale: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = [-pixel_scale / 3600, pixel_scale / 3600]
    wcs.wcs.set()
    return wcs
