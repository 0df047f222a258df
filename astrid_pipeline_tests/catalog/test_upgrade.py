"""A catalogue of each earlier revision, filled, comes to today's with every row as it was; a newer one is refused."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

from astrid_pipeline.catalog import Catalog, labels, migrate, queue
from astrid_pipeline.catalog.dossier import dossier
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres
REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate._config()).walk_revisions()][
    ::-1
]
#: What only certain words fit.
_WORDS = {
    # A key of the store.
    ("fields", "name"): ("m31-north", "w_aql"),
    ("fields", "poll_minutes"): (None, 30.0),
    ("preprocess_runs", "status"): ("superseded", "success"),
    ("difference_runs", "status"): ("superseded", "success"),
    ("objects", "kind"): ("stationary", "moving"),
    ("user_catalogues", "kind"): ("galaxy", "star"),
    ("sources", "state"): ("unseen", "real"),
    ("sources", "truth"): (None, "real"),
    ("validation_events", "truth"): (None, "bogus"),
    ("validation_events", "verdict"): ("real", None),
    ("validation_events", "undoes"): (None, 1),
    ("validation_events", "confidence"): (0.8, None),
    ("training_samples", "confidence"): (0.8, None),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Settings]:
    """A server for databases of all ages."""
    with home() as settings:
        yield settings


def engine_of(server: Settings, name: str) -> sa.Engine:
    """Return a database of its own."""
    return sa.create_engine(
        postgres.database_url("astrid", server.model_copy(update={"database_prefix": name}))
    )


def value(table: sa.Table, column: sa.Column[Any], k: int) -> Any:
    """Return something that the column takes, another for each of two rows; an id for what refers to a row."""
    if (table.name, column.name) in _WORDS:
        return _WORDS[table.name, column.name][k]
    if column.foreign_keys or (column.primary_key and isinstance(column.type, sa.BigInteger)):
        return k + 1
    kind = column.type
    if isinstance(kind, sa.Boolean):
        return bool(k)
    if isinstance(kind, sa.Integer):
        return 10 + k
    if isinstance(kind, sa.Float):
        return 12.25 + k
    if isinstance(kind, sa.DateTime):
        return dt.datetime(2025, 3, 1 + k, 4, 5, 6, tzinfo=dt.UTC)
    if isinstance(kind, sa.Date):
        return dt.date(2025, 3, 1 + k)
    if isinstance(kind, postgresql.JSONB):
        return {"of": [table.name, k]}
    if isinstance(kind, sa.ARRAY):
        return [f"{column.name}{k}"]
    assert isinstance(kind, sa.Text), f"{table.name}.{column.name}: {kind!r}"
    # Longer than any limit somebody may think of, and not plain ASCII.
    return f"{table.name}.{column.name} é {k}"


def fill(engine: sa.Engine) -> dict[str, list[dict[str, Any]]]:
    """Put two rows into every table; return all rows by table."""
    found = sa.MetaData()
    found.reflect(engine)
    with engine.begin() as connection:
        for table in found.sorted_tables:
            if table.name != "alembic_version":
                rows = [{c.name: value(table, c, k) for c in table.c} for k in range(2)]
                connection.execute(table.insert(), rows)
    return read(engine, found)


def read(engine: sa.Engine, wanted: sa.MetaData) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables that `wanted` knows, in the columns that it knows."""
    tables = [table for table in wanted.sorted_tables if table.name != "alembic_version"]
    with engine.connect() as connection:
        return {
            table.name: [
                dict(row)
                for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            ]
            for table in tables
        }


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_every_row_of_an_old_catalogue_is_there_afterwards(server: Settings, revision: str) -> None:
    engine = engine_of(server, f"from{revision}_")
    migrate.migrate(engine, revision)
    assert migrate.current(engine) == revision
    before = fill(engine)
    assert len(before) >= 10
    assert all(len(rows) == 2 for rows in before.values())
    old = sa.MetaData()
    old.reflect(engine)
    # As anything that opens it does.
    catalog = Catalog(engine.url.render_as_string(hide_password=False))
    assert migrate.current(engine) == migrate.head()
    after = read(engine, old)
    assert after == before
    # Today's code works with what is there.
    assert [field.name for field in catalog.fields()] == [row["name"] for row in before["fields"]]
    if "sources" in before:
        rows = queue.list_sources(catalog, queue.Filter(kind="all", gold=True)).rows
        assert {row["key"] for row in rows} <= {row["key"] for row in before["sources"]}
        known = dossier(catalog, 1)
        assert known is not None
        assert known.source["injected"] is False
        # Numbers given by hand did not move the sequences, which count from 1.
        with catalog.transaction("count on") as connection:
            connection.execute(sa.text("SELECT setval(pg_get_serial_sequence('validation_events', 'id'), 2)"))
        event = labels.record(catalog, 1, who="ada", verdict="bogus", token="after-the-upgrade")
        assert event["id"] == 3
    catalog.close()
    engine.dispose()


def test_a_catalogue_of_a_newer_astrid_is_left_alone(server: Settings) -> None:
    engine = engine_of(server, "newer_")
    Catalog(engine.url.render_as_string(hide_password=False)).close()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer AstrID") as told:
        Catalog(engine.url.render_as_string(hide_password=False))
    assert "9999" in str(told.value)
    assert migrate.current(engine) == "9999"
    engine.dispose()
