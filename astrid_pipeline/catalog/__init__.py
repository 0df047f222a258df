"""What is remembered across nights, in PostgreSQL: `Catalog` is the way in."""

from astrid_pipeline.catalog.catalog import Catalog

__all__ = ["Catalog"]
