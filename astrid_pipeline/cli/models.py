"""`astrid train` and `astrid evaluate`: the models, without Dagster."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands about models."""
