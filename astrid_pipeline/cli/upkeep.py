"""`astrid gc`, `backup`, `restore`, `roles`: what keeps a survey well over the years."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from astrid_pipeline.cli.console import out

if TYPE_CHECKING:
    from astrid_pipeline.resources.store import Store


def register(parent: typer.Typer) -> None:
    """Add the commands to `parent`."""
    parent.command("gc")(collect_garbage)
    parent.command("backup")(back_up)
    parent.command("restore")(restore)
    parent.command("roles")(roles)


def collect_garbage(
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without this it is only listed.")
    ] = False,
    days: Annotated[
        float,
        typer.Option("--older-than", min=1, help="Days. What is younger may belong to a run that goes on."),
    ] = 7.0,
    names: Annotated[bool, typer.Option("--names", help="Name each object.")] = False,
) -> None:
    """List, or remove, what nothing in the store or the catalogue refers to: pieces of runs that were killed.

    Beside them, this machine's copies of products on S3 that no watched field has any more, or that are too many
    (`ASTRID_FOLDER_CACHE_GB`).
    Pictures, reference and training datasets, models and sent alerts are never touched. Runs may go on meanwhile.

    Examples:

    - `astrid gc` lists, `astrid gc --names` by name

    - `astrid gc --delete`
    """
    from sqlalchemy import text

    from astrid_pipeline.catalog import access
    from astrid_pipeline.cli.review import user_name
    from astrid_pipeline.resources import copies, garbage
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.settings import get_settings

    store, catalog = open_store(), open_catalogue()

    def observed() -> set[str]:
        with catalog.reading("list raw files") as connection:
            return set(connection.scalars(text("SELECT path FROM observations WHERE path IS NOT NULL")))

    found = garbage.find(store, observed, days=days)
    for entry in found.leftovers if names else ():
        _tell(f"{entry.key}  {entry.size} bytes: {entry.why}")
    for place in found.unreadable:
        _tell(f"left alone, {place}")
    for why, (count, size) in sorted(found.by_why().items()):
        _tell(f"{why}: {count} objects, {size / 1e6:.1f} MB")
    most = get_settings().folder_cache_gb * 1e9
    going = copies.to_go(copies.look(store, {field.name for field in catalog.fields()}), days=days, most=most)
    kept = f"{len(going)} copies of products in {copies.copies_folder()}, {sum(c.size for c in going) / 1e6:.1f} MB"
    for copy in going if names else ():
        why = "over ASTRID_FOLDER_CACHE_GB" if copy.wanted else "of no watched field"
        _tell(f"{copy.folder}  {copy.size} bytes: {why}")
    size = sum(entry.size for entry in found.leftovers)
    told = f"{len(found.leftovers)} of {found.objects} objects in {store.url}, {size / 1e6:.1f} MB"
    if not delete:
        remedy = "; `astrid gc --delete` removes them" if found.leftovers or going else ""
        if going:
            _tell(f"{kept}: not used any more")
        _tell(f"{told}: nothing refers to them{remedy}")
        return
    copies.remove(going)
    copies.remove_unfinished(days)
    if going:
        _tell(f"{kept}: removed")
    removed: list[garbage.Leftover] = []
    try:
        garbage.remove(store, found.leftovers, removed.append)
    finally:
        if removed:
            what = {
                "store": store.url,
                "objects": len(removed),
                "bytes": sum(entry.size for entry in removed),
            }
            access.audit(catalog, user_name(), "gc", what)
    _tell(f"{told}: removed")


def back_up(
    place: Annotated[str, typer.Argument(help="Folder, or s3://bucket/prefix, of its own.")],
) -> None:
    """Copy the databases and the store to a place of its own; what an earlier backup there holds is not copied again.

    Runs may go on meanwhile. Cut short, the next one goes on from what was copied.

    Examples:

    - `astrid backup /mnt/backup/astrid`

    - `astrid backup s3://backups/astrid`
    """
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.services import backup

    made = backup.back_up(_place(place), open_store(), tell=_tell)
    size = sum(kept.size for kept in made.objects.values())
    _tell(f"backup of {made.time}: {', '.join(made.dumps)}; {len(made.objects)} objects, {size / 1e6:.1f} MB")


def restore(
    place: Annotated[str, typer.Argument(help="Where `astrid backup` put it.")],
    at: Annotated[str | None, typer.Option("--at", help="Time of a backup. Default: the latest.")] = None,
) -> None:
    """Bring a backup back to an empty store and empty databases; nothing is ever overwritten.

    Every object and dump is checked by its digest. A catalogue of an earlier AstrID is brought forward when it is
    opened next.

    Examples:

    - `ASTRID_HOME=/data/astrid-again astrid restore /mnt/backup/astrid`
    """
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.services import backup

    kept = backup.restore(_place(place), open_store(), time=at, tell=_tell)
    _tell(f"restored: {kept.time}")


def roles(
    apply: Annotated[
        bool, typer.Option("--apply", help="Run the SQL; without this it is only shown.")
    ] = False,
) -> None:
    """Make PostgreSQL roles with the least rights for the catalogue: owner, pipeline, review, reader.

    They have no passwords: give each process a login of its own in one of them. To be run again after an upgrade.

    Examples:

    - `astrid roles --apply`, then `CREATE USER page LOGIN PASSWORD '…' IN ROLE astrid_review`
    """
    from astrid_pipeline.catalog import roles as making
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.settings import get_settings

    catalog, prefix = open_catalogue(), get_settings().database_prefix
    if apply:
        making.apply(catalog, prefix)
        for name, what in making.ROLES.items():
            _tell(f"{prefix}astrid_{name}  {what}")
        return
    with catalog.reading("list the tables") as connection:
        lines = making.statements(making.tables_of(connection), str(catalog.engine.url.username), prefix)
    for line in lines:
        _tell(f"{line};")


def _place(place: str) -> Store:
    from astrid_pipeline.errors import ConfigError
    from astrid_pipeline.resources.store import LocalStore, open_store
    from astrid_pipeline.settings import Settings, get_settings

    settings = get_settings()
    # Validated again, so that a folder given here is made absolute.
    chosen = open_store(Settings(**{**settings.model_dump(), "store": place}))
    kept = open_store(settings)
    inside = (
        isinstance(kept, LocalStore)
        and isinstance(chosen, LocalStore)
        and (chosen.root.is_relative_to(kept.root) or kept.root.is_relative_to(chosen.root))
    )
    if inside or f"{chosen.url}/".startswith(f"{kept.url}/"):
        raise ConfigError(
            "a backup does not lie within what it is of", where=chosen.url, remedy="name another place"
        )
    return chosen


def _tell(line: str) -> None:
    out.print(line, soft_wrap=True, highlight=False)
