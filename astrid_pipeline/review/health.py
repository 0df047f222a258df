"""Whether every part answers, asked anew each time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from sqlalchemy import text

from astrid_pipeline.errors import AstridError
from astrid_pipeline.review.context import Context
from astrid_pipeline.review.schemas import Health, Part
from astrid_pipeline.services.health import answers

#: Under this much free space the next night may not fit.
LEAST_FREE_BYTES = 2 * 2**30


def health(here: Context) -> Health:
    """Ask the database, the store, Dagster and MLflow, and look at the disk."""
    settings = here.settings
    address = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    mlflow = settings.mlflow_server or f"http://{address}:{settings.mlflow_port}"
    parts = {
        "catalogue": _asked(lambda: _catalogue(here)),
        "store": _asked(lambda: _store(here)),
        "dagster": _asked(lambda: _page(f"{settings.dagster_page}/server_info")),
        "mlflow": _asked(lambda: _page(f"{mlflow.rstrip('/')}/health")),
        "disk": _asked(lambda: _disk(here)),
    }
    return Health(ok=all(part.ok for part in parts.values()), parts=parts)


def _asked(ask: Callable[[], str]) -> Part:
    started = time.perf_counter()
    try:
        ok, detail = True, ask()
    except (AstridError, OSError) as error:
        ok, detail = False, error.what if isinstance(error, AstridError) else str(error)
    return Part(ok=ok, detail=detail, seconds=round(time.perf_counter() - started, 4))


def _catalogue(here: Context) -> str:
    with here.catalog.reading("ask the catalogue") as connection:
        return f"schema {connection.scalar(text('SELECT version_num FROM alembic_version'))}"


def _store(here: Context) -> str:
    """Write, read and remove a small object: a full or read-only store must not look well."""
    from astrid_pipeline.errors import StoreError

    key = "health/probe"
    here.store.put_bytes(key, b"astrid")
    if here.store.get_bytes(key) != b"astrid":
        raise StoreError("what was written does not come back", where=here.store.url)
    return "writes and reads"


def _page(url: str) -> str:
    if not answers(url, 3.0):
        raise OSError("does not answer")
    return "answers"


def _disk(here: Context) -> str:
    free = shutil.disk_usage(here.settings.home).free
    if free < LEAST_FREE_BYTES:
        raise OSError(f"{free / 2**30:.1f} GiB free")
    return f"{free / 2**30:.0f} GiB free"
