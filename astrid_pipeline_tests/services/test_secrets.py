"""No secret is seen: not in what Dagster keeps of runs that fail, not in logs, errors, pages, nor in the repository."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from astrid_pipeline import logs
from astrid_pipeline.cli import app
from astrid_pipeline.definitions import default_resources
from astrid_pipeline.errors import AstridError, ConfigError
from astrid_pipeline.night.outcome import for_each
from astrid_pipeline.services import checkup, notify, postgres
from astrid_pipeline.services.dagster_home import dagster_instance
from astrid_pipeline.settings import Settings, load_settings, reset_settings, settings_environment
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "database": "db-5f0c9a11",
    "webhook": "hook-77b1d4e2",
    "mail": "mail-a90c3f55",
    "store": "store-c4d2e8f0",
    "archive": "mast-1b6e7d93",
    "tracking": "track-9e8d7c6b",
}


@pytest.fixture(scope="module")
def own() -> Iterator[Settings]:
    """Settings full of secrets; the database lets any password in, everything else is away."""
    with home() as base, pytest.MonkeyPatch.context() as monkeypatch:
        socket, port = postgres.start(base)
        away = f"127.0.0.1:{free_port()}"
        values = {
            "ASTRID_HOME": str(base.home),
            "ASTRID_DATABASE_URL": f"postgresql://postgres:{SECRETS['database']}@/postgres?host={socket}&port={port}",
            "ASTRID_ALERT_WEBHOOK": f"http://{away}/services/{SECRETS['webhook']}",
            "ASTRID_ALERT_EMAIL": "ada@example.org",
            "ASTRID_SMTP": f"smtp://astrid:{SECRETS['mail']}@{away}",
            "ASTRID_LOG_JSON": str(base.home / "log.jsonl"),
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": SECRETS["store"],
            "MAST_API_TOKEN": SECRETS["archive"],
            "MLFLOW_TRACKING_URI": f"http://{away}",
            "MLFLOW_TRACKING_USERNAME": "astrid",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["tracking"],
            "DAGSTER_HOME": "",
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        reset_settings()
        yield load_settings()
        for handler in [
            each for each in logs.logging.getLogger().handlers if isinstance(each, logs.JsonLines)
        ]:
            logs.logging.getLogger().removeHandler(handler)
    reset_settings()


def failures(settings: Settings) -> dict[str, Callable[[], Any]]:
    """Return what fails for real, each of it knowing a secret."""
    wrong = settings.model_copy(
        update={
            "database_url": type(settings.database_url)(
                f"postgresql://postgres:{SECRETS['database']}@127.0.0.1:1/postgres"
            )
        }
    )
    return {
        "webhook": lambda: notify._post(settings.alert_webhook.get_secret_value(), "a", "b"),
        "mail": lambda: notify._mail(settings, "a", "b"),
        "database": lambda: postgres.database_url("astrid", wrong),
        "tracking": lambda: checkup.tracking(settings),
    }


def assert_clean(place: str, content: str | bytes) -> None:
    whole = content.encode() if isinstance(content, str) else content
    for name, secret in SECRETS.items():
        assert secret.encode() not in whole, f"the secret of {name} is in {place}"


def test_a_password_in_an_address_that_is_shown_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(mlflow_tracking_uri=f"http://astrid:{SECRETS['tracking']}@127.0.0.1:5000")
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)
    assert_clean("the error", str(caught.value))
    children = load_settings(mlflow_tracking_uri=f"postgresql://a:{SECRETS['database']}@h/mlflow")
    assert_clean("the settings' repr", repr(children))


def test_errors_do_not_tell(own: Settings) -> None:
    for name, fail in failures(own).items():
        with pytest.raises(AstridError) as caught:
            fail()
        assert_clean(f"the error of {name}", str(caught.value))


@pytest.mark.postgres
def test_what_dagster_keeps_of_runs(own: Settings) -> None:
    """Events with tracebacks, run config, tags, snapshots of jobs and what the steps printed."""

    @dg.asset(required_resource_keys={"store", "catalogue", "tracking", "detector"})
    def night(context) -> dg.MaterializeResult:
        def each(fail: Callable[[], Any]) -> Any:
            return fail()

        outcome = for_each(failures(own), each, stage="night", progress=context.log.info)
        assert len(outcome.problems) == 4
        context.log.warning(str(outcome.problems))
        print(repr(own))
        return dg.MaterializeResult(metadata={"settings": repr(own), "problems": str(outcome.problems)})

    @dg.asset(deps=[night], required_resource_keys={"store"})
    def broken(context) -> None:
        failures(own)["webhook"]()

    with dagster_instance() as instance:
        result = dg.materialize(
            [night, broken], instance=instance, resources=default_resources(), raise_on_error=False
        )
        assert not result.success
    engine = create_engine(postgres.database_url("dagster", own), poolclass=NullPool)
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        assert {"event_logs", "runs", "run_tags", "snapshots"} <= set(tables)
        for table in tables:
            for row in connection.execute(text(f'SELECT * FROM "{table}"')):
                for value in row:
                    plain = bytes(value) if isinstance(value, memoryview | bytes) else str(value).encode()
                    if isinstance(value, memoryview | bytes) and plain[:1] == b"x":
                        plain = zlib.decompress(plain)
                    assert_clean(f"Dagster's table {table}", plain)
        kept = connection.scalar(
            text("SELECT count(*) FROM event_logs WHERE dagster_event_type = 'STEP_FAILURE'")
        )
        assert kept == 1
    files = [
        path for path in own.home.rglob("*") if path.is_file() and own.postgres_folder not in path.parents
    ]
    assert Path(own.log_json) in files
    for path in files:
        assert_clean(str(path), path.read_bytes())


def test_what_is_shown(own: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    from astrid_pipeline.services.dev import where_things_are

    assert_clean("the lines of `astrid dev`", "\n".join(where_things_are(own, [])))
    assert_clean("the settings' repr", repr(own))
    assert_clean("the settings' dump", json.dumps(own.model_dump(mode="json")))
    app.run(["doctor"])
    shown = capsys.readouterr()
    assert "alerts" in shown.out
    assert_clean("`astrid doctor`", shown.out + shown.err)
    assert SECRETS["database"] in settings_environment(own)["ASTRID_DATABASE_URL"], (
        "children get it all the same"
    )


#: What keys look like: of AWS, of Slack hooks, private keys.
_KEYS = re.compile(
    r"AKIA[0-9A-Z]{16}|hooks\.slack\.com/services/T\w+/B\w+/\w{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{40}"
)


def test_the_repository_holds_none() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert "pyproject.toml" in names
    for name in names:
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".safetensors"):
            assert not _KEYS.search(path.read_text(errors="replace")), name
    assert ".env" not in names


def audit_script() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found"}
HOLED = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([CLEAN], 0, "1 of 1 packages looked up, 0 known"),
        ([CLEAN, HOLED], 1, "c 2: PYSEC-1, mended in 3"),
        ([CLEAN, SKIPPED], 2, "not audited: b"),
        ([HOLED, SKIPPED], 1, "PYSEC-1"),
        ([SKIPPED], 2, "NOT AUDITED"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_an_audit_that_could_not_ask_is_no_clean_one(packages: list, code: int, says: str) -> None:
    got, lines = audit_script().verdict({"dependencies": packages})
    assert got == code
    assert says in "\n".join(lines)


def test_an_audit_without_a_service_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real pip-audit, whose service is behind a proxy that is not there."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    (tmp_path / "r.txt").write_text("six==1.17.0\n")
    code, lines = audit_script().audit(tmp_path / "r.txt", "osv")
    assert code == 2
    assert "did not answer" in lines[0]
