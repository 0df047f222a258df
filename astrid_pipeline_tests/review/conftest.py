"""A catalogue and a store with a made-up night, and the application over them, also served on a port."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog
from astrid_pipeline.catalog.objects import objects_of_field, replace_points
from astrid_pipeline.night.light_curves import measure_night
from astrid_pipeline.night.stamps import write_stamps
from astrid_pipeline.resources.folders import put_folder
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline.review.app import create_app
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, reset_settings
from astrid_pipeline_tests.catalog.test_catalog import detections, observations
from astrid_pipeline_tests.report.example import make_difference
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

FIELD, NIGHT = "m31", "2026-01-02"


@dataclass(frozen=True)
class Scene:
    """What the tests of one module share."""

    settings: Settings
    catalog: Catalog
    store: LocalStore

    def make_night(self, night: str = NIGHT, n: int = 60, passed: int = 5, seed: int = 0) -> None:
        """Keep a night: `n` detections and `passed` candidates that the model passed over, with stamps and points."""
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(5, 395, n + passed), rng.uniform(5, 295, n + passed)
        bright = tuple(zip(x, y, rng.uniform(6, 40, n + passed), strict=True))
        exposure = f"e-{night}"
        mjd = 61042.0 + int(night[-2:])
        difference = make_difference(
            (300, 400), bright, exposure_id=exposure, mjd=mjd, filter="g", zero_point=25.0
        )
        ra, dec = difference.wcs.all_pix2world(x, y, 0)
        table = pd.DataFrame(
            {
                "candidate_id": [f"{exposure}-{i}" for i in range(n + passed)],
                "exposure_id": exposure,
                "x": x,
                "y": y,
                "ra": ra,
                "dec": dec,
                "mjd": mjd,
                "filter": "g",
                "flux": 300.0,
                "flux_err": 10.0,
                "snr": rng.uniform(6, 40, n + passed),
                "mag": 19.0,
                "mag_err": 0.03,
                "flags": 4,
                "dipole": 0.1,
                "real_bogus": 0.8,
            }
        )
        found = detections(table.head(n)).assign(score=np.round(rng.uniform(0.5, 1.0, n), 3))
        self.catalog.replace_partition(
            FIELD, night, observations=observations(), candidates=table, detections=found, run_id="run"
        )
        with tempfile.TemporaryDirectory() as folder:
            write_stamps(Path(folder), {exposure: difference}, table[["exposure_id", "x", "y"]])
            put_folder(
                self.store, f"stamps/{FIELD}/{night}", Path(folder), {"run_id": "run", "partition": ""}
            )
        points = measure_night({exposure: difference}, objects_of_field(self.catalog, FIELD))
        replace_points(self.catalog, FIELD, night, points)


class Away(Catalog):
    """A catalogue whose server is not there."""

    def __init__(self) -> None:
        self.engine = self._asking = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A catalogue with one night of one field, in a home of its own."""
    with home() as settings:
        catalog = Catalog(postgres.database_url("astrid", settings))
        catalog.add_field(Field(FIELD, 150.0, 2.0, 0.5, ("g",)))
        made = Scene(settings, catalog, LocalStore(tmp_path_factory.mktemp("store")))
        made.make_night()
        yield made
        catalog.close()


@pytest.fixture(scope="module")
def instance(scene: Scene) -> Iterator[Any]:
    """The Dagster instance of the scene's home: its event log lies in PostgreSQL, as everywhere."""
    from dagster import DagsterInstance

    from astrid_pipeline.services.dagster_home import prepare_dagster_home

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTRID_HOME", str(scene.settings.home))
        patch.setenv("DAGSTER_HOME", str(prepare_dagster_home(scene.settings)))
        reset_settings()
        with DagsterInstance.get() as made:
            yield made
    reset_settings()


@pytest.fixture
def client(scene: Scene) -> TestClient:
    """The application, asked without a network."""
    return TestClient(create_app(scene.settings, scene.catalog, scene.store))


@dataclass
class Server:
    """The application on a port, in a thread."""

    scene: Scene
    port: int
    instance: Any = None
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None
    _app: Any = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve until `stop`."""
        app = create_app(self.scene.settings, self.scene.catalog, self.scene.store, self.instance)
        self._app = app
        config = uvicorn.Config(app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        assert self._server is not None
        assert self._thread is not None
        self._app.state.ending = True
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture
def server(scene: Scene, instance: Any) -> Iterator[Server]:
    """The application on a free port."""
    made = Server(scene, free_port(), instance)
    made.start()
    yield made
    made.stop()
