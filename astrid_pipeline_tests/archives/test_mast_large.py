"""Fields as large as real accounts name: counted, halved where too many, none lost."""

from __future__ import annotations

import random

from astrid_pipeline.archives import mast_query
from astrid_pipeline.archives.mast import MastArchive
from astrid_pipeline.archives.web import Patience
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archives.test_mast import DEC, FIELD, RA, archive


def test_24472_observations_of_five_regions_are_listed_each_once(tmp_path):
    """As many as a real account names, with the limits as they are: counted, halved where too many, none lost."""
    holdings = Holdings()
    rng = random.Random(5)
    first = holdings.add("r00000", RA, DEC, 50000.0, "F814W")
    regions = [(RA, DEC), (83.82, -5.39), (150.1, 2.2), (210.8, 54.35), (266.4, -29.0)]
    sizes = [22_000, 1_000, 700, 500, 272]
    holdings.rows.clear()
    for (ra, dec), size in zip(regions, sizes, strict=True):
        for _ in range(size):
            number, mjd = len(holdings.rows), 50000 + rng.uniform(0, 9000)
            places = {"s_ra": ra + rng.uniform(-0.1, 0.1), "s_dec": dec + rng.uniform(-0.1, 0.1)}
            times = {"t_min": mjd, "t_max": mjd + 0.01}
            holdings.rows.append(
                {**first, "obsid": str(number), "obs_id": f"r{number:05d}", **times, **places}
            )
    with ArchiveServer(holdings) as server:
        # Its answers are 20 MB: on a busy machine they take a while.
        slowly = Patience(read=120.0)
        opened = MastArchive(f"HST?server={server.url}", patience=slowly, home=tmp_path / "home")
        seen: set[str] = set()
        for ra, dec in regions:
            where = {"coordinates": f"{ra} {dec}", "radius": "0.5 deg"}
            rows = opened.client.observations({**opened.query.criteria(), **where}, 49_000, 60_000)
            assert not seen & set(rows.obsid)
            seen |= set(rows.obsid)
        assert len(seen) == sum(sizes) == 24_472
        assert server.count('"columns": "*"') == 6  # the largest in two halves
        assert server.count("COUNT_BIG") == 7


def test_thousands_of_observations_are_catalogued(tmp_path, monkeypatch):
    """A field of the size of M31 in HST's archive: 2821 observations; and halving with a small limit."""
    holdings = Holdings()
    rng = random.Random(2)
    first = holdings.add("m00000", RA, DEC, 50000.0, "F814W")
    for number in range(1, 2821):
        obsid, mjd = str(200_000_000 + number), 50000 + rng.uniform(0, 9000)
        holdings.rows.append(
            {**first, "obsid": obsid, "obs_id": f"m{number:05d}", "t_min": mjd, "t_max": mjd + 0.01}
        )
        holdings.products[obsid] = [{**p, "obsID": obsid} for p in holdings.products[first["obsid"]]]
    monkeypatch.setattr(mast_query, "MAX_ROWS", 500)
    with ArchiveServer(holdings) as server:
        opened = archive(server, tmp_path)
        records = opened.exposures(FIELD)
        assert len({record.exposure_id for record in records}) == 2821
        assert server.count('"service": "Mast.Caom.Products"') == -(-2821 // mast_query.PRODUCT_BATCH)
        asked = len(server.requests)
        assert len(opened.exposures(FIELD)) == 2821
        assert len(server.requests) == asked
