"""Whether every part answers, asked anew each time."""

from __future__ import annotations

from astrid_pipeline.review.context import Context
from astrid_pipeline.review.schemas import Health, Part
from astrid_pipeline.services import checkup


def health(here: Context) -> Health:
    """Ask the database, the store, Dagster and MLflow, and look at the disk, as `astrid doctor` does."""
    settings = here.settings

    def catalogue() -> str:
        with here.catalog.reading("ask the catalogue") as connection:
            return checkup.catalogue(connection)

    checks = {
        "catalogue": catalogue,
        "store": lambda: checkup.store(here.store),
        "dagster": lambda: checkup.page(f"{settings.dagster_page}/server_info"),
        "mlflow": lambda: checkup.page(checkup.mlflow_page(settings)),
        "disk": lambda: checkup.disk(settings.home),
    }
    parts = {}
    for name, check in checks.items():
        found = checkup.ask(name, check)
        parts[name] = Part(ok=found.ok, detail=found.detail, seconds=found.seconds)
    return Health(ok=all(part.ok for part in parts.values()), parts=parts)
