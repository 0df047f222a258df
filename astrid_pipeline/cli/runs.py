"""What became of the pipeline's runs, on the terminal and as exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from astrid_pipeline.cli.console import err, out

if TYPE_CHECKING:
    from astrid_pipeline.driver import RunResult


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
    failed = sum(result.error is not None for result in results)
    doubtful = sum(result.error is None and bool(result.bad_checks) for result in results)
    parts = [f"{len(results) - failed} of {len(results)} runs done"]
    if doubtful:
        parts.append(f"{doubtful} with failed checks")
    out.print(", ".join(parts) + ".")
    if failed:
        err.print(f"[red]{failed} failed[/]; the Dagster page (`astrid dev`) has their logs.")
        raise typer.Exit(1)
