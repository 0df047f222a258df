"""Runs the local archive alone: `python -m astrid_pipeline_tests.archive_server --port 8765`."""

from __future__ import annotations

import argparse
import time

from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archive_server.faults import KINDS


def main() -> None:
    """Serve the recorded answers, and fields of made-up exposures, until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--exposures", type=int, default=20, help="made-up exposures around RA 10.68, Dec 41.27"
    )
    parser.add_argument("--fault", choices=KINDS, help="spoil every request in this way")
    parser.add_argument("--value", type=float, default=0.0, help="seconds (slow), or the status")
    options = parser.parse_args()
    holdings = Holdings.of_recorded_answers()
    for number in range(options.exposures):
        holdings.add(f"local{number:05d}", 10.68, 41.27, 59000.3 + number, "F160W")
    with ArchiveServer(holdings, port=options.port) as server:
        if options.fault:
            server.misbehave(options.fault, times=-1, value=options.value)
        print(f"archive at {server.url}: use the archive text mast:HST?server={server.url}")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
