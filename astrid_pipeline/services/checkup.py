"""Whether each part of AstrID works, asked anew each time: for `astrid doctor`, `astrid status` and `/health`.

A check returns what it saw, or raises an `AstridError` that says what is wrong and what to do. `Advice` is an error
that nothing fails of today.
"""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from astrid_pipeline.errors import AstridError, ConfigError, ServiceError, StoreError
from astrid_pipeline.services import gpus, postgres
from astrid_pipeline.services.health import answers, bare
from astrid_pipeline.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from sqlalchemy import Connection

    from astrid_pipeline.resources.store import Store

#: Under this much free space the next night may not fit.
LEAST_FREE_BYTES = 2 * 2**30
#: Clocks further apart than this order events wrongly; S3 refuses what is signed 15 minutes off.
MOST_SECONDS_APART = 60.0
#: Seconds for a page to answer.
PATIENCE = 3.0
#: A run that waits longer than this, hours, waits for something that will not come by itself.
LONG_WAIT_HOURS = 6.0


class Advice(AstridError):
    """Something works, and could be better."""


@dataclass(frozen=True)
class Finding:
    """What one check saw. `state` is `ok`, `advice` or `wrong`; a remedy is there unless it is `ok`."""

    part: str
    state: str
    detail: str
    remedy: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; advice is not."""
        return self.state != "wrong"


def ask(part: str, check: Callable[[], str]) -> Finding:
    """Return what a check saw; what it raises becomes the finding, with the remedy."""
    started = time.perf_counter()
    try:
        state, detail, remedy = "ok", check(), ""
    except AstridError as error:
        state = "advice" if isinstance(error, Advice) else "wrong"
        detail = error.what if error.where is None else f"{error.where}: {error.what}"
        remedy = error.remedy or ""
    except OSError as error:
        state, detail, remedy = "wrong", f"{type(error).__name__}: {error}", "look at what this names"
    return Finding(part, state, " ".join(detail.split()), remedy, round(time.perf_counter() - started, 4))


def catalogue(connection: Connection) -> str:
    """Return the schema's revision, if it is the one that the code needs."""
    from alembic.runtime.migration import MigrationContext

    from astrid_pipeline.catalog import migrate

    found, wanted = MigrationContext.configure(connection).get_current_revision(), migrate.head()
    if found is None:
        raise Advice(
            "the catalogue is empty", remedy="nothing to do: its tables are made by the first command"
        )
    if found != wanted:
        older = found < wanted  # revisions are numbers, written with zeros before them
        raise ServiceError(
            f"the catalogue's schema is {found}, the code's is {wanted}",
            remedy="back it up, then `astrid status` migrates it"
            if older
            else "use the newer AstrID that made it",
        )
    return f"schema {found}"


def connected(settings: Settings) -> str:
    """Ask the database server for the catalogue, without migrating it."""
    with _Connected("astrid", settings) as connection:
        return catalogue(connection)


class _Connected:
    """Context manager: a connection of its own, closed with its engine; errors become `ServiceError`."""

    def __init__(self, name: str, settings: Settings) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self._engine = create_engine(postgres.database_url(name, settings), poolclass=NullPool)
        self._name = name

    def __enter__(self) -> Connection:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._connection = self._engine.connect()
        except SQLAlchemyError as error:
            raise self._failure(error) from error
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        self._connection.close()
        self._engine.dispose()
        if isinstance(error, SQLAlchemyError):
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ServiceError:
        reason = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        return ServiceError(
            f"the database {self._name} does not answer: {reason}",
            remedy="look at the server's log, and at ASTRID_DATABASE_URL",
        )


def clock(settings: Settings) -> str:
    """Compare this machine's clock with the database server's, and with what was written last."""
    from sqlalchemy import text

    with _Connected("astrid", settings) as connection:
        before = time.time()
        theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        apart = float(theirs) - (before + time.time()) / 2
        latest = None
        if connection.execute(text("SELECT to_regclass('preprocess_runs')")).scalar_one() is not None:
            latest = connection.execute(text("SELECT max(finished_at) FROM preprocess_runs")).scalar_one()
    remedy = "set both clocks by NTP (`timedatectl set-ntp true`)"
    if abs(apart) > MOST_SECONDS_APART:
        raise ServiceError(
            f"the database server's clock is {apart:+.0f} s from this machine's", remedy=remedy
        )
    ahead = (latest - dt.datetime.now(dt.UTC)).total_seconds() if latest is not None else 0.0
    if ahead > MOST_SECONDS_APART:
        raise ServiceError(
            f"a night was finished {ahead:.0f} s in the future: a clock has gone back", remedy=remedy
        )
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S} UTC, {apart:+.2f} s from the database's"


def store(kept: Store) -> str:
    """Write, read and remove a small object: a full or read-only store must not look well."""
    # A name of its own: two who ask at once must not remove each other's.
    key = f"health/probe-{uuid.uuid4().hex}"
    kept.put_bytes(key, b"astrid")
    try:
        if kept.get_bytes(key) != b"astrid":
            raise StoreError(
                "what was written does not come back",
                where=kept.url,
                remedy="look at the S3 server or the disk",
            )
    finally:
        kept.delete([key])
    return f"writes and reads at {kept.url}"


def page(url: str, remedy: str = "start it: `astrid dev`") -> str:
    """Tell that a page answers 200."""
    if not answers(url, PATIENCE):
        raise ServiceError("does not answer", where=bare(url), remedy=remedy)
    return "answers"


def mlflow_page(settings: Settings) -> str:
    """Return the address that tells whether the MLflow server lives."""
    return f"{(settings.mlflow_server or f'http://{_address(settings)}:{settings.mlflow_port}').rstrip('/')}/health"


def tracking(settings: Settings) -> str:
    """Ask MLflow for an experiment and a model: through its server, or in its database."""
    from astrid_pipeline.services import mlflow

    where = bare(settings.mlflow_server) if settings.mlflow_server else "MLflow's database"
    if settings.mlflow_server:
        page(mlflow_page(settings), "start the server, or look at MLFLOW_TRACKING_URI")
    client = mlflow.client(settings)
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
        models = client.search_registered_models(max_results=100)
    except MlflowException as error:
        raise ServiceError(str(error), where=where, remedy="look at the MLflow server's log") from error
    return f"{len(models)} registered models"


def champion() -> str:
    """Say which detector judges the nights, and whether this AstrID brought newer weights than it has."""
    from astrid_pipeline.resources.detector import DETECTOR, newer_packaged
    from astrid_pipeline.resources.tracking import Tracking

    found = Tracking().find(DETECTOR)
    if found is None:
        return "none yet: the weights that come with AstrID are the first"
    newer = newer_packaged(Tracking())
    if newer:
        raise Advice(
            f"version {found.version} has the weights of an earlier AstrID; {newer} came with this one",
            remedy="`astrid champion package` takes them; `astrid champion` lists what there is",
        )
    return f"version {found.version}, {found.tags.get('model') or found.tags.get('source', 'trained here')}"


def disk(folder: Path) -> str:
    """Return how much is free where a folder is, or would be."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(place)
    said = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.0f} GiB free at {folder}"
    if usage.free < LEAST_FREE_BYTES:
        raise ServiceError(said, remedy="make room, or set ASTRID_HOME or ASTRID_STORE to a larger place")
    return said


def dagster(instance: DagsterInstance) -> str:
    """Ask Dagster's storage for its schema and its runs."""
    from dagster import DagsterRunStatus, RunsFilter

    found, wanted = instance.event_log_storage.alembic_version() or (None, None)
    if found != wanted:
        raise ServiceError(
            f"Dagster's schema is {found}, that of the installed Dagster is {wanted}",
            remedy="stop all AstrID processes, then `DAGSTER_HOME=<home>/dagster dagster instance migrate`",
        )
    counts = {
        word: instance.get_runs_count(RunsFilter(statuses=[status]))
        for word, status in (
            ("queued", DagsterRunStatus.QUEUED),
            ("in progress", DagsterRunStatus.STARTED),
            ("failed", DagsterRunStatus.FAILURE),
        )
    }
    said = "runs: " + ", ".join(f"{count} {word}" for word, count in counts.items())
    waiting = instance.get_run_records(
        RunsFilter(statuses=[DagsterRunStatus.QUEUED]), limit=1, ascending=True
    )
    if waiting:
        hours = (dt.datetime.now(dt.UTC) - waiting[0].create_timestamp).total_seconds() / 3600
        if hours > LONG_WAIT_HOURS:
            raise ServiceError(
                f"{said}; the oldest waits since {hours:.0f} h",
                remedy="see whether the daemon runs, and who holds the slots (Dagster page: Deployment, Concurrency)",
            )
    return said


def daemon(instance: DagsterInstance) -> str:
    """Tell whether Dagster's daemon lives, which starts queued runs, sensors and schedules."""
    from dagster._daemon.controller import all_daemons_healthy

    if not all_daemons_healthy(instance):
        raise ServiceError(
            "the daemon gives no sign of life: nothing queued starts, no sensor or schedule ticks",
            remedy="start it: `astrid dev`, or the compose service `daemon`",
        )
    return "gives signs of life"


def archives(settings: Settings) -> str:
    """Ask the archive of every field; each is asked once."""
    from astrid_pipeline.archives.base import open_archive
    from astrid_pipeline.night.health import silent_archives
    from astrid_pipeline.resources.catalogue import open_catalogue

    fields = open_catalogue(settings).fields()
    if not fields:
        open_archive(settings.archive)
        return f"no field is watched yet; ASTRID_ARCHIVE is {settings.archive}"
    silent = silent_archives(fields)
    if silent:
        raise ServiceError(
            "; ".join(f"field {name}: {what}" for name, what in silent.items()),
            remedy="look whether the archive is up, or whether its folder is mounted",
        )
    return f"{len({field.archive for field in fields})} of {len(fields)} fields answer"


def device(settings: Settings) -> str:
    """Open the device that models run on, and compute something there."""
    import torch

    from astrid_pipeline.imaging.subtract.arrays import open_device

    chosen = open_device(None if settings.device == "auto" else settings.device)
    if float(torch.ones(8, device=chosen).sum()) != 8.0:
        raise ServiceError(
            "computes wrongly", where=str(chosen), remedy="look at the GPU's driver (`nvidia-smi`)"
        )
    cards = gpus.read()
    if cards and chosen.type == "cpu" and settings.device == "auto":
        raise Advice(
            f"{cards[0].name} is here, and models run on the processor",
            remedy="install a CUDA build of torch, or set ASTRID_DEVICE=cuda",
        )
    if cards:
        return f"{chosen}: " + ", ".join(f"{card.name}, {card.watts:.0f} W" for card in cards)
    return f"{chosen}, {torch.get_num_threads()} threads"


def port(settings: Settings, name: str, number: int, sign: str) -> str:
    """Tell whether a port is free, or AstrID's own page answers there.

    Parameters
    ----------
    sign:
        Path that answers 200 on the page that belongs there.
    """
    from astrid_pipeline.services.dev import check_port

    if answers(f"http://{_address(settings)}:{number}{sign}", PATIENCE):
        return f"{number}: the page answers"
    check_port(settings.host, number, f"ASTRID_{name.upper()}_PORT")
    raise Advice(f"{number}: free, nothing runs there", remedy="`astrid dev` starts the pages")


def alerts(settings: Settings) -> str:
    """Tell where alerts go; nothing is sent."""
    ways = []
    if settings.alert_webhook is not None:
        if urlsplit(settings.alert_webhook.get_secret_value()).scheme not in ("http", "https"):
            raise ConfigError("is no web address", where="ASTRID_ALERT_WEBHOOK", remedy="write https://…")
        ways.append("a webhook")
    if settings.alert_email:
        server = urlsplit(settings.smtp.get_secret_value()) if settings.smtp is not None else None
        if server is None or server.scheme not in ("smtp", "smtps") or not server.hostname:
            raise ConfigError(
                "there is no mail server for ASTRID_ALERT_EMAIL",
                where="ASTRID_SMTP",
                remedy="write smtp://user:password@host:587",
            )
        with socket.create_connection(
            (server.hostname, server.port or (465 if server.scheme == "smtps" else 25)), PATIENCE
        ):
            ways.append(f"e-mail by {server.hostname}")
    if not ways:
        raise Advice(
            "nobody is told when something is wrong", remedy="set ASTRID_ALERT_WEBHOOK or ASTRID_ALERT_EMAIL"
        )
    return " and ".join(ways)


def _address(settings: Settings) -> str:
    return "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host


def folders(settings: Settings) -> list[Path]:
    """Return the folders whose disk may fill."""
    own = [settings.home]
    return own if settings.store_url.startswith("s3://") else [*own, Path(settings.store_url)]


def quick(settings: Settings) -> list[Finding]:
    """Return what takes no second: the store and the disks."""
    from astrid_pipeline.resources.store import open_store

    found = [ask("store", lambda: store(open_store(settings)))]
    return found + [ask("disk", lambda folder=folder: disk(folder)) for folder in folders(settings)]  # type: ignore[misc]
