"""MLflow: the server that `MLFLOW_TRACKING_URI` names, or its database on AstrID's own PostgreSQL.

Without a server, runs and models are written to the database directly and their files go to the store; the MLflow
page of `astrid dev` shows the same database.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

from astrid_pipeline.errors import ServiceError
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, get_settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Requests to a server are tried so often and so long; MLflow's own defaults (7 tries of 120 s) hang for minutes.
#: No progress bars in the logs of runs, and nothing is reported to the makers of MLflow.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_lock = threading.Lock()
_ready: set[str] = set()


def tracking_uri(settings: Settings | None = None) -> str:
    """Return the address for MLflow clients; the database is started, made and migrated if it is AstrID's own.

    Raises
    ------
    ServiceError
        If the database does not answer.
    """
    settings = settings or get_settings()
    prepare_environment(settings)
    if settings.mlflow_server:
        return settings.mlflow_server
    url = postgres.database_url("mlflow", settings)
    with _lock:
        if url not in _ready:
            _initialise(url, settings)
            _ready.add(url)
    return url


def artifact_root(settings: Settings | None = None) -> str:
    """Return where the files of runs and models go when no MLflow server decides that: `mlflow` in the store."""
    return f"{(settings or get_settings()).store_url}/mlflow"


def prepare_environment(settings: Settings) -> None:
    """Tell MLflow's own S3 client what the store's is told, and keep it from waiting for minutes."""
    values = dict(_ENVIRONMENT)
    if settings.store_endpoint and settings.store_url.startswith("s3://"):
        values["MLFLOW_S3_ENDPOINT_URL"] = settings.store_endpoint
        values["AWS_DEFAULT_REGION"] = settings.store_region
        values["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
        values["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
    for name, value in values.items():
        os.environ.setdefault(name, value)


def client(settings: Settings | None = None) -> MlflowClient:
    """Return an MLflow client for tracking and registry."""
    uri = tracking_uri(settings)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _initialise(url: str, settings: Settings) -> None:
    # MLflow's processes race each other in the migration of a fresh database: one at a time goes through here.
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with postgres.advisory_lock("mlflow", "mlflow-schema", settings):
        try:
            engine = utils.create_sqlalchemy_engine_with_retry(url)
            try:
                if utils._all_tables_exist(engine):
                    if utils._get_schema_version(engine) != utils._get_latest_schema_revision():
                        # What `mlflow db upgrade` does, for a database that an older MLflow made.
                        utils._upgrade_db(engine)
                else:
                    utils._initialize_tables(engine)
            finally:
                engine.dispose()
        except MlflowException as error:
            raise ServiceError(
                f"MLflow's database cannot be prepared: {error}",
                where="mlflow",
                remedy="look at the PostgreSQL log; a database of a newer MLflow needs that MLflow",
            ) from error


def server_command(settings: Settings | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the MLflow page, and what it needs in its environment.

    Files of clients that come over HTTP pass through the server to the store: such a client needs no keys.
    The address of the database is passed in the environment: it may hold a password, and arguments are public.
    """
    settings = settings or get_settings()
    url = postgres.database_url("mlflow", settings)
    tracking_uri(settings.model_copy(update={"mlflow_tracking_uri": None}))
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        settings.host,
        "--port",
        str(settings.mlflow_port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning",
        "--serve-artifacts",
    ]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": url,
        "MLFLOW_REGISTRY_STORE_URI": url,
        "MLFLOW_ARTIFACTS_DESTINATION": artifact_root(settings),
        # Eight more processes for evaluating language models, which AstrID has none of.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return command, environment


def serve() -> None:
    """Become the MLflow server of the settings (`python -m astrid_pipeline.services.mlflow`)."""
    command, environment = server_command()
    os.execvpe(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    serve()
