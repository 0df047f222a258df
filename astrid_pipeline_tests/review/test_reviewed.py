"""What people agree on becomes examples, with the stamps of the night; nobody else's word does."""

from __future__ import annotations

import datetime as dt
import json
import uuid

import numpy as np
import pytest

from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.cli.app import run
from astrid_pipeline.learning.curated import curate
from astrid_pipeline.review.reviewed import reviewed
from astrid_pipeline.settings import reset_settings


@pytest.mark.postgres
def test_reviewed_nights_give_labelled_stamps(scene, tmp_path):
    days = dt.date(2026, 1, 1), dt.date(2026, 1, 31)
    assert len(reviewed(scene.catalog, scene.store, *days).table) == 0
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows[:24]
    for number, row in enumerate(rows):
        for who in ("ada", "bob"):
            verdict = "real" if number % 3 else "bogus"
            labels.record(scene.catalog, row["id"], who=who, verdict=verdict, token=uuid.uuid4().hex)
    found = reviewed(scene.catalog, scene.store, *days)
    assert len(found.table) + len(found.problems) == 24
    assert len(found.table) >= 20, "a few lie at the very edge"
    assert set(found.table["label_source"]) == {"human"}
    said = dict(zip(found.table["source_id"], found.table["real"], strict=True))
    wanted = {row["key"]: float(number % 3 > 0) for number, row in enumerate(rows)}
    assert all(wanted[key] == value for key, value in said.items())
    assert np.isfinite(found.table[["ra", "dec", "mjd", "snr"]]).all(axis=None)
    made = curate(found, tmp_path / "set")
    assert len(made) == len(found.table)
    assert made.counts()["label_source"].tolist() == ["human"]
    assert len(reviewed(scene.catalog, scene.store, dt.date(2025, 1, 1), dt.date(2025, 1, 31)).table) == 0


@pytest.mark.postgres
def test_the_command_takes_reviewed_nights(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASTRID_HOME", str(scene.settings.home))
    monkeypatch.setenv("ASTRID_STORE", str(scene.store.root))
    reset_settings()
    try:
        row = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows[-1]
        for who in ("ada", "bob"):
            labels.record(scene.catalog, row["id"], who=who, verdict="real", token=uuid.uuid4().hex)
        options = ["--reviewed", "--since", "2026-01-01", "--json"]
        assert run(["curate", *options, "-o", str(tmp_path / "set")]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["examples"] >= 1
        assert {count["label_source"] for count in told["counts"]} == {"human"}
        assert run(["curate", "--reviewed", "--since", "spring", "-o", str(tmp_path / "none")]) == 2
        assert "write nights as" in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        reset_settings()
