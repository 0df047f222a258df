"""The queue of sources: filters, sorting, pages by cursor, a night's progress."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, text, tuple_
from sqlalchemy.orm import aliased

from astrid_pipeline.catalog import sky
from astrid_pipeline.catalog.models import SkyField
from astrid_pipeline.catalog.review_models import SkyObject, Source, ValidationEvent
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

#: What can be sorted by. Null values come last either way.
SORTS: Mapping[str, Any] = {
    "score": Source.score,
    "snr": Source.snr,
    "mag": Source.mag,
    "mjd": Source.mjd,
    "uncertainty": Source.uncertainty,
    "worth": Source.worth,
    "labels": Source.labels,
    "ra": Source.ra,
    "dec": Source.dec,
    "night": Source.night,
    "id": Source.id,
    "filter": Source.filter,
    "class": Source.class_name,
    "object": SkyObject.name,
    "state": Source.state,
}
_TEXTS = ("filter", "class", "object", "state")
#: Rows of a page at most.
MOST_ROWS = 1000

Kind = Literal["detections", "passed", "all"]
Seen = Literal["unseen", "seen", "mine", "not mine", "disputed", "real", "bogus", "unsure", "all"]


@dataclass(frozen=True)
class Filter:
    """What of the sources is asked for. `kind`: detections, candidates that the model passed over, or all."""

    field: str | None = None
    night: dt.date | None = None
    since: dt.date | None = None
    kind: Kind = "detections"
    seen: Seen = "all"
    who: str | None = None
    class_name: str | None = None
    filter: str | None = None
    score_min: float | None = None
    score_max: float | None = None
    snr_min: float | None = None
    object: str | None = None
    ra: float | None = None
    dec: float | None = None
    radius: float | None = None
    #: Whether what was put in is among them (`catalog.gold`): for people who label, and nobody else.
    gold: bool = False
    #: One row an object, whatever number of exposures and nights show it: a labelled source of it if there is one, else
    #: that of the highest score. A state then is that of the object.
    per_object: bool = False
    sort: str = "score"
    descending: bool = True

    @property
    def never_null(self) -> bool:
        """Whether every row has a value in the column that is sorted by."""
        return self.sort in ("id", "night", "labels", "mjd", "state") or (
            self.sort == "score" and self.kind == "detections"
        )

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions.

        Raises
        ------
        ConfigError
            If the sort is unknown, or the cone is not whole.
        """
        if self.sort not in SORTS:
            raise ConfigError("cannot sort by this", where=self.sort, remedy=f"use one of {', '.join(SORTS)}")
        found: list[ColumnElement[bool]] = [Source.present.is_(True)]
        if not self.gold:
            found.append(Source.injected.is_(False))
        if self.field is not None:
            found.append(
                Source.field_id == select(SkyField.id).where(SkyField.name == self.field).scalar_subquery()
            )
        if self.night is not None:
            found.append(Source.night == self.night)
        if self.since is not None:
            found.append(Source.night >= self.since)
        if self.kind == "detections":
            found.append(Source.score.is_not(None))
        elif self.kind == "passed":
            found.append(Source.score.is_(None))
        for column, least, most in (
            (Source.score, self.score_min, self.score_max),
            (Source.snr, self.snr_min, None),
        ):
            if least is not None:
                found.append(column >= least)
            if most is not None:
                found.append(column <= most)
        if self.class_name is not None:
            found.append(or_(Source.class_name == self.class_name, Source.label_class == self.class_name))
        if self.filter is not None:
            found.append(Source.filter == self.filter)
        if self.object is not None:
            found.append(
                Source.object_id
                == select(SkyObject.id).where(SkyObject.name == self.object).scalar_subquery()
            )
        return found + self._seen() + self._cone() + self._representative()

    def _representative(self) -> list[ColumnElement[bool]]:
        if not self.per_object:
            return []
        other = aliased(Source)

        def rank(of: Any) -> Any:
            return tuple_(of.state != "unseen", func.coalesce(of.score, -1.0), of.id)

        among = [
            other.object_id == Source.object_id,
            other.present.is_(True),
            other.injected == Source.injected,
            rank(other) > rank(Source),
        ]
        if self.night is not None:
            among.append(other.night == self.night)
        if self.since is not None:
            among.append(other.night >= self.since)
        if self.kind == "detections":
            among.append(other.score.is_not(None))
        elif self.kind == "passed":
            among.append(other.score.is_(None))
        return [~select(other.id).where(*among).exists()]

    def _seen(self) -> list[ColumnElement[bool]]:
        if self.seen == "all":
            return []
        if self.seen in ("mine", "not mine"):
            mine = (
                select(ValidationEvent.id)
                .where(ValidationEvent.source_key == Source.key, ValidationEvent.who == (self.who or ""))
                .exists()
            )
            return [mine if self.seen == "mine" else ~mine]
        return [Source.state != "unseen" if self.seen == "seen" else Source.state == self.seen]

    def _cone(self) -> list[ColumnElement[bool]]:
        given = [value is not None for value in (self.ra, self.dec, self.radius)]
        if not any(given):
            return []
        if self.ra is None or self.dec is None or self.radius is None or not all(given):
            raise ConfigError("a cone needs ra, dec and radius", remedy="give all three (degrees, arcsec)")
        if not (0 <= self.ra <= 360 and -90 <= self.dec <= 90 and 0 < self.radius <= 36000):
            raise ConfigError("not a cone", remedy="give degrees, and a radius of at most 36000 arcsec")
        ranges = sky.cone_ranges(self.ra % 360.0, self.dec, self.radius / 3600.0)
        inside = or_(*(and_(Source.hpx29 >= first, Source.hpx29 <= last) for first, last in ranges))
        # The ranges hold somewhat more than the cone: what is left is decided by the angle itself.
        dot = func.sin(func.radians(Source.dec)) * func.sin(func.radians(self.dec)) + func.cos(
            func.radians(Source.dec)
        ) * func.cos(func.radians(self.dec)) * func.cos(func.radians(Source.ra - self.ra))
        half = func.asin(func.least(1.0, func.sqrt(func.greatest(0.0, (1.0 - dot) / 2.0))))
        # From the dot product small angles are good to some milliarcsec.
        return [inside, 2 * func.degrees(half) * 3600.0 <= self.radius + 0.005]


@dataclass(frozen=True)
class Page:
    """Rows, and the cursor of those that follow (None at the end)."""

    rows: list[dict[str, Any]]
    next: str | None


def _query() -> Any:
    columns = [column for column in Source.__table__.c if column.name not in ("field_id", "hpx29")]
    return (
        select(
            SkyField.name.label("field"),
            SkyObject.name.label("object"),
            SkyObject.detections.label("object_detections"),
            SkyObject.nights.label("object_nights"),
            *columns,
        )
        .join(SkyField, SkyField.id == Source.field_id)
        .outerjoin(SkyObject, SkyObject.id == Source.object_id)
    )


def list_sources(catalog: Catalog, wanted: Filter, limit: int = 100, cursor: str | None = None) -> Page:
    """Return the sources that a filter lets through, in its order, from a cursor on.

    A row's `injected` and `truth` are not in it: a scanner must not see them before the label is given.

    Raises
    ------
    ConfigError
        If the filter or the cursor is wrong.
    """
    limit = max(1, min(limit, MOST_ROWS))
    conditions = wanted.conditions()
    column = SORTS[wanted.sort]
    order = column.desc() if wanted.descending else column.asc()
    by_id = Source.id.desc() if wanted.descending else Source.id.asc()
    # Where nothing is null the plain order is that of the index; NULLS LAST would sort a million rows.
    order = order if wanted.never_null else order.nulls_last()
    query = _query().where(*conditions).order_by(order, by_id).limit(limit + 1)
    if cursor is not None:
        query = query.where(_after(cursor, wanted))
    with catalog.reading("list the queue") as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    following = None
    if len(rows) > limit:
        rows = rows[:limit]
        last = rows[-1]
        value = last[wanted.sort]
        text_ = json.dumps(
            [wanted.sort, wanted.descending, value if value is None else str(value), last["id"]]
        )
        following = base64.urlsafe_b64encode(text_.encode()).decode().rstrip("=")
    for row in rows:
        del row["injected"], row["truth"]
    return Page(rows, following)


def _after(cursor: str, wanted: Filter) -> ColumnElement[bool]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        sort, descending, value, identity = json.loads(base64.urlsafe_b64decode(padded.encode()))
        if sort != wanted.sort or descending is not wanted.descending:
            raise ValueError("another order")
        identity = int(identity)
        if not 0 <= identity < 2**63:
            raise ValueError("no id")
        if value is not None:
            value = (
                dt.date.fromisoformat(value)
                if sort == "night"
                else int(value)
                if sort in ("id", "labels")
                else str(value)
                if sort in _TEXTS
                else float(value)
            )
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            "not a cursor of this list", where=cursor[:80], remedy="begin again without a cursor"
        ) from error
    column = SORTS[wanted.sort]
    if wanted.never_null:
        if value is None:
            raise ConfigError(
                "not a cursor of this list", where=cursor[:80], remedy="begin again without one"
            )
        here, there = tuple_(column, Source.id), tuple_(literal(value), literal(identity))
        return here < there if wanted.descending else here > there
    later = Source.id < identity if wanted.descending else Source.id > identity
    if value is None:
        return and_(column.is_(None), later)
    beyond = column < value if wanted.descending else column > value
    return or_(beyond, and_(column == value, later), column.is_(None))


def get_source(catalog: Catalog, source_id: int) -> dict[str, Any] | None:
    """Return one source with its field, object and `injected`; None if there is none."""
    with catalog.reading("look up a source") as connection:
        row = connection.execute(_query().where(Source.id == source_id)).mappings().one_or_none()
    return None if row is None else dict(row)


_STAMP = text(
    "SELECT f.name AS field, s.night, s.exposure_id, s.x, s.y, s.injected,"
    " jsonb_build_object('survey', s.features -> 'survey') AS features"
    " FROM sources s JOIN fields f ON f.id = s.field_id WHERE s.id = :id"
)


def stamp_of(catalog: Catalog, source_id: int) -> dict[str, Any] | None:
    """Return what leads to a source's stamps, as far as `StampStore.get` asks for it; None if there is none."""
    with catalog.reading("look up a source") as connection:
        row = connection.execute(_STAMP, {"id": source_id}).mappings().one_or_none()
    return None if row is None else dict(row)


def neighbours(catalog: Catalog, source: Mapping[str, Any], radius: float = 30.0) -> list[dict[str, Any]]:
    """Return the objects within `radius` arcsec of a source, nearest first, its own left out.

    Each with name, kind, detections, class and `separation` (arcsec).
    """
    if source["ra"] is None:
        return []
    ranges = sky.cone_ranges(source["ra"] % 360.0, source["dec"], radius / 3600.0)
    columns = (SkyObject.name, SkyObject.kind, SkyObject.detections, SkyObject.class_name.label("class"))
    query = select(*columns, SkyObject.ra, SkyObject.dec).where(
        or_(*(and_(SkyObject.hpx29 >= first, SkyObject.hpx29 <= last) for first, last in ranges)),
        SkyObject.kind != "injected",
        SkyObject.name != (source["object"] or ""),
    )
    with catalog.reading("look for neighbours") as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    for row in found:
        row["separation"] = 3600.0 * float(
            sky.separation(source["ra"], source["dec"], row.pop("ra"), row.pop("dec"))
        )
    return sorted((row for row in found if row["separation"] <= radius), key=lambda row: row["separation"])


def progress(catalog: Catalog, wanted: Filter) -> dict[str, int]:
    """Return how many sources (or objects) the filter holds by state, whatever the filter says of states."""
    conditions = replace(wanted, seen="all").conditions()
    query = select(Source.state, func.count()).where(*conditions).group_by(Source.state)
    with catalog.reading("count the queue") as connection:
        counts = {str(state): int(count) for state, count in connection.execute(query)}
    return {
        "total": sum(counts.values()),
        "seen": sum(v for k, v in counts.items() if k != "unseen"),
        **counts,
    }


def facets(catalog: Catalog) -> dict[str, list[str]]:
    """Return the fields, nights (latest first) and filters that sources have."""
    with catalog.reading("list fields and nights") as connection:
        names = connection.scalars(select(SkyField.name).order_by(SkyField.name)).all()
        # A plain DISTINCT reads a million rows; difference_runs has one a night.
        nights = connection.scalars(
            text(
                "SELECT DISTINCT night FROM difference_runs WHERE status = 'success' ORDER BY night DESC LIMIT 400"
            )
        ).all()
        filters = connection.scalars(
            text(
                "SELECT DISTINCT f FROM (SELECT filter AS f FROM observations WHERE kind = 'light') x"
                " WHERE f IS NOT NULL ORDER BY f"
            )
        ).all()
    return {
        "fields": [str(name) for name in names],
        "nights": [str(night) for night in nights],
        "filters": [str(name) for name in filters],
    }


def filter_of(values: Mapping[str, Any]) -> Filter:
    """Return the filter that plain values describe (a saved one); names that it does not know are passed over."""
    known = {field.name for field in fields(Filter)}
    chosen = {name: value for name, value in values.items() if name in known and value not in (None, "")}
    for name in ("night", "since"):
        if isinstance(chosen.get(name), str):
            chosen[name] = dt.date.fromisoformat(chosen[name])
    return Filter(**chosen)
