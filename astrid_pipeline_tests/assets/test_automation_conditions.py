"""What declarative automation asks for: the summary after any night, references when their code has changed."""

from __future__ import annotations

import dagster as dg
import pytest

from astrid_pipeline.definitions import build_defs
from astrid_pipeline_tests.support import apart


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("fields", ["m31", "m33"])
        yield made


def evaluate(instance, definitions, asset: str, cursor=None):
    result = apart(
        lambda: dg.evaluate_automation_conditions(
            definitions, instance, asset_selection=dg.AssetSelection.assets(asset), cursor=cursor
        )
    )
    return result.total_requested, result.cursor


def test_the_summary_follows_each_night_once(instance):
    definitions = build_defs()
    requested, cursor = evaluate(instance, definitions, "survey_summary")
    assert requested == 0
    for night in ("2026-01-02", "2026-01-03"):
        partition = f"m31|{night}"
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key="night_summary", partition=partition)
        )
        requested, cursor = evaluate(instance, definitions, "survey_summary", cursor)
        assert requested == 1
        requested, cursor = evaluate(instance, definitions, "survey_summary", cursor)
        assert requested == 0
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key="survey_summary"))
        requested, cursor = evaluate(instance, definitions, "survey_summary", cursor)
        assert requested == 0


def test_references_are_made_anew_when_their_code_has_changed(instance):
    now = build_defs()
    later = dg.Definitions(
        assets=[
            asset.map_asset_specs(
                lambda spec: (
                    spec.replace_attributes(code_version="another")
                    if spec.key == dg.AssetKey("reference_images")
                    else spec
                )
            )
            for asset in now.assets
        ],
        resources=now.resources,
    )
    requested, cursor = evaluate(instance, now, "reference_images")
    requested, cursor = evaluate(instance, now, "reference_images", cursor)
    assert requested == 0
    # A night more is no reason: new versions are the planner's and the week's business.
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key="calibrated_frames", partition="m31|2026-01-02")
    )
    requested, cursor = evaluate(instance, now, "reference_images", cursor)
    assert requested == 0
    requested, cursor = evaluate(instance, later, "reference_images", cursor)
    assert requested == 2  # both fields
    requested, cursor = evaluate(instance, later, "reference_images", cursor)
    assert requested == 0
