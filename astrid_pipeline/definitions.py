"""The one place where the parts meet: assets, jobs, sensors, schedules, and where things are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from astrid_pipeline import jobs, label_loop, schedules, sensors
from astrid_pipeline.assets import ALL as ASSETS
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.io_managers import FrameIOManager, TableIOManager
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.detector import DetectorResource
from astrid_pipeline.resources.folders import FolderIOManager
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline.resources.tracking import Tracking
from astrid_pipeline.settings import get_settings


def default_resources() -> dict[str, Any]:
    """Return the resources that the settings name."""
    store = StoreResource()
    tracking = Tracking()
    return {
        "store": store,
        "frames": FrameIOManager(store=store),
        "tables": TableIOManager(store=store),
        "folders": FolderIOManager(store=store),
        "products": ProductsResource(store=store),
        "catalogue": CatalogueResource(),
        "tracking": tracking,
        "detector": DetectorResource(tracking=tracking, device_name=get_settings().device),
    }


def executor() -> dg.ExecutorDefinition:
    """Return the executor that the settings name; a night's chain in one process is the quickest.

    Raises
    ------
    ConfigError
        If its library is not installed.
    """
    name = get_settings().executor
    if name == "celery":
        from astrid_pipeline.services.celery import celery_executor

        return celery_executor
    if name == "k8s":
        try:
            from dagster_k8s import k8s_job_executor
        except ImportError as error:
            raise ConfigError(
                "ASTRID_EXECUTOR=k8s needs dagster-k8s", remedy="pip install 'astrid-pipeline[k8s]'"
            ) from error
        return k8s_job_executor
    return dg.multiprocess_executor if name == "multiprocess" else dg.in_process_executor


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Return AstrID's definitions; tests and notebooks replace resources by name."""
    return dg.Definitions(
        assets=list(ASSETS),
        jobs=[*jobs.ALL, *label_loop.JOBS],
        sensors=[*sensors.ALL, *label_loop.SENSORS],
        schedules=list(schedules.ALL),
        resources={**default_resources(), **(resource_overrides or {})},
        executor=executor(),
    )


defs = build_defs()
