"""The application: routes, errors, headers, and how it is served."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from astrid_pipeline import __version__, logs
from astrid_pipeline.catalog import Catalog
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
from astrid_pipeline.review.runs import Runs
from astrid_pipeline.review.schemas import Health
from astrid_pipeline.review.stamps import StampStore
from astrid_pipeline.review.teach import Teacher
from astrid_pipeline.settings import Settings, get_settings, settings_environment

if TYPE_CHECKING:
    from dagster import DagsterInstance

Next = Callable[[Request], Awaitable[Response]]
#: Bodies of requests are small: the largest is a note of 4000 characters.
LARGEST_BODY = 1 << 20
#: Requests worked on at once in a process: as many as there are connections to ask the catalogue by. More would only
#: wait for these in no order; so they wait in the order they came.
THREADS = 8
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


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
    app.middleware("http")(_polite)
    return app


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


async def _polite(request: Request, call_next: Next) -> Response:
    """Refuse what no route can take, set the security headers, and answer `If-None-Match`."""
    if "\x00" in request.url.path or "%00" in request.url.query:
        return problems.response(422, "text cannot hold NUL")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > LARGEST_BODY:
        return problems.response(413, f"a request has at most {LARGEST_BODY} bytes")
    answer = await call_next(request)
    for name, value in _HEADERS.items():
        answer.headers.setdefault(name, value)
    if request.method == "GET" and answer.status_code == 200 and _tagged(answer):
        return await _with_etag(request, answer)
    return answer


def _tagged(answer: Response) -> bool:
    return answer.headers.get("content-type", "").split(";")[0] in ("application/json", "image/png")


async def _with_etag(request: Request, answer: Response) -> Response:
    body = b"".join([part async for part in answer.body_iterator])  # type: ignore[attr-defined]
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**dict(answer.headers), "ETag": tag}
    headers.setdefault("Cache-Control", "private, no-cache")
    given = [
        value.strip().removeprefix("W/") for value in request.headers.get("if-none-match", "").split(",")
    ]
    if tag in given:
        for name in ("content-length", "content-type"):
            headers.pop(name, None)
        return Response(status_code=304, headers=headers)
    return Response(body, answer.status_code, headers)


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
