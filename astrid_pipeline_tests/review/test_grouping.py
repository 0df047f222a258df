"""One row an object: which source stands for it, what has been said of it before, and what counts as done."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest

from astrid_pipeline.catalog import labels, queue

pytestmark = pytest.mark.postgres
NIGHTS = ("2026-05-01", "2026-05-02", "2026-05-03")
SINCE = dt.date(2026, 5, 1)


@pytest.fixture(scope="module")
def rows(scene):
    """Three nights of the same thirty places; all sources of them."""
    for night in NIGHTS:
        scene.make_night(night, n=30, passed=2, seed=9)
    return queue.list_sources(scene.catalog, queue.Filter(since=SINCE, kind="all"), 1000).rows


def slowly(rows: list[dict], kind: str = "detections", night: str | None = None) -> set[int]:
    """The representatives, one after the other: a labelled source, else the highest score, else the later."""
    best: dict[object, dict] = {}
    for row in rows:
        if (kind == "detections" and row["score"] is None) or (night and str(row["night"]) != night):
            continue
        key = row["object"] or row["id"]
        rank = (row["state"] != "unseen", -1.0 if row["score"] is None else row["score"], row["id"])
        if key not in best or rank > best[key]["rank"]:
            best[key] = {"rank": rank, "id": row["id"]}
    return {entry["id"] for entry in best.values()}


def listed(scene, **more) -> list[dict]:
    wanted = queue.Filter(since=SINCE, per_object=True, **more)
    return queue.list_sources(scene.catalog, wanted, 1000).rows


def test_an_object_of_three_nights_is_one_row(scene, client, rows):
    objects = {row["object"] for row in rows if row["object"]}
    mine = listed(scene)
    assert {row["id"] for row in mine} == slowly(rows)
    assert len(mine) == len(objects) <= 31
    assert all(row["object_detections"] >= 3 for row in mine)
    assert {row["id"] for row in listed(scene, kind="all")} == slowly(rows, "all")
    night = dt.date.fromisoformat(NIGHTS[1])
    assert {row["id"] for row in listed(scene, night=night)} == slowly(rows, night=NIGHTS[1])
    asked = {"since": str(SINCE), "per_object": True, "limit": 1000}
    assert len(client.get("/api/v1/detections", params=asked).json()["items"]) == len(mine)
    assert (
        "detections in 3 nights"
        in client.get("/review", params={"since": str(SINCE), "per_object": True}).text
    )


def test_a_verdict_on_one_is_one_on_the_object(scene, client, rows):
    one = listed(scene)[0]
    others = [r for r in rows if r["object"] == one["object"] and r["id"] != one["id"]]
    before = queue.progress(scene.catalog, queue.Filter(since=SINCE, per_object=True))
    assert before["seen"] == 0
    data = {"verdict": "real", "class_name": "AGN", "note": "every spring", "token": uuid.uuid4().hex}
    labels.record(scene.catalog, others[0]["id"], who="ada", **data)
    assert one["object"] not in {row["object"] for row in listed(scene, seen="unseen")}
    (shown,) = [row for row in listed(scene, seen="real") if row["object"] == one["object"]]
    assert shown["id"] == others[0]["id"]
    after = queue.progress(scene.catalog, queue.Filter(since=SINCE, per_object=True))
    assert (after["total"], after["seen"]) == (before["total"], 1)
    # Of its other sources the panel tells what was said.
    panel = client.get(f"/review/panel/{one['id']}").text
    assert "every spring" in panel
    assert "of its other detections" in panel
