"""`astrid field`: which patches of sky are watched, and where their exposures come from."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from astrid_pipeline.cli.console import out
from astrid_pipeline.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Add, list and remove the fields that are watched.")

_ARCHIVE_HELP = (
    "Where its exposures are: `simulated`, or `folder:/path/to/fits/files`. Default: ASTRID_ARCHIVE."
)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `.`, `_` and `-`.")],
    ra: Annotated[str, typer.Option("--ra", help="ICRS right ascension: 10.6847, or 00:42:44.3.")],
    dec: Annotated[str, typer.Option("--dec", help="ICRS declination: 41.269, or +41:16:09.")],
    radius: Annotated[
        float, typer.Option("--radius", min=0.0, help="Degrees; frames centred within belong to it.")
    ] = 0.5,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", help="A filter to use; give it again for more. Default: all."),
    ] = None,
    archive: Annotated[str | None, typer.Option("--archive", "-a", help=_ARCHIVE_HELP)] = None,
    site_longitude: Annotated[
        float | None,
        typer.Option(
            "--site-longitude", help="East longitude of the observatory, degrees; makes nights local."
        ),
    ] = None,
) -> None:
    """Add a field, or change one that is there.

    Examples:

    - `astrid field add m31-north --ra 00:42:44.3 --dec +41:16:09 --radius 0.3 --archive folder:/data/m31`

    - `astrid field add sim-a --ra 150.1 --dec 2.2 --filter g --filter r --archive simulated`
    """
    from astrid_pipeline import driver
    from astrid_pipeline.archives import Field
    from astrid_pipeline.settings import get_settings

    field = Field(
        name=name,
        ra=_angle(ra, "--ra", hours=True) % 360,
        dec=_angle(dec, "--dec", hours=False),
        radius=radius,
        filters=tuple(filters or ()),
        archive=archive or get_settings().archive,
        site_longitude=site_longitude,
    )
    driver.fields_add([field], console=out)


@app.command("discover")
def discover(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="`simulated`, or `folder:/path/to/fits/files`.")
    ],
    watch: Annotated[bool, typer.Option("--add", help="Add the fields that are found.")] = False,
) -> None:
    """Show which fields an archive holds, and with --add, watch them.

    Files that cannot be used are named with the reason.

    Examples:

    - `astrid field discover folder:/data/nights` only looks

    - `astrid field discover folder:/data/nights --add`
    """
    from astrid_pipeline.archives import open_archive

    opened = open_archive(archive)
    found = opened.fields()
    for problem in getattr(opened, "problems", []):
        out.print(f"[yellow]![/] {problem}", soft_wrap=True)
    if not found:
        raise ConfigError(
            "no field was found", where=archive, remedy="see the problems above, or check the path"
        )
    if watch:
        from astrid_pipeline import driver

        driver.fields_add(found, console=out)
        return
    from rich.table import Table

    table = Table(box=None, header_style="dim")
    for column in ("field", "ra", "dec", "radius", "filters", "exposures"):
        table.add_column(column)
    for field in found:
        exposures = opened.exposures(field)
        names = ", ".join(sorted({record.filter for record in exposures}))
        table.add_row(
            field.name,
            f"{field.ra:.4f}",
            f"{field.dec:+.4f}",
            f"{field.radius:.2f}°",
            names,
            str(len(exposures)),
        )
    out.print(table)


@app.command("list")
def list_fields() -> None:
    """List the fields that are watched."""
    from astrid_pipeline import driver

    driver.fields_list(console=out)


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Stop watching a field. Its products and detections stay."""
    from astrid_pipeline import driver

    driver.fields_remove(name, console=out)


def _angle(text: str, option: str, *, hours: bool) -> float:
    """Return degrees from a number of degrees, or from sexagesimal text (hours for a right ascension)."""
    from astropy import units
    from astropy.coordinates import Angle

    try:
        value = float(text)
    except ValueError:
        try:
            value = float(Angle(text, unit=units.hourangle if hours else units.deg).deg)
        except (ValueError, units.UnitsError) as error:
            raise ConfigError(
                f"{text!r} is not an angle",
                where=option,
                remedy="write degrees, or three numbers as 12:34:56.7",
            ) from error
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is not an angle", where=option, remedy="write degrees")
    return value
