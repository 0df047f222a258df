"""A job whose one step fails twice: in a module of its own, which each of its processes imports."""

# No `from __future__ import annotations` here: Dagster reads the annotations of contexts.

from pathlib import Path

import dagster as dg

from astrid_pipeline import step_failures
from astrid_pipeline.errors import StoreError
from astrid_pipeline.step_failures import tried_again


@dg.op(config_schema={"notes": str})
@tried_again
def twice(context: dg.OpExecutionContext) -> int:
    """Note each try in a file; fail on the first two."""
    step_failures.FIRST_PAUSE = 0.01  # of this process
    notes = Path(context.op_config["notes"])
    with notes.open("a") as file:
        file.write(f"{context.retry_number}\n")
    if context.retry_number < 2:
        raise StoreError("the server answered 503")
    return 7


@dg.job(executor_def=dg.multiprocess_executor)
def tried_in_processes():
    """A job whose one step fails twice, in a process of its own each time."""
    twice()
