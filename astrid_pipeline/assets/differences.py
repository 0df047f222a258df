"""Difference images, and the candidates in them."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

from collections.abc import Mapping

import dagster as dg
import pandas as pd
from pydantic import Field

from astrid_pipeline import checks
from astrid_pipeline.assets.common import (
    CPU_TAGS,
    OWNERS,
    median_of,
    number,
    outcome_metadata,
    picture,
    preview,
    table_metadata,
)
from astrid_pipeline.imaging.candidates import CANDIDATES
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.partitions import FIELD_NIGHTS, FIELD_OF_NIGHT, FieldNight
from astrid_pipeline.resources.frames import Frames, FrameSpool, spool_parent
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.tables import concat
from astrid_pipeline.versions import code_version


class DifferenceConfig(dg.Config):
    """How frames are subtracted."""

    method: str = Field(default="zogy", description="zogy (proper difference) or classic (PSF-matched)")


class CandidateConfig(dg.Config):
    """How candidates are found."""

    threshold: float = Field(
        default=5.0,
        description="|S_corr| from which a peak is a candidate; 5 lets 0.3 noise peaks a megapixel through",
    )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    ins={"reference_images": dg.AssetIn(partition_mapping=FIELD_OF_NIGHT)},
    group_name="images",
    owners=OWNERS,
    kinds={"fits", "torch"},
    op_tags=CPU_TAGS,
    tags={"stage": "difference"},
    io_manager_key="frames",
    check_specs=checks.DIFFERENCE_IMAGES,
    code_version=code_version("night/differences.py", "imaging"),
    dagster_type=dg.Any,
)
@tried_again
def difference_images(
    context: dg.AssetExecutionContext,
    config: DifferenceConfig,
    store: StoreResource,
    calibrated_frames: Frames,
    reference_images: Frames,
) -> dg.MaterializeResult:
    """What changed since the reference: D, its variance and PSF, the score S_corr, PSF flux and error.

    Each exposure is subtracted from the latest reference of its filter that holds for the night, brought onto
    the exposure's own grid. σ of the score where nothing changed is measured and checked.
    """
    from astrid_pipeline.night.differences import difference_night

    part = FieldNight.of(context)
    outcome = difference_night(
        calibrated_frames,
        reference_images,
        part.night,
        config.method,
        context.log.info,
        into=FrameSpool(spool_parent(store.open())),
    )
    metas = outcome.metas.values()
    return dg.MaterializeResult(
        value=outcome.products,
        metadata={
            **outcome_metadata(outcome),
            "score_sigma": number(median_of(metas, "score_sigma"), 3),
            "registration_x_px": number(median_of(metas, "dx_rms"), 3),
            "registration_y_px": number(median_of(metas, "dy_rms"), 3),
            "flux_ratio": number(median_of(metas, "flux_ratio"), 3),
            "coverage_percent": number(100 * median_of(metas, "coverage"), 1),
            "references": ", ".join(sorted({str(m.get("reference_id")) for m in metas})),
            "reference_caveats": "; ".join(
                sorted({str(m["reference_caveats"]) for m in metas if m.get("reference_caveats")})
            )
            or "none",
            **_picture(outcome.products, None),
        },
        check_results=list(checks.check_differences(outcome)),
    )


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="finds",
    owners=OWNERS,
    kinds={"parquet", "numpy"},
    op_tags=CPU_TAGS,
    tags={"stage": "find"},
    metadata=table_metadata(CANDIDATES),
    io_manager_key="tables",
    code_version=code_version("imaging/candidates.py", "night/differences.py"),
)
@tried_again
def candidates(
    context: dg.AssetExecutionContext, config: CandidateConfig, difference_images: Frames
) -> dg.MaterializeResult[pd.DataFrame]:
    """Every significant peak of either sign in the night's scores, with flux, shape, flags and features."""
    from astrid_pipeline.night.differences import find_night

    outcome = find_night(difference_images, config.threshold, context.log.info)
    table = concat(CANDIDATES, outcome.products.values())
    return dg.MaterializeResult(
        value=table,
        metadata={
            **outcome_metadata(outcome),
            "candidates": len(table),
            "positive": int((table["sign"] > 0).sum()),
            "negative": int((table["sign"] < 0).sum()),
            "unflagged": int((table["flags"] == 0).sum()),
            "threshold": config.threshold,
            "table": preview(
                table.sort_values("snr", key=abs, ascending=False),
                ["candidate_id", "ra", "dec", "flux", "snr", "flag_names"],
            ),
            **_picture(difference_images, table),
        },
    )


def _picture(
    differences: Mapping[str, Difference], marks: pd.DataFrame | None
) -> dict[str, dg.MarkdownMetadataValue]:
    """Draw the exposure with the most marks, or the first."""
    from astrid_pipeline.report import thumb_png

    if not len(differences):
        return {}
    name = sorted(differences)[0]
    mine = None
    if marks is not None and len(marks):
        name = str(marks.exposure_id.value_counts().sort_index().idxmax())
        mine = marks[marks.exposure_id == name]
    return {"picture": picture(thumb_png(differences[name], mine, title=name), name)}
