"""The application: routes, errors, headers, and how it is served."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Message

from astrid_pipeline import __version__, logs
from astrid_pipeline.catalog import Catalog
from astrid_pipeline.errors import AstridError
from astrid_pipeline.review import (
    api,
    datasets,
    health,
    ingest,
    loop,
    metrics,
    page,
    problems,
    stream,
    training,
)
from astrid_pipeline.review.access import Gate
from astrid_pipeline.review.context import Context, Here
from astrid_pipeline.review.polite import Polite
from astrid_pipeline.review.runs import Runs
from astrid_pipeline.review.schemas import Health
from astrid_pipeline.review.stamps import StampStore
from astrid_pipeline.review.teach import Teacher
from astrid_pipeline.settings import Settings, get_settings, settings_environment

if TYPE_CHECKING:
    from dagster import DagsterInstance

#: Requests worked on at once in a process: as many as there are connections to ask the catalogue by. More would only
#: wait for these in no order; so they wait in the order they came.
THREADS = 8
#: Seconds after which a process that serves, and does not answer the one that started it, is replaced.
WORKER_SILENCE = 60
_log = logging.getLogger(__name__)


def create_app(
    settings: Settings | None = None,
    catalog: Catalog | None = None,
    store: Any = None,
    instance: DagsterInstance | None = None,
) -> FastAPI:
    """Return the application over a catalogue, a store and a Dagster instance (by default those of the settings)."""
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.services import postgres

    settings = settings or get_settings()
    logs.start(settings)
    own = catalog is None
    catalog = catalog or Catalog(postgres.database_url("astrid", settings))
    store = store or open_store(settings)
    gate, runs = Gate(catalog, settings.home), Runs(settings, instance)
    context = Context(settings, catalog, StampStore(store), gate, store, runs, Teacher(catalog))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await _warm(app, context)
        yield
        if own:
            context.catalog.close()

    app = FastAPI(
        title="AstrID",
        version=__version__,
        summary="Sources, objects, labels and training data of a difference-imaging survey",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.context = context
    app.state.ending = False
    app.state.follower = stream.Follower(context)
    problems.install(app)
    app.include_router(api.router)
    app.include_router(ingest.router)
    app.include_router(stream.router)
    for prefix in ("/api/v1", ""):
        app.include_router(training.router, prefix=prefix)
    app.include_router(loop.router)
    app.include_router(page.router)
    app.include_router(datasets.router)
    app.include_router(metrics.router)
    app.include_router(loop.page)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    _install_own(app)
    app.add_middleware(Polite)
    return app


async def _warm(app: FastAPI, here: Context) -> None:
    """Do once what scanners ask for, before anybody does: a server that was started anew is asked by all at once."""

    async def body() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def nowhere(message: Message) -> None:
        pass

    begun = time.monotonic()
    try:
        await anyio.to_thread.run_sync(page.warm, here)
    except AstridError as error:
        # It will be said to whoever asks for the same.
        _log.warning("not warm before the first request: %s", error)
    # Routes are prepared as they are first asked for, also by nobody whom they know.
    for method, path in (
        ("POST", "/api/v1/detections/1/labels"),
        ("GET", "/review/panel/1"),
        ("GET", "/api/v1/detections/1/stamp.png"),
    ):
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [],
            "app": app,
        }
        await app(scope, body, nowhere)
    # What is there now stays: the collector need not go through a million objects again and again.
    gc.collect()
    gc.freeze()
    _log.info("warm after %.1f s", time.monotonic() - begun)


def _install_own(app: FastAPI) -> None:
    @app.get("/health", tags=["health"], responses={503: {"model": Health}})
    def ask(here: Here) -> Response:
        """Ask every part whether it works; 503 if one does not."""
        found = health.health(here)
        return JSONResponse(found.model_dump(), 200 if found.ok else 503)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        """List the routes; works offline."""
        routes = [
            {
                "method": method.upper(),
                "path": path,
                "summary": (route.get("description") or "").split("\n")[0],
            }
            for path, methods in app.openapi()["paths"].items()
            for method, route in methods.items()
        ]
        return page._render("docs.html", routes=routes)


def serve(settings: Settings | None = None) -> None:
    """Serve the page and the API until the process is told to end."""
    import uvicorn

    settings = settings or get_settings()
    if settings.review_workers > 1:
        # The workers read the settings anew. What each keeps for itself (rates, caches) counts by worker.
        os.environ.update(settings_environment(settings))
        uvicorn.run(
            "astrid_pipeline.review.app:create_app",
            factory=True,
            host=settings.host,
            port=settings.review_port,
            workers=settings.review_workers,
            # A worker that does not answer its parent for so long is killed. The 5 s by default are over on a busy
            # machine before one has read its modules: each is killed as it begins, and nobody ever serves.
            timeout_worker_healthcheck=WORKER_SILENCE,
            log_level="warning",
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        return
    app = create_app(settings)

    class Server(uvicorn.Server):
        """Tells the streams of events to end, which would else stay open for hours."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.ending = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.review_port,
        log_level="warning",
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    Server(config).run()


if __name__ == "__main__":
    serve()
