"""`astrid field`: which patches of sky are watched, and where their exposures come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astrid_pipeline.cli.console import out, print_wide
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.archives import Field

app = typer.Typer(no_args_is_help=True, help="Add, list, import and remove the fields that are watched.")

_ARCHIVE_HELP = (
    "Where its exposures are: `simulated`, `folder:/path/to/fits/files`, or `mast:HST,JWST?filter=F160W`. "
    "Default: ASTRID_ARCHIVE."
)
_Reference = Annotated[
    str,
    typer.Option(
        "--reference",
        help="What nights are compared with: `auto` (a stack of earlier nights), `exposures:ID,ID`, the names of "
        "exposures that you know to be good, or a sky survey (`ps1`, `legacy`, `dss2`, `sdss9`, `2mass`, `skyview`, "
        "`hips:ID@FIRST-LAST`). Several joined by `+` are tried in order: `auto+ps1`.",
    ),
]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `.`, `_` and `-`.")],
    ra: Annotated[
        str | None, typer.Option("--ra", help="ICRS right ascension: 10.6847, or 00:42:44.3.")
    ] = None,
    dec: Annotated[str | None, typer.Option("--dec", help="ICRS declination: 41.269, or +41:16:09.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Name of an object, instead of --ra and --dec: M31.")
    ] = None,
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
    site: Annotated[
        str | None, typer.Option("--site", help="Observatory, instead of its longitude: paranal, space.")
    ] = None,
    reference: _Reference = "auto",
    poll_minutes: Annotated[
        float | None,
        typer.Option("--poll-minutes", help="How often its archive is asked. Default: folders 1, MAST 60."),
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(
            "--tiles", min=1, help="Cut the circle along HEALPix cells into at most so many fields."
        ),
    ] = None,
) -> None:
    """Add a field, or change one that is there. Its archive is asked at once what it has.

    Examples:

    - `astrid field add m31-north --ra 00:42:44.3 --dec +41:16:09 --radius 0.3 --archive folder:/data/m31`

    - `astrid field add sim-a --ra 150.1 --dec 2.2 --filter g --filter r --archive simulated`

    - `astrid field add m101 --target M101 --archive "mast:HST?filter=F814W" --site space --reference auto+ps1:i`
    """
    from astrid_pipeline.archives import Field
    from astrid_pipeline.archives.coordinates import parse_position, resolve_name
    from astrid_pipeline.archives.field_files import longitude_of
    from astrid_pipeline.archives.tiling import tile_circle
    from astrid_pipeline.settings import get_settings

    if (ra is None or dec is None) == (target is None):
        raise ConfigError(
            "no position is given, or two", where=name, remedy="give --ra and --dec, or --target"
        )
    where = resolve_name(target) if target is not None else parse_position(str(ra), str(dec), name)
    if site is not None:
        if site_longitude is not None:
            raise ConfigError("both a site and a longitude", where=name, remedy="give one of them")
        site_longitude = longitude_of(site)
    field = Field(
        name=name,
        ra=where[0],
        dec=where[1],
        radius=radius,
        filters=tuple(filters or ()),
        archive=archive or get_settings().archive,
        site_longitude=site_longitude,
        reference=reference,
        poll_minutes=poll_minutes,
    )
    _watch([field] if tiles is None else tile_circle(field, tiles))


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file of fields.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the file and show its fields.")
    ] = False,
) -> None:
    """Add all fields of a YAML file; those that are there already are changed to what it says.

    `astrid field list --yaml` writes such a file. Each entry has a `name` and a `centre` (`[RA, DEC]` or an object's
    name), and may have `radius`, `filters`, `surveys` (of MAST) or `archive`, `poll_minutes`, `reference`, `site`,
    and `tiles` (cut into at most so many fields).

    Examples:

    - `astrid field import fields.yaml --dry-run`

    - `astrid field import fields.yaml`
    """
    from astrid_pipeline.archives.field_files import read_fields
    from astrid_pipeline.settings import get_settings

    fields = read_fields(path, archive=get_settings().archive)
    if dry_run:
        _show(fields)
        return
    _watch(fields)


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
def list_fields(
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="As a YAML file, for `astrid field import`.")
    ] = False,
) -> None:
    """List the fields that are watched."""
    from astrid_pipeline import driver

    fields = driver.open_catalogue().fields()
    if as_yaml:
        from astrid_pipeline.archives.field_files import write_fields

        typer.echo(write_fields(fields), nl=False)
        return
    if not fields:
        out.print(
            "No field is watched yet: `astrid field add --help` and `astrid field discover --help` show how."
        )
        return
    _show(fields)


def _show(fields: Sequence[Field]) -> None:
    from rich.table import Table

    from astrid_pipeline.archives.base import pace_of

    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("field", "ra", "dec", "radius", "filters", "reference", "every", "archive"):
        table.add_column(column)
    for field in fields:
        table.add_row(
            field.name,
            f"{field.ra:.5f}",
            f"{field.dec:+.5f}",
            f"{field.radius:.2f}°",
            ", ".join(field.filters) or "all",
            field.reference,
            f"{pace_of(field):g} min",
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
    driver.forget_partition(field.name)
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
