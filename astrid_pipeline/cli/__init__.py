"""The command line `astrid`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the process ends with the exit code."""
    from astrid_pipeline.cli.app import leave, run

    code = run()
    leave()
    raise SystemExit(code)
