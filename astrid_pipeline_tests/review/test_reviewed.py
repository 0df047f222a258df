"""What people agree on becomes examples, with the stamps of the night; nobody else's word does."""

from __future__ import annotations

import datetime as dt
import uuid

import numpy as np
import pytest

from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.learning.curated import curate
from astrid_pipeline.review.reviewed import reviewed


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
