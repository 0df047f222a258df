"""People's labels: events that are only ever added, and what follows from them.

The rule of consensus: of each person the latest standing verdict on a source counts, all alike. Verdicts of `unsure`
are no votes. With votes, the source is `real` or `bogus` if at least two thirds agree, else `disputed`; without, it is
`unsure` if somebody said so, else `unseen`. Its class is the one that most of those who said `real` named.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from astrid_pipeline.catalog.review_models import VERDICTS, Source, ValidationEvent
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from astrid_pipeline.catalog.catalog import Catalog

#: Share of the votes that must agree: one dissenter among three does not undo the others, one among two does.
AGREEMENT = Fraction(2, 3)
#: What a source can be called, in the order of the keys 1-9.
LABEL_CLASSES = (
    "supernova",
    "variable star",
    "moving object",
    "nova",
    "AGN",
    "flare",
    "artefact",
    "cosmic ray",
    "bad subtraction",
)


class NoSuchSourceError(ConfigError):
    """There is no source, label or object of that name."""


class NotYoursError(ConfigError):
    """A label can only be undone by the person who gave it."""


def standing(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each person's latest verdict that was not undone; `events` in the order of their ids."""
    given = list(events)
    undone = {event["undoes"] for event in given if event["undoes"] is not None}
    latest: dict[str, Mapping[str, Any]] = {}
    for event in given:
        if event["verdict"] is not None and event["id"] not in undone:
            latest[event["who"]] = event
    return list(latest.values())


def consensus_of(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `state`, `label_class`, `labels`, `agreement`, `labelled_at` that follow from standing verdicts."""
    votes = Counter(event["verdict"] for event in events if event["verdict"] != "unsure")
    total = sum(votes.values())
    state, agreement = ("unsure", None) if events else ("unseen", None)
    if total:
        verdict, count = votes.most_common(1)[0]
        agreement = count / total
        state = verdict if Fraction(count, total) >= AGREEMENT else "disputed"
    classes = Counter(e["class"] for e in events if e["class"] and e["verdict"] == state)
    return {
        "state": state,
        "label_class": classes.most_common(1)[0][0] if classes else None,
        "labels": len(events),
        "agreement": agreement,
        "labelled_at": max((event["at"] for event in events), default=None),
    }


def record(
    catalog: Catalog,
    source_id: int,
    *,
    who: str,
    verdict: str,
    token: str,
    class_name: str | None = None,
    confidence: float | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """Keep a person's verdict on a source and return the event, with the source's new `state`.

    Parameters
    ----------
    token:
        Made by the client for this decision; sent again (a lost answer, a server that was restarted), it is kept once.

    Raises
    ------
    NoSuchSourceError
        If there is no such source.
    ConfigError
        If the verdict is none.
    """
    if verdict not in VERDICTS:
        raise ConfigError("not a verdict", where=verdict, remedy=f"use one of {', '.join(VERDICTS)}")
    with catalog.transaction("keep a label") as connection:
        source = _locked_source(connection, "s.id = :wanted", source_id)
        event = {
            **_about(source),
            "token": token,
            "who": who,
            "verdict": verdict,
            "class": class_name,
            "confidence": confidence,
            "note": note,
        }
        return _added(connection, source, event)


def undo(catalog: Catalog, event_id: int, *, who: str, token: str) -> dict[str, Any]:
    """Withdraw one's own verdict by another event; the verdict itself stays in the record.

    Raises
    ------
    NoSuchSourceError, NotYoursError
        If there is no such verdict, or another person gave it.
    """
    with catalog.transaction("undo a label") as connection:
        given = (
            connection.execute(
                select(*ValidationEvent.__table__.c).where(
                    ValidationEvent.id == event_id, ValidationEvent.verdict.is_not(None)
                )
            )
            .mappings()
            .one_or_none()
        )
        if given is None:
            raise NoSuchSourceError("there is no such verdict", where=str(event_id))
        if given["who"] != who:
            raise NotYoursError(f"{given['who']} gave this verdict", where=str(event_id))
        source = _locked_source(connection, "s.key = :wanted", given["source_key"])
        event = {
            **_about(source),
            "token": token,
            "who": who,
            "verdict": None,
            "undoes": event_id,
        }
        return _added(connection, source, event)


# Few statements, and plain ones: a hundred people wait for their verdict to be kept at once.
_LOCKED = """
SELECT s.id, s.key, s.night, s.exposure_id, s.x, s.y, s.ra, s.dec, s.injected, s.truth, s.score, s.model_name,
       s.model_version, f.name AS field, o.name AS object_name
FROM sources s JOIN fields f ON f.id = s.field_id LEFT JOIN objects o ON o.id = s.object_id
WHERE {} FOR UPDATE OF s"""
_EVENT = (
    *(
        "source_key",
        "field",
        "night",
        "exposure_id",
        "x",
        "y",
        "ra",
        "dec",
        "injected",
        "truth",
        "object_name",
        "score",
    ),
    *("model_name", "model_version", "token", "who", "verdict", "class", "confidence", "note", "undoes"),
)
# A token or an undoing that is there already adds nothing.
_ADD = text(f"""
WITH added AS (
    INSERT INTO validation_events ({", ".join(_EVENT)}) VALUES ({", ".join(f":{name}" for name in _EVENT)})
    ON CONFLICT DO NOTHING RETURNING *)
SELECT true AS added, * FROM added
UNION ALL SELECT false, * FROM validation_events
WHERE source_key = :source_key OR token = :token OR undoes = :undoes""")
# What was put in may bear the number of a detection of the night.
_SETTLE = text("""
WITH settled AS (
    UPDATE sources SET state = :state, label_class = :label_class, labels = :labels, agreement = :agreement,
        labelled_at = :labelled_at WHERE id = :id
    RETURNING field_id, night, detection_id, injected, state)
UPDATE detections d SET is_validated = s.state IN ('real', 'bogus') FROM settled s
WHERE d.field_id = s.field_id AND d.night = s.night AND d.detection_id = s.detection_id AND NOT s.injected""")


def _locked_source(connection: Connection, condition: str, wanted: int | str) -> Mapping[str, Any]:
    # Locked, so that two people's verdicts on one source are counted one after the other.
    found = connection.execute(text(_LOCKED.format(condition)), {"wanted": wanted}).mappings().one_or_none()
    if found is None:
        raise NoSuchSourceError("there is no such source", where=str(wanted))
    return dict(found)


def _about(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"source_key": source["key"], **{name: source[name] for name in _EVENT if name in source}}


def _added(connection: Connection, source: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    given = {**dict.fromkeys(_EVENT), **event}
    found = [dict(row) for row in connection.execute(_ADD, given).mappings()]
    added = [row for row in found if row.pop("added")]
    same = [row for row in found if row["token"] == given["token"]] or [
        row for row in found if given["undoes"] is not None and row["undoes"] == given["undoes"]
    ]
    events_ = sorted((row for row in found if row["source_key"] == source["key"]), key=lambda row: row["id"])
    consensus = consensus_of(standing(events_))
    if added:
        connection.execute(_SETTLE, {"id": source["id"], **consensus})
    elif not same:
        # Another source's verdict of this token was kept just now, after this question was put.
        query = select(*ValidationEvent.__table__.c).where(ValidationEvent.token == given["token"])
        same = [dict(row) for row in connection.execute(query).mappings()]
    return {
        **same[0],
        "source_id": source["id"],
        "state": consensus["state"],
        "labels": consensus["labels"],
    }


def history(catalog: Catalog, key: str) -> list[dict[str, Any]]:
    """Return all events of a source, oldest first; `undone` tells whether one was withdrawn."""
    table = ValidationEvent.__table__
    with catalog.reading("look up labels") as connection:
        events = [
            dict(row)
            for row in connection.execute(
                select(*table.c).where(table.c.source_key == key).order_by(table.c.id)
            ).mappings()
        ]
    undone = {event["undoes"] for event in events}
    return [{**event, "undone": event["id"] in undone} for event in events]


def object_history(catalog: Catalog, object_id: int, but: str) -> list[dict[str, Any]]:
    """Return the events of an object's other sources than `but` (a key), oldest first, as `history` does."""
    table = ValidationEvent.__table__
    keys = select(Source.key).where(Source.object_id == object_id, Source.key != but)
    with catalog.reading("look up labels") as connection:
        found = connection.execute(
            select(*table.c).where(table.c.source_key.in_(keys)).order_by(table.c.id)
        ).mappings()
        events_ = [dict(row) for row in found]
    undone = {event["undoes"] for event in events_}
    return [{**event, "undone": event["id"] in undone} for event in events_]


def events(
    catalog: Catalog,
    *,
    since: dt.datetime | None = None,
    after: int = 0,
    who: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Return label events in the order of their ids, from `after` on, of a person or since a time."""
    table = ValidationEvent.__table__
    query = select(*table.c).where(table.c.id > after).order_by(table.c.id)
    if since is not None:
        query = query.where(table.c.at >= since)
    if who is not None:
        query = query.where(table.c.who == who)
    with catalog.reading("list labels") as connection:
        return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]


def kappa(catalog: Catalog, since: dt.datetime | None = None) -> tuple[float | None, int]:
    """Return Fleiss' kappa of real against bogus over sources that two or more people voted on, and their number.

    Fleiss (1971), with the mean over sources of the share of agreeing pairs, so that numbers of voters may differ;
    None where fewer than two sources have two votes, or all votes are alike and chance agreement is 1.
    """
    counts = _votes(catalog, since)
    return (fleiss_kappa(counts) if len(counts) >= 2 else None), len(counts)


def agreement(catalog: Catalog, since: dt.datetime | None = None) -> tuple[float | None, int]:
    """Return the mean share of agreeing pairs over sources that two or more people voted on, and their number."""
    counts = _votes(catalog, since)
    return (sum(map(_agreeing_pairs, counts)) / len(counts) if counts else None), len(counts)


def _votes(catalog: Catalog, since: dt.datetime | None) -> list[tuple[int, int]]:
    """Return how many called each source real and bogus, of those with two votes or more."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for event in events(catalog, since=since):
        by_source.setdefault(event["source_key"], []).append(event)
    counts = []
    for mine in by_source.values():
        votes = Counter(e["verdict"] for e in standing(mine) if e["verdict"] != "unsure")
        if sum(votes.values()) >= 2:
            counts.append((votes["real"], votes["bogus"]))
    return counts


def _agreeing_pairs(row: tuple[int, ...]) -> float:
    n = sum(row)
    return sum(c * (c - 1) for c in row) / (n * (n - 1))


def fleiss_kappa(counts: Sequence[tuple[int, ...]]) -> float | None:
    """Return Fleiss' kappa of a table (source, category) of votes, two or more a source."""
    agree = []
    totals: Counter[int] = Counter()
    for row in counts:
        agree.append(_agreeing_pairs(row))
        totals.update(dict(enumerate(row)))
    everything = sum(totals.values())
    chance = sum((count / everything) ** 2 for count in totals.values())
    observed = sum(agree) / len(agree)
    return None if chance >= 1 else (observed - chance) / (1 - chance)
