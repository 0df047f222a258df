"""Alembic's environment: runs the migrations on the connection that `catalog.migrate` hands over."""

from __future__ import annotations

from alembic import context

from astrid_pipeline.catalog import review_models  # noqa: F401  # its tables are part of the metadata
from astrid_pipeline.catalog.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
