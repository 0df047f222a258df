"""Exposures of a field and night as the archive gave them, and the master frames of the same nights."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import time

import dagster as dg
import pandas as pd

from astrid_pipeline import checks
from astrid_pipeline.archives.base import OBSERVATIONS, open_archive
from astrid_pipeline.assets.common import (
    ARCHIVE_POOL,
    CPU_TAGS,
    OWNERS,
    PICTURE_BYTES,
    number,
    outcome_metadata,
    picture,
    preview,
    table_metadata,
)
from astrid_pipeline.imaging.calibrate import MasterCalibration
from astrid_pipeline.night.retries import MAX_RETRIES, RETRY_TAG
from astrid_pipeline.partitions import FIELD_NIGHTS, INSTRUMENT_NIGHTS, FieldNight
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


@dg.asset(
    partitions_def=FIELD_NIGHTS,
    group_name="images",
    owners=OWNERS,
    kinds={"fits", "parquet"},
    pool=ARCHIVE_POOL,
    op_tags=CPU_TAGS,
    tags={"stage": "ingest"},
    metadata=table_metadata(OBSERVATIONS),
    io_manager_key="tables",
    check_specs=checks.OBSERVATIONS,
    code_version=code_version("night/ingest.py", "archives"),
    dagster_type=dg.Any,
)
@tried_again
def observations(
    context: dg.AssetExecutionContext, store: StoreResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """Light frames of a field in a night: fetched once, kept byte for byte with their digest.

    The value is a table with one row an exposure; the files lie in the store under `raw/`. A file that cannot
    be read has its `problem` in the table and is left out of everything that follows.
    """
    from astrid_pipeline.night.ingest import ingest_night

    part = FieldNight.of(context)
    field = catalogue.open().field(part.field)
    opened = store.open()
    started = time.perf_counter()
    with scratch_folder(opened) as scratch:
        table = ingest_night(
            open_archive(field.archive),
            field,
            part.night,
            opened,
            scratch,
            context.log.info,
            # The last retry makes the night of what can be had.
            insist=int(context.run.tags.get(RETRY_TAG, "0")) < MAX_RETRIES,
        )
    return dg.MaterializeResult(
        value=table,
        metadata={
            "exposures": len(table),
            "unreadable": int(table.problem.notna().sum()),
            "filters": ", ".join(sorted(table["filter"].dropna().unique())) or "none",
            "megabytes": number(table["size"].sum() / 1e6, 1),
            "archive": field.archive,
            "seconds": number(time.perf_counter() - started, 2),
            "table": preview(table, ["exposure_id", "filter", "exposure", "mjd", "problem"]),
        },
        check_results=list(checks.check_observations(table)),
    )


@dg.asset(
    partitions_def=INSTRUMENT_NIGHTS,
    group_name="images",
    owners=OWNERS,
    kinds={"fits"},
    pool=ARCHIVE_POOL,
    op_tags=CPU_TAGS,
    tags={"stage": "calibrate"},
    io_manager_key="frames",
    output_required=False,
    code_version=code_version("imaging/calibrate", "archives"),
)
@tried_again
def master_calibrations(
    context: dg.AssetExecutionContext, store: StoreResource, catalogue: CatalogueResource
):  # a generator: an archive of calibrated frames yields nothing
    """Master bias, dark and flats of an instrument in a night, with the bad pixels they show.

    Made from all calibration frames that an archive of any field has for that instrument and night. Nothing is
    made where there are none; `calibrated_frames` then takes the nearest night's within the age limit.
    """
    from astrid_pipeline.night.ingest import make_masters

    instrument, night = str(context.partition_key).rsplit("|", 1)
    specs = sorted({field.archive for field in catalogue.open().fields()})
    opened = store.open()
    with scratch_folder(opened) as scratch:
        masters, outcome = make_masters(
            (open_archive(spec) for spec in specs), instrument, night, opened, scratch, context.log.info
        )
    if masters is None:
        context.log.info(f"no archive has calibration frames of {instrument} for {night}")
        return
    yield dg.Output(
        masters,
        metadata={
            **outcome_metadata(outcome),
            "read_noise_electrons": ", ".join(str(number(value, 2)) for value in masters.read_noise)
            or "unknown",
            "gain": ", ".join(str(number(value, 3)) for value in masters.gains) or "unknown",
            "bad_pixels": 0 if masters.bad is None else int((masters.bad != 0).sum()),
            "flats": ", ".join(sorted(masters.flats)) or "none",
            **_picture(masters),
            "inputs": pd.Series(sorted(outcome.products)).str.cat(sep=", "),
        },
    )


def _picture(masters: MasterCalibration) -> dict[str, dg.MarkdownMetadataValue]:
    """Draw the first flat, the bad pixels marked."""
    from astrid_pipeline.imaging.frame import Frame
    from astrid_pipeline.report import frame_png

    if not masters.flats:
        return {}
    name = sorted(masters.flats)[0]
    flat = Frame(masters.flats[name])
    if masters.bad is not None:
        flat = flat.replace(mask=masters.bad)
    return {
        "picture": picture(
            frame_png(flat, title=f"flat {name}", max_px=480, max_bytes=PICTURE_BYTES), f"flat {name}"
        )
    }
