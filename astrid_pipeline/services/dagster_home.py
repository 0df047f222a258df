"""Dagster's own keeping: its event log in AstrID's PostgreSQL, its files under AstrID's home.

`dagster.yaml` names the classes of this module. They take their addresses from `Settings`, so that the same file
serves `dagster dev` with nothing set up, the launcher, and production.
"""

from __future__ import annotations

import os
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from astrid_pipeline import logs
from astrid_pipeline.resources import pictures
from astrid_pipeline.services import postgres
from astrid_pipeline.services.dead_runs import (
    HOST_TAG,
    is_dead,
    is_forgotten,
    is_made,
    is_served,
    note_success,
)
from astrid_pipeline.settings import Settings, get_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun
    from dagster._core.run_coordinator.base import SubmitRunContext

#: Downloads from archives at once: what public archives ask of one client.
ARCHIVE_SLOTS = 2

#: Tag of runs that compute on a GPU from end to end.
GPU_TAG = "astrid/gpu"


#: Where NVIDIA's driver on Linux tells of its devices; to ask torch would cost each process two seconds.
_GPUS = Path("/proc/driver/nvidia/gpus")


def gpus() -> int:
    """Return on how many GPUs steps may compute at once; 0 where models run on the processor."""
    settings = get_settings()
    if settings.gpus is not None:
        return settings.gpus
    return 0 if settings.device == "cpu" or not _GPUS.is_dir() else len(list(_GPUS.iterdir()))


def pools() -> Mapping[str, int]:
    """Return the slots of the pools when nobody has set them: a person's choice on the Dagster page stays.

    Where there is no GPU to wait for, steps that run models take turns as all others do, by core: with one slot, two
    nights side by side waited 1.7 s a night for one another.
    """
    return {"gpu": gpus() or os.cpu_count() or 1, "archive": ARCHIVE_SLOTS}


class AstridStorage(DagsterPostgresStorage):
    """Dagster's storage in the database `dagster` of the server that the settings name, or the embedded one."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Take no configuration: the settings say where."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> AstridStorage:
        """Return the storage; the server is started, the database and its tables are made, if need be."""
        # Every process of Dagster's comes through here: daemon, webserver, runs.
        logs.start(get_settings())
        # Dagster says at each run that such handlers may change: its version is pinned, and a test looks.
        warnings.filterwarnings("ignore", message="Handling yaml-defined logging")
        url = postgres.database_url("dagster")
        storage = cls(inst_data=inst_data, postgres_url=url)
        parts: list[Any] = [storage.event_log_storage, storage.run_storage, storage.schedule_storage]
        for part in parts:
            part._engine = postgres.shared_engine(url)
        known = {pool.name for pool in storage.event_log_storage.get_pool_limits()}
        for name, slots in pools().items():
            if name not in known:
                storage.event_log_storage.set_concurrency_slots(name, slots)
        return storage

    # The stock class would hand out parts that read this class's configuration as PostgreSQL's.
    @property
    def event_storage_data(self) -> None:
        """Return None: the parts come with the whole."""

    @property
    def run_storage_data(self) -> None:
        """Return None: the parts come with the whole."""

    @property
    def schedule_storage_data(self) -> None:
        """Return None: the parts come with the whole."""


class AstridArtifacts(LocalArtifactStorage):
    """Files of runs under AstrID's home."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Take no configuration: the settings say where."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> AstridArtifacts:
        """Return the storage."""
        return cls(base_dir=str(get_settings().dagster_home), inst_data=inst_data)


class AstridLogs(LocalComputeLogManager):
    """What the steps print, under AstrID's home; and the pictures of materializations, from the store."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Take no configuration: the settings say where."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> AstridLogs:
        """Return the log manager."""
        return cls(base_dir=str(get_settings().dagster_home / "logs"), inst_data=inst_data)

    def get_captured_local_path(self, log_key: Sequence[str], extension: str, partial: bool = False) -> str:
        """Return where a log lies; a picture that the page asks for is fetched first, if it is not there yet."""
        path: str = super().get_captured_local_path(log_key, extension, partial)
        if len(log_key) == 2 and log_key[0] == pictures.FOLDER and not os.path.exists(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            pictures.fetch_picture(log_key[1], Path(path))
        return path


class AstridRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue: as many runs at once as `ASTRID_WORKERS` says, and one that trains for each GPU."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> AstridRunCoordinator:
        """Return the coordinator."""
        settings = get_settings()
        # Without a GPU one run trains at once: it takes all cores.
        tags = [{"key": GPU_TAG, "limit": max(gpus(), 1)}, *config_value.get("tag_concurrency_limits", [])]
        limits = {"max_concurrent_runs": settings.workers, **config_value, "tag_concurrency_limits": tags}
        return super().from_config_value(inst_data, limits)

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Queue a run, and note on which machine it will be launched: there it can be told whether it still lives."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST_TAG: socket.gethostname()})
        return super().submit_run(context)


class AstridRunLauncher(DefaultRunLauncher):
    """Dagster's launcher, a process a run, which can also tell whether that process still lives.

    The daemon asks after each run that goes on (`run_monitoring`): one that died with its whole container is noted as
    failed, and tried again.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return True."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Tell whether the run's process lives; where that cannot be known, it is taken to."""
        running = CheckRunHealthResult(WorkerStatus.RUNNING)
        # Dagster launches a failed run again at once, and only once: not before there is a server to launch it.
        if not (is_dead(self._instance, run) or is_forgotten(run)) or not is_served(run):
            return running
        # A step that goes on with a Celery worker is let to its end: it would only be made a second time.
        if get_settings().executor == "celery":
            from astrid_pipeline.services.celery import is_at_work

            if is_at_work(run.run_id):
                return running
        if is_made(self._instance, run):
            note_success(self._instance, run)
            return running
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND, "the process is gone (killed, out of memory, or its machine stopped)"
        )


def prepare_dagster_home(settings: Settings | None = None) -> Path:
    """Make the folder for `DAGSTER_HOME`, with the current `dagster.yaml` in it, and return it."""
    home = (settings or get_settings()).dagster_home
    (home / ".nux").mkdir(parents=True, exist_ok=True)
    # Its presence keeps Dagster's welcome window away.
    (home / ".nux" / "nux.yaml").touch()
    text = resources.files("astrid_pipeline.services").joinpath("dagster.yaml").read_text()
    target = home / "dagster.yaml"
    if not target.exists() or target.read_text() != text:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.write_text(text)
        os.replace(temporary, target)
    return home


@contextmanager
def dagster_instance() -> Iterator[DagsterInstance]:
    """Give the Dagster instance of this home, for commands that run or ask without the page.

    `DAGSTER_HOME` is set for this process and stays set, because runs launched from it need it.
    """
    from dagster import DagsterInstance

    os.environ["DAGSTER_HOME"] = str(prepare_dagster_home())
    with DagsterInstance.get() as instance:
        yield instance
