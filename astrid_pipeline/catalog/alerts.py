"""Other surveys' alerts in the catalogue: their objects, their history, and what people have said of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from astrid_pipeline.catalog.fields import field_id_of
from astrid_pipeline.catalog.review_models import LightCurvePoint, SkyObject, Source
from astrid_pipeline.catalog.rows import plain

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog
    from astrid_pipeline.learning.alert_model import AlertModel

#: Verdicts of each kind from which on the probabilities are fitted to them (see `alert_model.calibrated_on`).
ENOUGH = 10


def places_of_night(catalog: Catalog, field: str, night: str) -> pd.DataFrame:
    """Return exposure_id, x, y, object_id of a night's sources; the object is null where there is none."""
    with catalog.reading(f"list the sources of {field} {night}") as connection:
        rows = connection.execute(
            select(Source.exposure_id, Source.x, Source.y, Source.object_id).where(
                Source.field_id == field_id_of(connection, field),
                Source.night == dt.date.fromisoformat(night),
                Source.present,
                Source.injected.is_(False),
            )
        ).all()
    return pd.DataFrame(rows, columns=["exposure_id", "x", "y", "object_id"])


def add_history(catalog: Catalog, field: str, points: Mapping[str, pd.DataFrame]) -> int:
    """Add light-curve points of earlier nights by night, those that are known left as they are; return how many came.

    A survey tells an object's last weeks again with each alert of it.
    """
    count = 0
    with catalog.transaction(f"keep the history of {field}") as connection:
        field_id = field_id_of(connection, field)
        wanted = {int(one) for table in points.values() for one in table["object_id"]}
        # Locked, so that none is forgotten between the look and the writing.
        known = set(
            connection.scalars(
                select(SkyObject.id).where(SkyObject.id.in_(wanted)).with_for_update(key_share=True)
            )
        )
        for night, table in points.items():
            date = dt.date.fromisoformat(night)
            rows = [
                {**plain(row), "field_id": field_id, "night": date}
                for row in table[table["object_id"].isin(known)].to_dict(orient="records")
            ]
            if rows:
                result = connection.execute(
                    upsert(LightCurvePoint)
                    .values(rows)
                    .on_conflict_do_nothing(index_elements=["object_id", "exposure_id"])
                )
                count += result.rowcount
    return count


def histories(catalog: Catalog, field: str, night: str, days: float) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return by detection id the object's name and its points of the `days` before the detection, oldest first.

    The points have the columns of a light curve, with detection_id and score where something was detected there.
    """
    query = text(
        "SELECT d.detection_id AS alert, o.name, p.exposure_id, p.mjd, p.filter, p.flux, p.flux_err, p.snr, "
        "p.zero_point, p.mag, p.mag_err, p.mag_limit, s.detection_id, s.score "
        "FROM sources d JOIN objects o ON o.id = d.object_id "
        "LEFT JOIN light_curve_points p ON p.object_id = o.id AND p.mjd < d.mjd AND p.mjd >= d.mjd - :days "
        "LEFT JOIN LATERAL (SELECT detection_id, score FROM sources e WHERE e.object_id = o.id "
        "AND e.exposure_id = p.exposure_id AND e.detection_id IS NOT NULL ORDER BY e.score DESC LIMIT 1) s ON true "
        "WHERE d.field_id = :field AND d.night = :night AND d.detection_id IS NOT NULL AND d.present "
        "AND NOT d.injected ORDER BY d.detection_id, p.mjd, p.exposure_id"
    )
    with catalog.reading(f"read the history of {field} {night}") as connection:
        values = {
            "field": field_id_of(connection, field),
            "night": dt.date.fromisoformat(night),
            "days": days,
        }
        result = connection.execute(query, values)
        table = pd.DataFrame(result.all(), columns=list(result.keys()))
    return {
        str(alert): (str(mine["name"].iloc[0]), mine[mine["mjd"].notna()].drop(columns=["alert", "name"]))
        for alert, mine in table.groupby("alert", sort=True)
    }


def alert_verdicts(catalog: Catalog) -> tuple[pd.DataFrame, pd.Series]:
    """Return the features of the alerts of which people hold one opinion, and whether that is "real"."""
    query = text(
        "SELECT features, state = 'real' AS real FROM sources "
        "WHERE features ? 'survey' AND state IN ('real', 'bogus') ORDER BY id"
    )
    with catalog.reading("read the verdicts on alerts") as connection:
        rows = connection.execute(query).all()
    features = pd.DataFrame(
        [
            {
                name.removeprefix("alert_"): value
                for name, value in row.features.items()
                if name.startswith("alert_")
            }
            for row in rows
        ],
        dtype=float,
    )
    return features, pd.Series([bool(row.real) for row in rows], dtype=bool)


def corrected(catalog: Catalog, model: AlertModel) -> tuple[AlertModel, int]:
    """Return the model fitted to people's verdicts where there are enough of both kinds, and by how many it was.

    Else it is as it came, and the number is 0.
    """
    from astrid_pipeline.learning.alert_model import FEATURES, calibrated_on

    features, real = alert_verdicts(catalog)
    if min(int(real.sum()), int((~real).sum())) < ENOUGH:
        return model, 0
    # What is missing was not a number: the catalogue's JSON has none.
    table = features.reindex(columns=list(dict.fromkeys([*FEATURES, *features.columns])))
    return calibrated_on(model, table, real, what=f"{len(real)} verdicts of people"), len(real)
