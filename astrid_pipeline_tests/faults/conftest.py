"""A field of small frames, its reference made, on a store that can be spoiled."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline.settings import get_settings, reset_settings
from astrid_pipeline_tests.faults.proxy import Proxy, faulty
from astrid_pipeline_tests.night.small_survey import night_of, write_field
from astrid_pipeline_tests.s3_servers import S3Server, s3_server
from astrid_pipeline_tests.stack.conftest import WITHOUT_INJECTIONS

FIELD, NIGHTS, SIZE, FRAMES = "small", 16, 192, 3


@dataclass
class Site:
    """A home with a field, its store behind a proxy, and nights that no test has made yet."""

    home: Path
    frames: Path
    server: S3Server
    proxy: Proxy
    used: int = 0

    def fresh_night(self) -> str:
        """Return the partition of a night that is not made."""
        self.used += 1
        return f"{FIELD}|{night_of(self.used)}"

    def step(self, partition: str, job: str = "process_night"):
        """Return the step that makes a night."""
        from astrid_pipeline.night.plan import Step

        return Step.on(job, partition, ())

    def make(self, partition: str, job: str = "process_night"):
        """Make a night in this process, through Dagster."""
        from astrid_pipeline import driver

        return driver.execute(
            self.step(partition, job), WITHOUT_INJECTIONS if job == "process_night" else None
        )


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    """The field on an S3 server behind a proxy; its first night calibrated, its reference made."""
    from astrid_pipeline import driver
    from astrid_pipeline.services import postgres

    home = Path(tempfile.mkdtemp(prefix="flt-", dir="/tmp"))
    before = dict(os.environ)
    with s3_server("rclone", home / "s3") as server, faulty(server.endpoint) as proxy:
        os.environ.update(server.environment())
        os.environ["ASTRID_STORE_ENDPOINT"] = proxy.endpoint
        os.environ.update(ASTRID_HOME=str(home / "home"), DAGSTER_HOME=str(home / "home" / "dagster"))
        reset_settings()
        try:
            write_field(
                home / "frames", FIELD, NIGHTS, size=SIZE, frames=dict.fromkeys(range(NIGHTS), FRAMES)
            )
            driver.open_catalogue().add_field(
                Field(FIELD, 150.0, 20.0, 0.3, archive=f"folder:{home / 'frames'}")
            )
            made = Site(home, home / "frames", server, proxy)
            survey = driver.Survey(driver.open_catalogue().fields())
            while steps := [s for s in survey.ready() if s.job in ("calibrate_night", "make_references")]:
                for step in steps:
                    assert driver.execute(step).error is None
            # With the first night that is judged, the model comes into MLflow, and its files into this store.
            assert made.make(made.fresh_night()).error is None
            yield made
        finally:
            from astrid_pipeline.resources.catalogue import leave_database

            leave_database()
            postgres.stop(get_settings())
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
            reset_settings()
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def healthy_site(site: Site) -> Iterator[Site]:
    """The field, with nothing wrong at the beginning and at the end."""
    site.proxy.behave()
    yield site
    site.proxy.behave()


def is_whole(
    partition: str,
    exposures: int = FRAMES,
    assets: Sequence[str] = ("calibrated_frames", "difference_images"),
) -> None:
    """Check that a night is there once, whole and readable, and that no row of the catalogue is double."""
    from sqlalchemy import text

    from astrid_pipeline import driver

    field, night = partition.split("|")
    products = driver.open_products()
    for asset in assets:
        frames = products.frames(asset, field, night)
        assert len(frames) == exposures, asset
        for name in frames:
            assert frames[name] is not None  # its digest is checked as it is read
    if "difference_images" in assets:
        assert len(products.table("night_summary", partition)) == 1
    with driver.open_catalogue().engine.connect() as connection:
        for key, table in (("exposure_id", "observations"), ("(exposure_id, x, y)", "sources")):
            what = f"count(*), count(distinct {key}) from {table}"
            rows = connection.execute(text(f"select {what}")).one()
            assert rows[0] == rows[1], what


def is_not_there(partition: str, *assets: str) -> None:
    """Check that a night's products cannot be seen, not even in part."""
    from astrid_pipeline import driver

    field, night = partition.split("|")
    for asset in assets or ("calibrated_frames", "difference_images", "night_summary"):
        assert night not in driver.open_products().nights(asset, field), asset


def said_of(run_id: str) -> str:
    """Return what the run's page says why a step was not made."""
    from astrid_pipeline.services.dagster_home import dagster_instance

    with dagster_instance() as instance:
        lines = [record.user_message for record in instance.all_logs(run_id)]
    return "\n".join(line for line in lines if line.startswith("WHY"))
