"""Everything that the page shows of one source, asked in two statements: a hundred people wait for it at once.

`queue.get_source`, `labels.history`, `labels.object_history`, `objects.light_curve`, `queue.neighbours` and
`matching.cross_match` each answer a part of it; a test holds this to what they say.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from astrid_pipeline.catalog import sky
from astrid_pipeline.catalog.matching import SEARCH_ARCSEC
from astrid_pipeline.catalog.review_models import Source

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from astrid_pipeline.catalog.catalog import Catalog

#: How far neighbours are looked for, arcsec.
NEAR_ARCSEC = 30.0

_COLUMNS = ", ".join(f's."{column.name}"' for column in Source.__table__.c if column.name != "field_id")
_ABOUT = text(f"""
WITH s AS MATERIALIZED (
    SELECT f.name AS field, o.name AS object, o.detections AS object_detections, o.nights AS object_nights, {_COLUMNS}
    FROM sources s JOIN fields f ON f.id = s.field_id LEFT JOIN objects o ON o.id = s.object_id WHERE s.id = :id),
mine AS MATERIALIZED (
    SELECT x.id, x.key, x.exposure_id, x.present FROM s JOIN sources x ON x.object_id = s.object_id)
SELECT s.*, EXISTS (SELECT FROM user_catalogues) AS matchable,
    (SELECT json_agg(e ORDER BY e.id) FROM validation_events e
     WHERE e.source_key = ANY(ARRAY(SELECT key FROM mine) || s.key)) AS events,
    (SELECT json_agg(json_build_object('exposure_id', p.exposure_id, 'source_id', m.id, 'filter', p.filter,
        'mjd', p.mjd, 'flux', p.flux, 'flux_err', p.flux_err, 'snr', p.snr, 'upper_limit', p.upper_limit,
        'zero_point', p.zero_point) ORDER BY p.mjd, p.filter)
     FROM light_curve_points p
     LEFT JOIN (SELECT exposure_id, max(id) AS id FROM mine WHERE present GROUP BY exposure_id) m USING (exposure_id)
     WHERE p.object_id = s.object_id) AS points
FROM s""")
_AROUND = text("""
WITH g AS MATERIALIZED (
    SELECT * FROM unnest(cast(:first AS bigint[]), cast(:last AS bigint[])) AS g(first, last))
SELECT
    (SELECT json_agg(json_build_object('name', o.name, 'kind', o.kind, 'detections', o.detections, 'class', o.class,
        'ra', o.ra, 'dec', o.dec) ORDER BY o.id)
     FROM g CROSS JOIN LATERAL (SELECT * FROM objects x WHERE x.hpx29 BETWEEN g.first AND g.last) o
     WHERE o.kind <> 'injected' AND o.name <> :own) AS near,
    (SELECT json_agg(json_build_object('name', e.name, 'catalogue', u.name, 'kind', u.kind, 'mag', e.mag,
        'properties', e.properties, 'ra', e.ra, 'dec', e.dec) ORDER BY e.id)
     FROM g CROSS JOIN LATERAL (SELECT * FROM catalogue_entries x WHERE x.hpx29 BETWEEN g.first AND g.last) e
     JOIN user_catalogues u ON u.id = e.catalogue_id
     WHERE :matchable) AS matches""")


@dataclass(frozen=True)
class Dossier:
    """One source (as `queue.get_source` returns it), and what is known of it and its surroundings.

    `history` are its label events, `before` those of its object's other sources, `points` the light curve's, `near` the
    objects within `NEAR_ARCSEC`, `matches` the entries of users' catalogues, both nearest first with `separation`
    in arcsec.
    """

    source: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    near: list[dict[str, Any]] = field(default_factory=list)
    matches: list[dict[str, Any]] = field(default_factory=list)


def dossier(catalog: Catalog, source_id: int) -> Dossier | None:
    """Return everything about a source; None if there is none."""
    with catalog.reading("look up a source") as connection:
        row = connection.execute(_ABOUT, {"id": source_id}).mappings().one_or_none()
        if row is None:
            return None
        source = dict(row)
        index, matchable = source.pop("hpx29"), source.pop("matchable")
        events = [_event(e) for e in source.pop("events") or []]
        points = source.pop("points") or []
        near, matches = _around(connection, source, index, matchable)
    return Dossier(
        source,
        history=_marked([e for e in events if e["source_key"] == source["key"]]),
        before=_marked([e for e in events if e["source_key"] != source["key"]]),
        points=points,
        near=near,
        matches=matches,
    )


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    # In JSON times are text.
    return {
        **event,
        "night": dt.date.fromisoformat(event["night"]),
        "at": dt.datetime.fromisoformat(event["at"]),
    }


def _marked(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    undone = {event["undoes"] for event in events}
    return [{**event, "undone": event["id"] in undone} for event in events]


def _around(
    connection: Connection, source: Mapping[str, Any], index: int | None, matchable: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if index is None:
        return [], []
    first, last = sky.ranges_around(index, max(NEAR_ARCSEC, *SEARCH_ARCSEC.values()) / 3600.0)
    given = {"first": first, "last": last, "own": source["object"] or "", "matchable": matchable}
    near, matches = connection.execute(_AROUND, given).one()
    return (
        _by_separation(source, near, lambda row: NEAR_ARCSEC),
        _by_separation(source, matches, lambda row: SEARCH_ARCSEC[row["kind"]]),
    )


def _by_separation(
    source: Mapping[str, Any], rows: list[dict[str, Any]] | None, radius: Any
) -> list[dict[str, Any]]:
    if not rows:
        return []
    away = 3600.0 * sky.separation(
        source["ra"], source["dec"], [row.pop("ra") for row in rows], [row.pop("dec") for row in rows]
    )
    found = [{**row, "separation": float(d)} for row, d in zip(rows, away, strict=True)]
    return sorted(
        (row for row in found if row["separation"] <= radius(row)), key=lambda row: row["separation"]
    )
