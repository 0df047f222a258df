"""Processor time of processes with all their children: what tells on a machine that others use too."""

from __future__ import annotations

import os

import psutil


def seconds(pid: int) -> float:
    """Return user and system time, seconds, of a process and all below it, those that ended included.

    Of this very process its own alone, for what it measures is below it. 0 if it is gone.
    """
    try:
        root = psutil.Process(pid)
        spent = root.cpu_times()
        if pid == os.getpid():
            return float(spent.user + spent.system)
        total = spent.user + spent.system + spent.children_user + spent.children_system
        below = root.children(recursive=True)
    except psutil.NoSuchProcess:
        return 0.0
    for child in below:
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return float(total)


class Meter:
    """Adds up what named processes take from each `start` to the `stop` after it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._begun: dict[str, tuple[int, float]] = {}

    def start(self, **pids: int) -> None:
        """Begin to count the processes of these numbers."""
        self._begun = {name: (pid, seconds(pid)) for name, pid in pids.items()}

    def stop(self) -> None:
        """Add what was taken since `start`."""
        for name, (pid, before) in self._begun.items():
            self.spent[name] = self.spent.get(name, 0.0) + seconds(pid) - before
        self._begun = {}
