"""The page of datasets: what is refused says why, what is collected stands there with its checks."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from astrid_pipeline.catalog import queue
from astrid_pipeline.review.app import create_app
from astrid_pipeline_tests.review.test_collect import give_labels, keep_images

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("instance")]
FORM = {"name": "by-hand", "start": "2026-01-01", "end": "2026-01-31", "confidence_threshold": "0.95"}


def test_a_dataset_by_the_form(scene, tmp_path):
    client = TestClient(create_app(scene.settings, scene.catalog, scene.store), follow_redirects=False)
    assert "None yet" in client.get("/review/datasets").text
    refused = client.post("/review/datasets", data=FORM)
    assert refused.status_code == 422
    assert "not fit to learn from" in refused.text
    assert 'value="by-hand"' in refused.text, "what was asked for stays in the form"
    wrong = client.post("/review/datasets", data={**FORM, "max_samples": "many"})
    assert "max_samples" in wrong.text
    foreign = client.post("/review/datasets", data=FORM, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    keep_images(scene.store, tmp_path)
    give_labels(scene, queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows)
    made = client.post("/review/datasets", data=FORM)
    assert (made.status_code, made.headers["location"]) == (303, "/review/datasets")
    page = client.get("/review/datasets").text
    assert "by-hand" in page
    assert "split by sky" in page
    assert "temporal distribution" in page
    again = client.post("/review/datasets", data=FORM)
    assert "there is a dataset of that name" in again.text
