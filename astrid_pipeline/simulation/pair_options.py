"""What a simulated pair of frames can be like: its options, the named cases, and random ones for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from astrid_pipeline.errors import ConfigError


@dataclass(frozen=True)
class PairOptions:
    """What a simulated pair is like. Numbers "a megapixel" scale with the frame; lengths are pixels.

    Attributes
    ----------
    science_fwhm, reference_fwhm, beta:
        Moffat PSFs (before the pixel's box).
    psf_variation, psf_ellipticity:
        FWHM varies by ± the first over the frame, ellipticity up to the second; 0 and 0: constant and round.
    reference_depth:
        The reference is the mean of so many exposures like the science frame.
    flux_ratio:
        Electrons of a star in the science frame over those in the reference.
    clouds:
        Share of the light that clouds take from the science frame besides.
    sky, read_noise, full_well, gradient:
        Electrons; the gradient is the sky's relative change over the science frame, corner to corner.
    shift, distortion:
        The reference is displaced by `shift` (dx, dy) and, smoothly over the frame, by `distortion` rms per axis.
    stars, galaxies:
        Of magnitudes `bright_star` to 22, and 15 to 21.5, a megapixel; counts grow as 10^(0.2 m), as
        they do towards the galactic poles, and as 10^(0.4 m).
    transients, variables, movers:
        True changes a megapixel; S/N log-uniform in `snr`. `on_galaxy` and `fading` are shares of the transients.
    trail_length:
        Movers' trails are log-uniform in this range.
    cosmic_rays, bad_columns, hot_pixels, ghosts, dipoles, bad_subtractions, trails:
        Artefacts a megapixel in the science frame (`trails`, satellites, and `edges` are per frame). Cosmic rays
        and columns are not in the reference, whose exposures were clipped. Bad subtractions are bright stars whose
        profile is not that of the others.
    masked:
        Share of the artefacts that the mask covers. Saturated and bled pixels always are, unless
        `saturation_masked` is False.
    variance:
        "true": the expected variance of each pixel; "data": estimated from the pixel itself, as calibration does it;
        "none": left to be measured.
    psf:
        "true": frames carry their PSF; "none": left to be measured.
    """

    science_fwhm: float = 2.4
    reference_fwhm: float = 2.0
    beta: float = 3.5
    psf_variation: float = 0.0
    psf_ellipticity: float = 0.0
    reference_depth: int = 5
    flux_ratio: float = 0.8
    clouds: float = 0.0
    sky: float = 200.0
    read_noise: float = 5.0
    full_well: float = 60_000.0
    gradient: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    distortion: float = 0.0
    stars: float = 2500.0
    galaxies: float = 400.0
    bright_star: float = 8.0
    transients: float = 100.0
    variables: float = 0.0
    movers: float = 0.0
    snr: tuple[float, float] = (3.0, 50.0)
    on_galaxy: float = 0.5
    fading: float = 0.0
    trail_length: tuple[float, float] = (1.5, 25.0)
    cosmic_rays: float = 0.0
    bad_columns: float = 0.0
    hot_pixels: float = 0.0
    ghosts: float = 0.0
    dipoles: float = 0.0
    bad_subtractions: float = 0.0
    trails: int = 0
    edges: int = 0
    masked: float = 1.0
    saturation_masked: bool = True
    variance: str = "true"
    psf: str = "true"
    pixel_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.variance not in ("true", "data", "none") or self.psf not in ("true", "none"):
            raise ConfigError(
                f"variance={self.variance!r}, psf={self.psf!r} is not known",
                where="simulate_pair",
                remedy='use variance "true", "data" or "none" and psf "true" or "none"',
            )


#: The six cases that difference imaging is compared on (1024²; 100 transients of S/N 3-50).
CASES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "clean": {},
        "shift10": {"shift": (0.10, 0.0)},
        "shift25": {"shift": (0.25, 0.0)},
        "refbroad": {"science_fwhm": 2.1, "reference_fwhm": 2.7},
        "varpsf": {"psf_variation": 0.12, "psf_ellipticity": 0.15},
        "real": {
            "psf_variation": 0.12,
            "psf_ellipticity": 0.15,
            "distortion": 0.08,
            "gradient": 0.15,
            "cosmic_rays": 60.0,
            "bad_columns": 3.0,
            "trails": 1,
            "masked": 0.0,
        },
    }
)

#: The frame size of the cases.
CASE_SHAPE = (1024, 1024)


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    """Draw options of one pair as nights of many small and middling telescopes would give them, for training.

    Every kind of change and of artefact occurs, masked or not; seeing, depth, sky, registration and PSF vary.
    """
    seeing = float(rng.uniform(1.9, 4.0))
    angle, shift = rng.uniform(0, 2 * np.pi), abs(rng.normal(0, 0.08))
    clear = rng.random() < 0.85
    return {
        "science_fwhm": seeing,
        "reference_fwhm": float(np.clip(seeing * rng.lognormal(-0.1, 0.15), 1.8, 4.5)),
        "beta": float(rng.uniform(2.6, 4.5)),
        "psf_variation": float(rng.uniform(0, 0.12)),
        "psf_ellipticity": float(rng.uniform(0, 0.15)),
        "reference_depth": int(rng.integers(3, 21)),
        "flux_ratio": float(rng.uniform(0.6, 1.3)),
        "clouds": 0.0 if clear else float(rng.uniform(0.1, 0.6)),
        "sky": float(np.exp(rng.uniform(np.log(40), np.log(2500)))),
        "read_noise": float(rng.uniform(3, 12)),
        "gradient": float(abs(rng.normal(0, 0.08))),
        "shift": (float(shift * np.cos(angle)), float(shift * np.sin(angle))),
        "distortion": float(abs(rng.normal(0, 0.05))),
        "stars": float(np.exp(rng.uniform(np.log(700), np.log(6000)))),
        "galaxies": float(rng.uniform(200, 700)),
        "transients": 60.0,
        "variables": 30.0,
        "movers": 25.0,
        "fading": 0.25,
        "on_galaxy": 0.6,
        "cosmic_rays": float(rng.uniform(10, 80)),
        "bad_columns": float(rng.uniform(0, 3)),
        "hot_pixels": float(rng.uniform(0, 40)),
        "ghosts": float(rng.uniform(0, 10)),
        "dipoles": float(rng.uniform(0, 40)),
        "trails": int(rng.random() < 0.15),
        "edges": int(rng.random() < 0.3),
        # Calibration finds most artefacts, seldom all.
        "masked": float(rng.choice([0.0, 0.5, 0.8, 0.95])),
        "variance": "data",
        "bad_subtractions": float(rng.uniform(0, 15)),
    }


def spoiled_options(rng: np.random.Generator) -> dict[str, Any]:
    """Draw options of a pair full of artefacts that no mask covers, to teach what they look like and to count them.

    A few are so many times as frequent as on a bad night; of satellites and edges there are three a frame, so that
    some hundred frames hold a thousand of each kind.
    """
    return random_options(rng) | {
        "cosmic_rays": 80.0,
        "bad_columns": 20.0,
        "hot_pixels": 80.0,
        "ghosts": 25.0,
        "dipoles": 40.0,
        "bad_subtractions": 40.0,
        "trails": 3,
        "edges": 3,
        "masked": 0.0,
    }
