"""Signed addresses of files in the store: the S3 server's own, or one of this application's."""

from __future__ import annotations

import datetime as dt

from itsdangerous import BadSignature, URLSafeTimedSerializer

from astrid_pipeline.review.access import secret
from astrid_pipeline.review.context import Context
from astrid_pipeline.review.problems import Problem

#: A run may wait in the queue for a night; a week is the longest that S3 takes.
SECONDS = 24 * 3600


def _signer(here: Context) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret(here.settings.home), salt="astrid-file")


def url(here: Context, base: str, key: str) -> tuple[str, str]:
    """Return an address of a file that needs no key, and until when it holds (ISO 8601, UTC).

    Parameters
    ----------
    base:
        This application's own address, for a store that is a folder.
    key:
        The file's key in the store; the file need not be there yet.
    """
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=SECONDS)).isoformat(timespec="seconds")
    sign = getattr(here.store, "signed_url", None)
    if sign is not None:
        return str(sign(key, SECONDS)), expires
    return f"{base.rstrip('/')}/api/v1/files/{_signer(here).dumps(key)}", expires


def key_of(here: Context, token: str) -> str:
    """Return the key that an address was signed for. Raises `Problem` 403."""
    try:
        return str(_signer(here).loads(token, max_age=SECONDS))
    except BadSignature as error:
        raise Problem(403, "this address is not good any more", "ask for a new one") from error
