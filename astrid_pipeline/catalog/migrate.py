"""Bringing the catalogue's database to the schema of the code, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection, Engine


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Return the revision that the code needs."""
    from alembic.script import ScriptDirectory

    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package holds no migrations")
    return revision


def _known() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def current(engine: Engine) -> str | None:
    """Return the database's revision; None for an empty one."""
    from alembic.runtime.migration import MigrationContext

    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def migrate(engine: Engine, revision: str = "head") -> None:
    """Go forward to `revision`; a database that is there already is left alone. One process at a time does it.

    Raises
    ------
    ConfigError
        If the database was brought to a revision that this code does not know: a newer AstrID was here.
    """
    from alembic import command

    there = current(engine)
    if there == (head() if revision == "head" else revision):
        return
    if there is not None and there not in _known():
        raise ConfigError(
            f"the catalogue was made by a newer AstrID (its schema is {there}, this one's {head()})",
            where=engine.url.render_as_string(hide_password=True),
            remedy="use that version, or restore a backup from before its upgrade",
        )
    with engine.begin() as connection:
        _lock(connection)
        command.upgrade(_config(connection), revision)


def revert(engine: Engine, revision: str) -> None:
    """Go back to `revision` (`base` removes all tables with what they hold)."""
    from alembic import command

    with engine.begin() as connection:
        _lock(connection)
        command.downgrade(_config(connection), revision)


def draft(engine: Engine, message: str, number: str) -> Path:
    """Write a migration from the difference between the models and the database; a person then checks it."""
    from alembic import command

    with engine.begin() as connection:
        script = command.revision(_config(connection), message, autogenerate=True, rev_id=number)
    if script is None or isinstance(script, list):
        raise RuntimeError("alembic wrote no single migration")
    return Path(script.path)


def _lock(connection: Connection) -> None:
    # The lock ends with the transaction, and with it a migration that was interrupted leaves nothing behind:
    # PostgreSQL rolls back table changes too.
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('astrid'), hashtext('catalogue-schema'))"))
