"""Measure the differencing beside its peers on the same frames: ``python -m astrid_pipeline_tests.benchmarks``.

Prints a table, says which of the figures to reach are reached, and writes JSON with all intervals. The default judges
at least a thousand changes in each bin of S/N; it takes a quarter of an hour on two free cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are loaded: figures are for one core

from astrid_pipeline.simulation import CASE_SHAPE, CASES
from astrid_pipeline_tests.benchmarks import accuracy, methods, peers, report
from astrid_pipeline_tests.benchmarks.known import CORRELATED

#: Pairs of 1024² in which 400 changes a megapixel give a thousand of S/N 5 to 7.
PAIRS = 18
PARTS = ("accuracy", "registration", "speed", "real")


def main(arguments: list[str] | None = None) -> int:
    """Run what was chosen; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m astrid_pipeline_tests.benchmarks", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: all")
    parser.add_argument("--cases", default=",".join((*CASES, *CORRELATED)), help="default: all nine")
    parser.add_argument("--methods", default="", help="comma-separated; default: all that are installed")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of frames a case")
    parser.add_argument("--slow-pairs", type=int, default=1, help="pairs that the slow peers get")
    parser.add_argument("--side", type=int, default=CASE_SHAPE[0], help="pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--variance", default="data", choices=("data", "true", "none"), help="what is handed over"
    )
    parser.add_argument("--speed", default="1024,3072", help="sides to time")
    parser.add_argument("--full", action="store_true", help="slow peers get 4 pairs; speed up to 10240²")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-install", action="store_true", help="do not install the peers")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    chosen = parser.parse_args(arguments)
    if chosen.full:
        chosen.slow_pairs, chosen.speed = max(4, chosen.slow_pairs), "1024,2048,3072,10240"
    parts = chosen.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)} (there are {', '.join(PARTS)})")
    results: dict[str, Any] = {
        "settings": {**vars(chosen), "output": str(chosen.output)},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    if "accuracy" in parts:
        if not chosen.no_install:
            for name, reason in peers.install().items():
                print(f"{name} could not be installed: {reason}", file=sys.stderr)
        names = list(methods.available())
        if chosen.methods:
            wanted = chosen.methods.split(",")
            if unknown := sorted(set(wanted) - set(names)):
                parser.error(f"not here: {', '.join(unknown)} (there are {', '.join(names)})")
            names = wanted
        tasks = accuracy.plan(
            chosen.cases.split(","),
            names,
            chosen.pairs,
            chosen.slow_pairs,
            chosen.seed,
            chosen.side,
            chosen.variance,
        )
        told = progress(time.monotonic(), results, chosen.output)
        results["cases"] = accuracy.compare(tasks, chosen.workers, told)
        print(report.HEADER)
        for case, found in results["cases"].items():
            for line in report.lines(case, found):
                print(line)
        accuracy.save(chosen.output, results)
    if "registration" in parts:
        from astrid_pipeline_tests.benchmarks import registration

        results["registration"] = registration.measure(chosen.seed, chosen.side)
        for line in registration.lines(results["registration"]):
            print(line)
        accuracy.save(chosen.output, results)
    if "speed" in parts:
        from astrid_pipeline_tests.benchmarks import speed

        results["speed"] = []
        for side in (int(part) for part in chosen.speed.split(",")):
            results["speed"].append(speed.measure(side))
            print(speed.line(results["speed"][-1]), flush=True)
            accuracy.save(chosen.output, results)
    if "real" in parts:
        from astrid_pipeline_tests.benchmarks import real

        results["real"] = real.measure(chosen.slow_pairs)
    found = report.checks(results)
    results["checks"] = [vars(check) for check in found]
    accuracy.save(chosen.output, results)
    missed = [check for check in found if not check.met]
    print(f"\n{len(found) - len(missed)} of {len(found)} figures reached" + (":" if missed else "."))
    for check in missed:
        print(f"  not {check.wanted:22s} {check.what}: {check.measured}")
    print(f"written: {chosen.output}")
    return 0


def progress(started: float, results: dict[str, Any], output: Path) -> Callable[[int, int, Any], None]:
    """Return a function that keeps what there is every tenth pair, and on a terminal tells how far it is."""

    def told(done: int, of: int, comparison: accuracy.Comparison) -> None:
        if done % 10 == 0:
            accuracy.save(output, {**results, "cases": comparison.figures(), "pairs_done": done, "pairs": of})
        if sys.stderr.isatty():
            left = (time.monotonic() - started) / done * (of - done)
            text = f"\r{done} of {of} pairs, {left / 60:.0f} min to go   "
            print(text, end="\n" if done == of else "", file=sys.stderr)

    return told


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
