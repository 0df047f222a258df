"""Other people's programs, run as they are: Python packages in an environment of their own, and Astromatic's tools.

`make bench` installs the packages (see `install`); they are asked through files, so that their pins never meet
AstrID's. Astromatic's are used where the system has them (Debian: source-extractor, psfex).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.io import fits

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import is_set

#: Packages from PyPI by name, and the releases that were tried with NumPy 2.
PEERS = {"properimage": "properimage==0.7.2", "sfft": "sfft==1.7.3"}
#: Their environment, beside AstrID's own.
HOME = Path(os.environ.get("ASTRID_PEERS", Path(sys.prefix) / "peers"))
#: A peer that needs more processor time than this for one pair is given up, s.
PATIENCE = 600
#: Wall-clock time on a machine that others use too, over processor time.
BUSY = 10

#: What runs in a peer's own Python: reads NAME FOLDER, writes diff.npy and prints its processor time.
_WORKER = """
import json, sys, time, warnings
from pathlib import Path
import numpy as np
warnings.filterwarnings("ignore")
name, folder = sys.argv[1], Path(sys.argv[2])
n, r, bad_n, bad_r = (np.load(folder / f"{k}.npy") for k in ("n", "r", "bad_n", "bad_r"))
meta = json.loads((folder / "meta.json").read_text())
if name == "properimage":
    from properimage.operations import subtract
    from properimage.single_image import SingleImage
    started = time.process_time()
    reference, science = SingleImage(r, mask=bad_r), SingleImage(n, mask=bad_n)
    difference, *_ = subtract(reference, science, align=False, beta=True, shift=True, iterative=False,
                              fitted_psf=True, smooth_psf=False)
    difference = np.real(np.asarray(difference))
else:
    from astropy.io import fits
    from sfft.EasySparsePacket import Easy_SparsePacket
    paths = {k: str(folder / f"{k}.fits") for k in ("n", "r", "d")}
    for k, image, bad in (("n", n, bad_n), ("r", r, bad_r)):
        header = fits.Header({"GAIN": meta[k]["gain"], "ESATUR": meta[k]["saturation"]})
        fits.writeto(paths[k], np.where(bad, 0, image), header)
    started = time.process_time()
    Easy_SparsePacket.ESP(paths["r"], paths["n"], FITS_DIFF=paths["d"], ForceConv="REF",
                          BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0)
    difference = fits.getdata(paths["d"])
seconds = time.process_time() - started
np.save(folder / "diff.npy", np.asarray(difference, float))
print(json.dumps({"seconds": seconds}))
"""


class PeerError(RuntimeError):
    """A peer could not do its work; the message is its own last word."""


def python() -> Path:
    """Return the Python of the peers' environment."""
    return HOME / "bin" / "python"


@cache
def is_installed(name: str) -> bool:
    """Return whether a peer can be called."""
    if not python().exists():
        return False
    return subprocess.run([python(), "-c", f"import {name}"], capture_output=True).returncode == 0


def install() -> dict[str, str]:
    """Make the peers' environment where it is not yet; return what could not be installed, with the reason."""
    if not python().exists():
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
    failed = {}
    pip = [python(), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    for name, wanted in PEERS.items():
        if is_installed(name):
            continue
        steps = [[*pip, "numpy>=2,<2.4", wanted]]
        if name == "properimage":
            # One of its requirements builds only with an older setuptools at hand.
            steps = [[*pip, "setuptools<80", "wheel"], [*pip, "--no-build-isolation", "tinynpydb"], *steps]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                failed[name] = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                break
    is_installed.cache_clear()
    return failed


def subtract(name: str, science: Frame, reference: Frame) -> tuple[npt.NDArray[np.floating], float]:
    """Return a peer's difference, in the science frame's flux, and its processor time, s.

    Raises
    ------
    PeerError
        If it fails.
    """
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        for key, frame in (("n", science), ("r", reference)):
            np.save(folder / f"{key}.npy", frame.data.astype(float))
            np.save(folder / f"bad_{key}.npy", is_set(frame.mask))
        words = {
            key: {
                "gain": float(frame.meta.get("gain") or 1.0),
                "saturation": float(frame.meta.get("saturation") or 1e9),
            }
            for key, frame in (("n", science), ("r", reference))
        }
        (folder / "meta.json").write_text(json.dumps(words))
        answer = run([str(python()), "-c", _WORKER, name, at], folder)
        return np.load(folder / "diff.npy"), float(json.loads(answer.splitlines()[-1])["seconds"])


def run(command: list[str], folder: Path) -> str:
    """Return what a program printed.

    Raises
    ------
    PeerError
        If it fails or takes too long.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": ""}
    if tools := astromatic():
        # sfft calls SExtractor by the old name, which Debian does not use.
        (folder / "bin").mkdir(exist_ok=True)
        if not (folder / "bin" / "sex").exists():
            (folder / "bin" / "sex").symlink_to(tools["sex"])
        environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    limited = ["bash", "-c", f'ulimit -t {PATIENCE}; exec "$@"', "bash", *command]
    try:
        done = subprocess.run(
            limited, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUSY * PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"no answer within {BUSY * PATIENCE} s") from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise PeerError(f"not done after {PATIENCE} s of processor time")
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise PeerError(words[-1][:200] if words else f"exit code {done.returncode}")
    return done.stdout


def astromatic() -> dict[str, str]:
    """Return the paths of SExtractor and PSFEx, or nothing if either is missing."""
    extractor = shutil.which("source-extractor") or shutil.which("sex")
    psfex = shutil.which("psfex")
    return {"sex": extractor, "psfex": psfex} if extractor and psfex else {}


_STARS = ("NUMBER", "X_IMAGE", "Y_IMAGE", "FLUX_RADIUS", "FLUX_APER(1)", "FLUXERR_APER(1)", "ELONGATION")
_STARS += ("FLAGS", "SNR_WIN", "VIGNET(35,35)", "FLUX_MAX")
_SEEN = ("XWIN_IMAGE", "YWIN_IMAGE", "FLUX_APER(1)", "FLUXERR_APER(1)", "FLAGS")


def psfex_stamp(science: Frame, folder: Path) -> npt.NDArray[np.float64]:
    """Return PSFEx's PSF of a frame's middle, of sum 1."""
    tools = astromatic()
    fits.writeto(folder / "n.fits", science.data.astype(np.float32), overwrite=True)
    fits.writeto(folder / "flag.fits", is_set(science.mask).astype(np.int16), overwrite=True)
    (folder / "stars.param").write_text("\n".join([*_STARS, "IMAFLAGS_ISO(1)"]))
    options = ["-CATALOG_NAME", "stars.cat", "-CATALOG_TYPE", "FITS_LDAC", "-PARAMETERS_NAME", "stars.param"]
    options += ["-FLAG_IMAGE", "flag.fits", "-FILTER", "N", "-DETECT_THRESH", "10", "-PHOT_APERTURES", "10"]
    options += ["-BACK_TYPE", "MANUAL", "-BACK_VALUE", "0", "-VERBOSE_TYPE", "QUIET"]
    options += ["-SATUR_LEVEL", str(float(science.meta.get("saturation") or 1e9))]
    run([tools["sex"], "n.fits", *options], folder)
    options = ["-SAMPLE_MINSN", "50", "-PSF_SIZE", "25,25", "-PSFVAR_DEGREES", "2", "-PSF_SAMPLING", "1.0"]
    options += ["-CHECKIMAGE_TYPE", "NONE", "-CHECKPLOT_TYPE", "NONE", "-WRITE_XML", "N", "-NTHREADS", "1"]
    run([tools["psfex"], "stars.cat", *options, "-VERBOSE_TYPE", "QUIET"], folder)
    with fits.open(folder / "stars.psf") as hdus:
        planes = np.array(hdus[1].data["PSF_MASK"][0], float)
    # Coordinates are scaled about the middle of the stars, where all terms but the first are next to nothing.
    return np.asarray(planes[0] / planes[0].sum())


def extract(
    science: Frame,
    difference: npt.NDArray[np.floating],
    variance: npt.NDArray[np.floating],
    masked: npt.NDArray[np.bool_],
) -> tuple[pd.DataFrame, float]:
    """Return what SExtractor sees in a difference over 5 σ of the filtered image, both signs, and the seconds taken."""
    import resource

    tools = astromatic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        stamp = psfex_stamp(science, folder)
        middle = len(stamp) // 2
        core = stamp[middle - 4 : middle + 5, middle - 4 : middle + 5]
        rows = "\n".join(" ".join(f"{v:.6g}" for v in row) for row in core / core.max())
        (folder / "psf.conv").write_text(f"CONV NORM\n{rows}\n")
        (folder / "seen.param").write_text("\n".join(_SEEN))
        noise = np.where(masked, 1e6 * variance.max(), variance).astype(np.float32)
        fits.writeto(folder / "v.fits", noise)
        # SExtractor's threshold is in units of the unfiltered noise: filtering lowers that by √(Σ c²) / Σ c.
        threshold = 5 * float(np.sqrt((core**2).sum()) / core.sum())
        found = []
        for sign in (1, -1):
            fits.writeto(folder / "d.fits", (sign * difference).astype(np.float32), overwrite=True)
            options = [
                "-CATALOG_NAME",
                "d.cat",
                "-CATALOG_TYPE",
                "FITS_1.0",
                "-PARAMETERS_NAME",
                "seen.param",
            ]
            options += ["-FILTER_NAME", "psf.conv", "-FILTER", "Y", "-DETECT_MINAREA", "1"]
            options += ["-DETECT_THRESH", f"{threshold:.4f}", "-ANALYSIS_THRESH", f"{threshold:.4f}"]
            options += ["-WEIGHT_TYPE", "MAP_VAR", "-WEIGHT_IMAGE", "v.fits", "-WEIGHT_GAIN", "N"]
            options += ["-PHOT_APERTURES", "8", "-BACK_SIZE", "64", "-VERBOSE_TYPE", "QUIET"]
            run([tools["sex"], "d.fits", *options], folder)
            with fits.open(folder / "d.cat") as hdus:
                seen = hdus[1].data
                found.append(
                    pd.DataFrame(
                        {
                            "x": np.array(seen["XWIN_IMAGE"], float) - 1,
                            "y": np.array(seen["YWIN_IMAGE"], float) - 1,
                            "flux": sign * np.array(seen["FLUX_APER"], float).reshape(-1),
                            "flux_err": np.array(seen["FLUXERR_APER"], float).reshape(-1),
                            "sign": float(sign),
                            "flags": 0,
                        }
                    )
                )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return pd.concat(found, ignore_index=True), seconds
