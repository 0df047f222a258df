"""The methods that are compared, each given the same two frames and nothing of the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.signal import fftconvolve

from astrid_pipeline.imaging import find_candidates, forced_photometry, prepare, subtract
from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.photometry import interpolate
from astrid_pipeline.imaging.subtract.surfaces import robust_sigma
from astrid_pipeline_tests.benchmarks import peers
from astrid_pipeline_tests.benchmarks.judge import Outcome, timed
from astrid_pipeline_tests.benchmarks.known import Floats

Method = Callable[[Frame, Frame], Outcome]

#: What a method's own numbers may be called in `Difference.meta`.
SOLVED = (
    "flux_ratio",
    "shift_x",
    "shift_y",
    "dx_rms",
    "dy_rms",
    "astrometric_sigma_x",
    "astrometric_sigma_y",
    "psf_ratio_error",
    "score_sigma_raw",
    "score_sigma",
    "n_matched",
)


def astrid(method: str) -> Method:
    """Return AstrID's own subtraction; its time is `subtract` on prepared frames, solving included."""

    def run(science: Frame, reference: Frame) -> Outcome:
        difference, seconds = timed(lambda: subtract(science, reference, method=method, device="cpu"))
        return of_difference(difference, seconds)

    return run


def of_difference(difference: Difference, seconds: float) -> Outcome:
    """Return AstrID's outcome: score, forced photometry and candidates of a difference."""
    masked = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)

    def photometry(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        table = forced_photometry(difference, x=x, y=y)
        return table["flux"].to_numpy(float), table["flux_err"].to_numpy(float)

    solved = {key: difference.meta[key] for key in SOLVED if key in difference.meta}
    return Outcome(
        difference.score, masked, seconds, photometry, find_candidates(difference, threshold=5.0), solved
    )


def common(
    difference: npt.NDArray[np.floating],
    variance: npt.NDArray[np.floating],
    psf: Floats,
    masked: npt.NDArray[np.bool_],
    seconds: float,
) -> Outcome:
    """Return one matched filter for every difference that has no significance of its own.

    Σ P D / √(Σ P² V), rescaled to unit width where there is nothing; flux is Σ P D / Σ P².
    """
    difference = np.where(masked | ~np.isfinite(difference), 0.0, difference)
    norm = float((psf**2).sum())
    top = fftconvolve(difference, psf[::-1, ::-1], mode="same")
    noise = np.sqrt(np.maximum(fftconvolve(variance, psf[::-1, ::-1] ** 2, mode="same"), 1e-12))
    near = ndimage.binary_dilation(masked, iterations=3)
    scale = robust_sigma((top / noise)[~near][::7])
    near[:8], near[-8:], near[:, :8], near[:, -8:] = True, True, True, True
    flux, error = top / norm, noise * scale / norm

    def photometry(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return interpolate(flux, x, y), error[np.rint(y).astype(int), np.rint(x).astype(int)]

    return Outcome(top / noise / scale, near, seconds, photometry)


def flux_ratio(science: Frame, reference: Frame) -> float:
    """Return the flux of a source in the science frame over that in the reference, by the zero points."""
    return float(10 ** (0.4 * (science.meta["zero_point"] - reference.meta["zero_point"])))


def both(science: Frame, reference: Frame) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.floating]]:
    """Return where either frame is unusable, and the variance of a plain difference."""
    masked = is_set(science.mask) | is_set(reference.mask)
    assert science.variance is not None
    assert reference.variance is not None
    return masked, science.variance + flux_ratio(science, reference) ** 2 * reference.variance


def plain(science: Frame, reference: Frame) -> Outcome:
    """Plain subtraction with the flux ratio of the zero points, sep's background removed from what is left."""
    import sep

    masked, variance = both(science, reference)

    def run() -> npt.NDArray[np.floating]:
        ratio = np.float32(flux_ratio(science, reference))
        difference = np.ascontiguousarray(science.data - ratio * reference.data)
        return np.asarray(difference - sep.Background(difference, mask=masked).back())

    difference, seconds = timed(run)
    assert science.psf is not None
    return common(difference, variance, science.psf.stamp(), masked, seconds)


def in_own_environment(name: str) -> Method:
    """Return a peer that runs in an environment of its own; its difference goes through the common filter."""

    def run(science: Frame, reference: Frame) -> Outcome:
        masked, variance = both(science, reference)
        difference, seconds = peers.subtract(name, science, reference)
        assert science.psf is not None
        return common(difference, variance, science.psf.stamp(), masked, seconds)

    return run


def sextractor(science: Frame, reference: Frame) -> Outcome:
    """SExtractor on the plain difference, filtered with PSFEx's PSF of the science frame."""
    masked, variance = both(science, reference)
    difference = science.data - np.float32(flux_ratio(science, reference)) * reference.data
    table, seconds = peers.extract(science, difference, variance, masked)
    return Outcome(None, ndimage.binary_dilation(masked, iterations=3), seconds, None, table)


def available() -> dict[str, Method]:
    """Return the methods that can run here, by name, AstrID's first."""
    out: dict[str, Method] = {
        "astrid zogy": astrid("zogy"),
        "astrid classic": astrid("classic"),
        "plain + sep": plain,
    }
    if peers.astromatic():
        out["plain + SExtractor"] = sextractor
    for name in peers.PEERS:
        if peers.is_installed(name):
            out[name] = in_own_environment(name)
    return out


#: Methods that need half a minute a megapixel: they get fewer pairs.
SLOW = tuple(peers.PEERS)


def ready(frame: Frame) -> Frame:
    """Return the frame prepared: sky removed, PSF and noise measured from it."""
    return prepare(frame)
