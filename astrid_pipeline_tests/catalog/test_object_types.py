"""Types of objects in the catalogue: read from the light curves, kept as the objects' classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import text

from astrid_pipeline.catalog import object_types, objects
from astrid_pipeline.learning.object_types import classify_objects
from astrid_pipeline_tests.catalog.test_objects import catalog, field, finds, put  # noqa: F401

pytestmark = pytest.mark.postgres


def points_of(ids: list[int], flux: list[float], night: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "object_id": ids,
            "exposure_id": f"n{night}",
            "mjd": 61042.1 + night,
            "filter": "r",
            "flux": flux,
            "flux_err": 1.0,
            "snr": flux,
            "upper_limit": 5.0,
            "zero_point": 25.0,
            "mag": np.nan,
            "mag_err": np.nan,
            "mag_limit": 23.0,
            "flags": 0,
        }
    )


def test_objects_of_three_epochs_get_the_type_of_their_curve(catalog, field):  # noqa: F811
    star = finds([(0, 0)], f"{field}a", 61042.1).assign(ref_distance=0.1, ref_ratio=0.3, trail=0.0)
    new = finds([(60, 0)], f"{field}a", 61042.1).assign(
        candidate_id=f"{field}sn", ref_distance=4.0, ref_ratio=1.5, trail=0.0
    )
    put(catalog, field, "2026-01-02", star, new)
    mine = objects.objects_of_field(catalog, field)
    by_ra = mine.sort_values("ra").id.tolist()
    curves = {
        by_ra[0]: [9.0, -9.0, 8.0, -7.0, 9.0, -8.0, 7.0, 8.0],
        by_ra[1]: [0.3, -0.5, 14.0, 29.0, 24.0, 18.0, 13.0, 9.0],
    }
    for night in range(8):
        points = points_of(by_ra, [curves[i][night] for i in by_ra], night)
        objects.replace_points(catalog, field, f"2026-01-{2 + night:02d}", points)
    points, places = object_types.curves_of_field(catalog, field)
    assert len(points) == 16
    assert places.set_index("object_id").ref_distance.to_dict() == {by_ra[0]: 0.1, by_ra[1]: 4.0}
    told = classify_objects(points, places)
    assert object_types.keep_types(catalog, told) == 2
    with catalog.reading("test") as connection:
        rows = connection.execute(
            text("SELECT id, class FROM objects WHERE id = ANY(:ids)"), {"ids": by_ra}
        ).all()
    assert dict(map(tuple, rows)) == {by_ra[0]: "variable", by_ra[1]: "supernova"}


def test_what_is_not_known_keeps_what_it_was(catalog, field):  # noqa: F811
    put(catalog, field, "2026-01-02", finds([(0, 0)], f"{field}a", 61042.1))
    points, places = object_types.curves_of_field(catalog, field)
    assert not len(points)
    assert len(places) == 1
    nothing = classify_objects(points, places)
    assert object_types.keep_types(catalog, nothing) == 0
