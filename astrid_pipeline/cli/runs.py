"""Runs of the pipeline on the terminal: a line for each as it ends, and what was bad at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from astrid_pipeline.cli.console import err, out

if TYPE_CHECKING:
    from astrid_pipeline.driver import RunResult


@contextlib.contextmanager
def telling(what: str) -> Iterator[Callable[[RunResult], None]]:
    """Yield a function that tells each finished run in a line, under a clock that says the command is alive."""
    done = 0
    with err.status(f"{what} …", spinner="dots") as status:

        def tell(result: RunResult) -> None:
            nonlocal done
            done += 1
            status.update(f"{what} … {done} runs done")
            err.print(line(result), soft_wrap=True)

        yield tell


def line(result: RunResult) -> str:
    """Return one run as a line of rich markup."""
    from rich.markup import escape

    step = result.step
    if result.error is not None:
        sign, note = "[red]✗[/]", f"[red]{escape(result.error)}[/]"
    elif result.bad_checks:
        sign, note = "[yellow]![/]", f"[yellow]{escape('; '.join(result.bad_checks))}[/]"
    else:
        sign, note = "[green]✓[/]", ""
    exposures = f"{step.exposures} exposures" if step.exposures else ""
    name = f"{step.job:<20} {escape(step.partition):<28}"
    return f"  {sign} {name} {exposures:<14} {result.seconds:6.1f} s  {note}".rstrip()


def conclude(results: Sequence[RunResult], nothing: str) -> None:
    """Print what became of the runs; end the command with exit code 1 if any failed.

    Parameters
    ----------
    nothing:
        What to say where there was nothing to do.
    """
    if not results:
        out.print(nothing)
        return
    failed = [result for result in results if result.error is not None]
    doubtful = [result for result in results if result.error is None and result.bad_checks]
    parts = [f"{len(results) - len(failed)} of {len(results)} runs done"]
    if doubtful:
        parts.append(f"{len(doubtful)} with failed checks")
    out.print(", ".join(parts) + ".")
    if failed:
        err.print(f"[red]{len(failed)} failed[/]; see the Dagster page (`astrid dev`) for their logs.")
        raise typer.Exit(1)
