"""The services that AstrID starts itself when no other is named: PostgreSQL, MLflow, the pages."""
