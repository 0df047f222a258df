"""Core-seconds and peak memory, each step in a process of its own.

Run as ``python -m astrid_pipeline_tests.benchmarks.speed FOLDER STEP REPEAT`` on what `measure` wrote; prints JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Larger frames are laid out of this one: what counts is the number of pixels.
LARGEST_SIMULATED = 3072
STEPS = ("filters", "subtract", "whole", "calibrate")


def measure(side: int, seed: int = 0, repeat: int = 3) -> dict[str, Any]:
    """Return the figures of frames of side² pixels, each step on one core, and with both for the speed-up."""
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        _call("make", folder, side, seed, threads=1)
        out: dict[str, Any] = {"side": side, "load": os.getloadavg()[0]}
        steps = STEPS if side <= LARGEST_SIMULATED else STEPS[:2]
        for step in steps:
            out |= _call(step, folder, repeat if side <= LARGEST_SIMULATED else 1, 0, threads=1)
        cores = os.cpu_count() or 1
        if cores > 1 and side <= LARGEST_SIMULATED:
            one, many = (_call("wall", folder, repeat, 0, threads=n)["wall"] for n in (1, cores))
            out |= {"wall_one_core": one, "wall_all_cores": many, "cores": cores}
    return out


def _call(step: str, folder: Path, number: int, seed: int, *, threads: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    name = "astrid_pipeline_tests.benchmarks.speed"
    command = [sys.executable, "-m", name, str(folder), step, str(number), str(seed), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {f"{step}_error": (done.stderr.strip().splitlines() or ["killed"])[-1][:300], "wall": None}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(figure: dict[str, Any]) -> str:
    """Return the figures in words."""
    parts = [f"{figure['side']}²"]
    for key, what in (
        ("filters", "filters"),
        ("given", "subtract, PSFs given"),
        ("subtract", "subtract"),
        ("whole", "whole way"),
        ("calibrate", "calibrate"),
        ("cosmic_rays", "cosmic rays"),
        ("trails", "trails"),
        ("astroscrappy", "astroscrappy"),
    ):
        if figure.get(key) is not None:
            parts.append(f"{what} {figure[key]:.2f}")
        elif f"{key}_error" in figure:
            parts.append(f"{what} failed: {figure[f'{key}_error']}")
    text = ", ".join(parts) + " core-s/Mpix"
    for key in ("filters_bytes_per_pixel", "subtract_bytes_per_pixel", "whole_bytes_per_pixel"):
        if key in figure:
            text += f", {key.split('_')[0]} {figure[key]:.0f} B/px"
    if figure.get("wall_all_cores"):
        text += f"; {figure['wall_one_core'] / figure['wall_all_cores']:.2f} × on {figure['cores']} cores"
    return f"{text} (load {figure['load']:.1f})"


def make(folder: Path, side: int, seed: int) -> None:
    """Write a pair that lies apart, the same prepared and aligned, and a raw exposure with its masters."""
    from astrid_pipeline.imaging import align, prepare
    from astrid_pipeline_tests.benchmarks.registration import apart

    small = min(side, LARGEST_SIMULATED) if side <= LARGEST_SIMULATED else LARGEST_SIMULATED // 3
    (science, reference), _ = apart("distorted", seed, small, variance="none", transients=100.0)
    if side <= LARGEST_SIMULATED:
        pickle_to(folder / "raw.pickle", raw_exposure(science, seed))
    pickle_to(folder / "apart.pickle", (science, reference))
    aligned = align(reference, to=science)
    if side > LARGEST_SIMULATED:
        science, aligned = (_laid_out(frame, side) for frame in (science, aligned))
    bare = aligned.replace(psf=None, variance=None)
    pickle_to(folder / "bare.pickle", (science, bare if side <= LARGEST_SIMULATED else aligned))
    pickle_to(folder / "ready.pickle", (prepare(science), prepare(aligned)))


def _laid_out(frame: Any, side: int) -> Any:
    """Return a frame of side² pixels made of copies of a smaller one; its PSF is left to be measured."""
    from astrid_pipeline.imaging import Frame

    times = -(-side // frame.shape[0])
    planes = [
        None if plane is None else np.tile(plane, (times, times))[:side, :side]
        for plane in (frame.data, frame.variance, frame.mask)
    ]
    return Frame(planes[0], planes[1], planes[2], None, None, dict(frame.meta))


def raw_exposure(science: Any, seed: int) -> tuple[Any, Any]:
    """Return a raw exposure of a sky, and the masters of its camera."""
    from astrid_pipeline.imaging import RawExposure, build_masters
    from astrid_pipeline.imaging.raw import Amplifier, Kind
    from astrid_pipeline.simulation.camera import Camera

    camera = Camera(seed, science.shape)
    rng = np.random.default_rng(seed)
    height, width = science.shape

    def expose(expected: Any, seconds: float, kind: Kind, number: int) -> RawExposure:
        counts = camera.read(rng, np.asarray(expected, np.float32), seconds, []).astype(np.float32)
        amplifier = Amplifier(
            counts,
            (0, height, 0, width),
            (0, height, 0, width),
            (0, height, width + 4, width + camera.overscan),
            camera.gain,
            camera.read_noise,
        )
        meta = {
            "exposure_id": f"{kind}-{number}",
            "exposure": seconds,
            "filter": "r",
            "instrument": camera.name,
            "binning": "1x1",
            "saturation": camera.saturation,
            "mjd": 61000.0,
            "temperature": camera.temperature,
            "gain": camera.gain,
            "read_noise": camera.read_noise,
        }
        return RawExposure((amplifier,), kind, False, None, meta)

    flat = camera.flat("r")
    dark = np.zeros(science.shape, np.float32)
    masters = [expose(dark, 0, Kind.BIAS, i) for i in range(3)]
    masters += [expose(dark, 90, Kind.DARK, i) for i in range(3)]
    masters += [expose(30_000 * flat, 5, Kind.FLAT, i) for i in range(3)]
    return expose(np.maximum(science.data, 0) * flat, 90, Kind.LIGHT, 0), build_masters(masters)


def pickle_to(path: Path, what: Any) -> None:
    """Write a pickle."""
    with open(path, "wb") as file:
        pickle.dump(what, file, protocol=5)


def read_pickle(path: Path) -> Any:
    """Read it."""
    with open(path, "rb") as file:
        return pickle.load(file)


def peak() -> int:
    """Return the most memory this process has held since the last reset, bytes."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("VmHWM"):
            return int(text.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell VmHWM")


def forget_peak() -> None:
    """Make `peak` count anew."""
    Path("/proc/self/clear_refs").write_text("5")


def best(run: Callable[[], Any], pixels: int, repeat: int) -> float:
    """Return the least processor time of some runs, s a megapixel."""
    times = []
    for _ in range(repeat):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times) / (pixels / 1e6)


def time_subtraction(folder: Path, step: str, repeat: int) -> dict[str, float]:
    """Time a step on the frames of the folder, with its peak above the imports (inputs and outputs included)."""
    from astrid_pipeline.imaging import align, find_candidates, subtract
    from astrid_pipeline.imaging.subtract import pipeline

    def whole(science: Any, reference: Any) -> Any:
        return find_candidates(subtract(science, align(reference, to=science), device="cpu"))

    def part(science: Any, reference: Any) -> Any:
        return subtract(science, reference, device="cpu")

    # A small run loads what torch and scipy load on first use.
    warm_up(whole)
    forget_peak()
    before = peak()
    name = {"filters": "ready", "subtract": "bare", "whole": "apart"}[step]
    science, reference = read_pickle(folder / f"{name}.pickle")
    forget_peak()
    inner: list[float] = []
    filter_tiles = pipeline.filter_tiles

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        result = filter_tiles(*arguments, **named)
        inner.append(time.process_time() - started)
        return result

    pipeline.filter_tiles = timed  # type: ignore[assignment]
    run = whole if step == "whole" else part
    pixels = science.data.size
    seconds = best(lambda: run(science, reference), pixels, repeat)
    bytes_per_pixel = (peak() - before) / pixels
    if step == "filters":
        return {
            "filters": min(inner) / (pixels / 1e6),
            "given": seconds,
            "filters_bytes_per_pixel": bytes_per_pixel,
        }
    return {step: seconds, f"{step}_bytes_per_pixel": bytes_per_pixel}


def warm_up(run: Callable[..., Any]) -> None:
    """Run something small."""
    from astrid_pipeline_tests.benchmarks.registration import apart

    (science, reference), _ = apart("shifted", 5, 256)
    run(science, reference)


def time_calibration(folder: Path, repeat: int) -> dict[str, float]:
    """Time calibration proper, cosmic rays and trails (by what they add), and astroscrappy on the same pixels."""
    from astroscrappy import detect_cosmics

    from astrid_pipeline.imaging import calibrate

    raw, masters = read_pickle(folder / "raw.pickle")

    def run(trails: bool, rays: bool) -> Callable[[], Any]:
        return lambda: calibrate(raw, masters, find_trails=trails, find_cosmic_rays=rays)

    frame = run(True, True)()
    pixels = frame.data.size
    plain = best(run(False, False), pixels, repeat)
    rays = best(run(False, True), pixels, repeat)
    trails = best(run(True, False), pixels, repeat)
    noise = float(frame.meta["read_noise"])
    peer = best(lambda: detect_cosmics(frame.data, gain=1.0, readnoise=noise, verbose=False), pixels, 1)
    return {
        "calibrate": plain,
        "cosmic_rays": rays - plain,
        "trails": trails - plain,
        "astroscrappy": peer,
    }


def wall(folder: Path, repeat: int) -> dict[str, float]:
    """Return the least wall-clock time of `subtract` with everything measured, s."""
    from astrid_pipeline.imaging import subtract

    warm_up(lambda science, reference: subtract(science, science, device="cpu"))
    science, reference = read_pickle(folder / "ready.pickle")
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        subtract(science, reference, device="cpu")
        times.append(time.perf_counter() - started)
    return {"wall": min(times)}


def main(folder: Path, step: str, number: int, seed: int, threads: int) -> None:
    """Do one step and print what it took."""
    import torch

    torch.set_num_threads(threads)
    if step == "make":
        make(folder, number, seed)
        print("{}")
    elif step == "calibrate":
        print(json.dumps(time_calibration(folder, number)))
    elif step == "wall":
        print(json.dumps(wall(folder, number)))
    else:
        print(json.dumps(time_subtraction(folder, step, number)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(int(a) for a in sys.argv[3:6]))
