"""How fast the catalogue answers with millions of detections: `python -m astrid_pipeline_tests.benchmarks.catalogue`.

Rows are written by SQL alone, at random over a strip of 10° × 10°, so that neighbours are as dense as in a survey.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sqlalchemy import text

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, sky
from astrid_pipeline.catalog.matching import match_positions
from astrid_pipeline.catalog.models import Detection
from astrid_pipeline.services import postgres
from astrid_pipeline_tests.services.homes import home

#: Positions are made in blocks, whose HEALPix indices numpy works out.
BLOCK = 250_000


def fill(catalog: Catalog, rows: int, seed: int = 0) -> None:
    """Write `rows` detections of one field."""
    import io

    rng = np.random.default_rng(seed)
    catalog.add_field(Field("bench", 180.0, 0.0, 5.0))
    with catalog.transaction("fill") as connection:
        field = connection.scalar(text("SELECT id FROM fields"))
        run = connection.scalar(
            text(
                "INSERT INTO difference_runs (candidates, detections, dagster_run_id, status, exposures, field_id,"
                " night) VALUES (0, 0, 'b', 'success', 1, :f, '2026-01-01') RETURNING id"
            ),
            {"f": field},
        )
        raw = connection.connection.driver_connection.cursor()
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            ra, dec = rng.uniform(175, 185, n), rng.uniform(-5, 5, n)
            index = sky.hpx29(ra, dec)
            block = io.StringIO()
            for i in range(n):
                values = (
                    run,
                    f"e{(start + i) // 1000}",
                    60000,
                    "g",
                    1,
                    1,
                    f"{ra[i]:.9f}",
                    f"{dec[i]:.9f}",
                    index[i],
                )
                more = (0, "{}", field, "2026-01-01", f"d{start + i}", 0.9, "f")
                block.write("\t".join(map(str, (*values, *more))) + "\n")
            block.seek(0)
            raw.copy_expert(
                "COPY detections (difference_run_id, exposure_id, mjd, filter, x, y, ra, dec, hpx29, flags, features,"
                " field_id, night, detection_id, confidence_score, is_validated) FROM STDIN",
                block,
            )
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE detections"))


def main() -> None:
    """Print medians and 95th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    rng = np.random.default_rng(1)
    with home() as settings:
        catalog = Catalog(postgres.database_url("astrid", settings))
        started = time.perf_counter()
        fill(catalog, rows)
        print(f"{rows} detections written in {time.perf_counter() - started:.0f} s")
        for label, ask in (("whole call", _call), ("in the database", _database)):
            times = [ask(catalog, rng.uniform(175, 185), rng.uniform(-5, 5)) for _ in range(200)]
            print(
                f'cone of 2": {label}: median {np.median(times):.2f} ms, p95 {np.percentile(times, 95):.2f} ms'
            )
        times = []
        for _ in range(10):
            ra, dec = rng.uniform(175, 185, 2000), rng.uniform(-5, 5, 2000)
            begin = time.perf_counter()
            with catalog.reading("bench") as connection:
                found = match_positions(connection, Detection, ra, dec, 2.0)
            times.append(time.perf_counter() - begin)
        print(
            f"cross-match of 2000: median {np.median(times):.3f} s, longest {max(times):.3f} s, {len(found)} pairs"
        )
        catalog.close()


def _call(catalog: Catalog, ra: float, dec: float) -> float:
    begin = time.perf_counter()
    catalog.cone(ra, dec, 2.0)
    return 1e3 * (time.perf_counter() - begin)


def _database(catalog: Catalog, ra: float, dec: float) -> float:
    where = " OR ".join(f"hpx29 BETWEEN {a} AND {b}" for a, b in sky.cone_ranges(ra, dec, 2 / 3600))
    with catalog.reading("bench") as connection:
        query = text(f"SELECT id, ra, dec FROM detections WHERE {where}")
        begin = time.perf_counter()
        connection.execute(query).all()
        return 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
