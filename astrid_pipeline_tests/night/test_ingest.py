"""A night's files from an archive that stumbles: none is lost, none comes twice, and the night waits for them."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.archives.base import Field
from astrid_pipeline.archives.mast import MastArchive
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import LostError, ServiceError
from astrid_pipeline.night.ingest import ingest_night, read_raw
from astrid_pipeline.night.outcome import for_each
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings

FIELD = Field("m31", 10.68, 41.27, 0.1)
NIGHT = "2020-05-31"


def test_a_night_waits_for_a_file_that_may_come_and_goes_on_where_it_was(tmp_path):
    holdings = Holdings()
    for number in range(4):
        holdings.add(f"ib{number}q", 10.68, 41.27, 59000.2 + 0.01 * number, "F160W")
    store = LocalStore(tmp_path / "store")
    with ArchiveServer(holdings) as server:
        patience = Patience(tries=2, first=0.01, longest=0.02, connect=2, read=5)
        archive = MastArchive(f"HST?server={server.url}", patience=patience, home=tmp_path / "home")

        def ingest(insist: bool):
            return ingest_night(archive, FIELD, NIGHT, store, tmp_path / "scratch", insist=insist)

        server.misbehave("status", "ib2q_flt", -1, value=503)
        with pytest.raises(ServiceError, match="1 of 4 files did not come"):
            ingest(True)
        assert len(store.list("raw")) == 3
        # The last try makes the night of what can be had, and says what is missing.
        table = ingest(False)
        assert list(table.problem.isna()) == [True, True, False, True]
        server.faults.clear()
        asked = server.count("/Download")
        table = ingest(True)
        assert table.problem.isna().all()
        assert server.count("/Download") == asked + 1  # those that were there are not fetched again
        assert len(store.list("raw")) == 4
        # The archive's name of the instrument (WFC3/IR) goes before the header's (WFC3): nights are planned by it.
        raw = read_raw(store, table.iloc[0])
        assert (raw.meta["instrument"], raw.meta["filter"]) == (
            archive.exposures(FIELD)[0].instrument,
            "F160W",
        )
        # A file that the store has lost is not that exposure's trouble: the night would be kept without it.
        store.delete([table.path.iloc[0]])
        with pytest.raises(LostError, match=r"not in the store any more.*run the night again"):
            for_each({"ib2q": table.iloc[0]}, lambda row: read_raw(store, row), stage="calibrated_frames")
        ingest(True)
        (again,), (first,) = read_raw(store, table.iloc[0]).amplifiers, raw.amplifiers
        assert np.array_equal(again.data, first.data, equal_nan=True)
        # A file that the archive has lost is told, and does not hold up the night.
        holdings.add("iblostq", 10.68, 41.27, 59000.4, "F160W", release=59003.0)
        server.misbehave("status", "iblostq_flt", -1, value=404)
        archive.refresh(FIELD)
        table = ingest(True)
        assert table.problem.notna().sum() == 1
        assert "no longer" in table.problem.dropna().iloc[0]
