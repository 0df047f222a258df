"""Every method on the same simulated pairs, many pairs at once on the cores that are free."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astrid_pipeline.errors import AstridError
from astrid_pipeline_tests.benchmarks.figures import Figure, figures
from astrid_pipeline_tests.benchmarks.judge import Grounds, Verdict, judge
from astrid_pipeline_tests.benchmarks.known import CROWD, known_pair
from astrid_pipeline_tests.benchmarks.methods import SLOW, available, ready
from astrid_pipeline_tests.benchmarks.peers import PeerError

#: What a method may fail with on a pair without ending the comparison: it is named, with its error.
FAILURES = (AstridError, PeerError, ValueError, TypeError, ArithmeticError, RuntimeError, OSError)


@dataclass(frozen=True)
class Task:
    """One pair, and the methods that get it."""

    case: str
    index: int
    seed: int
    side: int
    methods: tuple[str, ...]
    variance: str = "data"
    crowd: float = CROWD


@dataclass
class Result:
    """What came of a task: verdicts by method, or the error of a method that failed."""

    task: Task
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def work(task: Task) -> Result:
    """Make the pair, prepare both frames once, and judge each method on them."""
    import torch

    torch.set_num_threads(1)
    known = known_pair(
        task.case, task.seed, task.index, task.side, variance=task.variance, transients=task.crowd
    )
    result = Result(task)
    frames = [ready(frame) for frame in (known.pair.science, known.pair.reference)]
    grounds = Grounds.of(known)
    methods = available()
    for name in task.methods:
        try:
            result.verdicts[name] = judge(grounds, methods[name](*frames))
        except FAILURES as error:
            result.errors[name] = f"{type(error).__name__}: {error}"
    for verdict in result.verdicts.values():
        verdict.false = with_neighbours(verdict.false, grounds)
    return result


def with_neighbours(false: pd.DataFrame, grounds: Grounds) -> pd.DataFrame:
    """Say of each false peak what lies next to it: for finding out why it is there."""
    if not len(false):
        return false
    from scipy.spatial import cKDTree

    known = grounds.known
    bright = known.sources[known.sources.flux * known.scale > 200.0]
    distance, index = cKDTree(bright[["x", "y"]].to_numpy(float)).query(false[["x", "y"]].to_numpy(float))
    row, column = false.y.to_numpy(int), false.x.to_numpy(int)
    from scipy import ndimage

    masked = ndimage.distance_transform_edt((known.pair.science.mask | known.pair.reference.mask) == 0)
    return false.assign(
        source=bright["kind"].to_numpy()[index],
        source_flux=bright["flux"].to_numpy()[index] * known.scale,
        source_distance=distance,
        mask_distance=masked[row, column],
    )


def plan(
    cases: list[str], names: list[str], pairs: int, slow_pairs: int, seed: int, side: int, variance: str
) -> list[Task]:
    """Return the tasks; methods of `SLOW` get the first `slow_pairs` pairs of each case."""
    tasks = []
    for case in cases:
        # Peers are compared on the six cases; that pixels are correlated only AstrID claims to see.
        quick = [n for n in names if n not in SLOW and ("+" not in case or n.startswith("astrid"))]
        slow = [n for n in names if n in SLOW and "+" not in case]
        for index in range(pairs if "+" not in case else max(1, pairs // 4)):
            methods = (*quick, *(slow if index < slow_pairs else []))
            if methods:
                tasks.append(Task(case, index, seed, side, tuple(methods), variance))
    # The longest first, so that no core is left alone with one at the end.
    return sorted(tasks, key=lambda t: (-len(set(t.methods) & set(SLOW)), t.index))


class Comparison:
    """The results of tasks as they come in, in whatever order."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks
        self.verdicts: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
        self.false: dict[tuple[str, str], list[pd.DataFrame]] = defaultdict(list)
        self.errors: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, result: Result) -> None:
        """Take a task's result in; tell which methods failed."""
        task = result.task
        for name, verdict in result.verdicts.items():
            self.verdicts[task.case, name].append(verdict)
            self.false[task.case, name].append(verdict.false.assign(index=task.index, seed=task.seed))
        for name, text in result.errors.items():
            self.errors[task.case, name].append(f"pair {task.index}: {text}")
            print(f"{task.case}: {name} failed on pair {task.index}: {text}", file=sys.stderr)

    def figures(self) -> Figure:
        """Return the figures by case and method, of what is there."""
        out: Figure = {}
        for case in dict.fromkeys(task.case for task in self.tasks):
            out[case] = {}
            for name in dict.fromkeys(n for task in self.tasks if task.case == case for n in task.methods):
                key = (case, name)
                if self.verdicts[key]:
                    out[case][name] = figures(self.verdicts[key])
                    peaks = pd.concat(self.false[key], ignore_index=True)
                    lone = peaks[~peaks.artefact.astype(bool)].head(200).round(2)
                    out[case][name]["false_peaks"] = json.loads(lone.to_json(orient="records"))
                if self.errors[key]:
                    out[case].setdefault(name, {})["errors"] = self.errors[key]
        return out


def compare(tasks: list[Task], workers: int, told: Callable[[int, int, Comparison], None]) -> Figure:
    """Run all tasks and return the figures by case and method; Ctrl-C returns those of what is done.

    `told` hears after each task how many are done, of how many, and what there is.
    """
    comparison = Comparison(tasks)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        jobs = [pool.submit(work, task) for task in tasks]
        for done, job in enumerate(as_completed(jobs), 1):
            comparison.add(job.result())
            told(done, len(jobs), comparison)
    except KeyboardInterrupt:
        print("stopped: the figures are of the pairs that were done", file=sys.stderr)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return comparison.figures()


def save(path: Path, results: dict[str, Any]) -> None:
    """Write figures as JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        return str(value)

    path.write_text(json.dumps(results, indent=1, default=plain, ensure_ascii=False))
