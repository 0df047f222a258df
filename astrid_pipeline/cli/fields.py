"""`astrid field`: which patches of sky are watched, and where their exposures come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from astrid_pipeline.cli.console import out, print_wide
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.archives import Field

app = typer.Typer(no_args_is_help=True, help="Add, list and remove the fields that are watched.")

_ARCHIVE_HELP = (
    "Where its exposures are: `simulated`, or `folder:/path/to/fits/files`. Default: ASTRID_ARCHIVE."
)
_Reference = Annotated[
    str,
    typer.Option(
        "--reference",
        help="What nights are compared with: `auto` (a stack of earlier nights), or `exposures:ID,ID`, the names of "
        "exposures that you know to be good.",
    ),
]


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
    reference: _Reference = "auto",
) -> None:
    """Add a field, or change one that is there. Its archive is asked at once what it has.

    Examples:

    - `astrid field add m31-north --ra 00:42:44.3 --dec +41:16:09 --radius 0.3 --archive folder:/data/m31`

    - `astrid field add sim-a --ra 150.1 --dec 2.2 --filter g --filter r --archive simulated`
    """
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
        reference=reference,
    )
    _watch([field])


@app.command("discover")
def discover(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="`simulated`, or `folder:/path/to/fits/files`.")
    ],
    watch: Annotated[bool, typer.Option("--add", help="Add the fields that are found.")] = False,
    reference: _Reference = "auto",
) -> None:
    """Show which fields an archive holds, and with --add, watch them.

    Files that cannot be used are named with the reason.

    Examples:

    - `astrid field discover folder:/data/nights` only looks

    - `astrid field discover folder:/data/nights --add`

    - `astrid field discover folder:/data/epochs --add --reference exposures:epoch3` compares all with one
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
        _watch([dataclasses.replace(field, reference=reference) for field in found])
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
    from rich.table import Table

    from astrid_pipeline import driver

    fields = driver.open_catalogue().fields()
    if not fields:
        out.print(
            "No field is watched yet: `astrid field add --help` and `astrid field discover --help` show how."
        )
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("field", "ra", "dec", "radius", "filters", "reference", "archive"):
        table.add_column(column)
    for field in fields:
        table.add_row(
            field.name,
            f"{field.ra:.5f}",
            f"{field.dec:+.5f}",
            f"{field.radius:.2f}°",
            ", ".join(field.filters) or "all",
            field.reference,
            field.archive,
        )
    print_wide(table)


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop watching a field and forget its catalogue rows; its products stay in the store."""
    from astrid_pipeline import driver

    catalogue = driver.open_catalogue()
    field = catalogue.field(name)
    if not yes:
        typer.confirm(f"Forget {field.name} with its candidates and detections?", abort=True)
    catalogue.remove_field(field.name)
    out.print(f"{field.name} is no longer watched.")


def _watch(fields: Sequence[Field]) -> None:
    """Ask the archive what it has of the fields, then add them, so that a wrong archive adds nothing."""
    from astrid_pipeline import driver
    from astrid_pipeline.night.references import exposures_named

    listings = driver.list_fields(fields)
    for listing in listings:
        named = exposures_named(listing.field.reference)
        if missing := named - {
            record.exposure_id for records in listing.nights.values() for record in records
        }:
            raise ConfigError(
                f"the archive has no exposure {', '.join(sorted(missing))} of {listing.field.name}",
                where="--reference",
                remedy="name exposures as the archive does, which is by their files",
            )
    catalogue = driver.open_catalogue()
    for listing in listings:
        catalogue.add_field(listing.field)
        nights = list(listing.nights)
        count = sum(len(records) for records in listing.nights.values())
        span = f", {nights[0]} to {nights[-1]}" if nights else ""
        out.print(f"{listing.field.name}: {count} exposures in {len(nights)} nights{span}")
    out.print("Next: `astrid backfill FIELD START END`, or `astrid run FIELD NIGHT`.")


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
