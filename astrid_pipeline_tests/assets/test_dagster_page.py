"""The Dagster page over the demo's results, in a real browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.browser]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def page_url(demo) -> Iterator[str]:
    """A Dagster web server on the demo's home."""
    from astrid_pipeline.services.dagster_home import prepare_dagster_home
    from astrid_pipeline.settings import get_settings, reset_settings

    os.environ["ASTRID_HOME"] = str(demo.home)
    reset_settings()
    home = prepare_dagster_home(get_settings())
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "dagster_webserver",
        "-m",
        "astrid_pipeline.definitions",
        "-p",
        str(port),
    ]
    log = (demo.home / "webserver.log").open("w")
    server = subprocess.Popen(
        command, env={**os.environ, "DAGSTER_HOME": str(home)}, stdout=log, stderr=log, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{url}/server_info", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, (demo.home / "webserver.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "the page did not come up"
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(60)
        log.close()


@pytest.fixture(scope="module")
def window(page_url, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(90_000)
    yield page
    page.close()


def test_the_asset_graph_shows_every_asset(window, page_url):
    window.goto(f"{page_url}/asset-groups")
    for name in ("observations", "calibrated_frames", "difference_images", "detections", "unet"):
        window.get_by_text(name, exact=True).first.wait_for()


def test_a_materialization_shows_its_numbers(window, page_url):
    window.goto(f"{page_url}/assets/difference_images?view=partitions&partition=sim-01%7C2026-03-14")
    window.get_by_text("score_sigma").first.wait_for()
    window.get_by_text("registration_x_px").first.wait_for()


def test_checks_are_listed_with_what_they_ask(window, page_url):
    window.goto(f"{page_url}/assets/difference_images?view=checks")
    for name in ("score_noise", "registration", "reference_coverage"):
        window.get_by_text(name, exact=True).first.wait_for()


def test_runs_of_the_demo_are_there(window, page_url):
    window.goto(f"{page_url}/runs")
    window.get_by_text("process_night").first.wait_for()
