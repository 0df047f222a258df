"""Pictures for the Dagster page: kept in the store, shown in place.

A materialization names its picture by an address that Dagster's own page answers: a path of its log manager, which
is AstrID's (`services.dagster_home`) and fetches the picture from the store. Written into the metadata itself, the
bytes would lie in the event log twice, and the page would hide them behind a click.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.resources.store import Store, open_store

#: Of the store, and of the log manager.
FOLDER = "pictures"
_DIGEST = re.compile(r"[0-9a-f]{32}")


def keep_picture(png: bytes, store: Store | None = None) -> str:
    """Keep a PNG under its digest and return its address on the Dagster page, e.g. `/logs/pictures/0f…/png`.

    Without `store`, that of the settings, where the page looks.
    """
    digest = hashlib.sha256(png).hexdigest()[:32]
    store, key = store or open_store(), f"{FOLDER}/{digest}.png"
    # Nothing is reserved here, and not every server could (conditional PUTs): two writers write the same.
    if not store.exists(key):
        store.put_bytes(key, png)
    return f"/logs/{FOLDER}/{digest}/png"


def fetch_picture(digest: str, target: Path, store: Store | None = None) -> bool:
    """Copy a picture to `target`; return False where the store has none of that name."""
    if _DIGEST.fullmatch(digest) is None:
        return False
    try:
        (store or open_store()).get_file(f"{FOLDER}/{digest}.png", target)
    except MissingProductError:
        return False
    return True
