"""The Dagster page after a demo, in a browser: graph, a materialization with its picture, checks, jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astrid_pipeline.services.health import answers
from astrid_pipeline_tests.s3_servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.browser]

#: Milliseconds that a page may take; another process on the machine must not fail a test.
PATIENCE = 180_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(in_demo, browser, tmp_path) -> Iterator:
    """A browser page, and Dagster's webserver at its base address."""
    port = free_port()
    command = [sys.executable, "-m", "dagster_webserver", "-m", "astrid_pipeline.definitions"]
    environment = {
        **os.environ,
        "ASTRID_HOME": str(in_demo.home),
        "DAGSTER_HOME": str(in_demo.home / "dagster"),
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "webserver.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            env=environment,
            cwd=tmp_path,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 300
        while not answers(f"http://127.0.0.1:{port}/server_info"):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        context = browser.new_context(
            base_url=f"http://127.0.0.1:{port}", viewport={"width": 1600, "height": 1000}
        )
        context.set_default_timeout(PATIENCE)
        yield context.new_page()
        context.close()
    finally:
        server.terminate()
        server.wait()


def test_the_page_shows_what_a_person_looks_for(page):
    page.goto("/asset-groups")
    for group in ("images", "finds", "learning", "evaluation"):
        page.get_by_text(group, exact=True).first.wait_for()

    page.goto("/assets/detections?view=partitions&partition=sim-01%7C2026-03-14")
    page.get_by_text("astrid-unet", exact=False).first.wait_for()
    picture = page.locator("img[src*='/logs/pictures/']").first
    picture.wait_for()
    page.wait_for_function(
        "() => { const i = document.querySelector(\"img[src*='/logs/pictures/']\"); "
        "return i.complete && i.naturalWidth > 500; }"
    )
    assert picture.bounding_box()["width"] > 500
    assert page.get_by_text("[Show Markdown]").count() == 0, "nothing hides behind a click"

    page.goto("/assets/difference_images?view=checks")
    for name in ("score_noise", "registration", "reference_coverage", "all_differenced"):
        page.get_by_text(name, exact=True).first.wait_for()

    page.goto("/jobs")
    for name in ("process_night", "make_references", "retrain"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.goto("/automation")
    for name in ("new_observations", "nightly_retrain"):
        page.get_by_text(name, exact=True).first.wait_for()
