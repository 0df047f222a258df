"""The catalogue as a Dagster resource."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dagster import ConfigurableResource
from pydantic import Field

from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, get_settings

if TYPE_CHECKING:
    from astrid_pipeline.catalog import Catalog

_lock = threading.Lock()
_opened: dict[str, Catalog] = {}


def open_catalogue(settings: Settings | None = None) -> Catalog:
    """Return the catalogue of the settings; one object a process and database.

    Raises
    ------
    ServiceError
        If the database does not answer.
    """
    return _open(postgres.database_url("astrid", settings))


def _open(url: str) -> Catalog:
    from astrid_pipeline.catalog import Catalog

    with _lock:
        if url not in _opened:
            _opened[url] = Catalog(url)
        return _opened[url]


def leave_database() -> None:
    """Close this process's catalogues, and stop the embedded server if nobody else is connected to it."""
    with _lock:
        for catalogue in _opened.values():
            catalogue.close()
        _opened.clear()
    if get_settings().database_url is None:
        postgres.stop_if_idle()


class CatalogueResource(ConfigurableResource):
    """The catalogue: `catalogue.open()` gives the `Catalog`."""

    url: str | None = Field(
        default=None, description="Database address; default: the database `astrid` of ASTRID_DATABASE_URL."
    )

    def open(self) -> Catalog:
        """Return the catalogue; its tables are made on the first call."""
        return _open(self.url) if self.url else open_catalogue()
