"""AstrID's definitions with a quicker clock, for tests that wait for a real daemon; nothing else is changed."""

from __future__ import annotations

from astrid_pipeline import schedules, sensors
from astrid_pipeline.definitions import build_defs

for _sensor in sensors.ALL:
    _sensor._min_interval = 3
#: Each minute instead of each morning.
schedules.nightly_summary._cron_schedule = "* * * * *"

defs = build_defs()
