"""Where things are kept, as Dagster resources: store, tracking, catalogue, archives."""
