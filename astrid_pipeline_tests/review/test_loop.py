"""The loop as a whole: a night labelled in the browser, a dataset, a challenger, its promotion, new scores shown."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import uvicorn
from typer.testing import CliRunner

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, labels, loop, queue
from astrid_pipeline.io_managers import to_parquet
from astrid_pipeline.partitions import FIELDS
from astrid_pipeline.resources.frames import Index, IndexEntry, plain_meta, write_product
from astrid_pipeline.resources.store import Store, open_store
from astrid_pipeline.review.app import create_app
from astrid_pipeline.settings import Settings, get_settings, reset_settings
from astrid_pipeline_tests.catalog.test_catalog import observations
from astrid_pipeline_tests.s3_servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.browser]

FIELD = "m31"
#: The loop looks back from today.
NIGHT = (dt.datetime.now(dt.UTC).date() - dt.timedelta(days=3)).isoformat()
EXPOSURE = f"e-{NIGHT}"


@dataclass(frozen=True)
class Loop:
    """A home with one judged night of a survey that wants what brightens; the packaged champion wants both."""

    settings: Settings
    catalog: Catalog
    store: Store
    instance: dg.DagsterInstance
    bogus: dict[int, bool]

    def tick(self, cursor: str | None) -> dg.SensorResult:
        """Let the sensor look once."""
        from astrid_pipeline.label_loop import new_labels
        from astrid_pipeline.resources.catalogue import CatalogueResource
        from astrid_pipeline.resources.tracking import Tracking

        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            resources={"catalogue": CatalogueResource(), "tracking": Tracking()},
        )
        return new_labels(context)

    def run(self, request: dg.RunRequest, *only: str) -> Any:
        """Do what the sensor asked for, as the daemon would; of a night's job only the named assets."""
        from astrid_pipeline.definitions import build_defs

        return (
            build_defs()
            .resolve_job_def(request.job_name)
            .execute_in_process(
                instance=self.instance,
                run_config={
                    **request.run_config,
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                partition_key=request.partition_key,
                asset_selection=[dg.AssetKey(name) for name in only] or None,
                raise_on_error=False,
            )
        )


@pytest.fixture(scope="module")
def made() -> Iterator[Loop]:
    """The loop's home, with a night in it."""
    from astrid_pipeline.resources import catalogue
    from astrid_pipeline.services import postgres

    folder = Path(tempfile.mkdtemp(prefix="loop-"))
    before = {name: os.environ.get(name) for name in ("ASTRID_HOME", "ASTRID_LEARN_AFTER", "DAGSTER_HOME")}
    os.environ.update(ASTRID_HOME=str(folder), ASTRID_LEARN_AFTER="49", DAGSTER_HOME=str(folder / "dagster"))
    reset_settings()
    settings = get_settings()
    catalog, store = catalogue.open_catalogue(), open_store(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(FIELDS.name), [FIELD])
        bogus = make_night(catalog, store)
        yield Loop(settings, catalog, store, instance, bogus)
    catalogue.leave_database()
    postgres.stop(settings)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    reset_settings()
    shutil.rmtree(folder, ignore_errors=True)


def make_night(catalog: Catalog, store: Store) -> dict[int, bool]:
    """Simulate, subtract, find and judge one exposure; return for each source whether it faded."""
    from astrid_pipeline.imaging.candidates import find_candidates
    from astrid_pipeline.imaging.subtract import subtract
    from astrid_pipeline.night.differences import detect_one
    from astrid_pipeline.night.stamps import write_stamps
    from astrid_pipeline.resources.detector import DetectorResource
    from astrid_pipeline.resources.folders import put_folder
    from astrid_pipeline.resources.tracking import Tracking
    from astrid_pipeline.simulation.pairs import CASES, simulate_pair

    options = {"transients": 300.0, "variables": 20.0, "movers": 0.0, "fading": 0.5, "snr": (8.0, 40.0)}
    pair = simulate_pair(np.random.default_rng(5), (512, 512), **{**CASES["clean"], **options, "psf": "true"})
    difference = subtract(pair.science, pair.reference)
    difference = difference.replace(
        meta={"exposure_id": EXPOSURE, "mjd": 61042.0, "filter": "g", "seeing": 2.5, "masked_fraction": 0.0}
    )
    candidates = find_candidates(difference)
    champion = DetectorResource(tracking=Tracking()).champion()
    detections = detect_one(difference, candidates, champion)
    catalog.add_field(Field(FIELD, 150.0, 2.0, 0.5, ("g",)))
    table = observations()
    catalog.replace_partition(
        FIELD, NIGHT, observations=table, candidates=candidates, detections=detections, run_id="first"
    )
    for name, product in (("observations", table), ("candidates", candidates), ("detections", detections)):
        store.put_bytes(f"{name}/{FIELD}/{NIGHT}.parquet", to_parquet(product))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.fits"
        kind = write_product(difference, path)
        key = f"difference_images/{FIELD}/{NIGHT}/{EXPOSURE}.fits"
        kept = store.put_file(key, path)
    entry = IndexEntry(key, str(kept.sha256), kept.size, kind, plain_meta(difference))
    index = Index("difference_images", f"{FIELD}|{NIGHT}", "run", "1", "now", {EXPOSURE: entry})
    store.put_bytes(f"difference_images/{FIELD}/{NIGHT}/index.json", index.dump())
    rows = queue.list_sources(catalog, queue.Filter(kind="all", sort="id"), 1000).rows
    with tempfile.TemporaryDirectory() as folder:
        write_stamps(Path(folder), {EXPOSURE: difference}, pd.DataFrame(rows)[["exposure_id", "x", "y"]])
        put_folder(store, f"stamps/{FIELD}/{NIGHT}", Path(folder), {"run_id": "run", "partition": ""})
    return {row["id"]: row["flux"] < 0 for row in rows}


@pytest.fixture
def url(made: Loop) -> Iterator[str]:
    """Where the vetting page is served."""
    app = create_app(made.settings, made.catalog, made.store)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    app.state.ending = True
    server.should_exit = True
    thread.join(30)


def press(page: Any, key: str) -> None:
    before = page.get_attribute("#panel", "data-shown")
    page.keyboard.press(key)
    page.wait_for_function("was => document.querySelector('#panel').dataset.shown !== was", arg=before)


def saved(page: Any) -> None:
    page.wait_for_function("() => JSON.parse(localStorage.getItem('astrid-outbox') || '[]').length === 0")


def test_a_night_by_keyboard_teaches_the_detector_that_judges_it_anew(browser, made, url):
    from astrid_pipeline.resources.detector import DETECTOR
    from astrid_pipeline.resources.tracking import Tracking

    first = made.tick(None)
    assert not first.run_requests
    assert "0 new labels of 49" in first.skip_reason.skip_message
    page = browser.new_page()
    page.goto(f"{url}/review?night={NIGHT}&seen=unseen&kind=all&sort=worth")
    page.wait_for_selector("#panel article")
    assert "Teaches" in page.text_content("#panel .top")
    for _ in range(50):
        shown = int(page.get_attribute("#panel", "data-shown"))
        press(page, "b" if made.bogus[shown] else "r")
    press(page, "z")
    saved(page)
    page.wait_for_function("() => document.querySelector('#done').textContent === '49'")
    before = {row["id"]: row for row in queue.list_sources(made.catalog, queue.Filter(kind="all"), 1000).rows}

    second = made.tick(first.cursor)
    (turn,) = second.run_requests
    assert turn.job_name == "learn_from_labels"
    assert not made.tick(second.cursor).run_requests, "asked for once"
    result = made.run(turn)
    assert result.success, [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
    (last,) = loop.turns(made.catalog)
    assert last["status"] == "promoted", last["reason"]
    assert last["training_params"]["labels"] >= 40
    assert last["performance_metrics"]["gain.low"] > 0
    champion = Tracking().find(DETECTOR)
    assert last["model_version"] == f"{DETECTOR}-{champion.version}" == f"{DETECTOR}-2"
    assert champion.tags["dataset"] == last["dataset"]

    third = made.tick(second.cursor)
    (again,) = third.run_requests
    assert (again.job_name, again.partition_key) == ("rescore_night", f"{FIELD}|{NIGHT}")
    # The other assets of a night begin with frames, which this survey of one difference has none of.
    result = made.run(again, "detections", "stamps")
    assert result.success, [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
    after = {row["id"]: row for row in queue.list_sources(made.catalog, queue.Filter(kind="all"), 1000).rows}
    assert sum(row["labels"] for row in after.values()) == 49, "no label is lost"
    faded = [i for i, bad in made.bogus.items() if bad and before[i]["score"] is not None]
    others = [i for i, bad in made.bogus.items() if not bad and before[i]["score"] is not None]
    kept = {
        name: [i in after and after[i]["score"] is not None for i in ids]
        for name, ids in (("faded", faded), ("others", others))
    }
    assert np.mean(kept["faded"]) < 0.5 < 0.8 < np.mean(kept["others"]), kept

    chosen = next(
        i for i in others if after[i]["score"] is not None and after[i]["score"] != before[i]["score"]
    )
    page.goto(f"{url}/review?night={NIGHT}&seen=all&kind=all&sort=score")
    page.wait_for_selector("#panel article")
    page.evaluate("id => document.querySelector(`#rows tr[data-id='${id}']`).click()", str(chosen))
    page.wait_for_selector(f"#panel[data-shown='{chosen}'] article")
    told = page.text_content("#panel")
    assert f"{DETECTOR}-2" in told
    assert f"{after[chosen]['score']:.3f}" in told
    page.goto(f"{url}/review/report?night={NIGHT}")
    told = " ".join(page.text_content(".loop").split())
    assert f"promoted as {DETECTOR}-2" in told
    assert "better beyond the interval" in told
    page.close()


def test_a_person_holds_it(browser, made, url, monkeypatch):
    """After the test above: from the page, and from the terminal."""
    from astrid_pipeline.cli import review as commands

    page = browser.new_page()
    page.goto(f"{url}/review/report")
    page.focus(".loop form button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".loop .warn")
    assert loop.held(made.catalog).why == "from the scan report"
    state = page.evaluate("fetch('/api/v1/loop').then(a => a.json())")
    assert state["held"] is True
    assert state["turns"][0]["status"] == "promoted"
    rows = queue.list_sources(made.catalog, queue.Filter(kind="all", sort="id"), 1000).rows
    for row in rows[:50]:
        labels.record(made.catalog, row["id"], who="bob", verdict="real", token=uuid.uuid4().hex)
    found = made.tick(json.dumps({"after": 0}))
    assert not found.run_requests
    assert "holds it since" in found.skip_reason.skip_message
    run = CliRunner().invoke
    assert "held" in page.text_content(".loop").lower()
    told = run(commands.app, ["loop"])
    assert "promoted" in told.output
    assert "holds it" in told.output
    assert run(commands.app, ["release"]).exit_code == 0
    assert loop.held(made.catalog) is None
    assert made.tick(json.dumps({"after": 0})).run_requests
    assert "new camera" in run(commands.app, ["hold", "--why", "new camera"]).output
    assert loop.held(made.catalog).why == "new camera"
    monkeypatch.setenv("ASTRID_LEARN_AFTER", "0")
    reset_settings()
    loop.release(made.catalog, "ada")
    assert "the loop is off" in made.tick(json.dumps({"after": 0})).skip_reason.skip_message
    page.close()


def test_labels_that_say_nothing_new_promote_nothing(made):
    """A dataset that is not fit to learn from is refused, and the turn says why."""
    reset_settings()
    request = dg.RunRequest(
        job_name="learn_from_labels",
        run_config={"ops": {"labelled_peaks": {"config": {"name": "none", "days": 1}}}},
    )
    result = made.run(request)
    assert not result.success
    last = loop.turns(made.catalog)[0]
    assert last["status"] == "refused"
    assert "not fit to learn from" in last["reason"]
