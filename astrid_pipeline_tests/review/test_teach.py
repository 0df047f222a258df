"""The queue by what teaches most: kept up with labels, the same on the page as in the API, and saying why."""

from __future__ import annotations

import uuid

import pytest

from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.review import teach
from astrid_pipeline_tests.review.conftest import NIGHT

pytestmark = pytest.mark.postgres


def test_the_order_follows_the_labels(client, scene, monkeypatch):
    monkeypatch.setattr(teach, "AGAIN_SECONDS", 0.0)
    asked = {"sort": "worth", "night": NIGHT, "limit": 100}
    first = client.get("/api/v1/detections", params=asked).json()["items"]
    assert all(row["worth"] > 0 for row in first)
    worths = [row["worth"] for row in first]
    assert worths == sorted(worths, reverse=True)
    why = first[0]["features"]["teaches"]
    assert first[0]["worth"] == pytest.approx(why["uncertainty"] * why["diversity"] * why["rarity"], abs=2e-3)
    assert why["probability"] == pytest.approx(first[0]["score"], abs=1e-3), (
        "without labels it is the model's"
    )
    # The same order on the page, and the reason in the panel.
    page = client.get("/review", params={"sort": "worth", "night": NIGHT, "kind": "detections"}).text
    assert page.index(f'data-id="{first[0]["id"]}"') < page.index(f'data-id="{first[1]["id"]}"')
    panel = client.get(f"/review/panel/{first[0]['id']}").text
    assert f"Teaches {first[0]['worth']:.2f} = uncertain {why['uncertainty']:.2f}" in panel
    # People disagree with the model in one respect: what is bright is bogus.
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id", kind="all"), 60).rows
    for row in rows[:40]:
        verdict = "bogus" if row["snr"] > 23 else "real"
        labels.record(scene.catalog, row["id"], who="ada", verdict=verdict, token=uuid.uuid4().hex)
    again = client.get("/api/v1/detections", params={**asked, "seen": "unseen"}).json()["items"]
    assert {row["id"] for row in again}.isdisjoint(row["id"] for row in rows[:40])
    told = {row["id"]: row["features"]["teaches"]["probability"] for row in again}
    bright = [told[row["id"]] for row in again if row["snr"] > 25]
    faint = [told[row["id"]] for row in again if row["snr"] < 20]
    assert sum(bright) / len(bright) < sum(faint) / len(faint) - 0.2, (
        "what was learned moves the order at once"
    )
    assert "Teaches" not in client.get(f"/review/panel/{rows[0]['id']}").text


def test_it_is_made_again_only_when_enough_is_new(scene, monkeypatch):
    made = []
    monkeypatch.setattr(teach, "rank", lambda catalog, night: made.append(night))
    teacher = teach.Teacher(scene.catalog)
    for _ in range(3):
        teacher.refresh(None)
    assert len(made) == 1
    monkeypatch.setattr(teach, "AGAIN_SECONDS", 0.0)
    row = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 1).rows[0]
    for i in range(teach.AGAIN_AFTER):
        teacher.refresh(None)
        assert len(made) == 1, f"{i} labels are too few"
        labels.record(scene.catalog, row["id"], who="bob", verdict="real", token=uuid.uuid4().hex)
    teacher.refresh(None)
    assert len(made) == 2
