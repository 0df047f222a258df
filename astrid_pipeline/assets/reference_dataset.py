"""A survey's image of one place, fetched because somebody asked for it."""

# No `from __future__ import annotations` here: Dagster reads the annotations at definition.

import dagster as dg
from pydantic import Field

from astrid_pipeline.assets.common import ARCHIVE_POOL, CPU_TAGS, OWNERS, PICTURE_BYTES, number, picture
from astrid_pipeline.resources.store import StoreResource, scratch_folder
from astrid_pipeline.step_failures import tried_again
from astrid_pipeline.versions import code_version


class ReferenceConfig(dg.Config):
    """Which image of which survey."""

    survey: str = Field(default="dss2", description="ps1, legacy, dss2, sdss9, 2mass, skyview")
    ra: float = Field(description="right ascension of the middle, ICRS degrees")
    dec: float = Field(description="declination, ICRS degrees")
    size: float = Field(default=0.25, description="side, degrees")
    pixels: int = Field(default=512, description="side, pixels")
    band: str = Field(default="", description="filter; empty: red")


@dg.asset(
    group_name="images",
    owners=OWNERS,
    kinds={"fits"},
    pool=ARCHIVE_POOL,
    op_tags=CPU_TAGS,
    tags={"stage": "reference"},
    code_version=code_version("night/reference_dataset.py", "archives"),
)
@tried_again
def reference_dataset(config: ReferenceConfig, store: StoreResource) -> dg.MaterializeResult:
    """A sky survey's image of a place, size and number of pixels, as FITS under `reference-datasets/` in the store.

    Each run fetches one more; what other runs fetched stays.
    """
    from astrid_pipeline.night.reference_dataset import fetch_reference
    from astrid_pipeline.report import frame_png

    opened = store.open()
    with scratch_folder(opened) as scratch:
        key, frame = fetch_reference(
            *(opened, config.survey, config.ra, config.dec, config.size, config.pixels, scratch),
            band=config.band,
        )
    return dg.MaterializeResult(
        metadata={
            "key": key,
            "path": dg.MetadataValue.path(opened.location(key)),
            "survey": str(frame.meta["instrument"]),
            "source": str(frame.meta["source"]),
            "coverage": number(frame.meta["coverage"], 3),
            "pixel_scale": number(3600 * config.size / config.pixels, 3),
            "caveats": str(frame.meta["caveats"]),
            "picture": picture(
                frame_png(frame, title=key, max_px=560, max_bytes=PICTURE_BYTES), config.survey
            ),
        }
    )
