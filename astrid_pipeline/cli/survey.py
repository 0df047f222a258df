"""The commands about fields and nights: demo, dev, ingest, run, backfill, status."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from astrid_pipeline.cli import doctor, fields, runs
from astrid_pipeline.cli.console import err, out
from astrid_pipeline.errors import ConfigError

_Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", "-w", min=1, help="How many runs go on at once. Default: ASTRID_WORKERS, or 2."
    ),
]
_FieldName = Annotated[
    str, typer.Argument(metavar="FIELD", help="Name of the field, as in `astrid field list`.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("demo")(demo)
    app.command("dev")(dev)
    app.add_typer(fields.app, name="field")
    app.command("ingest")(ingest)
    app.command("run")(run)
    app.command("backfill")(backfill)
    app.command("status")(status)


def demo(
    workers: _Workers = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Folder for everything the demo makes. Default: ASTRID_HOME."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="One field and two nights only, and no training: a first look."),
    ] = False,
) -> None:
    """Take a simulated survey from raw frames to detections, and train a model on what was found.

    Two fields, four nights, two filters, three exposures each: raw frames with bias, darks and flats, clouds, cosmic
    rays, bad columns, a satellite trail, supernovae, variable stars and asteroids. Ends with a table of what was found
    and missed, and with the lines that open the results. Run again, it does nothing twice.

    Examples:

    - `astrid demo` takes about ten minutes on two cores

    - `astrid demo --quick` for a first look

    - `astrid demo --home /tmp/astrid-demo` keeps it apart from your own data
    """
    from astrid_pipeline import driver

    driver.demo(out, workers, home, quick)


def dev() -> None:
    """Start everything a person works with, and say where; Ctrl-C ends all of it.

    The database, the Dagster page with its daemon (port 3000) and MLflow (port 5000). Ports, store and servers are
    set by ASTRID_* variables; see the README's table.

    Examples:

    - `astrid dev`

    - `ASTRID_DAGSTER_PORT=3001 astrid dev` if 3000 is taken
    """
    from astrid_pipeline.services.dev import run_dev

    raise typer.Exit(run_dev() or 0)


def ingest(
    field: Annotated[
        str | None, typer.Argument(metavar="[FIELD]", help="Name of the field. Default: all fields.")
    ] = None,
    workers: _Workers = None,
) -> None:
    """Look in the archive for new exposures of a field, and fetch them.

    Examples:

    - `astrid ingest` looks for all fields

    - `astrid ingest m31-north`
    """
    from astrid_pipeline import driver
    from astrid_pipeline.driver.display import Display

    catalogue = driver.open_catalogue()
    names = [f.name for f in catalogue.fields()] if field is None else [catalogue.field(field).name]
    if not names:
        raise ConfigError(
            "no field is watched yet", remedy="add one with `astrid field add` or `field discover`"
        )
    results = []
    with Display(err) as display:
        for name in names:
            results += driver.ingest(name, workers, display.done)
    runs.conclude(results, "Nothing new: everything the archive has is in the store.")


def run(
    field: _FieldName,
    night: Annotated[str, typer.Argument(metavar="NIGHT", help="Date of the evening, YYYY-MM-DD.")],
    workers: _Workers = None,
) -> None:
    """Make one night of one field, from its raw exposures to detections, with what it rests on.

    Calibration frames, and earlier nights that the reference is built from, are made first if they are missing.

    Examples:

    - `astrid run m31-north 2026-03-14`
    """
    wanted = _night(night)
    from astrid_pipeline import driver
    from astrid_pipeline.driver.display import Display

    with Display(err) as display:
        results = driver.run(field, wanted, workers, display.done)
    runs.conclude(results, f"{field} {wanted} is made already.")


def backfill(
    field: _FieldName,
    start: Annotated[
        str | None,
        typer.Argument(metavar="[START]", help="First night, YYYY-MM-DD. Default: the archive's first."),
    ] = None,
    end: Annotated[
        str | None,
        typer.Argument(
            metavar="[END]", help="Last night, YYYY-MM-DD; it is made too. Default: the archive's last."
        ),
    ] = None,
    first_night: Annotated[str | None, typer.Option("--from", help="The same as START.")] = None,
    last_night: Annotated[str | None, typer.Option("--to", help="The same as END.")] = None,
    workers: _Workers = None,
) -> None:
    """Make all nights of a field in a range, side by side; what is made already is left as it is.

    Nights without exposures cost nothing; a night that fails is named, the others are made. Stopped or killed in
    between, it goes on where it was when it is called again. Earlier nights that the reference is made of are
    calibrated too, whatever the range.

    Examples:

    - `astrid backfill m31-north --from 2026-03-01 --to 2026-03-31 --workers 4`

    - `astrid backfill m31-north` makes everything that the archive has
    """
    for one, other, name in ((start, first_night, "--from"), (end, last_night, "--to")):
        if one is not None and other is not None and one != other:
            raise ConfigError(f"{one} and {other} cannot both hold", where=name, remedy="give the night once")
    first, last = (
        None if text is None else _night(text) for text in (start or first_night, end or last_night)
    )
    if first is not None and last is not None and last < first:
        raise ConfigError(f"the last night, {last}, is before the first, {first}", remedy="exchange the two")
    from astrid_pipeline import driver
    from astrid_pipeline.driver.display import Display

    with Display(err) as display:
        results = driver.backfill(
            field, first, last, workers, display.done, begin=display.begin, say=display.say
        )
    runs.conclude(results, f"Nothing to do for {field}{_span(first, last)}.")


def status() -> None:
    """Say what there is: fields, nights, candidates and detections, and where everything is kept.

    Also what is wrong with the store or the disks; `astrid doctor` looks at everything.

    Examples:

    - `astrid status`
    """
    from rich.table import Table

    from astrid_pipeline import driver
    from astrid_pipeline.services import checkup
    from astrid_pipeline.settings import get_settings

    settings = get_settings()
    catalogue = driver.open_catalogue()
    nights = catalogue.nights()
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("field", "nights", "first", "last", "exposures", "candidates", "detections"):
        table.add_column(name, justify="left" if name == "field" else "right")
    fields_ = catalogue.fields()
    for field in fields_:
        mine = nights[nights["field"] == field.name]
        dates = (
            [str(value) for value in (mine["night"].min(), mine["night"].max())] if len(mine) else ["—", "—"]
        )
        sums = [f"{int(mine[name].fillna(0).sum()):,}" for name in ("exposures", "candidates", "detections")]
        table.add_row(field.name, str(len(mine)), *dates, *sums)
    if fields_:
        out.print(table)
    else:
        out.print("No field is watched yet: `astrid field add`, `astrid field discover`, or `astrid demo`.")
    counts = catalogue.status()
    told = {name: counts.get(name, 0) for name in ("models", "training_runs", "training_datasets")}
    out.print("  ".join(f"[dim]{name.replace('_', ' ')}[/] {value}" for name, value in told.items()))
    out.print(f"[dim]store[/] {settings.store_url}  [dim]home[/] {settings.home}", soft_wrap=True)
    for finding in checkup.quick(settings):
        if not finding.ok:
            doctor.show(finding)


def _span(first: str | None, last: str | None) -> str:
    return (f" from {first}" if first else "") + (f" to {last}" if last else "")


def _night(text: str) -> str:
    """Return YYYY-MM-DD, or raise ConfigError."""
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a night", remedy="write the evening's date as YYYY-MM-DD"
        ) from error
