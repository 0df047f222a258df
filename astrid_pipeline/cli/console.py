"""The terminal: one console for results (stdout), one for progress and errors (stderr)."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

#: Results, so that `astrid … | less` and `--json > file` hold nothing else.
out = Console(highlight=False)
#: Progress, remarks and errors.
err = Console(stderr=True, highlight=False)


def quiet_libraries(verbose: bool = False) -> None:
    """Keep libraries' notes about headers and downloads off the terminal; with `verbose`, let logs through."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )
    if verbose:
        return
    for name in ("alembic", "mlflow", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def print_error(text: str) -> None:
    """Print one line that says what is wrong, however long, without breaking it."""
    err.print("[bold red]error:[/] ", end="")
    err.print(text, markup=False, soft_wrap=True)


def print_wide(table: Table) -> None:
    """Print a table as wide as it is: a path that was cut off, or broken at a column's edge, is of no use."""
    Console(file=out.file, force_terminal=out.is_terminal, highlight=False, width=2000).print(table)


@contextlib.contextmanager
def stages(total: int, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that names the stage that begins; each stage stays on the terminal with its seconds.

    With `quiet`, nothing is shown.
    """
    if quiet:
        yield lambda name: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("", total=total)
        running: list[tuple[str, float]] = []

        def close() -> None:
            name, started = running.pop()
            progress.console.print(f"  [green]✓[/] {name:<28}[dim]{time.perf_counter() - started:6.1f} s[/]")
            progress.advance(bar)

        def begin(name: str) -> None:
            if running:
                close()
            running.append((name, time.perf_counter()))
            progress.update(bar, description=name)

        yield begin
        if running:
            close()
