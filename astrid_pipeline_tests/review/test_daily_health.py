"""The daily look at recent images and labels: what falls fails its check and goes out as an alert."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from astrid_pipeline.assets.health import data_health
from astrid_pipeline.catalog import labels, queue
from astrid_pipeline.learning import load_model
from astrid_pipeline.resources.products import Products
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.review.test_collect import keep_images
from astrid_pipeline_tests.services.test_notify import address, hook  # noqa: F401

pytestmark = pytest.mark.postgres
TODAY = dt.datetime.now(dt.UTC).date()


class Opens:
    """A resource whose `open` gives the same thing each time."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def open(self) -> Any:
        """Return it."""
        return self.what


class Champion:
    """The detector as a resource, with the packaged model."""

    device = None

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def champion(self) -> Any:
        """Return the packaged model; its canary noted as something else where the test says so."""
        model = load_model()
        return model.replace(facts={**model.facts, **self.facts})


def looked_at(scene, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    result = data_health(Opens(scene.catalog), Opens(Products(scene.store)), Champion(**facts))
    return {check.check_name: check for check in result.check_results}, result.metadata


def day(back: int) -> str:
    return str(TODAY - dt.timedelta(days=back))


@pytest.mark.usefixtures("instance")
def test_what_falls_is_told(scene, tmp_path, monkeypatch, hook):  # noqa: F811
    monkeypatch.setenv("ASTRID_ALERT_WEBHOOK", address(hook, "http"))
    reset_settings()
    for back in (30, 20, 10, 2):
        keep_images(scene.store, tmp_path, day(back))
    checks, metadata = looked_at(scene)
    assert checks["recent_images"].passed
    assert checks["recent_labels"].passed
    assert metadata["recent_images"] == 1
    assert metadata["recent_quality"] > 0.95
    hook.got.clear()
    # Clouds and a lost focus; and two people who do not agree.
    keep_images(scene.store, tmp_path, day(1), seeing=9.0, score_sigma=1.3)
    keep_images(scene.store, tmp_path, day(2), seeing=6.0)
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 4).rows
    for i, row in enumerate(rows):
        for who, verdict in (("ada", "real"), ("bob", "bogus" if i else "real")):
            labels.record(scene.catalog, row["id"], who=who, verdict=verdict, token=uuid.uuid4().hex)
    checks, metadata = looked_at(scene)
    assert not checks["recent_images"].passed
    assert "under 0.8" in checks["recent_images"].description
    assert not checks["recent_labels"].passed
    assert "25% agreement over 4 sources" in checks["recent_labels"].description
    assert checks["alert_sent"].passed
    assert metadata["agreement"] == 0.25
    (message,) = hook.got
    assert "recent_images: m31: quality 0." in message["text"]
    assert "recent_labels" in message["text"]
    assert checks["canary_sings"].passed
    hook.status = 500
    checks, _ = looked_at(scene, canary={"scores": [], "false": 0})
    assert not checks["canary_sings"].passed
    assert not checks["alert_sent"].passed
    assert "did not take the alert" in checks["alert_sent"].description
    monkeypatch.undo()
    reset_settings()
