"""What NVIDIA's management library says of the GPUs of this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One GPU: its number and name, watts now, bytes of memory in use and in all, share of time it computes (0–1).

    A value that the card does not tell is not-a-number.
    """

    index: int
    name: str
    watts: float
    memory_used: float
    memory_total: float
    busy: float


def read() -> list[Card]:
    """Return the GPUs; none where there is no NVIDIA driver."""
    import pynvml

    def told(ask: object, of: object) -> float:
        try:
            return float(ask(of))  # type: ignore[operator]
        except pynvml.NVMLError:
            return float("nan")

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            cards.append(
                Card(
                    index,
                    name.decode() if isinstance(name, bytes) else str(name),
                    told(lambda h: pynvml.nvmlDeviceGetPowerUsage(h) / 1000.0, handle),
                    told(lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).used, handle),
                    told(lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).total, handle),
                    told(lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu / 100.0, handle),
                )
            )
        return cards
    finally:
        pynvml.nvmlShutdown()
