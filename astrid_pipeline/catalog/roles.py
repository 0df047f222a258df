"""Roles of PostgreSQL for the catalogue: who changes tables, who makes nights, who labels, who only reads.

They are groups without a password: logins are given one of them (`CREATE USER ada LOGIN PASSWORD '…' IN ROLE
astrid_reader`). All statements may be run again, and are to be after every upgrade, so that new tables fall under them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import text

from astrid_pipeline.catalog.review_models import ApiKey, Person

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

#: What each is for.
ROLES = {
    "owner": "owns the tables and migrates them",
    "pipeline": "writes what nights are made of; cannot label, nor see passwords' and keys' hashes",
    "review": "serves the page and the API: keeps labels, signs people in; changes no measurement and no table",
    "reader": "reads all but passwords' and keys' hashes",
}
#: Hashes of passwords and keys are for who checks them; the other columns of these tables for all.
_SECRET = {Person.__tablename__: (Person, "password_hash"), ApiKey.__tablename__: (ApiKey, "hash")}
#: What the pipeline reads but never changes: people's decisions, and the schema's revision.
_DECIDED = ("validation_events", "saved_filters", "alembic_version")
#: What labels and the order of the queue change of a source (in `features`, why it teaches); the measurements are the
#: pipeline's.
_OF_LABELS = ("state", "label_class", "labels", "agreement", "labelled_at", "worth", "features")
#: What the API adds to: fields of requests for pixels, datasets that people collect, their filters.
_OF_REQUESTS = ("surveys", "fields")
_OF_PEOPLE = ("saved_filters", "training_datasets", "training_samples")


def statements(tables: Sequence[str], user: str, prefix: str = "") -> list[str]:
    """Return the SQL, in order, for a database of these tables.

    Parameters
    ----------
    tables:
        All tables of the schema `public`; later ones come under the roles when it is run again.
    user:
        Who runs it: becomes a member of the owner, to go on being able to migrate.
    prefix:
        Put before the roles' names, as before the databases'.
    """
    owner, pipeline, review, reader = (_quoted(f"{prefix}astrid_{name}") for name in ROLES)
    everybody = f"{pipeline}, {review}, {reader}"

    def named(*names: str) -> str:
        return ", ".join(_quoted(name) for name in sorted(names) if name in tables)

    open_ = named(*(set(tables) - set(_SECRET)))
    made = named(*(set(tables) - {*_SECRET, *_DECIDED, "audit_log"}))
    lines = [
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role[1:-1]}')"
        f" THEN CREATE ROLE {role} NOLOGIN; END IF; END $$"
        for role in (owner, pipeline, review, reader)
    ]
    lines += [
        f"GRANT {owner} TO {_quoted(user)}",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {owner}",
        f"GRANT USAGE ON SCHEMA public TO {everybody}",
        *(f"ALTER TABLE {_quoted(name)} OWNER TO {owner}" for name in tables),
        f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, {everybody}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {pipeline}, {review}",
        f"GRANT SELECT ON {open_} TO {everybody}",
        f"GRANT INSERT, UPDATE, DELETE ON {made} TO {pipeline}",
        f"GRANT INSERT ON {named('audit_log')} TO {pipeline}, {review}",
        f"GRANT SELECT ON {named(*_SECRET)} TO {review}",
        *(
            f"GRANT SELECT ({', '.join(_quoted(c.name) for c in model.__table__.c if c.name != hidden)})"
            f" ON {_quoted(name)} TO {pipeline}, {reader}"
            for name, (model, hidden) in _SECRET.items()
            if name in tables
        ),
        f"GRANT UPDATE (last_used_at) ON {named('api_keys')} TO {review}",
        f"GRANT INSERT ON {named('validation_events')} TO {review}",
        f"GRANT UPDATE ({', '.join(_OF_LABELS)}) ON {named('sources')} TO {review}",
        f"GRANT UPDATE (is_validated) ON {named('detections')} TO {review}",
        f"GRANT INSERT, UPDATE ON {named(*_OF_REQUESTS)} TO {review}",
        f"GRANT INSERT, UPDATE, DELETE ON {named(*_OF_PEOPLE)} TO {review}",
    ]
    return lines


def apply(catalog: Catalog, prefix: str = "") -> list[str]:
    """Make the roles and give them their rights, all or nothing; return the statements.

    Raises
    ------
    ServiceError
        If the catalogue's user may not: a superuser may, or the tables' owner with CREATEROLE.
    """
    with catalog.transaction("give roles their rights") as connection:
        user = str(connection.scalar(text("SELECT current_user")))
        lines = statements(tables_of(connection), user, prefix)
        for line in lines:
            connection.exec_driver_sql(line)
    return lines


def tables_of(connection: object) -> list[str]:
    """Return the tables of the schema `public`."""
    query = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [str(name) for name in connection.scalars(query)]  # type: ignore[attr-defined]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
