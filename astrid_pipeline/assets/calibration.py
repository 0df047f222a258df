"""Calibrated frames: the detector taken out, noise and masks known, sky, PSF, astrometry and depth measured."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

from collections.abc import Mapping

import dagster as dg
import pandas as pd

from astrid_pipeline import checks
from astrid_pipeline.archives.base import open_archive
from astrid_pipeline.assets.common import (
    CPU_TAGS,
    OWNERS,
    PICTURE_BYTES,
    median_of,
    number,
    outcome_metadata,
    picture,
)
from astrid_pipeline.assets.observations import master_calibrations
from astrid_pipeline.imaging.calibrate import MasterCalibration
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.partitions import FIELD_NIGHTS, SAME_NIGHT, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.frames import FrameSpool, spool_parent
from astrid_pipeline.resources.products import ProductsResource
from astrid_pipeline.resources.store import StoreResource
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    deps=[dg.AssetDep(master_calibrations, partition_mapping=SAME_NIGHT)],
    group_name="images",
    owners=OWNERS,
    kinds={"fits", "numpy"},
    op_tags=CPU_TAGS,
    tags={"stage": "calibrate"},
    io_manager_key="frames",
    check_specs=checks.CALIBRATED_FRAMES,
    code_version=code_version("night/calibration.py", "imaging"),
    dagster_type=dg.Any,
)
@tried_again
def calibrated_frames(
    context: dg.AssetExecutionContext,
    observations: pd.DataFrame,
    store: StoreResource,
    products: ProductsResource,
    catalogue: CatalogueResource,
) -> dg.MaterializeResult:
    """One frame an exposure: SCI, VAR, DQ, PSF, WCS, in electrons, with what was measured of it.

    Overscan, bias, dark and flat are taken out with the masters of the same night (or the nearest within a
    month); cosmic rays, saturation, bleeding, trails and bad pixels are masked by name. Frames that their
    archive has calibrated only get noise and masks.
    """
    from astrid_pipeline.night.calibration import calibrate_night
    from astrid_pipeline.night.masters import nearest_night

    part = FieldNight.of(context)
    field = catalogue.open().field(part.field)
    kept = products.open()

    def masters_for(instrument: str) -> MasterCalibration | None:
        made = kept.nights("master_calibrations", instrument)
        night = nearest_night(made, part.night)
        return None if night is None else kept.masters(instrument, night)

    opened = store.open()
    outcome = calibrate_night(
        observations,
        opened,
        masters_for,
        open_archive(field.archive).catalogue(field),
        context.log.info,
        into=FrameSpool(spool_parent(opened)),
    )
    metas = outcome.metas.values()
    return dg.MaterializeResult(
        value=outcome.products,
        metadata={
            **outcome_metadata(outcome),
            "seeing_px": number(median_of(metas, "seeing"), 2),
            "seeing_arcsec": number(median_of(metas, "seeing_arcsec"), 2),
            "sky": number(median_of(metas, "sky"), 1),
            "sky_sigma": number(median_of(metas, "sky_sigma"), 2),
            "zero_point": number(median_of(metas, "zero_point"), 3),
            "depth": number(median_of(metas, "depth"), 2),
            "masked_percent": number(100 * median_of(metas, "masked_fraction"), 2),
            **_picture(outcome.products),
        },
        check_results=list(checks.check_calibrated(outcome)),
    )


def _picture(frames: Mapping[str, Frame]) -> dict[str, dg.MarkdownMetadataValue]:
    from astrid_pipeline.report import frame_png

    if not frames:
        return {}
    name = sorted(frames)[0]
    return {
        "picture": picture(frame_png(frames[name], title=name, max_px=560, max_bytes=PICTURE_BYTES), name)
    }
