"""Training attempts and models in MLflow, as a Dagster resource.

One MLflow run per attempt, closed with what became of it. A model version is the files of the attempt (weights as
safetensors, a model card), never a pickle; aliases say which version is `champion` and which `challenger`.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource, InitResourceContext, resource
from pydantic import Field, PrivateAttr

from astrid_pipeline.errors import MissingProductError, ServiceError
from astrid_pipeline.services import mlflow as service
from astrid_pipeline.settings import get_settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
#: MLflow takes so many values in one request.
_BATCH_PARAMS, _BATCH_METRICS = 100, 1000
_PARAM_LENGTH = 6000


@contextmanager
def mlflow_failing(what: str) -> Iterator[None]:
    """Turn MLflow's errors into `ServiceError`, so that a run on the page says what to do."""
    from mlflow.exceptions import MlflowException
    from psycopg2 import Error as PostgresError
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, PostgresError) as error:
        raise ServiceError(
            f"cannot {what}: {error}",
            where=get_settings().mlflow_server or "MLflow on AstrID's PostgreSQL",
            remedy="check that the MLflow server (or PostgreSQL) and the store are up, then run this again",
        ) from error


@dataclass(frozen=True)
class Model:
    """A version of a registered model: its files, and where they come from."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    folder: Path | None = None


class Attempt:
    """One training attempt: an MLflow run that is open while the `with` block of `Tracking.attempt` lasts."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record what the attempt was made with."""
        from mlflow.entities import Param

        values = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in params.items()]
        with mlflow_failing("record parameters"):
            for start in range(0, len(values), _BATCH_PARAMS):
                self._client.log_batch(self.run_id, params=values[start : start + _BATCH_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step; values that are not finite are left out, as no database agrees on them."""
        import math
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [
            Metric(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)
        ]
        with mlflow_failing("record metrics"):
            for start in range(0, len(values), _BATCH_METRICS):
                self._client.log_batch(self.run_id, metrics=values[start : start + _BATCH_METRICS])

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Record tags."""
        with mlflow_failing("record tags"):
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, str(value))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a file (or a folder's files) with the attempt, below `folder`."""
        with mlflow_failing(f"keep {Path(path).name}"):
            if Path(path).is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

    def log_bytes(self, data: bytes, name: str) -> None:
        """Keep bytes (a picture, a JSON text) as the file `name`, which may have folders in it."""
        with tempfile.TemporaryDirectory(prefix="astrid-") as temporary:
            path = Path(temporary) / Path(name).name
            path.write_bytes(data)
            parent = str(Path(name).parent)
            self.log_file(path, None if parent == "." else parent)


class Tracking(ConfigurableResource):
    """MLflow tracking and model registry."""

    experiment: str = Field(default="astrid", description="MLflow experiment that the attempts belong to.")

    _client: Any = PrivateAttr(default=None)

    @property
    def client(self) -> MlflowClient:
        """The MLflow client, for what this class does not offer."""
        if self._client is None:
            self._client = service.client()
        client: MlflowClient = self._client
        return client

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            # A server decides itself where files go; without one they go to the store.
            place = None
            if not get_settings().mlflow_server:
                place = f"{service.artifact_root()}/{self.experiment}"
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=place))
            except MlflowException:
                # Another process may have been faster; if not, the look below says what is wrong.
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    @contextmanager
    def attempt(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        dagster_run_id: str | None = None,
    ) -> Iterator[Attempt]:
        """Open an MLflow run, and close it as FINISHED, FAILED or KILLED when the block ends.

        Parameters
        ----------
        name:
            What is trained, such as `unet`.
        params, tags:
            Recorded at the start, so that a killed attempt still says what it was.
        dagster_run_id:
            The Dagster run that makes the attempt.

        Raises
        ------
        ServiceError
            If MLflow does not answer.
        """
        all_tags = {str(key): str(value) for key, value in (tags or {}).items()}
        if dagster_run_id:
            all_tags["dagster_run_id"] = dagster_run_id
        with mlflow_failing("open a run"):
            run = self.client.create_run(self._experiment_id(), run_name=name, tags=all_tags)
        attempt = Attempt(self.client, run.info.run_id)
        try:
            attempt.log_params(params or {})
            yield attempt
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with mlflow_failing("close the run"):
                self.client.set_terminated(attempt.run_id, status)
            raise
        with mlflow_failing("close the run"):
            self.client.set_terminated(attempt.run_id, "FINISHED")

    def register(
        self,
        name: str,
        files: Path | Mapping[str, Path],
        run_id: str,
        *,
        alias: str | None = None,
        tags: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> Model:
        """Keep files with an attempt and register them as the next version of the model `name`.

        Parameters
        ----------
        name:
            Registered model, such as `astrid-unet`.
        files:
            A folder, or names and paths; pickles are refused.
        run_id:
            The attempt that made them.
        alias:
            Given to the version at once (`champion`, `challenger`).

        Raises
        ------
        ServiceError
            If MLflow does not answer.
        ValueError
            If a file could run code when it is loaded.
        """
        from mlflow.exceptions import MlflowException

        paths = (
            dict(files) if isinstance(files, Mapping) else {p.name: p for p in sorted(Path(files).iterdir())}
        )
        unsafe = [
            name for name in paths if Path(name).suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")
        ]
        if unsafe or not paths:
            raise ValueError(f"a model is kept as safetensors and JSON, not as {unsafe or 'nothing'}")
        folder = f"models/{name}"
        with mlflow_failing("keep the model"), tempfile.TemporaryDirectory(prefix="astrid-") as temporary:
            for target, path in paths.items():
                (Path(temporary) / target).symlink_to(Path(path).absolute())
            self.client.log_artifacts(run_id, temporary, folder)
        with mlflow_failing("register the model"):
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self.client.get_run(run_id).info.artifact_uri}/{folder}"
            version = self.client.create_model_version(
                name,
                source,
                run_id,
                tags={str(key): str(value) for key, value in (tags or {}).items()},
                description=description,
            )
            if alias:
                self.client.set_registered_model_alias(name, alias, version.version)
        return Model(name, str(version.version), run_id, dict(version.tags))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `alias` mean this version from now on."""
        with mlflow_failing("set the alias"):
            self.client.set_registered_model_alias(name, alias, version)

    def find(self, name: str, alias: str = CHAMPION) -> Model | None:
        """Return the version that `alias` means, without its files; None if there is none."""
        from mlflow.exceptions import MlflowException

        with mlflow_failing("look up the model"):
            try:
                version = self.client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                # A missing alias is reported as an invalid parameter, a missing model as a missing resource.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        return Model(name, str(version.version), version.run_id or "", dict(version.tags))

    def versions(self, name: str) -> list[tuple[Model, tuple[str, ...], dict[str, str]]]:
        """Return every version of a model, the newest first, with its aliases and ``created`` (UTC), ``description``.

        Raises
        ------
        ServiceError
            If MLflow does not answer.
        """
        with mlflow_failing("list the versions"):
            found = self.client.search_model_versions(f"name='{name}'", max_results=1000)
            aliases = dict(self.client.get_registered_model(name).aliases) if found else {}
        out = []
        for each in sorted(found, key=lambda version: -int(version.version)):
            model = Model(name, str(each.version), each.run_id or "", dict(each.tags))
            mine = tuple(sorted(alias for alias, version in aliases.items() if str(version) == model.version))
            created = dt.datetime.fromtimestamp(each.creation_timestamp / 1000, dt.UTC)
            about = {"created": created.isoformat(), "description": each.description or ""}
            out.append((model, mine, about))
        return out

    def load(self, name: str, folder: Path, alias: str = CHAMPION) -> Model:
        """Copy the files of the version that `alias` means into `folder`.

        Raises
        ------
        MissingProductError
            If no version has the alias.
        ServiceError
            If MLflow or the store does not answer.
        """
        import mlflow.artifacts

        model = self.find(name, alias)
        if model is None:
            raise MissingProductError(
                f"no version of the model is {alias!r}", where=name, remedy="train one, and promote it"
            )
        with mlflow_failing("fetch the model"):
            uri = self.client.get_model_version_download_uri(name, model.version)
            Path(folder).mkdir(parents=True, exist_ok=True)
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=service.tracking_uri()
            )
        return Model(model.name, model.version, model.run_id, model.tags, Path(local))


@resource(description="The MLflow run of this Dagster run, shared by its steps (dagster-mlflow).")
def mlflow_run(context: InitResourceContext) -> Iterator[Any]:
    """Give dagster-mlflow's resource, pointed at AstrID's MLflow.

    For jobs that log from several steps into one run (`context.resources.mlflow.log_metric(...)`), with the hook
    `dagster_mlflow.end_mlflow_on_run_finished` on the job. Attempts of `Tracking` are runs of their own.
    """
    from dagster_mlflow.resources import MlFlow

    configured = context.replace_config(
        {
            "experiment_name": "astrid",
            "mlflow_tracking_uri": service.tracking_uri(),
            "env": {},
            "extra_tags": {},
        }
    )
    Tracking()._experiment_id()
    run = MlFlow(configured)
    yield run
    run.cleanup_on_error()
