"""Joules of a piece of work: measured where a counter can be read, else estimated and marked so."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

_RAPL = Path("/sys/class/powercap")

# Without a counter: a busy server core draws some 5-10 W and its share of memory and uncore as much again. The
# figure is good to a factor of two, which is why it is marked.
WATTS_PER_CORE = 12.0


def _rapl_packages() -> list[Path]:
    """Return the readable energy counters of whole processor packages."""
    found = []
    for folder in sorted(_RAPL.glob("intel-rapl:*")) if _RAPL.is_dir() else []:
        if folder.name.count(":") != 1:
            continue  # a part of a package, counted in it already
        counter = folder / "energy_uj"
        try:
            counter.read_text()
        except OSError:
            continue
        found.append(folder)
    return found


def _gpu_millijoules() -> float | None:
    """Return the energy counters of all GPUs since their driver was loaded, mJ; None where there are none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        total = sum(
            pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(i))
            for i in range(pynvml.nvmlDeviceGetCount())
        )
    except pynvml.NVMLError:
        return None
    return float(total)


def _cpu_seconds() -> float:
    process = psutil.Process()
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        # Children that have ended meanwhile count too, as what their parent has waited for.
        total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass
class EnergyMeter:
    """Context manager: `joules`, `seconds` and `source` of what ran inside it.

    `source` is ``rapl`` or ``estimated`` for the processor, with ``+nvml`` where GPUs were counted. RAPL counts
    the whole package, whoever used it; the estimate counts this process and its children only.
    """

    joules: float = float("nan")
    seconds: float = float("nan")
    source: str = "estimated"
    _start: float = field(default=0.0, repr=False)
    _rapl: dict[Path, float] = field(default_factory=dict, repr=False)
    _gpu: float | None = field(default=None, repr=False)
    _cpu: float = field(default=0.0, repr=False)

    def __enter__(self) -> EnergyMeter:
        self._start = time.perf_counter()
        self._rapl = {folder: float((folder / "energy_uj").read_text()) for folder in _rapl_packages()}
        self._gpu = _gpu_millijoules()
        self._cpu = _cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._rapl:
            self.source, self.joules = "rapl", 0.0
            for folder, before in self._rapl.items():
                spent = float((folder / "energy_uj").read_text()) - before
                if spent < 0:  # the counter wrapped round
                    spent += float((folder / "max_energy_range_uj").read_text())
                self.joules += spent * 1e-6
        else:
            self.source, self.joules = "estimated", (_cpu_seconds() - self._cpu) * WATTS_PER_CORE
        after = _gpu_millijoules()
        if self._gpu is not None and after is not None:
            self.joules += (after - self._gpu) * 1e-3
            self.source += "+nvml"
