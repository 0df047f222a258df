"""Using the cores that are there: independent strips of a frame, treated side by side, with one result always."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def workers() -> int:
    """Return how many threads may work: OMP_NUM_THREADS where it is set, else the cores this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if stated.isdigit() and int(stated) > 0:
        return int(stated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def strips(height: int, rows: int) -> list[slice]:
    """Return the slices that cut `height` rows into strips of `rows`, the last one shorter."""
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def each(function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> list[_Result]:
    """Return `function` of every part, in their order; on several threads where there are several cores.

    The parts must not hang on one another. NumPy lets go of the interpreter while it works on an array, so that
    threads are enough. An exception in any part is raised here.
    """
    parts = list(parts)
    threads = min(workers(), len(parts))
    if threads <= 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, parts))
