"""The embedded PostgreSQL and servers of others: real processes, started, raced, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from sqlalchemy import create_engine, text

from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, load_settings
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def settings() -> Iterator[Settings]:
    with home() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Settings]:
    with home() as made:
        yield made


def postmaster(settings: Settings) -> int:
    return int((settings.postgres_folder / "postmaster.pid").read_text().split("\n", 1)[0])


def ask(url: str, query: str) -> object:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(text(query)).scalar()
    finally:
        engine.dispose()


def test_processes_that_start_it_at_once_share_one_server(settings: Settings) -> None:
    program = (
        "import sys; from astrid_pipeline.services import postgres; "
        "from astrid_pipeline.settings import load_settings; s = load_settings(home=sys.argv[1]); "
        "print(*[postgres.database_url(n, s) for n in postgres.DATABASES])"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(settings.home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=180) for process in started]
    assert [process.returncode for process in started] == [0] * 4, results
    assert len({shown for shown, _ in results}) == 1
    # The server outlives those who started it.
    urls = results[0][0].split()
    assert [ask(url, "SELECT current_database()") for url in urls] == ["dagster", "mlflow", "astrid"]
    assert ask(urls[0], "SHOW max_connections") == "300"


def test_threads_that_want_one_database_at_once(shared: Settings) -> None:
    made: list[str] = []
    other = shared.model_copy(update={"database_prefix": "threads_"})
    threads = [
        threading.Thread(target=lambda: made.append(postgres.database_url("astrid", other))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert ask(made[0], "SELECT current_database()") == "threads_astrid"


def test_it_is_stopped_and_started_again_with_its_rows(shared: Settings) -> None:
    url = postgres.database_url("astrid", shared)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 42 AS answer"))
    engine.dispose()
    pid = postmaster(shared)
    assert postgres.stop(shared)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not postgres.stop(shared)
    assert ask(postgres.database_url("astrid", shared), "SELECT answer FROM kept") == 42


def test_it_comes_back_after_a_kill(shared: Settings) -> None:
    url = postgres.database_url("astrid", shared)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE survived AS SELECT 42 AS answer"))
    engine.dispose()
    pid = postmaster(shared)
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    assert ask(postgres.database_url("astrid", shared), "SELECT answer FROM survived") == 42


def test_a_pid_file_of_a_stranger_is_no_server(shared: Settings) -> None:
    # As after a power cut, or in a container made anew: the number belongs to another program now.
    postgres.database_url("astrid", shared)
    pid_file = shared.postgres_folder / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    postgres.stop(shared)
    lines[0] = str(os.getpid())
    pid_file.write_text("\n".join(lines) + "\n")
    assert ask(postgres.database_url("astrid", shared), "SELECT 1") == 1
    assert postmaster(shared) != os.getpid()


def test_it_is_left_alone_while_others_use_it(shared: Settings) -> None:
    engine = create_engine(postgres.database_url("astrid", shared))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert not postgres.stop_if_idle(shared)
    engine.dispose()
    assert postgres.stop_if_idle(shared)
    assert not postgres.stop_if_idle(shared)


def test_only_its_owner_can_reach_it(shared: Settings) -> None:
    folder, port = postgres.start(shared)
    assert (folder / f".s.PGSQL.{port}").stat().st_mode & 0o077 == 0
    assert ask(postgres.database_url("astrid", shared), "SHOW listen_addresses") == ""


def test_a_home_with_a_long_path() -> None:
    # A socket's path may have 107 bytes.
    with home(below="/".join(["long-name"] * 12)) as settings:
        assert ask(postgres.database_url("astrid", settings), "SELECT 1") == 1


def external(shared: Settings, **changes: str) -> Settings:
    """Return settings that name the embedded server as if it were somebody else's."""
    folder, port = postgres.start(shared)
    user = changes.pop("user", "postgres")
    url = f"postgresql://{user}@/postgres?host={folder}&port={port}"
    return load_settings(home=shared.home / "elsewhere", database_url=url, **changes)


def test_a_server_that_is_named_is_used(shared: Settings) -> None:
    settings = external(shared, database_prefix="sky_")
    url = postgres.database_url("dagster", settings)
    assert url.startswith("postgresql+psycopg2://")
    assert ask(url, "SELECT current_database()") == "sky_dagster"
    assert not settings.postgres_folder.exists(), "nothing should be started beside it"


def test_a_user_without_the_right_to_make_databases(shared: Settings) -> None:
    admin = postgres.server_url(shared).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg2.connect(admin) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE ROLE modest LOGIN")
    connection.close()
    with pytest.raises(ServiceError, match=r"CREATE DATABASE modest_astrid\) or give the user CREATEDB"):
        postgres.database_url("astrid", external(shared, user="modest", database_prefix="modest_"))


def test_a_server_that_does_not_answer() -> None:
    settings = load_settings(database_url=f"postgresql://a:geheim@127.0.0.1:{free_port()}/postgres")
    with pytest.raises(ServiceError, match="ASTRID_DATABASE_URL") as caught:
        postgres.database_url("astrid", settings)
    assert not caught.value.permanent
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["no address", "mysql://a@b/c", "sqlite:///x.db"])
def test_what_is_not_postgresql_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="ASTRID_DATABASE_URL"):
        postgres.database_url("astrid", load_settings(database_url=url))


def test_a_folder_that_cannot_hold_a_server(settings: Settings) -> None:
    settings.postgres_folder.mkdir()
    (settings.postgres_folder / "PG_VERSION").write_text("18\n")
    with pytest.raises(ServiceError, match="did not start") as caught:
        postgres.database_url("astrid", settings)
    assert str(settings.postgres_folder) in str(caught.value)


def test_one_at_a_time_holds_an_advisory_lock(shared: Settings) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with postgres.advisory_lock("astrid", "test", shared):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with postgres.advisory_lock("astrid", "test", shared):
        inside.set()
        with postgres.advisory_lock("astrid", "another purpose", shared):
            order.append("another")
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["another", "first", "second"]


def test_a_connection_that_is_kept_open_is_nobody_elses(settings: Settings) -> None:
    url = postgres.database_url("dagster", settings)
    engine = postgres.shared_engine(url)
    assert postgres.shared_engine(url) is engine

    def ask_backend() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("select pg_backend_pid()")).scalar_one())

    first = ask_backend()
    assert ask_backend() == first, "it is kept"
    assert postgres.stop_if_idle(settings)
    # Started anew, the server is asked through the same engine.
    assert postgres.database_url("dagster", settings) == url
    assert ask_backend() > 0
    postgres.close_shared()
