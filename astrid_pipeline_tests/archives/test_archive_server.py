"""The unmodified astroquery client, pointed at the local archive by its own configuration file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings

SCRIPT = """
import warnings, sys
warnings.simplefilter("ignore")
from astroquery.mast import Observations, Tesscut
from astropy.coordinates import SkyCoord
import astropy.units as u

where = SkyCoord(10.68, 41.27, unit="deg")
rows = Observations.query_criteria(coordinates=where, radius=0.1*u.deg, obs_collection="HST", filters="F160W")
count = Observations.query_criteria_count(coordinates=where, radius=0.1*u.deg, obs_collection="HST", filters="F160W")
assert len(rows) == count == 5, (len(rows), count)
assert len(Observations.query_region(where, radius="6 arcmin")) == 6
products = Observations.get_product_list(rows[:2])
assert len(products) == 4
science = Observations.filter_products(products, productType="SCIENCE", extension="fits")
manifest = Observations.download_products(science, download_dir=sys.argv[1], verbose=False)
assert list(manifest["Status"]) == ["COMPLETE"] * 2, manifest
name = Observations.resolve_object("m101")
assert abs(name.ra.deg - 210.8) < 0.1, name
assert Observations.login(token="letmein") is None
assert Tesscut.get_sectors(coordinates=SkyCoord(107.27, -70.0, unit="deg"))["sector"][0] == 1
recorded = Observations.query_criteria(coordinates=SkyCoord(23.07, 60.65, unit="deg"), radius=0.2*u.deg,
                                       obs_collection=["HST", "HLA"], dataproduct_type="image")
assert len(recorded) > 5, len(recorded)
print("ok", len(recorded))
"""


def test_the_unmodified_astroquery_client_works_with_the_local_archive(tmp_path):
    holdings = Holdings.of_recorded_answers()
    holdings.tokens.add("letmein")
    for number in range(5):
        holdings.add(f"ib{number:04d}", 10.68, 41.27, 59000.0 + number, "F160W")
    holdings.add("other", 10.68, 41.27, 59000.0, "F110W")
    with ArchiveServer(holdings) as server:
        config = tmp_path / "config" / "astropy"
        config.mkdir(parents=True)
        (config.parent / "astroquery").mkdir()
        text = f"[mast]\nserver = {server.url}\n"
        for place in (config / "astroquery.cfg", config.parent / "astroquery" / "astroquery.cfg"):
            place.write_text(text)
        environment = {
            **os.environ,
            "ASTROPY_CONFIG_DIR": str(config),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "HOME": str(tmp_path),
            "HTTP_PROXY": server.url,
            "http_proxy": server.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "files")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("ok")
    assert len(list(Path(tmp_path / "files").rglob("*.fits"))) == 2
