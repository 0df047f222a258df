"""TESS cut-outs as a series of epochs, from a recorded answer and from ones made in its layout."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.time import Time

from astrid_pipeline.archives.base import Field, open_archive
from astrid_pipeline.archives.fits_reader import read_exposure
from astrid_pipeline.archives.tesscut import TesscutArchive
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, HeaderError, ServiceError
from astrid_pipeline_tests.archive_server import ArchiveServer

QUICK = Patience(tries=4, first=0.01, longest=0.02, connect=2, read=20)
RECORDED = Field("recorded", 107.27, -70.0, 0.015)
OTHER = Field("other", 120.0, -60.0, 0.03)


@pytest.fixture
def server():
    with ArchiveServer() as started:
        yield started


def archive(server, tmp_path, text: str = "every=200", **more) -> TesscutArchive:
    return TesscutArchive(f"?{text}&server={server.url}", patience=QUICK, home=tmp_path / "home", **more)


def test_the_recorded_cut_out_is_a_series_of_epochs(server, tmp_path):
    records = archive(server, tmp_path, "size=5&every=1").exposures(RECORDED)
    assert 1000 < len(records) < 1282  # those with a quality flag are left out
    assert len({record.exposure_id for record in records}) == len(records)
    assert records[0].exposure == pytest.approx(1800, rel=0.01)
    # The spacecraft's clock: the sector began on 2018-07-25 at 19:29 UTC; its first frame is a little later.
    first = Time(records[0].mjd, format="mjd").isot
    assert first.startswith("2018-07-25T")
    assert records[0].night == "2018-07-25"
    assert records[-1].night == "2018-08-22"


def test_an_epoch_is_a_frame_with_errors_and_wcs(server, tmp_path):
    opened = archive(server, tmp_path, "size=40&every=300")
    records = opened.exposures(OTHER)
    assert 3 <= len(records) <= 5
    path = opened.fetch(records[1], tmp_path / "out")
    raw = read_exposure(path)
    assert raw.meta["filter"] == "TESS"
    assert raw.meta["mjd"] == pytest.approx(records[1].mjd)
    assert raw.meta["zero_point"] == 20.44
    assert raw.meta["unit"] == "electron/s"
    assert raw.calibrated
    assert raw.wcs is not None
    x, y = raw.wcs.all_world2pix(OTHER.ra, OTHER.dec, 0)
    assert np.hypot(x - 19.5, y - 19.5) < 1
    assert server.count("/astrocut") == 1  # one request for all epochs


def test_a_wrong_wcs_is_refused(server, tmp_path):
    """The recorded file is of 2018, when TESSCut wrote a wrong reference pixel."""
    opened = archive(server, tmp_path, "size=5&every=500")
    with pytest.raises(HeaderError, match="outside of the cut-out"):
        opened.fetch(opened.exposures(RECORDED)[0], tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "path", "more"),
    [("status", "astrocut", {"value": 503}), ("truncated", "astrocut", {}), ("html", "astrocut", {}),
     ("half_json", "sector", {}), ("status", "sector", {"value": 429})],
)  # fmt: skip
def test_faults_are_waited_out(server, tmp_path, kind, path, more):
    server.misbehave(kind, path, 2, **more)
    assert len(archive(server, tmp_path, "size=5&every=300").exposures(RECORDED)) >= 3


def test_a_tick_does_not_fetch(server, tmp_path):
    with pytest.raises(ServiceError, match="astrid ingest"):
        archive(server, tmp_path, in_tick=True).exposures(RECORDED)
    archive(server, tmp_path, "size=5&every=300").exposures(RECORDED)
    assert archive(server, tmp_path, "size=5&every=300", in_tick=True).exposures(RECORDED)


def test_sectors_can_be_chosen_and_options_are_checked(server, tmp_path):
    assert archive(server, tmp_path, "sector=2").exposures(RECORDED) == []
    for text in ("?size=500", "?size=big", "?colour=red", "?every=0"):
        with pytest.raises(ConfigError):
            TesscutArchive(text)
    assert isinstance(open_archive("tesscut:?size=50"), TesscutArchive)
