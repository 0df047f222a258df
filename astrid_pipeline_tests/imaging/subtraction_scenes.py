"""Small pairs of frames with Gaussian stars, for the tests of the subtraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline_tests.imaging.star_fields import draw, gaussian_psf

SKY = 100.0
DEPTH = 4  # the reference is the mean of so many exposures


@dataclass
class Scene:
    """What a pair is made of; `shift`, `ratio` and `fwhm` may be functions of x, y, `widths` per star."""

    shape: tuple[int, int] = (192, 224)
    science_fwhm: float = 2.8
    reference_fwhm: float = 2.3
    ratio: float = 0.8
    shift: tuple[float, float] = (0.0, 0.0)
    stars: int = 60
    brightest: float = 3e4
    seed: int = 1
    counted_variance: bool = False
    added: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, flux of new sources
    noise: bool = True
    sky_offset: float = 0.0

    def build(self, **frame_options: Any) -> tuple[Frame, Frame]:
        """Return science and reference, sky-subtracted, with variance and PSF."""
        rng = np.random.default_rng(self.seed)
        height, width = self.shape
        x, y = rng.uniform(0, width, self.stars), rng.uniform(0, height, self.stars)
        flux = 10 ** rng.uniform(2.3, np.log10(self.brightest), self.stars)
        science = self.ratio * draw(self.shape, x, y, flux, self.science_fwhm)
        for x0, y0, f in self.added:
            science += draw(self.shape, np.array([x0]), np.array([y0]), np.array([f]), self.science_fwhm)
        reference = draw(self.shape, x + self.shift[0], y + self.shift[1], flux, self.reference_fwhm)
        expected = science + SKY, (reference + SKY) / DEPTH
        if self.noise:
            science = science + rng.normal(0, np.sqrt(expected[0]))
            reference = reference + rng.normal(0, np.sqrt(expected[1]))
        variance = expected
        if self.counted_variance:
            variance = np.maximum(science + SKY, 1.0), np.maximum(reference + SKY, 1.0) / DEPTH
        frames = []
        for name, image, v, fwhm in (
            ("science", science + self.sky_offset, variance[0], self.science_fwhm),
            ("reference", reference, variance[1], self.reference_fwhm),
        ):
            frames.append(
                Frame(
                    image,
                    v,
                    psf=gaussian_psf(fwhm, self.shape, size=21),
                    meta={"exposure_id": name, "sky_subtracted": True, "gain": 1.0, **frame_options},
                )
            )
        return frames[0], frames[1]
