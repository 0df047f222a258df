"""`astrid review`: the vetting page and the API; catalogues to match against; what people have decided, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from astrid_pipeline.cli.console import out

app = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="Look at candidates and decide.")


def register(parent: typer.Typer) -> None:
    """Add the commands to `parent`."""
    parent.add_typer(app, name="review")


@app.callback()
def review(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="Port. Default: ASTRID_REVIEW_PORT, or 8000.")
    ] = None,
) -> None:
    """Start the vetting page and the REST API alone; `astrid dev` starts them beside everything else.

    As long as nobody has a key or a password, whoever sits at this machine may do everything, and nobody else anything;
    `astrid key` changes that.

    Examples:

    - `astrid review`, then open the address that it prints

    - `astrid review match gaia.parquet --kind star` to see stars at the spot

    - `astrid review export labels.csv`
    """
    if context.invoked_subcommand is not None:
        return
    from astrid_pipeline.review.app import serve
    from astrid_pipeline.services.dev import check_port
    from astrid_pipeline.settings import get_settings

    settings = get_settings()
    if port is not None:
        settings = settings.model_copy(update={"review_port": port})
    check_port(settings.host, settings.review_port, "ASTRID_REVIEW_PORT")
    out.print(
        f"vetting page   http://{settings.host}:{settings.review_port}   (Ctrl-C ends it)", soft_wrap=True
    )
    serve(settings)


@app.command("match")
def match(
    path: Annotated[Path, typer.Argument(help="CSV, ECSV, Parquet, VOTable or FITS table of positions.")],
    kind: Annotated[
        Literal["galaxy", "star", "variable", "transient"],
        typer.Option("--kind", help="What its entries are."),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Default: the file's name.")] = None,
) -> None:
    """Keep a catalogue to match candidates against; one of the same name is replaced.

    Examples:

    - `astrid review match known_supernovae.csv --kind transient`
    """
    from astrid_pipeline.catalog import access
    from astrid_pipeline.catalog.matching import add_catalogue
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog, name = open_catalogue(), name or path.stem
    count = add_catalogue(catalog, name, kind, path)
    access.audit(catalog, user_name(), "keep catalogue", {"name": name, "kind": kind, "entries": count})
    out.print(f"{name}: {count} entries", soft_wrap=True)


@app.command("export")
def export(
    path: Annotated[Path, typer.Argument(help="Where to: .csv, .vot, .parquet, or .json for a TNS report.")],
    what: Annotated[
        Literal["labels", "objects"],
        typer.Option("--what", help="Label events, or objects with their consensus."),
    ] = "labels",
    reporter: Annotated[str, typer.Option("--reporter", help="For TNS: who reports.")] = "",
) -> None:
    """Write labels or objects as CSV, VOTable or Parquet, or the confirmed transients as a TNS bulk report.

    The TNS report is only written: nothing is ever sent.

    Examples:

    - `astrid review export labels.csv`

    - `astrid review export objects.vot --what objects`

    - `astrid review export tns.json --reporter "A. Observer"`
    """
    from astrid_pipeline.catalog import access
    from astrid_pipeline.catalog import export as exports
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog = open_catalogue()
    count = exports.write(catalog, path, what, reporter=reporter)
    # The file's name, not where it lies: the trail is read by others.
    access.audit(catalog, user_name(), "export", {"what": what, "file": path.name, "rows": count})
    out.print(f"{count} rows in {path}", soft_wrap=True)


@app.command("hold")
def hold(why: Annotated[str, typer.Option("--why", help="Told to everybody.")] = "") -> None:
    """Hold the loop: no detector is trained or promoted from labels until `astrid review release`.

    Examples:

    - `astrid review hold --why "new camera since Monday"`
    """
    from astrid_pipeline.catalog import loop
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog = open_catalogue()
    loop.hold(catalog, user_name(), why)
    out.print(str(loop.held(catalog)), soft_wrap=True)


@app.command("release")
def release() -> None:
    """Let the loop go on."""
    from astrid_pipeline.catalog import loop
    from astrid_pipeline.resources.catalogue import open_catalogue

    loop.release(open_catalogue(), user_name())
    out.print("the loop goes on")


@app.command("loop")
def turns() -> None:
    """Tell what people's labels have taught: the turns of the loop, each with what came of it and why."""
    from astrid_pipeline.catalog import loop
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.settings import get_settings

    catalog = open_catalogue()
    found = loop.turns(catalog)
    held = loop.held(catalog)
    count = loop.labels_since(catalog, found[0]["started_at"] if found else None)
    least = get_settings().learn_after
    out.print(
        f"{count} new labels{f' of {least}' if least else ''}{f'; {held}' if held else ''}", soft_wrap=True
    )
    for turn in found:
        when = turn["started_at"].strftime("%Y-%m-%d %H:%M")
        out.print(
            f"{when}  {turn['dataset'] or '–'}  {turn['status']}: {turn['reason'] or ''}", soft_wrap=True
        )


def user_name() -> str:
    """Return who types, for the audit trail."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "local"
