"""The whole of docker-compose.yml, started once for the tests of this room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline.settings import get_settings, reset_settings
from astrid_pipeline_tests.night.small_survey import night_of, write_field
from astrid_pipeline_tests.stack import runs
from astrid_pipeline_tests.stack.compose import Stack

FIELD = "small"
#: The first three frames are the reference's; a long night's step lasts long enough to be killed in its middle.
NIGHTS, SIZE, LONG = 12, 192, 6
#: Nothing is put into the frames: half of a night's time.
WITHOUT_INJECTIONS = {
    "ops": {
        "injected_night": {"config": {"exposures_per_filter": 0}},
        "gold_standard": {"config": {"most": 0}},
    }
}
#: As .env.example asks for it, with the S3 server of the file.
VARIABLES = {
    "POSTGRES_PASSWORD": "stars4all",
    "ASTRID_STORE": "s3://astrid/products",
    "ASTRID_STORE_ENDPOINT": "http://s3:9000",
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "tester-secret",
    "ASTRID_FIRST_NIGHT": night_of(0),
    "ASTRID_LOG_JSON": "/var/lib/astrid/log.json",
    "ASTRID_EXECUTOR": "celery",
}


@dataclass(frozen=True)
class Production:
    """The stack, with a field whose frames lie in a folder; its first night is calibrated, its reference made."""

    stack: Stack

    def partition(self, number: int) -> str:
        """Return the key of a night: the second has one exposure, those after it `LONG`."""
        return f"{FIELD}|{night_of(number)}"


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """Every service of the file, healthy; settings of this process point at them, as an operator's shell would."""
    folder = Path(tempfile.mkdtemp(prefix="stk-", dir="/tmp"))
    folder.chmod(0o755)  # PostgreSQL has a user of its own
    made = Stack(folder, VARIABLES, profiles=("s3",))
    before = dict(os.environ)
    try:
        made.up()
        names = ("ASTRID_", "AWS_", "MLFLOW_", "DAGSTER_HOME")
        wanted = made.environment("code")
        os.environ.update({k: v for k, v in wanted.items() if k.startswith(names)})
        reset_settings()
        yield made
    finally:
        from astrid_pipeline.resources.catalogue import leave_database

        leave_database()
        made.down()
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        reset_settings()
        shutil.rmtree(folder, ignore_errors=True)


def write_frames(folder: Path) -> None:
    """Write the field's frames; in the second night a star is there that was not."""
    write_field(
        folder, FIELD, NIGHTS, size=SIZE, frames={0: 3, 1: 1, **dict.fromkeys(range(2, NIGHTS), LONG)}
    )


@pytest.fixture(scope="package")
def production(stack: Stack) -> Production:
    """The stack, with a field of small frames that is watched."""
    from astrid_pipeline.driver import open_catalogue

    assert get_settings().executor == "celery"
    frames = stack.folder / "frames"
    write_frames(frames)
    open_catalogue().add_field(Field(FIELD, 150.0, 20.0, 0.3, archive=f"folder:{frames}"))
    runs.add_partition(stack, "fields", FIELD)
    runs.start_sensor(stack, "made_after_all")
    made = Production(stack)
    for job, partition in (("calibrate_night", made.partition(0)), ("make_references", FIELD)):
        run = runs.launch(stack, job, partition)
        how = stack.wait_for(f"{job} of {partition}", lambda run=run: runs.ended(stack, run))
        assert how == "SUCCESS", runs.told(stack, run)
    return made


@pytest.fixture(scope="package")
def judged_night(production: Production) -> str:
    """The run that has made the night of one exposure, with the star that is new in it."""
    stack = production.stack
    run = runs.launch(stack, "process_night", production.partition(1), WITHOUT_INJECTIONS)
    assert stack.wait_for("the night", lambda: runs.ended(stack, run)) == "SUCCESS", runs.told(stack, run)
    return run
