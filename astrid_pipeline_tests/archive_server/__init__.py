"""A local archive for tests and work offline: MAST's protocol, image servers, and every way to misbehave.

The unmodified astroquery client talks to it. `python -m astrid_pipeline_tests.archive_server --help` runs it alone.
"""

from astrid_pipeline_tests.archive_server.faults import Fault
from astrid_pipeline_tests.archive_server.holdings import Holdings
from astrid_pipeline_tests.archive_server.server import ArchiveServer

__all__ = ["ArchiveServer", "Fault", "Holdings"]
