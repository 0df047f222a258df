"""Reference images of a field: versions by filter and first night, coadded from good earlier frames."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import dagster as dg

from astrid_pipeline import checks
from astrid_pipeline.assets.calibration import calibrated_frames
from astrid_pipeline.assets.common import (
    CPU_TAGS,
    OWNERS,
    PICTURE_BYTES,
    number,
    outcome_metadata,
    picture,
    preview,
)
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.night.outcome import Outcome
from astrid_pipeline.partitions import FIELD_OF_NIGHT, FIELDS
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.frames import FrameSpool, StoredFrames, spool_parent
from astrid_pipeline.resources.products import Products, ProductsResource
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version

CODE_VERSION = code_version("night/references.py", "imaging")


@dg.asset(
    partitions_def=FIELDS,
    deps=[dg.AssetDep(calibrated_frames, partition_mapping=FIELD_OF_NIGHT)],
    group_name="images",
    owners=OWNERS,
    kinds={"fits", "numpy"},
    op_tags=CPU_TAGS,
    tags={"stage": "reference"},
    io_manager_key="frames",
    check_specs=checks.REFERENCE_IMAGES,
    code_version=CODE_VERSION,
    dagster_type=dg.Any,
    # References of older code are made anew; new versions out of new frames are the planner's and the week's business.
    automation_condition=dg.AutomationCondition.code_version_changed()
    & ~dg.AutomationCondition.in_progress(),
)
@tried_again
def reference_images(
    context: dg.AssetExecutionContext, catalogue: CatalogueResource, products: ProductsResource
) -> dg.MaterializeResult:
    """What the sky of a field looked like before: one frame a filter and validity date.

    A version is made of nights strictly before the first night that it may judge, so that a reference never
    holds the light it is meant to reveal. Instrument and filter must be the exposures' own, unless the field's
    reference policy names a survey whose images may serve too; those say so in their caveats. Inputs, dates and
    coverage are kept in each frame's header.
    """
    import pandas as pd

    from astrid_pipeline.night.references import build_references, note_of, plan_references

    field = catalogue.open().field(str(context.partition_key))
    kept = products.open()
    where: dict[str, str] = {}
    notes = []
    for night in kept.nights("calibrated_frames", field.name):
        for exposure_id, meta in kept.metas("calibrated_frames", field.name, night).items():
            where[exposure_id] = night
            notes.append(note_of(meta))
    plans = plan_references(field.name, notes, field.reference)
    outcome = build_references(
        plans,
        lambda key: kept.frame("calibrated_frames", field.name, where[key], key),
        _made_before(kept, field.name),
        context.log.info,
        into=FrameSpool(spool_parent(kept.store)),
    )
    rows = pd.DataFrame(
        [
            {
                "reference": p.reference_id,
                "instrument": p.instrument,
                "filter": p.filter,
                "valid from": p.valid_from,
                "made of": p.survey or f"{len(p.exposure_ids)} frames",
                "caveats": outcome.metas[p.reference_id].get("caveats") or "none",
                "nights": ", ".join(p.nights),
                "depth": number(outcome.metas[p.reference_id].get("depth"), 2),
                "coverage": number(outcome.metas[p.reference_id].get("coverage"), 3),
            }
            for p in plans
            if p.reference_id in outcome.metas
        ]
    )
    return dg.MaterializeResult(
        value=outcome.products,
        metadata={
            **outcome_metadata(outcome),
            "versions": len(outcome.metas),
            "table": preview(rows, list(rows.columns)),
            **_pictures(outcome),
        },
        check_results=list(checks.check_references(outcome, {n.filter for n in notes})),
    )


def _made_before(kept: Products, field: str) -> StoredFrames | None:
    """Return the field's references, if the present code made them."""
    try:
        frames = kept.frames("reference_images", field)
    except MissingProductError:
        return None
    return frames if frames.index.code_version == CODE_VERSION else None


def _pictures(outcome: Outcome[Frame]) -> dict[str, dg.MarkdownMetadataValue]:
    from astrid_pipeline.report import frame_png

    latest = {str(outcome.metas[key]["filter"]): key for key in sorted(outcome.metas)}
    drawn = {}
    for name, key in latest.items():
        png = frame_png(outcome.products[key], title=key, max_px=560, max_bytes=PICTURE_BYTES)
        drawn[f"picture_{name}"] = picture(png, key)
    return drawn
