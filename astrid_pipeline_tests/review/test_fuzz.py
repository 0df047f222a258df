"""The API against its own description: whatever is sent that it allows, or does not, nothing answers 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from astrid_pipeline.review import access
from astrid_pipeline.review.app import create_app

pytestmark = pytest.mark.postgres

#: Requests a route and kind; sixty were tried by hand.
EXAMPLES = 8
#: What Dagster and MLflow do not answer here is told as 503 with a problem.
_AWAY = ("/health", "/ingest", "/datasets/{dataset_id}/log")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_answers_500(scene, instance, monkeypatch, mode):
    # Without rate limits: a fuzz is faster than people.
    monkeypatch.setattr(access, "RATE", 1e9)
    monkeypatch.setattr(access, "BURST", 1e9)
    app = create_app(scene.settings, scene.catalog, scene.store, instance)
    # A stream does not end; the browser's test reads it.
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app).exclude(path_regex="/events$")
    failures: list[str] = []
    tried: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == GenerationMode.NEGATIVE and not (list(operation.iter_parameters()) or operation.body):
            continue  # nothing can be wrong about a request that says nothing

        @settings(
            max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None, database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            label = case.operation.label
            response = case.call()
            tried[label] = tried.get(label, 0) + 1
            away = response.status_code == 503 and any(part in label for part in _AWAY)
            if response.status_code >= 500 and not away:
                failures.append(f"{response.status_code} {case.as_curl_command()} {response.text[:300]}")

        ask()
    assert not failures, "\n".join(failures[:10])
    assert len(tried) >= 25
    for route in ("POST /training/datasets/collect", "POST /api/v1/training/datasets/collect"):
        assert route in tried
    assert sum("/observations/ingest" in label for label in tried) == 3
