"""The methods that are compared, each given the same two frames. Peers run where they are installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from astrid_pipeline.imaging import prepare, subtract
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.subtract.surfaces import robust_sigma
from astrid_pipeline_tests.benchmarks.judge import Outcome

Method = Callable[[Frame, Frame], Outcome]


def astrid(method: str) -> Method:
    """Return AstrID's own subtraction; its time is `subtract` on prepared frames, solving included."""

    def run(science: Frame, reference: Frame) -> Outcome:
        started = time.process_time()
        d = subtract(science, reference, method=method, device="cpu")
        seconds = time.process_time() - started
        masked = is_set(d.mask, int(UNUSABLE | Mask.EDGE), reference=True)
        return Outcome(d.score, masked, seconds, d.flux, d.flux_err)

    return run


def common(
    difference: np.ndarray, variance: np.ndarray, psf: np.ndarray, masked: np.ndarray, seconds: float
) -> Outcome:
    """Return one matched filter for every difference that has no significance of its own.

    Σ P D / √(Σ P² V), rescaled to unit width where there is nothing; flux is Σ P D / Σ P².
    """
    difference = np.where(masked | ~np.isfinite(difference), 0.0, difference)
    norm = float((psf**2).sum())
    top = fftconvolve(difference, psf[::-1, ::-1], mode="same")
    noise = np.sqrt(np.maximum(fftconvolve(variance, psf[::-1, ::-1] ** 2, mode="same"), 1e-12))
    near = ndimage.binary_dilation(masked, iterations=3)
    width = robust_sigma((top / noise)[~near][::7])
    near[:8], near[-8:], near[:, :8], near[:, -8:] = True, True, True, True
    return Outcome(top / noise / width, near, seconds, top / norm, noise * width / norm)


def _both(science: Frame, reference: Frame) -> tuple[np.ndarray, np.ndarray]:
    masked = is_set(science.mask) | is_set(reference.mask)
    ratio = 10 ** (0.4 * (science.meta["zero_point"] - reference.meta["zero_point"]))
    assert science.variance is not None
    assert reference.variance is not None
    return masked, science.variance + ratio**2 * reference.variance


def plain(science: Frame, reference: Frame) -> Outcome:
    """Plain subtraction with the flux ratio of the zero points, sep's background removed from what is left."""
    import sep

    masked, variance = _both(science, reference)
    ratio = 10 ** (0.4 * (science.meta["zero_point"] - reference.meta["zero_point"]))
    started = time.process_time()
    difference = np.ascontiguousarray(science.data - np.float32(ratio) * reference.data)
    difference = difference - sep.Background(difference, mask=masked).back()
    seconds = time.process_time() - started
    assert science.psf is not None
    return common(difference, variance, science.psf.stamp(), masked, seconds)


def properimage(science: Frame, reference: Frame) -> Outcome:
    """properimage.operations.subtract with the PSFs it measures itself."""
    from properimage.operations import subtract as proper_subtract
    from properimage.single_image import SingleImage

    masked, variance = _both(science, reference)
    started = time.process_time()
    images = [SingleImage(f.data.astype(float), mask=is_set(f.mask)) for f in (reference, science)]
    difference, *_ = proper_subtract(
        images[0],
        images[1],
        smooth_psf=False,
        fitted_psf=True,
        align=False,
        iterative=False,
        beta=True,
        shift=True,
    )
    seconds = time.process_time() - started
    assert science.psf is not None
    return common(np.real(np.asarray(difference)), variance, science.psf.stamp(), masked, seconds)


def sfft(science: Frame, reference: Frame) -> Outcome:
    """sfft's sparse-flavour subtraction on NumPy, through files as it wants them."""
    import tempfile
    from pathlib import Path

    from astropy.io import fits
    from sfft.EasySparsePacket import Easy_SparsePacket

    masked, variance = _both(science, reference)
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for name, frame in (("sci", science), ("ref", reference)):
            header = fits.Header({"GAIN": frame.meta["gain"], "SATURATE": frame.meta["saturation"]})
            names[name] = str(Path(folder) / f"{name}.fits")
            fits.writeto(names[name], np.where(is_set(frame.mask), 0, frame.data).astype(float), header)
        out = str(Path(folder) / "diff.fits")
        started = time.process_time()
        Easy_SparsePacket.ESP(
            names["ref"],
            names["sci"],
            FITS_DIFF=out,
            ForceConv="REF",
            BACKEND_4SUBTRACT="Numpy",
            NUM_CPU_THREADS_4SUBTRACT=1,
        )
        seconds = time.process_time() - started
        difference = fits.getdata(out).astype(float)
    assert science.psf is not None
    return common(difference, variance, science.psf.stamp(), masked, seconds)


def available() -> dict[str, Method]:
    """Return the methods that can run here, by name."""
    out: dict[str, Method] = {
        "astrid zogy": astrid("zogy"),
        "astrid classic": astrid("classic"),
        "plain (sep)": plain,
    }
    for name, method in (("properimage", properimage), ("sfft", sfft)):
        if find_spec(name) is not None:
            out[name] = method
    return out


def ready(frame: Frame, *, psf: bool) -> Frame:
    """Return the frame prepared; with `psf`, its true PSF is kept, else one is measured from its stars."""
    return prepare(frame if psf else frame.replace(psf=None))
