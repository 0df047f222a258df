"""`/metrics` against what really lies in the tables, and the dashboard against `/metrics`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from astrid_pipeline.catalog import Catalog
from astrid_pipeline.catalog.access import create_key
from astrid_pipeline.catalog.labels import record
from astrid_pipeline.review import metrics
from astrid_pipeline.review.app import create_app
from astrid_pipeline.services import gpus, postgres
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "astrid.json"
CARD = gpus.Card(0, "H200", 412.5, 3.0e9, 150.0e9, 0.83)


@dg.op
def difference_images() -> None:
    """Stand for a stage that succeeds."""


@dg.op
def detections() -> None:
    """Stand for a stage that fails."""
    raise dg.Failure("on purpose", allow_retries=False)


@dg.job
def nights() -> None:
    difference_images()
    detections()


@dg.job
def references() -> None:
    difference_images()


def scrape(scene: Any) -> dict[tuple[str, frozenset], float]:
    """Return all samples that a fresh application exposes, by name and labels."""
    answer = TestClient(create_app(scene.settings, scene.catalog, scene.store)).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: dict, metric: str, /, **labels: str) -> float:
    return samples[metric, frozenset(labels.items())]


@pytest.fixture(scope="module")
def samples(scene: Any, instance: Any) -> dict[tuple[str, frozenset], float]:
    """What is exposed after two runs with a step that fails, a run in the queue, a label, and with a card."""
    for _ in range(2):
        assert not nights.execute_in_process(instance=instance, raise_on_error=False).success
    assert references.execute_in_process(instance=instance).success
    run = instance.create_run_for_job(nights)
    # To be queued by Dagster itself, a run needs a code server; the column is what the coordinator would write.
    queued = text("UPDATE runs SET status = 'QUEUED' WHERE run_id = :run")
    engine = create_engine(postgres.database_url("dagster", scene.settings), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(queued, {"run": run.run_id})
    with scene.catalog.reading("choose a source") as connection:
        source = connection.execute(
            text("SELECT id FROM sources WHERE score IS NOT NULL LIMIT 1")
        ).scalar_one()
    record(scene.catalog, source, who="ada", verdict="real", token="t-metrics")
    with pytest.MonkeyPatch.context() as patch:
        # This machine need not have one.
        patch.setattr(gpus, "read", lambda: [CARD])
        return scrape(scene)


def test_the_survey_is_counted_from_the_catalogue(scene: Any, samples: dict) -> None:
    nights = scene.catalog.nights(FIELD)
    row = nights[nights["night"].astype(str) == NIGHT].iloc[0]
    assert value(samples, "astrid_nights", field=FIELD) == len(nights)
    for name in ("exposures", "candidates", "detections"):
        assert value(samples, f"astrid_{name}", field=FIELD) == row[name]
    assert value(samples, "astrid_last_night_timestamp_seconds", field=FIELD) > 1.7e9
    assert value(samples, "astrid_labels_total", verdict="real") == 1
    queue = {
        dict(labels)["state"]: n for (name, labels), n in samples.items() if name == "astrid_review_queue"
    }
    assert queue["real"] == 1
    assert sum(queue.values()) == 60, "the night's detections, without what the model passed over"


def test_runs_and_stages_are_counted_from_dagsters_tables(samples: dict) -> None:
    assert value(samples, "astrid_runs", job="nights", status="failure") == 2
    assert value(samples, "astrid_run_queue", status="queued") == 1
    assert value(samples, "astrid_run_queue", status="started") == 0
    assert 0 <= value(samples, "astrid_run_queue_oldest_seconds") < 600
    assert value(samples, "astrid_stage_outcomes", stage="difference_images", outcome="success") == 3
    assert value(samples, "astrid_stage_outcomes", stage="detections", outcome="failure") == 2
    for name in ("run_seconds", "run_wait_seconds"):
        assert 0 <= value(samples, f"astrid_{name}", job="references", quantile="0.5") < 600
    half = value(samples, "astrid_stage_seconds", stage="difference_images", quantile="0.5")
    assert (
        0 <= half <= value(samples, "astrid_stage_seconds", stage="difference_images", quantile="0.99") < 600
    )


def test_the_cards_and_the_process(samples: dict) -> None:
    assert value(samples, "astrid_gpu_watts", gpu="0", name="H200") == 412.5
    assert value(samples, "process_resident_memory_bytes") > 1e7
    assert value(samples, "astrid_up", part="catalogue") == value(samples, "astrid_up", part="dagster") == 1


def test_a_machine_without_a_driver_has_no_cards(scene: Any) -> None:
    if gpus.read():
        pytest.skip("this machine has a GPU")
    assert not any(name == "astrid_gpu_watts" for name, _ in scrape(scene))


def test_a_database_that_is_away_is_no_empty_survey(scene: Any) -> None:
    class Away(Catalog):
        def __init__(self) -> None:
            self.engine = self._asking = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")

    app = create_app(scene.settings, Away(), scene.store)
    found = list(metrics.Figures(app.state.context).collect())
    up = {
        sample.labels["part"]: sample.value
        for family in found
        if family.name == "astrid_up"
        for sample in family.samples
    }
    assert up == {"catalogue": 0, "dagster": 1}
    assert "astrid_exposures" not in {family.name for family in found}


def test_scraping_often_costs_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(metrics.Figures, "_of_dagster", lambda self: counted.append(1) or [])
    client = TestClient(create_app(scene.settings, scene.catalog, scene.store))
    assert len({client.get("/metrics").text for _ in range(3)}) == 1
    assert len(counted) == 1


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def queries() -> list[str]:
    board = dashboard()
    variables = [entry["query"] for entry in board["templating"]["list"] if entry["type"] == "query"]
    return variables + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


#: Given to every sample by Prometheus itself.
_BY_PROMETHEUS = {"job", "instance"}


def test_the_dashboard_asks_for_what_there_is(samples: dict) -> None:
    labels: dict[str, set[str]] = {}
    for name, pairs in samples:
        labels.setdefault(name, set()).update(key for key, _ in pairs)
    asked = set()
    for query in queries():
        names = re.findall(r"\b(?:astrid|process)_\w+", query)
        assert names, query
        asked.update(names)
        for name in names:
            assert name in labels, f"nothing exposes {name}"
        known = set.union(*(labels[name] for name in names)) | _BY_PROMETHEUS
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
        for group in re.findall(r"\bby\s*\(([^)]*)\)", query):
            used.update(part.strip() for part in group.split(","))
        assert used <= known, f"{query}: no label {used - known}"
        assert query.count("(") == query.count(")")
    shown = {name for name in labels if name.startswith("astrid_")} - {"astrid_build_info"}
    assert shown <= asked, f"the dashboard does not show {shown - asked}"


def test_values_that_queries_name_are_ones_that_occur(samples: dict) -> None:
    for query in queries():
        for name, selector in re.findall(r"\b(astrid_\w+)\{([^}]*)\}", query):
            for label, wanted in re.findall(r"(\w+)=\"([^\"$]+)\"", selector):
                values = {dict(pairs).get(label) for sample, pairs in samples if sample == name}
                assert wanted in values, f"{query}: {label} is one of {values}"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_only_who_may_read_scrapes(scene: Any) -> None:
    """Last here: the first key ends single-user mode."""
    key = create_key(scene.catalog, "prometheus", ["read"])
    client = TestClient(create_app(scene.settings, scene.catalog, scene.store))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
