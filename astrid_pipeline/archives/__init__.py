"""Where pixels come from: archives behind one small protocol, and the reader of anybody's FITS."""

from astrid_pipeline.archives.base import (
    OBSERVATIONS,
    Archive,
    ExposureRecord,
    Field,
    night_of,
    open_archive,
    safe_name,
)

__all__ = ["OBSERVATIONS", "Archive", "ExposureRecord", "Field", "night_of", "open_archive", "safe_name"]
