"""Live updates: from the real logs, once a look for all who listen, nothing missed and nothing told twice."""

from __future__ import annotations

import asyncio
import json
import uuid

import dagster as dg
import pytest

from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.errors import ServiceError
from astrid_pipeline.review import stream
from astrid_pipeline.review.app import create_app
from astrid_pipeline.review.runs import Runs
from astrid_pipeline_tests.support import apart

pytestmark = pytest.mark.postgres


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["m31|2026-01-02"]))
def detections() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"detections": 7, "model": "unet"})


@dg.asset
def broken() -> None:
    raise ValueError("no")


@pytest.fixture
def follower(scene, instance, monkeypatch):
    monkeypatch.setattr(stream, "PERIOD", 0.05)
    app = create_app(scene.settings, scene.catalog, scene.store, instance)
    return app.state.follower


async def collect(
    follower, number: int, after=None, names=("label", "run", "asset", "night")
) -> list[stream.News]:
    found = []
    async for news in follower.listen(after):
        if news is not None and news.name in names:
            found.append(news)
            if len(found) == number:
                return found
    return found


async def hello(follower) -> stream.News:
    """Listen until one is told where one is."""
    async for news in follower.listen(None):
        if news is not None and news.name == "hello":
            return news
    raise AssertionError("the stream ended")


def say(scene, verdict="real", who="ada") -> None:
    row = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 1).rows[0]
    labels.record(scene.catalog, row["id"], who=who, verdict=verdict, token=uuid.uuid4().hex)


def test_labels_runs_and_nights_are_told_to_all_with_one_look(scene, follower, instance):
    async def play():
        listeners = [asyncio.create_task(collect(follower, 5)) for _ in range(20)]
        await asyncio.sleep(0.3)
        before = follower.looks
        started = asyncio.get_running_loop().time()
        await asyncio.to_thread(say, scene)
        await asyncio.to_thread(
            dg.materialize, [detections], instance=instance, partition_key="m31|2026-01-02"
        )
        heard = await asyncio.wait_for(asyncio.gather(*listeners), 30)
        seconds = asyncio.get_running_loop().time() - started
        looks = follower.looks - before
        await asyncio.sleep(0.3)
        return heard, looks, seconds, follower.looks

    heard, looks, seconds, after = apart(lambda: asyncio.run(play()))
    assert looks <= seconds / 0.05 + 2, "twenty pages look no more often than one"
    for mine in heard:
        assert [news.row["id"] for news in mine if news.name == "label"] == [heard[0][0].row["id"]]
        by_name = {news.name: news.row for news in mine}
        assert by_name["night"]["field"] == "m31"
        assert by_name["night"]["night"] == "2026-01-02"
        assert by_name["night"]["detections"] == 7
        assert by_name["asset"]["asset"] == "detections"
        assert {news.row["status"] for news in mine if news.name == "run"} == {"started", "success"}
    assert after == follower.looks, "nobody listens, nobody looks"


def test_what_was_missed_comes_first_and_once(scene, follower, instance):
    async def play():
        first = await asyncio.wait_for(hello(follower), 20)
        await asyncio.to_thread(say, scene, "bogus", "bob")
        await asyncio.to_thread(dg.materialize, [broken], instance=instance, raise_on_error=False)
        return await asyncio.wait_for(collect(follower, 3, (first.label, first.event)), 20)

    missed = apart(lambda: asyncio.run(play()))
    assert [news.name for news in missed] == ["label", "run", "run"]
    assert [news.row.get("status") for news in missed[1:]] == ["started", "failure"]
    assert json.loads(missed[0].lines().splitlines()[2].removeprefix("data: "))["who"] == "bob"


def test_a_row_whose_number_was_given_out_early_is_not_passed_over():
    rows = [{"id": 1}, {"id": 2}]
    log = stream._Log(lambda: 2, lambda after: [r for r in rows if r["id"] > after])
    assert log.news() == []
    rows += [{"id": 5}]
    assert log.news() == [{"id": 5}]
    rows.insert(2, {"id": 4})  # committed after 5
    assert log.news() == [{"id": 4}]
    assert log.news() == []


def test_a_log_that_does_not_answer_is_told_once_and_the_other_goes_on(scene, follower, monkeypatch):
    def away(self):
        raise ServiceError("cannot follow Dagster's event log: away")

    monkeypatch.setattr(Runs, "last_event", away)
    follower._events = stream._Log(follower._here.runs.last_event, follower._here.runs.events)

    async def play():
        task = asyncio.create_task(collect(follower, 2, names=("label", "silent")))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(say, scene, "real", "cy")
        return await asyncio.wait_for(task, 20)

    silent, label = apart(lambda: asyncio.run(play()))
    assert (silent.name, silent.row["log"]) == ("silent", "dagster")
    assert label.row["who"] == "cy"
