"""Objects: a night's detections join them, light curves and tracks hang on them. Inside the caller's transaction."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import bindparam, delete, exists, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from astrid_pipeline.catalog import association, sky
from astrid_pipeline.catalog.fields import field_id_of
from astrid_pipeline.catalog.matching import match_positions
from astrid_pipeline.catalog.review_models import (
    LightCurvePoint,
    NameCounter,
    SkyObject,
    Source,
    Track,
)
from astrid_pipeline.catalog.rows import plain

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from astrid_pipeline.catalog.catalog import Catalog

#: Letters of an object's name; 26^6 are 309 million a year, then the names grow by a letter.
NAME_LETTERS = 6
_MJD_ZERO = dt.datetime(1858, 11, 17)

Ints = npt.NDArray[np.int64]


def object_name(year: int, number: int) -> str:
    """Return the name of the object `number` (from 0) of a year: AST26aaaaaa, AST26aaaaab, …"""
    letters = ""
    while number or len(letters) < NAME_LETTERS:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return f"AST{year % 100:02d}{letters}"


def _new_names(connection: Connection, year: int, count: int) -> list[str]:
    statement = (
        upsert(NameCounter)
        .values(year=year, next=count)
        .on_conflict_do_update(index_elements=["year"], set_={"next": NameCounter.next + count})
        .returning(NameCounter.next)
    )
    after = int(connection.scalar(statement) or count)
    return [object_name(year, number) for number in range(after - count, after)]


def associate_night(connection: Connection, field_id: int, night: dt.date, radius: float) -> None:
    """Let the night's detections join objects, known ones before new ones.

    In this order: an object that is near (`radius`, arcsec); an object of their own for those at one spot on several
    exposures; a moving object for those on a straight path; an object of its own for each that is left. Objects that
    nothing belongs to any more are forgotten, their names are not given out again.
    """
    # Nights of one field go in turn, so that one transient that two nights find at once becomes one object.
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtext('astrid-objects'), hashtext(:key))"),
        {"key": str(field_id)},
    )
    here = (Source.field_id == field_id, Source.night == night)
    found = pd.read_sql(
        select(
            Source.id,
            Source.object_id,
            Source.exposure_id,
            Source.ra,
            Source.dec,
            Source.mjd,
            Source.snr,
            Source.score,
        )
        .where(
            *here,
            Source.score.is_not(None),
            Source.ra.is_not(None),
            Source.present,
            Source.injected.is_(False),
        )
        .order_by(Source.id),
        connection,
    )
    connection.execute(delete(Track).where(Track.field_id == field_id, Track.night == night))
    touched: set[int] = set()
    if len(found):
        was: Ints = np.asarray(found["object_id"].astype(float).fillna(-1), np.int64)
        found["object_id"] = _known(connection, found, radius)
        kinds = _kinds(connection, was)
        found["was"] = was
        _at_one_spot(connection, found, kinds, field_id, radius)
        _on_paths(connection, found, kinds, field_id, night)
        left = np.flatnonzero(found["object_id"] < 0)
        _join(connection, found, [np.array([i]) for i in left], kinds, field_id, "stationary")
        connection.execute(
            text(
                "UPDATE sources SET object_id = given.object FROM (SELECT unnest(cast(:ids AS bigint[])) AS id, "
                "unnest(cast(:objects AS bigint[])) AS object) AS given WHERE sources.id = given.id"
            ),
            {"ids": found["id"].tolist(), "objects": found["object_id"].astype(int).tolist()},
        )
        touched = {int(i) for i in found["object_id"]} | {int(i) for i in was if i >= 0}
    _refresh(connection, field_id, touched)


def _known(connection: Connection, found: pd.DataFrame, radius: float) -> Ints:
    """Return the id of the stationary object near each detection, or -1."""
    pairs = match_positions(
        connection, SkyObject, found["ra"].to_numpy(), found["dec"].to_numpy(), radius, ["kind"]
    )
    pairs = pairs[pairs["kind"] == "stationary"].drop_duplicates("index")
    result = np.full(len(found), -1, np.int64)
    result[pairs["index"].to_numpy(int)] = pairs["id"].to_numpy(int)
    return result


def _kinds(connection: Connection, ids: Ints) -> dict[int, str]:
    wanted = sorted({int(i) for i in ids if i >= 0})
    rows = connection.execute(select(SkyObject.id, SkyObject.kind).where(SkyObject.id.in_(wanted)))
    return {int(row.id): str(row.kind) for row in rows}


def _at_one_spot(
    connection: Connection, found: pd.DataFrame, kinds: Mapping[int, str], field_id: int, radius: float
) -> None:
    free = np.flatnonzero(found["object_id"] < 0)
    mine = found.iloc[free]
    number = association.groups(mine["ra"], mine["dec"], mine["snr"].abs().fillna(0), radius)
    exposures = mine["exposure_id"].to_numpy()
    members = [
        free[group] for group in _by_number(number) if len(group) > 1 and len(set(exposures[group])) > 1
    ]
    _join(connection, found, members, kinds, field_id, "stationary")


def _by_number(number: Ints) -> list[Ints]:
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []


def _on_paths(
    connection: Connection, found: pd.DataFrame, kinds: Mapping[int, str], field_id: int, night: dt.date
) -> None:
    free = np.flatnonzero(found["object_id"] < 0)
    mine = found.iloc[free]
    for motion in association.find_tracks(mine["ra"], mine["dec"], mine["mjd"], mine["exposure_id"]):
        members = free[motion.members]
        _join(connection, found, [members], kinds, field_id, "moving")
        connection.execute(
            insert(Track).values(
                object_id=int(found["object_id"].to_numpy()[members[0]]),
                field_id=field_id,
                night=night,
                mjd=motion.mjd,
                ra=motion.ra,
                dec=motion.dec,
                rate_ra=motion.rate_ra,
                rate_dec=motion.rate_dec,
                rms=motion.rms,
                detections=len(members),
            )
        )


def _join(
    connection: Connection,
    found: pd.DataFrame,
    members: list[Ints],
    kinds: Mapping[int, str],
    field_id: int,
    kind: str,
) -> None:
    """Make an object for each list of rows, or take up again the one of that kind that they belonged to before."""
    owner, was = found["object_id"].to_numpy().copy(), found["was"].to_numpy()
    places = found[["ra", "dec", "mjd"]].to_numpy(float)
    weight = found["snr"].fillna(1).to_numpy(float) ** 2
    new: list[Ints] = []
    used = {int(i) for i in owner if i >= 0}
    for rows in members:
        again = [int(i) for i in was[rows] if kinds.get(int(i)) == kind and int(i) not in used]
        if again:
            owner[rows] = again[0]
            used.add(again[0])
        else:
            new.append(rows)
    records = []
    for rows in new:
        ra, dec = association.mean_position(places[rows, 0], places[rows, 1], weight[rows])
        records.append(
            {
                "field_id": field_id,
                "kind": kind,
                "ra": ra,
                "dec": dec,
                "detections": len(rows),
                "nights": 1,
                "first_mjd": float(places[rows, 2].min()),
                "last_mjd": float(places[rows, 2].max()),
            }
        )
    if records:
        name_objects(connection, records)
        ids = connection.scalars(
            insert(SkyObject).returning(SkyObject.id, sort_by_parameter_order=True), records
        ).all()
        for rows, identity in zip(new, ids, strict=True):
            owner[rows] = int(identity)
    found["object_id"] = owner


def name_objects(connection: Connection, records: list[dict[str, Any]]) -> None:
    """Give new objects their names, by the year of their first detection, and their HEALPix indices."""
    index = sky.hpx29([r["ra"] for r in records], [r["dec"] for r in records])
    years: dict[int, list[dict[str, Any]]] = {}
    for record, hpx in zip(records, index, strict=True):
        record["hpx29"] = int(hpx)
        years.setdefault((_MJD_ZERO + dt.timedelta(days=record["first_mjd"])).year, []).append(record)
    for year, mine in sorted(years.items()):
        for record, name in zip(mine, _new_names(connection, year, len(mine)), strict=True):
            record["name"] = name


def _refresh(connection: Connection, field_id: int, touched: Iterable[int]) -> None:
    """Bring what an object's row says of its detections up to date; forget objects without any."""
    nothing = ~exists().where(Source.object_id == SkyObject.id)
    connection.execute(delete(SkyObject).where(SkyObject.field_id == field_id, nothing))
    ids = sorted(set(touched))
    if not ids:
        return
    rows = pd.read_sql(
        select(
            Source.object_id,
            Source.ra,
            Source.dec,
            Source.mjd,
            Source.night,
            Source.snr,
            Source.score,
            Source.class_name.label("class_name"),
        ).where(Source.object_id.in_(ids), Source.present, Source.score.is_not(None)),
        connection,
    )
    if not len(rows):
        return
    order = np.argsort(rows["object_id"].to_numpy(), kind="stable")
    weight = rows["snr"].fillna(1).to_numpy(float) ** 2
    score = rows["score"].to_numpy(float)
    places = rows[["ra", "dec", "mjd"]].to_numpy(float)
    updates: list[dict[str, Any]] = []
    owners = rows["object_id"].to_numpy()
    for mine in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
        ra, dec = association.mean_position(places[mine, 0], places[mine, 1], weight[mine])
        best = mine[int(np.argmax(score[mine]))]
        updates.append(
            {
                "this": int(owners[best]),
                "ra": ra,
                "dec": dec,
                "detections": len(mine),
                "nights": len(set(rows["night"].to_numpy()[mine])),
                "first_mjd": float(places[mine, 2].min()),
                "last_mjd": float(places[mine, 2].max()),
                "best_score": float(score[best]),
                "class": rows["class_name"].iat[best],
            }
        )
    index = sky.hpx29([u["ra"] for u in updates], [u["dec"] for u in updates])
    for change, hpx in zip(updates, index, strict=True):
        change["hpx29"] = int(hpx)
    table: Any = SkyObject.__table__
    connection.execute(
        update(table)
        .where(table.c.id == bindparam("this"))
        .values({name: bindparam(name) for name in updates[0] if name != "this"}),
        updates,
    )


# -- light curves --------------------------------------------------------------------------------------------------


def objects_of_field(catalog: Catalog, field: str, *, kind: str = "stationary") -> pd.DataFrame:
    """Return the objects of a field: id, name, ra, dec, and the nights they have light-curve points of."""
    query = text(
        "SELECT o.id, o.name, o.ra, o.dec, "
        "coalesce(array_agg(DISTINCT p.night) FILTER (WHERE p.night IS NOT NULL), '{}') AS nights "
        "FROM objects o JOIN fields f ON f.id = o.field_id "
        "LEFT JOIN light_curve_points p ON p.object_id = o.id "
        "WHERE f.name = :field AND o.kind = :kind GROUP BY o.id ORDER BY o.id"
    )
    with catalog.reading(f"list the objects of {field}") as connection:
        return pd.read_sql(query, connection, params={"field": field, "kind": kind})


def replace_points(
    catalog: Catalog,
    field: str,
    night: str | dt.date,
    points: pd.DataFrame,
    objects: Iterable[int] | None = None,
) -> int:
    """Replace the light-curve points of a field and night (of some objects, or of all); return how many there are.

    `points` has object_id, exposure_id, mjd, filter, flux, flux_err, snr, upper_limit, zero_point, mag, mag_err,
    mag_limit, flags. Objects that were forgotten meanwhile are passed over. With `objects`, the points of others stay
    but for those of moving objects, which have tracks instead: another night that is made at the same time may have
    found an object and put its points here since this one listed the field's.
    """
    date = dt.date.fromisoformat(str(night))
    with catalog.transaction(f"keep the light curves of {field} {date}") as connection:
        field_id = field_id_of(connection, field)
        # One at a time: neither of two could see, and so replace, what the other is about to write.
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext('astrid-points'), hashtext(:key))"),
            {"key": f"{field_id}|{date}"},
        )
        gone = delete(LightCurvePoint).where(
            LightCurvePoint.field_id == field_id, LightCurvePoint.night == date
        )
        if objects is None:
            # Those of what was put in are made with it, from images that hold it.
            real = select(SkyObject.id).where(SkyObject.field_id == field_id, SkyObject.kind != "injected")
            gone = gone.where(LightCurvePoint.object_id.in_(real))
        else:
            moving = select(SkyObject.id).where(SkyObject.field_id == field_id, SkyObject.kind == "moving")
            gone = gone.where(
                or_(LightCurvePoint.object_id.in_(list(objects)), LightCurvePoint.object_id.in_(moving))
            )
        connection.execute(gone)
        if not len(points):
            return 0
        # Locked, so that none is forgotten between the look and the writing.
        known = set(
            connection.scalars(
                select(SkyObject.id)
                .where(SkyObject.id.in_({int(i) for i in points["object_id"]}))
                .with_for_update(key_share=True)
            )
        )
        rows = [
            {**plain(row), "field_id": field_id, "night": date}
            for row in points[points["object_id"].isin(known)].to_dict(orient="records")
        ]
        if rows:
            connection.execute(insert(LightCurvePoint), rows)
        return len(rows)


def light_curve(catalog: Catalog, object_id: int) -> pd.DataFrame:
    """Return an object's light curve in the order of time, with the detections' source ids where there are any."""
    query = text(
        "SELECT p.*, s.source_id FROM light_curve_points p LEFT JOIN LATERAL ("
        " SELECT max(s.id) AS source_id FROM sources s WHERE s.object_id = p.object_id"
        " AND s.exposure_id = p.exposure_id AND s.present) s ON true "
        "WHERE p.object_id = :id ORDER BY p.mjd, p.filter"
    )
    with catalog.reading("read a light curve") as connection:
        result = connection.execute(query, {"id": object_id})
        # pandas.read_sql takes several times as long.
        return pd.DataFrame(result.all(), columns=list(result.keys()))
