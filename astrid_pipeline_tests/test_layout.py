"""The store's own note of its layout: made once, and a newer one refused before anything is touched."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from astrid_pipeline.errors import StoreError
from astrid_pipeline.resources import garbage, layout
from astrid_pipeline.resources.store import LocalStore, StoreResource
from astrid_pipeline.services import backup
from astrid_pipeline_tests.s3_servers import s3_server


@pytest.mark.parametrize("kind", ["folder", "moto"])
def test_a_store_says_which_layout_it_has(tmp_path: Path, kind: str):
    with s3_server("moto", tmp_path) as server:
        store = LocalStore(tmp_path / "store") if kind == "folder" else server.store()
        assert layout.check(store) is None, "an empty store, or one from before the note"
        layout.claim(store)
        assert layout.check(store) == layout.LAYOUT
        first = store.get_bytes(layout.KEY)
        layout.claim(store)
        assert store.get_bytes(layout.KEY) == first


def test_the_resource_notes_it_and_refuses_a_newer_one(tmp_path: Path):
    StoreResource(url=str(tmp_path)).open()
    store = LocalStore(tmp_path)
    assert json.loads(store.get_bytes(layout.KEY))["layout"] == layout.LAYOUT
    store.put_bytes("a/b.0123456789ab.fits", b"left over")
    store.put_bytes(layout.KEY, json.dumps({"layout": layout.LAYOUT + 1}).encode())
    before = store.list()
    for work in (
        StoreResource(url=str(tmp_path)).open,
        lambda: garbage.find(store, list, now=time.time() + 1e6),
        lambda: backup.back_up(LocalStore(tmp_path / "elsewhere"), store),
    ):
        with pytest.raises(StoreError, match="a newer AstrID made this store") as told:
            work()
        assert told.value.permanent, "to try again helps nothing"
        assert "use that version" in str(told.value)
    assert store.list() == before
    store.put_bytes(layout.KEY, b"{}")
    with pytest.raises(StoreError, match="cannot be read"):
        layout.check(store)
    assert layout.LAYOUT >= 1
