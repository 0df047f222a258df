"""Every setting of AstrID, in one object read from `ASTRID_*` variables; all have working defaults.

With nothing set, everything lives in a folder (`~/.astrid`) and runs on services that AstrID starts itself.
Keys of an S3 store come from the usual AWS variables, so that no secret passes through here.
"""

from __future__ import annotations

import os
import threading
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from astrid_pipeline.errors import ConfigError


class Settings(BaseSettings):
    """What can be set. Each field is read from `ASTRID_<NAME>`, unless it names another variable."""

    model_config = SettingsConfigDict(
        env_prefix="ASTRID_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
    )

    home: Path = Field(
        default=Path("~/.astrid"),
        description="Folder for everything AstrID keeps when no other place is named: store, database, logs.",
    )
    store: str = Field(
        default="",
        description="Where products are kept: a folder, or `s3://bucket/prefix`. "
        "Default: `store` under the home.",
    )
    store_endpoint: str | None = Field(
        default=None,
        description="Address of the S3 server, where it is not Amazon's (Cloudflare R2: "
        "`https://<account>.r2.cloudflarestorage.com`). Keys: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`.",
    )
    store_region: str = Field(default="auto", description="Region of the S3 server; `auto` suits R2.")
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL server, `postgresql://user:password@host:5432/postgres`. AstrID keeps three "
        "databases on it (Dagster, MLflow, catalogue). Default: a server of its own under the home.",
    )
    database_prefix: str = Field(
        default="",
        pattern=r"^[a-z0-9_]*$",
        description="Put before the names of the three databases (`dagster`, `mlflow`, `astrid`), for a "
        "server that others use too.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias="MLFLOW_TRACKING_URI",
        repr=False,  # MLflow puts the address of a database there, password and all, for its children
        description="MLflow server; user and password: `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`. "
        "Default: the database above, artifacts in the store.",
    )
    archive: str = Field(
        default="simulated",
        description="Archive of fields that name none: `simulated`, `folder:/path/to/fits/files` or "
        "`mast:HST,JWST`. A token for data that are not public yet: `MAST_API_TOKEN`.",
    )
    archive_cache_gb: float = Field(
        default=20.0,
        gt=0,
        description="How much of what was fetched from public archives is kept on disk, GB.",
    )
    folder_cache_gb: float = Field(
        default=50.0,
        gt=0,
        description="How much of the training samples and models of a store on S3 is kept on this disk too, GB. "
        "`astrid gc` and the schedule `daily_pruning` remove what was not used for longest.",
    )
    inbox: str = Field(
        default="",
        description="Folder, or `s3://bucket/prefix`, that the sensor `inbox` watches for new FITS files.",
    )
    site: str = Field(
        default="space",
        description="Observatory whose local time the schedules keep: a name of `archives/sites.yaml` (paranal, "
        "palomar, …), or a time zone such as `America/Santiago`.",
    )
    retrain_at: str = Field(
        default="0 12 * * *",
        pattern=r"^\S+( \S+){4}$",
        description="When models are trained anew, as cron text in the site's time; the default is noon.",
    )
    learn_after: int = Field(
        default=100,
        ge=0,
        description="Sources labelled since the last time after which a challenger is trained from labels; 0: never.",
    )
    first_night: date = Field(
        default=date(2005, 1, 1),
        description="First night that can be asked for. Keep nights times fields below some 50,000 (set this "
        "later for a survey of many fields), or the Dagster page becomes slow.",
    )
    executor: Literal["in_process", "multiprocess", "celery", "k8s"] = Field(
        default="in_process",
        description="How the steps of one run are executed. `in_process` is fastest: runs go side by side. `celery` "
        "sends them to workers of the queues `cpu` and `gpu`, `k8s` makes a Kubernetes job of each.",
    )
    broker_url: SecretStr | None = Field(
        default=None,
        description="Redis through which Celery's workers get their steps, `redis://:password@host:6379/0`.",
    )
    gpus: int | None = Field(
        default=None,
        ge=1,
        description="How many steps compute on GPUs at once, on all machines together: one a GPU. Default: as many "
        "as this machine has; without one, models run on its cores.",
    )
    workers: int = Field(default=2, ge=1, description="How many runs go on at once.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where models run: `auto` takes a GPU if there is one, else `cpu`; or `cuda`, `cuda:1`.",
    )
    surveys: str = Field(
        default="",
        description="YAML file of sky surveys beside those of `archives/reference_surveys.yaml`, or of other servers "
        "(mirrors) for those.",
    )
    alert_webhook: SecretStr | None = Field(
        default=None,
        description='Address that is sent `{"text": …}` by POST (Slack, Mattermost and their like take it) when the '
        "daily look at the data finds something wrong.",
    )
    alert_email: str = Field(
        default="", description="Who gets an e-mail then, comma-separated; it goes through `ASTRID_SMTP`."
    )
    smtp: SecretStr | None = Field(
        default=None,
        description="Mail server: `smtp://user:password@host:587` (STARTTLS where it offers that), or `smtps://…`.",
    )
    log_json: str = Field(
        default="",
        description="File that all processes append their log to, one JSON object a line with field, night, exposure, "
        "run and step (`-`: standard error).",
    )
    keep_log_days: float = Field(
        default=30.0,
        gt=0,
        description="Days that the logs of runs are kept whole where the schedule `daily_pruning` is on; those of "
        "failed runs three times as long. What was made, its checks and failures stay.",
    )
    dagster_url: str = Field(
        default="",
        description="Address of the Dagster page for the API, where it is not on this machine's `ASTRID_DAGSTER_PORT`.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the pages listen on.")
    dagster_port: int = Field(default=3000, ge=1, le=65535, description="Port of the Dagster page.")
    mlflow_port: int = Field(default=5000, ge=1, le=65535, description="Port of the MLflow page.")
    review_port: int = Field(
        default=8000, ge=1, le=65535, description="Port of the vetting page and the API."
    )
    review_workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that serve them; one is enough for some 30 people who scan at once.",
    )

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Children of this process may run in other folders.
        return value.expanduser().absolute()

    @field_validator("archive", mode="after")
    @classmethod
    def _archive_place(cls, value: str) -> str:
        kind, _, path = value.partition(":")
        return f"folder:{Path(path).expanduser().absolute()}" if kind == "folder" else value

    @field_validator("inbox", mode="after")
    @classmethod
    def _inbox_place(cls, value: str) -> str:
        return value if not value or value.startswith("s3://") else str(Path(value).expanduser().absolute())

    @field_validator("log_json", mode="after")
    @classmethod
    def _log_place(cls, value: str) -> str:
        return value if value in ("", "-") else str(Path(value).expanduser().absolute())

    @field_validator("site", mode="after")
    @classmethod
    def _known_site(cls, value: str) -> str:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        from astrid_pipeline.archives.field_files import sites

        if value not in sites():
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                names = ", ".join(sorted(sites()))
                raise ValueError(f"{value!r} is neither a time zone nor one of {names}") from error
        return value

    @property
    def timezone(self) -> str:
        """Time zone of the observatory, for the schedules."""
        from astrid_pipeline.archives.field_files import sites

        return str(sites()[self.site]["timezone"]) if self.site in sites() else self.site

    @field_validator("store", mode="after")
    @classmethod
    def _store_place(cls, value: str) -> str:
        if not value or value.startswith("s3://"):
            return value.rstrip("/")
        if "://" in value:
            raise ValueError(f"{value!r} is neither a folder nor s3://bucket/prefix")
        return str(Path(value).expanduser().absolute())

    @field_validator("mlflow_tracking_uri", mode="after")
    @classmethod
    def _tracking_place(cls, value: str | None) -> str | None:
        if value and not value.startswith(("http://", "https://", "postgresql")):
            raise ValueError("an MLflow server has an address that begins with http:// or https://")
        if value and value.startswith("http") and "@" in value.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError(
                "put user and password into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value

    @property
    def dagster_page(self) -> str:
        """Address of the Dagster page, without a slash at its end."""
        address = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return self.dagster_url.rstrip("/") or f"http://{address}:{self.dagster_port}"

    @property
    def mlflow_server(self) -> str | None:
        """Address of the MLflow server; None where MLflow's database is used directly.

        MLflow itself puts the database that it was pointed at into `MLFLOW_TRACKING_URI`, for its children.
        """
        uri = self.mlflow_tracking_uri
        return uri if uri and uri.startswith("http") else None

    @property
    def store_url(self) -> str:
        """The store's folder (absolute path) or `s3://bucket/prefix`."""
        return self.store or str(self.home / "store")

    @property
    def postgres_folder(self) -> Path:
        """Data folder of the embedded PostgreSQL server."""
        return self.home / "postgres"

    @property
    def dagster_home(self) -> Path:
        """Folder that serves as `DAGSTER_HOME`: logs, artifacts of runs, a copy of `dagster.yaml`."""
        return self.home / "dagster"


def load_settings(**values: object) -> Settings:
    """Return settings from the environment, `values` taking precedence.

    Raises
    ------
    ConfigError
        Naming the variable that cannot be used.
    """
    try:
        return Settings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        variable = name if name.isupper() else f"ASTRID_{name.upper()}"
        raise ConfigError(
            f"cannot use this value: {first['msg']}",
            where=variable,
            remedy="see the README's configuration table",
        ) from error


_cached: Settings | None = None
_lock = threading.Lock()


def get_settings() -> Settings:
    """Return the settings of this process, read once. A `.env` file in the working folder is read first.

    Variables that are set already win over the file. The file fills the environment rather than only these
    settings, because the keys for S3 and MLflow are read from there by their own libraries.
    """
    global _cached
    with _lock:
        if _cached is None:
            from dotenv import load_dotenv

            load_dotenv(Path.cwd() / ".env", override=False)
            _cached = load_settings()
        return _cached


def reset_settings() -> None:
    """Forget the cached settings, so that the next `get_settings` reads the environment again."""
    global _cached
    with _lock:
        _cached = None


def settings_environment(settings: Settings) -> dict[str, str]:
    """Return a copy of the environment in which a child process gets these very settings."""
    environment = dict(os.environ)
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        variable = variable_name(name)
        if value is None or value == "":
            environment.pop(variable, None)
        elif isinstance(value, SecretStr):
            environment[variable] = value.get_secret_value()
        elif name in settings.model_fields_set or value != field.default:
            environment[variable] = str(value)
    return environment


def variable_name(name: str) -> str:
    """Return the environment variable that the field `name` is read from."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"ASTRID_{name.upper()}"


def settings_table() -> str:
    """Return the README's configuration table (Markdown): variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{variable_name(name)}` | {default} | {field.description} |")
    return "\n".join(rows)
