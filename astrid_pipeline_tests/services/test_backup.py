"""A backup brought back to an empty place is what it was of, row for row and byte for byte; nothing is overwritten."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, labels, queue
from astrid_pipeline.errors import ConfigError, DamagedError, ServiceError
from astrid_pipeline.resources.store import LocalStore, Store
from astrid_pipeline.services import backup, postgres
from astrid_pipeline.settings import Settings, load_settings, reset_settings
from astrid_pipeline_tests.review.conftest import FIELD, Scene
from astrid_pipeline_tests.s3_servers import s3_server
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A catalogue and a store with a night, labels, a model's files, and a database of MLflow's."""
    with home() as settings:
        catalog = Catalog(postgres.database_url("astrid", settings))
        catalog.add_field(Field(FIELD, 150.0, 2.0, 0.5, ("g",)))
        made = Scene(settings, catalog, LocalStore(settings.store_url))
        made.make_night(n=20)
        label(made)
        made.store.put_bytes("pictures/0f.png", b"png")
        engine = create_engine(postgres.database_url("mlflow", settings))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE runs (id serial PRIMARY KEY, name text)"))
            connection.execute(text("INSERT INTO runs (name) VALUES ('a'), ('b')"))
        engine.dispose()
        yield made
        catalog.close()


def label(scene: Scene) -> None:
    """Give one more verdict."""
    source = queue.list_sources(scene.catalog, queue.Filter(seen="unseen"), 1).rows[0]["id"]
    labels.record(scene.catalog, source, who="ada", verdict="real", token=uuid.uuid4().hex, note="é")


def rows(settings: Settings, name: str) -> dict[str, list[str]]:
    """Return every table's rows as text."""
    engine = create_engine(postgres.database_url(name, settings))
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        found = {
            table: sorted(connection.scalars(text(f'SELECT t::text FROM "{table}" t')).all())
            for table in tables
        }
    engine.dispose()
    return found


def contents(store: Store) -> dict[str, bytes]:
    """Return every object's bytes by key."""
    return {entry.key: store.get_bytes(entry.key) for entry in store.list()}


@pytest.fixture
def target() -> Iterator[Settings]:
    """An empty home to restore to."""
    with home() as settings:
        yield settings


@pytest.mark.parametrize("kind", ["folder", "moto"])
def test_it_comes_back_row_for_row_and_byte_for_byte(
    scene: Scene, target: Settings, tmp_path: Path, kind: str
):
    with s3_server("moto", tmp_path) as server:
        place = LocalStore(tmp_path / "backup") if kind == "folder" else server.store("backup")
        first = backup.back_up(place, scene.store, scene.settings)
        assert set(first.dumps) == {"astrid", "mlflow"}, "Dagster has no database here"
        before = {entry.key for entry in place.list("objects")}
        label(scene)
        scene.store.put_bytes("pictures/1f.png", uuid.uuid4().bytes)
        scene.store.delete(["pictures/0f.png"])
        second = backup.back_up(place, scene.store, scene.settings)
        new = {entry.key for entry in place.list("objects")} - before
        assert len(new) == 1, "only what is new is copied"
        assert backup.backups(place) == [first.time, second.time]
        was = {name: rows(scene.settings, name) for name in second.dumps}
        kept = contents(scene.store)
        store = LocalStore(target.store_url) if kind == "folder" else server.store("again")
        backup.restore(place, store, target)
        assert contents(store) == kept
        for name in second.dumps:
            assert rows(target, name) == was[name]
            assert sum(map(len, was[name].values())) > 1
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            backup.restore(place, store, target)
        again = Catalog(postgres.database_url("astrid", target))
        label(Scene(target, again, LocalStore(target.store_url)))
        assert len(labels.events(again)) == len(labels.events(scene.catalog)) + 1, "it goes on from there"
        again.close()
        empty = LocalStore(tmp_path / "third")
        with pytest.raises(ConfigError, match=r"holds \d+ tables already; nothing is overwritten"):
            backup.restore(place, empty, target)
        assert empty.list() == []
        assert contents(scene.store) == kept


def test_cut_short_it_goes_on(scene: Scene, target: Settings, tmp_path: Path, monkeypatch):
    place = LocalStore(tmp_path / "backup")
    put = backup._put_checked
    count = 0

    def dies(*given: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        put(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(backup, "_put_checked", dies)
    with pytest.raises(KeyboardInterrupt):
        backup.back_up(place, scene.store, scene.settings)
    assert backup.backups(place) == [], "no manifest, no backup"
    with pytest.raises(ConfigError, match="no backup here"):
        backup.restore(place, LocalStore(target.store_url), target)
    made = backup.back_up(place, scene.store, scene.settings)
    assert count == len({kept.sha256 for kept in made.objects.values()}) + 1, "what was copied is there"
    count = 0
    store = LocalStore(target.store_url)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(place, store, target)
    run, broken = backup._run, [True]

    def fails(name: str, *given: str) -> None:
        if name == "pg_restore" and "mlflow" in given[0] and broken.pop():
            raise KeyboardInterrupt
        run(name, *given)

    monkeypatch.setattr(backup, "_run", fails)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(place, store, target)
    broken.append(False)
    backup.restore(place, store, target)
    assert contents(store) == contents(scene.store)
    for name in made.dumps:
        assert rows(target, name) == rows(scene.settings, name)


def test_a_damaged_backup_is_told_and_an_earlier_one_still_there(
    scene: Scene, target: Settings, tmp_path: Path
):
    place = LocalStore(tmp_path / "backup")
    made = backup.back_up(place, scene.store, scene.settings)
    digest = next(iter(made.objects.values())).sha256
    path = place.path(f"objects/{digest[:2]}/{digest}")
    whole = path.read_bytes()
    path.write_bytes(b"x" + whole[1:])
    store = LocalStore(target.store_url)
    with pytest.raises(DamagedError, match="not the bytes that were copied"):
        backup.restore(place, store, target)
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="no backup of 1999"):
        backup.restore(place, store, target, time="1999")
    backup.restore(place, store, target)
    assert contents(store) == contents(scene.store)
    place.put_bytes("manifests/99990101T000000Z.json", b"{")
    with pytest.raises(DamagedError, match="take an earlier backup"):
        backup.restore(place, LocalStore(tmp_path / "other"), target)


def test_a_store_that_changes_meanwhile_is_copied_as_it_is_at_the_end(scene: Scene, tmp_path: Path):
    place = LocalStore(tmp_path / "backup")
    busy = LocalStore(tmp_path / "busy")
    for key in ("a", "b", "c"):
        busy.put_bytes(key, b"first")
    looks = 0
    listing = busy.list

    def changing(prefix: str = "") -> list:
        nonlocal looks
        looks += 1
        found = listing(prefix)
        if looks == 1:
            busy.delete(["a"])
            busy.put_bytes("b", b"second")
            busy.put_bytes("d", b"new")
        return found

    busy.list = changing  # type: ignore[method-assign]
    made = backup.back_up(place, busy, scene.settings)
    busy.list = listing  # type: ignore[method-assign]
    assert set(made.objects) == {"b", "c", "d"}
    for key, kept in made.objects.items():
        assert place.get_bytes(f"objects/{kept.sha256[:2]}/{kept.sha256}") == busy.get_bytes(key)

    def never_still(prefix: str = "") -> list:
        busy.put_bytes("b", uuid.uuid4().bytes)
        return listing(prefix)

    busy.list = never_still  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="changes faster"):
        backup.back_up(place, busy, scene.settings)


def test_the_commands(scene: Scene, target: Settings, tmp_path: Path, monkeypatch):
    from astrid_pipeline.cli.app import app

    run = CliRunner().invoke
    monkeypatch.setenv("ASTRID_HOME", str(scene.settings.home))
    reset_settings()
    try:
        made = run(app, ["backup", str(tmp_path / "backup")])
        assert made.exit_code == 0, made.output
        assert "astrid, mlflow" in made.output
        inside = run(app, ["backup", f"{scene.settings.store_url}/backup"])
        assert isinstance(inside.exception, ConfigError)
        monkeypatch.setenv("ASTRID_HOME", str(target.home))
        reset_settings()
        back = run(app, ["restore", str(tmp_path / "backup")])
        assert back.exit_code == 0, back.output
        assert "restored" in back.output
        assert isinstance(run(app, ["restore", str(tmp_path / "backup")]).exception, ConfigError)
    finally:
        monkeypatch.undo()
        reset_settings()
    assert rows(target, "astrid") == rows(scene.settings, "astrid")


def test_a_server_that_refuses_is_told_without_its_password(scene: Scene):
    settings = load_settings(
        home=scene.settings.home, database_url="postgresql://nobody:hidden@127.0.0.1:1/postgres"
    )
    with pytest.raises(ServiceError) as told:
        backup._run("pg_dump", settings.database_url.get_secret_value())
    assert "hidden" not in str(told.value)
