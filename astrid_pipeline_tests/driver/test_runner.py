"""Stopping a run: what Dagster then says of it."""

from __future__ import annotations

import contextlib
import uuid

import dagster as dg

from astrid_pipeline.driver.runner import _noting_a_stop


def test_a_run_stopped_by_ctrl_c_does_not_go_on_for_ever_on_the_page() -> None:
    @dg.op
    def interrupted() -> None:
        raise KeyboardInterrupt

    @dg.job
    def night() -> None:
        interrupted()

    run_id = str(uuid.uuid4())
    with dg.DagsterInstance.ephemeral() as instance:
        with contextlib.suppress(KeyboardInterrupt), _noting_a_stop(instance, run_id):
            night.execute_in_process(instance=instance, run_id=run_id, raise_on_error=False)
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.is_finished, run.status
