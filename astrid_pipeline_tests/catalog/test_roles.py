"""Each role of the database does its own work on a real PostgreSQL, and no more."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from typer.testing import CliRunner

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, access, labels, migrate, queue, roles
from astrid_pipeline.catalog.dossier import dossier
from astrid_pipeline.errors import ServiceError
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline.review.app import create_app
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.review.conftest import FIELD, Scene
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A catalogue with a night, a person and a key, whose rights were given to roles; a login in each."""
    with home() as settings:
        catalog = Catalog(postgres.database_url("astrid", settings))
        catalog.add_field(Field(FIELD, 150.0, 2.0, 0.5, ("g",)))
        made = Scene(settings, catalog, LocalStore(settings.store_url))
        made.make_night(n=20)
        access.set_person(catalog, "ada", PASSWORD, ["read", "label"])
        roles.apply(catalog)
        assert roles.apply(catalog), "it may be run again"
        with catalog.transaction("logins") as connection:
            for name in roles.ROLES:
                connection.execute(text(f"CREATE USER {name} LOGIN IN ROLE astrid_{name}"))
            connection.execute(text("ALTER USER owner SET ROLE astrid_owner"))
        yield made
        catalog.close()


@pytest.fixture
def opened(scene: Scene) -> Iterator[dict[str, Catalog]]:
    """The catalogue as each login sees it: to open it, no right to change tables is needed."""
    url = scene.catalog.engine.url
    found = {
        name: Catalog(url.set(username=name).render_as_string(hide_password=False)) for name in roles.ROLES
    }
    yield found
    for catalog in found.values():
        catalog.close()


def refused(catalog: Catalog, statement: str) -> bool:
    """Tell whether PostgreSQL forbids a statement to a login; what it allows is taken back."""

    def attempt() -> None:
        with catalog.transaction("try") as connection:
            connection.execute(text(statement))
            raise ServiceError("allowed")

    with pytest.raises(ServiceError) as told:
        attempt()
    return "permission denied" in str(told.value) or "must be owner" in str(told.value)


def test_the_page_labels_signs_people_in_and_changes_nothing_else(scene: Scene, opened: dict[str, Catalog]):
    catalog = opened["review"]
    key = access.create_key(scene.catalog, "robot", ["read", "label", "ingest"])
    with_key = {"Authorization": f"Bearer {key}"}
    client = TestClient(create_app(scene.settings, catalog, scene.store), follow_redirects=False)
    assert client.post("/sign-in", data={"name": "ada", "password": PASSWORD}).status_code == 303
    assert client.get("/review").status_code == 200
    one = client.get("/api/v1/detections", headers=with_key).json()["items"][0]["id"]
    assert client.get(f"/review/panel/{one}").status_code == 200
    assert client.get("/api/v1/detections", params={"sort": "worth"}).status_code == 200
    data = {"verdict": "real", "token": uuid.uuid4().hex}
    given = client.post(f"/api/v1/detections/{one}/labels", json=data, headers=with_key)
    assert given.status_code == 201, given.text
    path = f"/api/v1/labels/{given.json()['id']}/undo"
    assert client.post(path, json={"token": uuid.uuid4().hex}, headers=with_key).status_code == 201
    assert client.put("/api/v1/filters/faint", json={"score_max": 0.5}).status_code == 204
    assert client.delete("/api/v1/filters/faint").status_code == 204
    assert client.get("/review/report").status_code == 200
    assert client.get("/api/v1/scanners").status_code == 200
    with catalog.reading("look") as connection:
        assert connection.scalar(text("SELECT max(last_used_at) IS NOT NULL FROM api_keys"))
        assert connection.scalar(text("SELECT count(*) FROM audit_log")) >= 3
    catalog.record_dataset("spring", total_samples=1, created_by="ada")
    for statement in (
        "UPDATE validation_events SET who = 'eve'",
        "DELETE FROM validation_events",
        "UPDATE sources SET flux = 0",
        "DELETE FROM sources",
        "DELETE FROM detections",
        "UPDATE people SET scopes = '{admin}'",
        "INSERT INTO people (name, password_hash, scopes) VALUES ('eve', 'x', '{admin}')",
        "UPDATE api_keys SET revoked_at = NULL",
        "INSERT INTO api_keys (prefix, hash, name, scopes) VALUES ('a', 'b', 'c', '{admin}')",
        "DELETE FROM audit_log",
        "DELETE FROM fields",
        "CREATE TABLE mine (id int)",
        "DROP TABLE sources",
        "ALTER TABLE sources ADD COLUMN mine int",
    ):
        assert refused(catalog, statement), statement


def test_the_pipeline_makes_nights_and_cannot_label_or_see_hashes(scene: Scene, opened: dict[str, Catalog]):
    catalog = opened["pipeline"]
    Scene(scene.settings, catalog, scene.store).make_night("2026-01-03", n=10, seed=3)
    catalog.add_field(Field("m33", 23.0, 30.0, 0.5, ("g",)))
    catalog.remove_field("m33")
    access.audit(catalog, "pipeline", "gc", {})
    assert len(queue.list_sources(catalog, queue.Filter(night=None)).rows) == 30
    with pytest.raises(ServiceError, match="permission denied"):
        labels.record(catalog, 1, who="robot", verdict="real", token="from-the-pipeline")
    for statement in (
        "SELECT hash FROM api_keys",
        "SELECT password_hash FROM people",
        "DELETE FROM validation_events",
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM audit_log",
        "CREATE TABLE mine (id int)",
        "DROP TABLE detections",
        "TRUNCATE sources",
    ):
        assert refused(catalog, statement), statement


def test_a_reader_reads(scene: Scene, opened: dict[str, Catalog]):
    catalog = opened["reader"]
    assert access.anybody(catalog)
    row = queue.list_sources(catalog, queue.Filter(sort="id"), 1).rows[0]
    assert dossier(catalog, row["id"]) is not None
    assert len(catalog.nights())
    assert len(catalog.cone(row["ra"], row["dec"], 5.0))
    for statement in (
        "UPDATE sources SET state = 'real'",
        "DELETE FROM sources",
        "INSERT INTO audit_log (who, action) VALUES ('eve', 'x')",
        "SELECT * FROM people",
        "SELECT count(hash) FROM api_keys",
        "SELECT nextval(pg_get_serial_sequence('sources', 'id'))",
        "CREATE TABLE mine (id int)",
    ):
        assert refused(catalog, statement), statement


def test_the_owner_migrates(scene: Scene, opened: dict[str, Catalog]):
    catalog = opened["owner"]
    before = opened["reader"].status()
    revisions = sorted(migrate._known())
    migrate.revert(catalog.engine, revisions[-2])
    migrate.migrate(catalog.engine)
    assert migrate.current(catalog.engine) == migrate.head()
    assert opened["reader"].status() == before
    with catalog.transaction("a table of tomorrow") as connection:
        connection.execute(text("CREATE TABLE tomorrow (id int)"))
    assert refused(opened["reader"], "SELECT * FROM tomorrow")
    try:
        roles.apply(scene.catalog)
        with opened["reader"].reading("look") as connection:
            assert connection.scalar(text("SELECT count(*) FROM tomorrow")) == 0
        assert refused(catalog, "CREATE ROLE more")
        assert refused(opened["review"], "DELETE FROM tomorrow")
    finally:
        with catalog.transaction("tidy up") as connection:
            connection.execute(text("DROP TABLE tomorrow"))


def test_the_command(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    from astrid_pipeline.cli.app import app

    monkeypatch.setenv("ASTRID_HOME", str(scene.settings.home))
    reset_settings()
    try:
        shown = CliRunner().invoke(app, ["roles"])
        assert shown.exit_code == 0, shown.output
        assert 'GRANT INSERT ON "validation_events" TO "astrid_review";' in shown.output
        done = CliRunner().invoke(app, ["roles", "--apply"])
        assert done.exit_code == 0, done.output
        assert "astrid_reader" in done.output
    finally:
        monkeypatch.undo()
        reset_settings()
