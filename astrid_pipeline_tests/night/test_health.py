"""What a person on call is told of the survey: its nights, silent archives, late nights, damaged files, full disks."""

from __future__ import annotations

import datetime as dt
from collections import namedtuple

import pandas as pd
import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline.night import health
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archives.some_fits import TAN, write


class Kept:
    """Products as a dict of tables by (asset, partition)."""

    def __init__(self, tables, store=None) -> None:
        self.tables, self.store = tables, store

    def nights(self, asset, owner):
        return sorted(
            key.partition("|")[2]
            for name, key in self.tables
            if name == asset and key.startswith(f"{owner}|")
        )

    def table(self, asset, partition):
        return self.tables[asset, partition]


@pytest.fixture
def field(tmp_path):
    for day in (1, 2, 20):
        write(tmp_path / "data" / f"n{day}.fits", None, TAN, **{"DATE-OBS": f"2024-03-{day:02d}T04:00:00"})
    return Field("m33", 150.0, 2.0, 0.5, archive=f"folder:{tmp_path / 'data'}")


def night(name: str, **more) -> pd.DataFrame:
    row = {
        "field": "m33",
        "night": name,
        "filter": "r",
        "exposures": 3,
        "problems": 1,
        "detections": 5,
        "injected": 10,
    }
    return pd.DataFrame([{**row, "recovered": 8, "depth": 20.0, "score_sigma": 1.0, **more}])


def test_a_field_is_one_row(field):
    kept = Kept(
        {
            ("night_summary", f"m33|{n}"): night(n, depth=d)
            for n, d in (("2024-03-01", 20.0), ("2024-03-02", 21.0))
        }
    )
    table = health.survey_summary([field, Field("empty", 1, 1, 1)], kept)
    row = table.set_index("field").loc["m33"]
    assert (row.nights, row.exposures, row.detections, row.recovered) == (2, 6, 10, 16)
    assert (row["first"], row["last"], row.depth) == ("2024-03-01", "2024-03-02", 20.5)
    assert table.set_index("field").loc["empty"].nights == 0


def test_nights_that_are_late_are_named(field):
    kept = Kept({("night_summary", "m33|2024-03-01"): night("2024-03-01")})
    assert health.late_nights([field], kept, dt.date(2024, 3, 22)) == {
        "m33": "1 of 3 nights, 2024-03-02 to 2024-03-02"
    }
    late = health.late_nights([field], kept, dt.date(2024, 3, 30))
    assert late == {"m33": "2 of 3 nights, 2024-03-02 to 2024-03-20"}


def test_an_archive_that_does_not_answer_is_named_for_all_its_fields(field, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path / "home"))
    from astrid_pipeline.archives import web

    monkeypatch.setattr(
        "astrid_pipeline.archives.mast.BRIEF", web.Patience(tries=2, first=0.01, connect=1, read=2)
    )
    with ArchiveServer(Holdings()) as server:
        server.misbehave("status", "", -1, value=503)
        spec = f"mast:HST?server={server.url}"
        found = health.silent_archives(
            [field, Field("a", 1, 1, 1, archive=spec), Field("b", 2, 1, 1, archive=spec)]
        )
    assert set(found) == {"a", "b"}
    assert "503" in found["a"]


def test_damaged_files_are_found(field, tmp_path):
    store = LocalStore(tmp_path / "store")
    rows = []
    for number in range(3):
        kept = store.put_bytes(f"raw/m33/n/{number}.fits", bytes([number]) * 100)
        rows.append({"path": kept.key, "sha256": kept.sha256, "problem": None})
    products = Kept({("observations", "m33|2024-03-01"): pd.DataFrame(rows)}, store)
    assert health.damaged_files([field], products, 1) == ({}, 3)
    store.path(rows[1]["path"]).write_bytes(b"other")
    store.path(rows[2]["path"]).unlink()
    bad, read = health.damaged_files([field], products, 1)
    assert read == 3
    assert set(bad) == {rows[1]["path"], rows[2]["path"]}
    assert "not those that were fetched" in bad[rows[1]["path"]]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 10**9, 10**9))
    assert health.full_disks({"home": tmp_path / "not" / "yet"}) == {"home": "1.0 GB of 1000 GB are free"}
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    assert health.full_disks({"home": tmp_path}) == {}
