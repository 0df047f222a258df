"""How a walk looks on a terminal: a bar over exposures, and a line for every run that ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from astrid_pipeline.driver.runner import RunResult
from astrid_pipeline.night.plan import Step

#: What a person reads for a job's name.
WORDS = {
    "ingest": "fetched",
    "make_masters": "masters",
    "calibrate_night": "calibrated",
    "make_references": "references",
    "process_night": "differenced",
    "take_alerts": "alerts",
    "retrain": "trained",
}


class Display:
    """Shows progress on a terminal; where output is no terminal, only the lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("frames"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: Any = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def begin(self, steps: Sequence[Step]) -> None:
        """Say what starts now."""
        kinds = ", ".join(sorted({WORDS.get(step.job, step.job) for step in steps}))
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(f"to be {kinds}", total=sum(max(s.exposures, 1) for s in steps))

    def say(self, sentence: str) -> None:
        """Say something about the whole."""
        self.console.print(escape(sentence), soft_wrap=True)

    def done(self, result: RunResult) -> None:
        """Say what became of a run."""
        step = result.step
        if self._task is not None:
            self._progress.advance(self._task, max(step.exposures, 1))
        mark = "[red]✗[/]" if result.error else ("[yellow]![/]" if result.bad_checks else "[green]✓[/]")
        frames = f"{step.exposures} frames" if step.exposures else ""
        self.console.print(
            f" {mark} {WORDS.get(step.job, step.job):<12}{escape(step.partition.replace('|', '  ')):<36}"
            f"[dim]{frames:>10}{result.seconds:7.1f} s[/]",
            soft_wrap=True,
        )
        if result.error:
            self.console.print(f"   [red]{escape(result.error)}[/]", soft_wrap=True)
        for check in result.bad_checks:
            self.console.print(f"   [yellow]check failed:[/] {escape(check)}", soft_wrap=True)
