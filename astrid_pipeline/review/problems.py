"""Errors as problem responses (RFC 9457): what was wrong and what to do, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from astrid_pipeline.catalog.labels import NoSuchSourceError, NotYoursError
from astrid_pipeline.errors import AstridError, InputError, MissingProductError, ServiceError, StoreError

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class Problem(Exception):
    """A request that cannot be answered: status, what was wrong, what to do."""

    def __init__(
        self, status: int, title: str, remedy: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(title)
        self.status, self.title, self.remedy = status, title, remedy
        self.headers = dict(headers or {})


def response(
    status: int, title: str, remedy: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return a problem response."""
    body = {"type": "about:blank", "status": status, "title": title, **more}
    if remedy:
        body["remedy"] = remedy
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def status_of(error: AstridError) -> int:
    """Return the HTTP status of one of AstrID's errors."""
    if isinstance(error, NoSuchSourceError | MissingProductError):
        return 404
    if isinstance(error, NotYoursError):
        return 403
    if isinstance(error, ServiceError | StoreError):
        # What the database refuses for good was wrong in the request.
        return 422 if error.permanent else 503
    return 422 if isinstance(error, InputError) or error.exit_code == 2 else 500


def install(app: FastAPI) -> None:
    """Let the application answer errors with problems."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return response(error.status, error.title, error.remedy, error.headers)

    @app.exception_handler(AstridError)
    async def _astrid(request: Request, error: AstridError) -> JSONResponse:
        status = status_of(error)
        if status >= 500:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        # A service's address is nobody's business outside.
        title = error.what if isinstance(error, ServiceError | StoreError) else str(error)
        return response(status, title, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [{"where": list(e["loc"]), "what": e["msg"]} for e in error.errors()]
        return response(422, "the request is not as described", "see /docs", errors=jsonable_encoder(wrong))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return response(error.status_code, str(error.detail), headers=error.headers)
