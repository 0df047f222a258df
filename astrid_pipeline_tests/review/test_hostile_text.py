"""Text that came from headers and people is shown on the pages as text, whatever it says; also in a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from astrid_pipeline.catalog.labels import record
from astrid_pipeline.review.app import create_app

pytestmark = pytest.mark.postgres

EVIL = "<script>window.evil=1</script><img src=x onerror=window.evil=1>\"'&"


@pytest.fixture(scope="module")
def evil(scene: Any) -> int:
    """Let every text that a header or a person can choose be markup, and return a labelled source."""
    columns = {
        "fields": ["name"],
        "observations": ["filter", "instrument", "problem", "url"],
        "sources": ["filter", "class", "model_name", "model_version"],
        "objects": ["name", "class"],
        "light_curve_points": ["filter"],
        "detections": ["filter", "class"],
        "candidates": ["filter"],
    }
    with scene.catalog.transaction("write markup") as connection:
        source = connection.execute(
            text(
                "SELECT id FROM sources WHERE score IS NOT NULL AND object_id IS NOT NULL ORDER BY score DESC LIMIT 1"
            )
        ).scalar_one()
        chosen = {"evil": EVIL, "source": source}
        for table, names in columns.items():
            have = connection.scalars(
                text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
                {"table": table},
            ).all()
            for name in names:
                assert name in have, f"{table}.{name}"
                # Names are unique: one of them is enough.
                where = (
                    " WHERE id = (SELECT object_id FROM sources WHERE id = :source)"
                    if table == "objects"
                    else ""
                )
                connection.execute(text(f'UPDATE {table} SET "{name}" = :evil{where}'), chosen)
    record(scene.catalog, source, who=EVIL, verdict="real", token="t-evil", note=EVIL)
    return int(source)


@pytest.mark.parametrize(
    "page",
    [
        "/review?seen=all",
        "/review/rows?seen=all",
        "/review/panel/{source}",
        "/review/report",
        "/review/datasets",
        "/docs",
    ],
)
def test_pages_show_it_as_text(scene: Any, evil: int, page: str) -> None:
    client = TestClient(create_app(scene.settings, scene.catalog, scene.store))
    answer = client.get(page.format(source=evil))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src" not in answer.headers["content-security-policy"], (
        "scripts fall under default-src 'self'"
    )
    assert "<script>window" not in answer.text
    assert not re.search(r"<img[^>]*onerror", answer.text)
    if "rows" in page or "panel" in page:
        assert "&lt;script&gt;window" in answer.text, "this page shows none of it: the test tests nothing"


def test_metrics_stay_whole(scene: Any, evil: int) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    answer = TestClient(create_app(scene.settings, scene.catalog, scene.store)).get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["astrid_nights"].samples[0].labels["field"] == EVIL


@pytest.mark.browser
def test_a_browser_runs_none_of_it(server: Any, evil: int, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/review?seen=all")
    page.wait_for_selector("tr[data-id]")
    page.wait_for_timeout(500)
    assert page.evaluate("window.evil") is None
    page.close()
