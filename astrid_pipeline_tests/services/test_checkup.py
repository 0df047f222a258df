"""`astrid doctor`: what works is told as such, and each thing that is broken for real is found, with what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, migrate
from astrid_pipeline.cli import app
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline.services import checkup, postgres
from astrid_pipeline.services.checkup import Finding, ask
from astrid_pipeline.settings import Settings, load_settings, reset_settings
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    ports = {f"{name}_port": free_port() for name in ("dagster", "mlflow", "review")}
    with home(**ports) as made:
        yield made


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Catalog]:
    opened = Catalog(postgres.database_url("astrid", settings))
    yield opened
    opened.close()


def state(found: Finding) -> str:
    if found.state != "ok":
        assert found.remedy, f"{found.part} does not say what to do"
    return found.state


def changed(settings: Settings, **values: object) -> Settings:
    return load_settings(**{**settings.model_dump(), **values})


@pytest.fixture
def as_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ASTRID_HOME", str(settings.home))
    for name in ("dagster_port", "mlflow_port", "review_port"):
        monkeypatch.setenv(f"ASTRID_{name.upper()}", str(getattr(settings, name)))
    reset_settings()
    yield
    reset_settings()


@pytest.mark.usefixtures("as_environment", "catalog")
def test_a_home_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor", "--json"]) == 0
    found = {entry["part"]: entry for entry in json.loads(capsys.readouterr().out)}
    working = {"database", "clock", "dagster", "mlflow", "champion", "archives", "store", "disk", "device"}
    assert {part for part, entry in found.items() if entry["state"] == "ok"} == working
    assert {part for part, entry in found.items() if entry["state"] == "advice"} == {
        *("daemon", "review port", "dagster port", "mlflow port", "alerts")
    }


@pytest.mark.usefixtures("as_environment", "catalog")
def test_the_exit_code_and_the_words_of_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret = "f6d1-not-to-be-seen"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ASTRID_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setenv(
        "ASTRID_DATABASE_URL", f"postgresql://astrid:{secret}@127.0.0.1:{free_port()}/postgres"
    )
    reset_settings()
    assert app.run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "✗ database" in shown
    assert "✗ store" in shown
    assert "✓ device" in shown, "what does not need the database is looked at all the same"
    assert "wrong" in shown.splitlines()[-1]
    assert secret not in shown


def test_the_schema_must_be_that_of_the_code(settings: Settings, catalog: Catalog) -> None:
    def found() -> Finding:
        return ask("database", lambda: checkup.connected(settings))

    assert state(found()) == "ok"
    migrate.revert(catalog.engine, "0001")
    try:
        assert state(found()) == "wrong"
        assert "0001" in found().detail
        assert "migrates it" in found().remedy
        migrate.revert(catalog.engine, "base")
        assert state(found()) == "advice", "an empty database is not broken"
    finally:
        migrate.migrate(catalog.engine)
    with catalog.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        assert state(found()) == "wrong"
        assert "newer" in found().remedy
    finally:
        with catalog.engine.begin() as connection:
            connection.execute(
                text("UPDATE alembic_version SET version_num = :head"), {"head": migrate.head()}
            )


def test_a_clock_that_went_back(settings: Settings, catalog: Catalog) -> None:
    assert state(ask("clock", lambda: checkup.clock(settings))) == "ok"
    catalog.add_field(Field("m31", 10.0, 41.0, 0.5))
    with catalog.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO preprocess_runs"
                " (field_id, night, dagster_run_id, status, exposures, unreadable, finished_at)"
                " SELECT id, '2026-01-01', 'r', 'success', 1, 0, now() + interval '1 hour' FROM fields"
            )
        )
    found = ask("clock", lambda: checkup.clock(settings))
    catalog.remove_field("m31")
    assert state(found) == "wrong"
    assert "in the future" in found.detail


def test_an_archive_that_is_gone(settings: Settings, catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_field(Field("gone", 10.0, 41.0, 0.5, archive=f"folder:{tmp_path / 'unmounted'}"))
    found = ask("archives", lambda: checkup.archives(settings))
    catalog.remove_field("gone")
    assert state(found) == "wrong"
    assert "gone" in found.detail


def test_the_store_is_left_as_it_was(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert state(ask("store", lambda: checkup.store(store))) == "ok"
    assert store.list() == []


def test_ports(settings: Settings) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        number = stranger.getsockname()[1]
        found = ask("port", lambda: checkup.port(settings, "review", number, "/static/icon.svg"))
    assert state(found) == "wrong"
    assert "ASTRID_REVIEW_PORT" in found.remedy


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(ask("disk", lambda: checkup.disk(tmp_path / "not" / "made" / "yet"))) == "ok"
    monkeypatch.setattr(checkup, "LEAST_FREE_BYTES", 2**60)
    assert state(ask("disk", lambda: checkup.disk(tmp_path))) == "wrong"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "advice"),
        ({"alert_webhook": "https://hooks.example/secret"}, "ok"),
        ({"alert_webhook": "file:///etc/passwd"}, "wrong"),
        ({"alert_email": "a@example.org"}, "wrong"),
        ({"alert_email": "a@example.org", "smtp": "smtp://127.0.0.1:1"}, "wrong"),
    ],
)
def test_alert_hooks(settings: Settings, values: dict[str, str], expected: str) -> None:
    found = ask("alerts", lambda: checkup.alerts(changed(settings, **values)))
    assert state(found) == expected
    assert "secret" not in found.detail


def test_a_gpu_that_is_not_there(settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert state(ask("device", lambda: checkup.device(changed(settings, device="cuda")))) == "wrong"
