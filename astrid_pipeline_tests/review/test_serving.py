"""How the page is served: warm before it is asked, every answer whole and with its headers."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from astrid_pipeline.catalog import Catalog
from astrid_pipeline.review.app import create_app
from astrid_pipeline_tests.review.conftest import Away

pytestmark = pytest.mark.postgres
V1 = "/api/v1"


def test_a_server_is_warm_before_it_is_asked(scene, caplog):
    """Connections and routes are there when the first request comes; a catalogue that is away keeps no server down."""
    catalog = Catalog(scene.catalog.engine.url.render_as_string(hide_password=False))
    with caplog.at_level("INFO"), TestClient(create_app(scene.settings, catalog, scene.store)) as client:
        assert catalog.engine.pool.checkedin() == 4
        assert catalog._asking.pool.checkedin() == 8
        assert client.get("/health").json()["parts"]["catalogue"]["ok"]
    assert "warm after" in caplog.text
    assert "not warm" not in caplog.text
    catalog.close()
    with caplog.at_level("INFO"), TestClient(create_app(scene.settings, Away(), scene.store)) as client:
        assert client.get("/docs").status_code == 200
        assert client.get(f"{V1}/fields").status_code == 503
    assert "not warm before the first request" in caplog.text
    assert "cannot connect" in caplog.text


def test_answers_are_whole_and_refusals_have_headers_too(client):
    one = client.get(f"{V1}/detections", params={"limit": 1}).json()["items"][0]
    for path, status in (
        (f"/review/panel/{one['id']}", 200),
        (f"{V1}/detections/{one['id']}/stamp.png", 200),
        (f"{V1}/detections/{10**15}", 404),
        (f"{V1}/detections?field=a%00", 422),
        ("/static/review.js", 200),
    ):
        answer = client.get(path)
        assert answer.status_code == status, path
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.post("/sign-in", content=b"x" * (2**20 + 1)).status_code == 413
    assert client.post("/sign-in", headers={"Content-Length": "many"}).status_code == 413
    pictures = client.get(f"{V1}/detections/{one['id']}/stamp.png")
    assert pictures.headers["cache-control"] == "private, max-age=3600"
    again = client.get(
        f"{V1}/detections/{one['id']}/stamp.png",
        headers={"If-None-Match": f'"other", W/{pictures.headers["etag"]}'},
    )
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == pictures.headers["etag"]


@pytest.mark.slow
def test_processes_that_are_slow_to_begin_are_waited_for(tmp_path, monkeypatch):
    """On a busy machine one takes longer to read its modules than uvicorn by itself waits for a sign of life."""
    from astrid_pipeline_tests.benchmarks.scanning import Server
    from astrid_pipeline_tests.s3_servers import free_port
    from astrid_pipeline_tests.services.homes import home
    from astrid_pipeline_tests.support import apart

    late = 'import sys, time\nif "--multiprocessing-fork" in sys.orig_argv:\n    time.sleep(14)\n'
    (tmp_path / "sitecustomize.py").write_text(late)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with home(review_port=free_port(), review_workers=2) as settings:
        server = Server(settings)
        try:
            apart(server.start)
        finally:
            server.kill()
