"""What is made by the clock."""

from __future__ import annotations

import dagster as dg

from astrid_pipeline.jobs import retrain

#: 12:00 UTC is after the night at every longitude from Chile to Hawaii; a site elsewhere sets its own hour.
nightly_retrain = dg.ScheduleDefinition(
    name="nightly_retrain",
    job=retrain,
    cron_schedule="0 12 * * *",
    execution_timezone="UTC",
    description="Train on what the nights so far have given, and evaluate. Off until switched on.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

ALL = (nightly_retrain,)
