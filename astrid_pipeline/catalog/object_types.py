"""What objects are, as far as their light curves tell: read for a classifier, and kept with the objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from sqlalchemy import text

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog


def curves_of_field(catalog: Catalog, field: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the light-curve points of a field's objects that stand still, and what is known of their places.

    Returns
    -------
    points:
        object_id, mjd, filter, flux, flux_err.
    places:
        object_id, ref_distance, ref_ratio, trail: of each object's surest detection.
    """
    points = text(
        "SELECT p.object_id, p.mjd, p.filter, p.flux, p.flux_err FROM light_curve_points p "
        "JOIN objects o ON o.id = p.object_id JOIN fields f ON f.id = o.field_id "
        "WHERE f.name = :field AND o.kind = 'stationary' ORDER BY p.object_id, p.mjd"
    )
    places = text(
        "SELECT DISTINCT ON (s.object_id) s.object_id, "
        "cast(s.features->>'ref_distance' AS double precision) AS ref_distance, "
        "cast(s.features->>'ref_ratio' AS double precision) AS ref_ratio, "
        "cast(s.features->>'trail' AS double precision) AS trail "
        "FROM sources s JOIN objects o ON o.id = s.object_id JOIN fields f ON f.id = o.field_id "
        "WHERE f.name = :field AND s.present AND s.score IS NOT NULL ORDER BY s.object_id, s.score DESC"
    )
    with catalog.reading(f"read the light curves of {field}") as connection:
        return (
            pd.read_sql(points, connection, params={"field": field}),
            pd.read_sql(places, connection, params={"field": field}),
        )


def keep_types(catalog: Catalog, types: pd.DataFrame) -> int:
    """Keep the types that could be told (object_id, type) as the objects' classes; return how many.

    An object whose type is not known keeps the class of its surest detection.
    """
    told = types[types["type"].notna()]
    if not len(told):
        return 0
    with catalog.transaction("keep the objects' types") as connection:
        connection.execute(
            text(
                "UPDATE objects SET class = given.type FROM (SELECT unnest(cast(:ids AS bigint[])) AS id, "
                "unnest(cast(:types AS text[])) AS type) AS given WHERE objects.id = given.id"
            ),
            {"ids": told["object_id"].astype(int).tolist(), "types": told["type"].astype(str).tolist()},
        )
    return len(told)
