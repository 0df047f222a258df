"""Which layout a store has: a note in the store itself, so that no AstrID works on one that it does not understand."""

from __future__ import annotations

import json

from astrid_pipeline import __version__
from astrid_pipeline.errors import MissingProductError, StoreError
from astrid_pipeline.resources.store import Store

#: Raised when keys or indices change so that an older AstrID would misread them, not for what is new beside them.
#: 1: `<asset>/<partition>/…` with `index.json` beside the files, tables as `<asset>/<partition>.parquet`, `raw/…`.
LAYOUT = 1
KEY = "astrid-layout.json"


def version(store: Store) -> int | None:
    """Return the layout that a store says it has; None where it says nothing: it is empty, or older than the note.

    Raises
    ------
    StoreError
        If the note cannot be read.
    """
    try:
        return _read(store.get_bytes(KEY), store.location(KEY))
    except MissingProductError:
        return None


def _read(note: bytes, where: str) -> int:
    try:
        return int(json.loads(note)["layout"])
    except (ValueError, KeyError, TypeError) as error:
        failure = StoreError(
            "the note of the store's layout cannot be read",
            where=where,
            remedy=f'write {{"layout": {LAYOUT}}} there if this AstrID made the store',
        )
        failure.permanent = True
        raise failure from error


def check(store: Store) -> int | None:
    """Return the store's layout. Raises `StoreError` if a newer AstrID has changed it."""
    found = version(store)
    _refuse_newer(found, store.url)
    return found


def check_note(note: bytes, where: str) -> None:
    """Raise `StoreError` if a note, as a backup holds it, is of a newer layout."""
    _refuse_newer(_read(note, where), where)


def _refuse_newer(found: int | None, where: str) -> None:
    if found is not None and found > LAYOUT:
        failure = StoreError(
            f"a newer AstrID made this store: its layout is {found}, and {__version__} knows {LAYOUT}",
            where=where,
            remedy="use that version, or another store (ASTRID_STORE)",
        )
        failure.permanent = True
        raise failure


def claim(store: Store) -> None:
    """Check a store that is to be written to, and note its layout where that was not done yet."""
    if check(store) is None:
        # Two that do it at once write the same.
        store.put_bytes(KEY, json.dumps({"layout": LAYOUT, "astrid": __version__}).encode())
