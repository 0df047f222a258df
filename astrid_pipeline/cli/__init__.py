"""The command line `astrid`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the process ends with the exit code."""
    from astrid_pipeline.cli.app import run

    raise SystemExit(run())
