"""A night through all services of docker-compose.yml, from the Dagster page to the bucket."""

from __future__ import annotations

import json

import pytest

from astrid_pipeline_tests.stack import runs
from astrid_pipeline_tests.stack.conftest import VARIABLES

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.s3]


def test_a_night_is_made_on_the_workers_of_its_queues(production, judged_night):
    from astrid_pipeline import driver
    from astrid_pipeline.jobs import process_night

    stack = production.stack
    partition = production.partition(1)
    run = judged_night

    # Each step ran where its queue is, in a worker and not in the run's own process.
    where = {step: worker.split("@")[0] for step, worker in runs.workers(stack, run).items()}
    assert set(where.values()) == {"cpu", "gpu"}
    from astrid_pipeline.definitions import defs

    job = defs.resolve_job_def(process_night.name)
    assert where == {node.name: node.definition.tags["dagster-celery/queue"] for node in job.nodes}

    # The products are in the bucket, and only there.
    products = driver.open_products()
    assert products.store.url == VARIABLES["ASTRID_STORE"]
    assert products.nights("night_summary", "small") == [partition.partition("|")[2]]
    for asset in ("observations", "candidates", "detections", "night_summary"):
        assert products.store.exists(f"{asset}/{partition.replace('|', '/')}.parquet"), asset
    assert len(products.table("observations", partition)) == 1
    assert (stack.folder / "s3" / "astrid" / "products" / "observations").is_dir()
    assert not (stack.folder / "home" / "store" / "observations").exists()

    # All processes write their JSON lines to the one file, naming field and night.
    lines = [json.loads(line) for line in (stack.folder / "home" / "log.json").read_text().splitlines()]
    mine = [line for line in lines if line.get("run") == run]
    assert {line.get("night") for line in mine if line.get("field") == "small"} == {partition[6:]}


def test_no_secret_is_in_any_log(production):
    texts = [path.read_text(errors="replace") for path in production.stack.folder.glob("*.log")]
    texts.append((production.stack.folder / "home" / "log.json").read_text())
    for secret in (VARIABLES["POSTGRES_PASSWORD"], VARIABLES["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret in text for text in texts)
