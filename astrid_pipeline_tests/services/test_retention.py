"""Old lines go from Dagster's log; what was made, whether it was good, and why it failed stay."""

from __future__ import annotations

import os
import time
from collections import Counter

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from astrid_pipeline.services import postgres
from astrid_pipeline.services.dagster_home import dagster_instance
from astrid_pipeline.services.retention import FAILED_LONGER, prune
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres

DAY = 86400.0
NIGHTS = dg.StaticPartitionsDefinition(["a", "b"])


@dg.asset(partitions_def=NIGHTS, check_specs=[dg.AssetCheckSpec("good", asset="sky")])
def sky(context):
    print("stars come out")
    context.log.info("one of many lines")
    if "fail" in context.run.tags:
        raise ValueError("clouds")
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])


def kinds(run_id: str) -> Counter:
    engine = create_engine(postgres.database_url("dagster"))
    with engine.connect() as connection:
        found = connection.execute(
            text("select dagster_event_type from event_logs where run_id = :run"), {"run": run_id}
        )
        counted = Counter(found.scalars().all())
    engine.dispose()
    return counted


def test_old_lines_go_and_what_was_made_stays(monkeypatch):
    with home() as own:
        monkeypatch.setenv("ASTRID_HOME", str(own.home))
        reset_settings()
        with dagster_instance() as instance:
            good = dg.materialize([sky], partition_key="a", instance=instance)
            bad = dg.materialize(
                [sky], partition_key="b", instance=instance, raise_on_error=False, tags={"fail": "yes"}
            )
            assert good.success
            assert not bad.success
            before = {run.run_id: kinds(run.run_id) for run in (good, bad)}
            logs = own.dagster_home / "logs"
            assert (logs / good.run_id).is_dir()
            now = time.time()

            # Of today's nothing goes.
            assert prune(instance, 30, now + 29 * DAY).rows == 0
            # After a month, the lines of the run that succeeded go.
            for folder in (good.run_id, bad.run_id):
                os.utime(logs / folder, (now, now))
            pruned = prune(instance, 30, now + 31 * DAY)
            assert pruned.outputs == 1
            left = kinds(good.run_id)
            assert pruned.rows == before[good.run_id].total() - left.total() > 10
            assert set(left) == {
                *("ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"),
                *("PIPELINE_START", "PIPELINE_SUCCESS"),
            }
            assert not (logs / good.run_id).exists()
            # The failed one is kept for longer, and then still says why.
            assert kinds(bad.run_id) == before[bad.run_id]
            assert (logs / bad.run_id).is_dir()
            prune(instance, 30, now + (30 * FAILED_LONGER + 1) * DAY)
            assert set(kinds(bad.run_id)) == {"STEP_FAILURE", "PIPELINE_START", "PIPELINE_FAILURE"}
            assert prune(instance, 30, now + 1000 * DAY).rows == 0

            # For Dagster, all is as it was.
            assert instance.get_materialized_partitions(sky.key) == {"a"}
            assert instance.get_latest_materialization_event(sky.key) is not None
            assert instance.get_run_by_id(good.run_id).status == dg.DagsterRunStatus.SUCCESS
            history = instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(sky.key, "good"), limit=5
            )
            assert [record.run_id for record in history if record.status.value == "SUCCEEDED"] == [
                good.run_id
            ]
            failure = instance.all_logs(bad.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
            assert "clouds" in str(failure[0].dagster_event.step_failure_data.error)


def test_lines_of_runs_that_go_on_stay_however_old(monkeypatch):
    with home() as own:
        monkeypatch.setenv("ASTRID_HOME", str(own.home))
        reset_settings()
        with dagster_instance() as instance:
            made = dg.materialize([sky], partition_key="a", instance=instance)
            engine = create_engine(postgres.database_url("dagster"))
            with engine.begin() as connection:
                connection.execute(text("update runs set status = 'STARTED'"))
            engine.dispose()
            before = kinds(made.run_id)
            assert prune(instance, 30, time.time() + 1000 * DAY).rows == 0
            assert kinds(made.run_id) == before


def test_the_job_prunes(monkeypatch):
    from astrid_pipeline.definitions import defs

    with home() as own:
        monkeypatch.setenv("ASTRID_HOME", str(own.home))
        monkeypatch.setenv("ASTRID_KEEP_LOG_DAYS", "0.0000001")
        reset_settings()
        with dagster_instance() as instance:
            made = dg.materialize([sky], partition_key="a", instance=instance)
            time.sleep(0.1)
            assert defs.resolve_job_def("prune_log").execute_in_process(instance=instance).success
            assert kinds(made.run_id).total() == 4
