"""Migrations of the catalogue: `astrid_pipeline.catalog.migrate` runs them."""
