"""Simulated pairs that remember everything about themselves: for judges, never for what is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.psf_model import PSF
from astrid_pipeline.simulation import CASE_SHAPE, CASES, PairOptions, SimulatedPair
from astrid_pipeline.simulation import pairs as simulation

#: Transients a megapixel: some 50 px apart, far enough not to meet, and enough for narrow intervals.
CROWD = 400.0
#: Their S/N, log-uniform: dense where completeness bends, and far enough up to tell a bias of the flux.
SNR = (3.5, 40.0)

Floats = npt.NDArray[np.float64]
Displacement = Callable[[Floats, Floats], tuple[Floats, Floats]]


@dataclass(eq=False)
class KnownPair:
    """A pair and what no method is told.

    Attributes
    ----------
    pair:
        Frames as they are handed to the methods, and the truth of what changed.
    science_sky:
        (height, width), electrons; the reference's sky is `pair.options.sky`.
    science_variance, reference_variance:
        True variances, electrons².
    scale:
        Science electrons per reference electron.
    displacement:
        (x, y) → (dx, dy): a source at x in the science frame stands at x + dx in the reference.
    sources:
        Stars and galaxies that do not change: x, y, flux (reference electrons), kind.
    correlated:
        How pixels were mixed before the frames were handed over; "" if they were not.
    """

    pair: SimulatedPair
    science_sky: npt.NDArray[np.float32]
    science_variance: npt.NDArray[np.float32]
    reference_variance: npt.NDArray[np.float32]
    scale: float
    displacement: Displacement
    sources: pd.DataFrame
    correlated: str = ""

    @property
    def options(self) -> PairOptions:
        """How it was made."""
        return self.pair.options


class Keeper(simulation.Builder):
    """A builder of pairs that keeps what it drew."""

    kept: dict[str, Any]

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], options: PairOptions) -> None:
        super().__init__(rng, shape, options)
        self.kept = {}

    def _catalogue(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        stars, galaxies = super()._catalogue()
        both = [stars.assign(kind="star"), galaxies.assign(kind="galaxy")]
        self.kept["sources"] = pd.concat(both, ignore_index=True)[["x", "y", "flux", "mag", "kind"]]
        return stars, galaxies

    def _sky(self, gradient: float) -> npt.NDArray[np.float32]:
        self.kept["sky"] = super()._sky(gradient)
        return self.kept["sky"].copy()

    def _measure(
        self, truth: pd.DataFrame, science: Frame, reference: Frame, psf: PSF, psf_reference: PSF
    ) -> pd.DataFrame:
        self.kept["variances"] = science.variance, reference.variance
        return super()._measure(truth, science, reference, psf, psf_reference)

    def known(self) -> KnownPair:
        """Build the pair."""
        pair = self.build()
        science, reference = self.kept["variances"]
        return KnownPair(
            pair, self.kept["sky"], science, reference, self.scale, Moved(self.warp), self.kept["sources"]
        )


@dataclass(frozen=True)
class Moved:
    """The displacement that a builder's warp makes."""

    warp: Any

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        there = self.warp.table(pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float)}))
        return there["x"].to_numpy() - x, there["y"].to_numpy() - y


def known_pair(
    case: str, seed: int, index: int, side: int = CASE_SHAPE[0], *, variance: str = "data", **changes: Any
) -> KnownPair:
    """Return pair `index` of a case, the same for the same seed.

    Frames carry no PSF; their variance is that which calibration gives ("data"), the true one ("true") or none. The
    case may be one of `CASES`, or one of `CORRELATED`, whose pixels share noise.
    """
    name, _, mixing = case.partition("+")
    options = {**CASES[name], "transients": CROWD, "snr": SNR, "variance": variance, "psf": "none", **changes}
    if mixing:
        lag = MIXINGS[mixing].reference - MIXINGS[mixing].science
        options["shift"] = (lag, lag)
    known = Keeper(np.random.default_rng([seed, index]), (side, side), PairOptions(**options)).known()
    return mix(known, mixing) if mixing else known


@dataclass(frozen=True)
class Mixing:
    """How an output pixel is made of input pixels along one axis.

    Attributes
    ----------
    kernel:
        "bilinear" or "lanczos3" interpolate; "drizzle" adds up the light of the input pixels' overlap.
    science, reference:
        Position of the first output pixel, in input pixels.
    step:
        Size of an output pixel in input pixels.
    variance:
        "carried": Σ w² V of each pixel, which says nothing of neighbours; "none": not handed over.
    """

    kernel: str
    science: float
    reference: float
    step: float = 1.0
    variance: str = "carried"


#: Cases whose frames somebody resampled before they came: half-pixel interpolations share the most noise.
MIXINGS = {
    "lanczos": Mixing("lanczos3", 0.37, 0.5),
    "bilinear": Mixing("bilinear", 0.5, 0.3, variance="none"),
    "drizzled": Mixing("drizzle", 0.2, 0.45, 0.7),
}
CORRELATED = tuple(f"clean+{name}" for name in MIXINGS)


def mix(known: KnownPair, mixing: str) -> KnownPair:
    """Return the pair with its pixels mixed, and its truth on the new grid.

    Light is kept: fluxes stay, a pixel's value follows its area. The frames come from different grids and are brought
    to one, as archives do, so that each has its own correlation.
    """
    how = MIXINGS[mixing]
    pair = known.pair
    size = int((pair.science.shape[0] - 8) / how.step)
    weights = [matrix(how, pair.science.shape[0], size, phase) for phase in (how.science, how.reference)]
    frames = []
    for frame, w in zip((pair.science, pair.reference), weights, strict=True):
        data = w @ frame.data.astype(float) @ w.T
        spoiled = (np.abs(w) @ (frame.mask != 0).astype(float) @ np.abs(w).T) > 0.05
        variance = None
        if frame.variance is not None and how.variance == "carried":
            variance = w**2 @ frame.variance.astype(float) @ (w**2).T
        mask = np.where(spoiled, np.int32(Mask.SATURATED), np.int32(0))
        meta = {**frame.meta, "saturation": frame.meta["saturation"] * how.step**2}
        frames.append(Frame(data, variance, mask, None, None, meta))

    def there(values: pd.Series) -> pd.Series:
        return (values - how.science - MARGIN) / how.step

    truth = pair.truth.assign(x=there(pair.truth["x"]), y=there(pair.truth["y"]))
    sources = known.sources.assign(x=there(known.sources["x"]), y=there(known.sources["y"]))
    moved = replace(
        pair, science=frames[0], reference=frames[1], truth=truth, artefacts=np.zeros((size, size), np.int32)
    )
    return replace(
        known,
        pair=moved,
        displacement=lambda x, y: (np.zeros(len(x)), np.zeros(len(x))),
        sources=sources,
        correlated=mixing,
    )


#: Pixels left out at the border, where kernels have not all their input.
MARGIN = 4


def matrix(how: Mixing, n: int, size: int, phase: float) -> Floats:
    """Return the (size, n) weights of one axis: output pixel i is centred on input pixel MARGIN + phase + i step."""
    centre = MARGIN + phase + np.arange(size)[:, None] * how.step
    t = np.arange(n)[None, :] - centre
    if how.kernel == "bilinear":
        return np.asarray(np.clip(1 - np.abs(t), 0, None) * how.step)
    if how.kernel == "lanczos3":
        w = np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0.0)
        return np.asarray(w / w.sum(1, keepdims=True) * how.step)
    if how.kernel == "drizzle":
        # Length of the overlap of an input pixel (1 wide) and an output pixel (step wide).
        return np.clip(np.minimum(t + 0.5, how.step / 2) - np.maximum(t - 0.5, -how.step / 2), 0, None)
    raise ValueError(f"no kernel {how.kernel!r}")
