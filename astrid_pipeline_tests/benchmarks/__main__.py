"""Compare the subtraction with its peers on the same made-up frames: ``python -m astrid_pipeline_tests.benchmarks``.

Prints a table and writes JSON. The default takes some minutes; ``--pairs 16`` gives a thousand transients a bin of S/N.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are loaded: figures are for one core

import numpy as np

from astrid_pipeline.errors import AstridError
from astrid_pipeline.simulation import CASE_SHAPE, CASES, simulate_pair
from astrid_pipeline_tests.benchmarks import speed
from astrid_pipeline_tests.benchmarks.judge import Tally
from astrid_pipeline_tests.benchmarks.methods import available, ready

#: Transients a megapixel: 50 px apart, far enough not to meet, and enough for narrow intervals.
CROWD = 400.0
#: Their S/N: dense where completeness bends.
SNR = (4.0, 40.0)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m astrid_pipeline_tests.benchmarks", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all six")
    parser.add_argument("--methods", default="", help="comma-separated; default: all that are installed")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of frames a case")
    parser.add_argument("--side", type=int, default=CASE_SHAPE[0], help="pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--true-psf", action="store_true", help="give the true PSFs instead of measuring them"
    )
    parser.add_argument(
        "--variance", default="data", choices=("data", "true"), help="variance maps handed over"
    )
    parser.add_argument("--speed", default="", help="sides to time, e.g. 1024,3072; default: none")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.json"))
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    methods = available()
    if chosen.methods:
        wanted = chosen.methods.split(",")
        unknown = sorted(set(wanted) - set(methods))
        if unknown:
            parser.error(f"not here: {', '.join(unknown)} (there are {', '.join(methods)})")
        methods = {name: methods[name] for name in wanted}
    results: dict[str, Any] = {
        "settings": {**vars(chosen), "output": str(chosen.output)},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "cases": {},
    }
    print(HEADER)
    for case in chosen.cases.split(","):
        results["cases"][case] = run_case(case, chosen, methods)
        print_case(case, results["cases"][case])
        chosen.output.write_text(json.dumps(results, indent=1))
    for side in filter(None, chosen.speed.split(",")):
        figures = speed.measure(int(side))
        results.setdefault("speed", []).append(figures)
        print(json.dumps(figures))
    chosen.output.write_text(json.dumps(results, indent=1))
    print(f"written: {chosen.output}")
    return 0


def run_case(case: str, chosen: argparse.Namespace, methods: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of each method; one that fails on a pair is named with its error."""
    tallies = {name: Tally() for name in methods}
    problems: dict[str, str] = {}
    options = {**CASES[case], "transients": CROWD, "snr": SNR, "variance": chosen.variance}
    for index in range(chosen.pairs):
        rng = np.random.default_rng([chosen.seed, index])
        pair = simulate_pair(rng, (chosen.side, chosen.side), **options)
        frames = [ready(frame, psf=chosen.true_psf) for frame in (pair.science, pair.reference)]
        for name, method in methods.items():
            if name in problems:
                continue
            try:
                tallies[name].add(pair, method(*frames))
            except (
                AstridError,
                ValueError,
                TypeError,
                ArithmeticError,
                RuntimeError,
                ImportError,
                OSError,
            ) as error:
                problems[name] = f"{type(error).__name__}: {error}"
                print(f"{case}: {name} failed: {problems[name]}", file=sys.stderr)
    out: dict[str, Any] = {name: tally.figures() for name, tally in tallies.items() if name not in problems}
    return {**out, **{name: {"error": text} for name, text in problems.items()}}


HEADER = (
    "case      method               σ   kurt mask%   FP+   FP-   art  c5-7 ideal c7-10 ideal   50%   gal"
    "        bias%        pull   gal  s/Mpx"
)


def print_case(case: str, figures: dict[str, Any]) -> None:
    """Print a line a method."""
    for name, f in figures.items():
        if "error" in f:
            print(f"{case:9s} {name:15s} {f['error'][:100]}")
            continue
        bias, pull, gal = (f.get(key) or {} for key in ("flux_bias", "pull", "pull_galaxies"))
        cells = [
            f"{case:9s} {name:15s} {f['score_sigma']:6.3f} {f['score_kurtosis']:6.2f}",
            f"{100 * f['masked_fraction']:5.1f} {f['false_positives_per_megapixel']:5.1f}",
            f"{f['false_negatives_per_megapixel']:5.1f} {f['on_artefacts_per_megapixel']:5.0f}",
            f"{_n(f['completeness_5_7']['value'])} {_n(f['ideal_5_7'])}",
            f"{_n(f['completeness_7_10']['value'])} {_n(f['ideal_7_10'])}",
            f"{_n(f['half_snr_sky'])} {_n(f['half_snr_galaxies'])} {_pm(bias, 100)} {_pm(pull, 1)}",
            f"{_n(gal.get('value'))} {f['core_seconds_per_megapixel']:6.2f}",
        ]
        print(" ".join(cells), flush=True)


def _n(value: float | None) -> str:
    return "    –" if value is None else f"{value:5.2f}"


def _pm(value: dict[str, Any], scale: float) -> str:
    if value.get("value") is None:
        return "          –"
    return f"{scale * value['value']:6.2f}±{scale * value['error']:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
