"""Settings: defaults, variables, the `.env` file, errors that name the variable, no secret shown."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.settings import (
    Settings,
    get_settings,
    load_settings,
    reset_settings,
    settings_environment,
    settings_table,
    variable_name,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        if name != "home":
            monkeypatch.delenv(variable_name(name), raising=False)
    reset_settings()
    # pytest undoes the environment first; the settings must not outlive it.
    monkeypatch.setattr("astrid_pipeline.settings._cached", None)


def test_with_nothing_set_everything_is_below_the_home(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    assert settings.store_url == str(tmp_path / "store")
    assert settings.postgres_folder.is_relative_to(tmp_path)
    assert settings.dagster_home.is_relative_to(tmp_path)
    assert settings.database_url is None
    assert settings.mlflow_tracking_uri is None
    assert settings.archive == "simulated"


def test_the_home_is_in_the_users_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASTRID_HOME")
    assert load_settings().home == Path("~/.astrid").expanduser()


def test_variables_are_read_and_empty_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRID_WORKERS", "5")
    monkeypatch.setenv("ASTRID_STORE", "")
    monkeypatch.setenv("ASTRID_FIRST_NIGHT", "2020-02-03")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = load_settings()
    assert settings.workers == 5
    assert settings.store_url.endswith("/store")
    assert settings.first_night == dt.date(2020, 2, 3)
    assert settings.mlflow_tracking_uri == "http://mlflow:5000"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASTRID_WORKERS", "many"),
        ("ASTRID_WORKERS", "0"),
        ("ASTRID_DAGSTER_PORT", "70000"),
        ("ASTRID_EXECUTOR", "magic"),
        ("ASTRID_DEVICE", "tpu"),
        ("ASTRID_STORE", "ftp://host/x"),
        ("ASTRID_DATABASE_PREFIX", "a-b; DROP"),
        ("ASTRID_FIRST_NIGHT", "yesterday"),
        ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as caught:
        load_settings()
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_relative_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(home="here", store="products", archive="folder:images")
    assert settings.home == tmp_path / "here"
    assert settings.store_url == str(tmp_path / "products")
    assert settings.archive == f"folder:{tmp_path / 'images'}"
    assert load_settings(store="s3://bucket/p/").store_url == "s3://bucket/p"


def test_the_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRID_WORKERS", "3")
    assert get_settings().workers == 3
    monkeypatch.setenv("ASTRID_WORKERS", "4")
    assert get_settings().workers == 3
    reset_settings()
    assert get_settings().workers == 4


def test_the_env_file_fills_what_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ASTRID_WORKERS=7\nASTRID_DEVICE=cpu\nAWS_ACCESS_KEY_ID=from-file\n")
    program = (
        "import os; from astrid_pipeline.settings import get_settings as g; "
        "print(g().workers, g().device, os.environ['AWS_ACCESS_KEY_ID'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ASTRID_", "AWS_"))}
    environment |= {"ASTRID_DEVICE": "cuda", "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["7", "cuda", "from-file"]


def test_a_database_that_mlflow_named_for_its_children_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://postgres@/mlflow?host=/somewhere")
    assert load_settings().mlflow_server is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert load_settings().mlflow_server == "https://mlflow.example.org"


def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRID_DATABASE_URL", "postgresql://astrid:geheim@db/postgres")
    settings = load_settings()
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings.model_dump())


def test_children_get_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings(
        home=tmp_path,
        database_url="postgresql://a:b@c/d",
        workers=9,
        mlflow_tracking_uri="http://m",
        store="s3://b/p",
    )
    environment = settings_environment(settings)
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)
        if variable_name(name) in environment:
            monkeypatch.setenv(variable_name(name), environment[variable_name(name)])
    assert load_settings() == settings


def test_the_table_explains_every_setting() -> None:
    rows = settings_table().splitlines()
    assert len(rows) == 2 + len(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        (row,) = [row for row in rows if row.startswith(f"| `{variable_name(name)}` ")]
        assert field.description
        assert field.description in row
