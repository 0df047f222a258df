"""The queue in the order of what a label would teach, kept up with the labels that come in."""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import text

from astrid_pipeline.catalog import Catalog
from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.candidates import FEATURES

#: What is known of every source, whoever found it, and what the models say where they were asked.
COLUMNS = (*FEATURES, "score", "unet_score", "real_bogus", "isolation", "one_class", "mask_area")
#: Sources that are put in order at once, the latest nights first: the order of a night takes a second or two.
MOST = 5000
#: Labels that the order learns from, the latest first.
MOST_LABELS = 3000
#: Of a candidate that the model passed over: 13 of 1378 such ones of simulated skies were real.
PASSED_OVER = 0.01
#: New labels after which the order is made again, and the least seconds between two makings.
AGAIN_AFTER, AGAIN_SECONDS = 10, 20.0

_OWN = "id, night, state, injected, score, snr, features"


class Teacher:
    """Puts sources in order when somebody asks for that order and enough has changed since."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._made: dict[dt.date | None, tuple[int, int, float]] = {}

    def refresh(self, night: dt.date | None) -> None:
        """Bring the order of a night's sources (of the latest nights', for None) up to date; quick if it is."""
        with self._lock:
            labels, latest = self._changed()
            seen = self._made.get(night)
            if seen is not None:
                same = seen[1] == latest and labels - seen[0] < AGAIN_AFTER
                if same or time.monotonic() - seen[2] < AGAIN_SECONDS:
                    return
            rank(self._catalog, night)
            self._made[night] = (labels, latest, time.monotonic())

    def _changed(self) -> tuple[int, int]:
        query = text(
            "SELECT (SELECT coalesce(max(id), 0) FROM validation_events), (SELECT coalesce(max(id), 0) FROM sources)"
        )
        with self._catalog.reading("see what is new") as connection:
            labels, latest = connection.execute(query).one()
        return int(labels), int(latest)


def rank(catalog: Catalog, night: dt.date | None = None) -> int:
    """Write what a label of each unseen source would teach, and why, into the catalogue; return how many.

    The probability that the uncertainty is of is the model's score, corrected by the labels there are
    (`learning.correction`, once there are enough); of a candidate that the model passed over, `PASSED_OVER`.
    """
    from astrid_pipeline.learning.real_bogus import columns_of
    from astrid_pipeline.learning.teaching import feature_space, worth

    table = _sources(catalog, night)
    open_ = (table["state"] == "unseen").to_numpy(bool)
    if not open_.any():
        return 0
    given = table[list(COLUMNS)].apply(pd.to_numeric, errors="coerce")
    probability = _probability(given, table)
    space = feature_space(columns_of(given, COLUMNS))
    found = worth(space, probability, ~open_).round(4)
    found["probability"] = np.round(probability, 4)
    rows = found[open_]
    with catalog.transaction("keep what labels would teach") as connection:
        connection.execute(
            text(
                "UPDATE sources s SET worth = g.worth, features = s.features || jsonb_build_object('teaches', "
                "g.why) FROM unnest(cast(:id AS bigint[]), cast(:worth AS float[]), cast(:why AS jsonb[])) "
                "AS g(id, worth, why) WHERE s.id = g.id"
            ),
            {
                "id": table["id"][open_].tolist(),
                "worth": rows["worth"].tolist(),
                "why": [row.to_json() for _, row in rows.drop(columns="worth").iterrows()],
            },
        )
    return len(rows)


def _sources(catalog: Catalog, night: dt.date | None) -> pd.DataFrame:
    """Return unseen sources, and those that people have labelled, with their features as columns."""
    unseen = text(
        f"SELECT {_OWN} FROM sources WHERE present AND state = 'unseen' AND (cast(:night AS date) IS NULL OR "
        "night = :night) ORDER BY night DESC, score DESC NULLS LAST, id LIMIT :most"
    )
    # What was put in has a known answer: it is shown like any other, but nothing is learned from it.
    labelled = text(
        f"SELECT {_OWN} FROM sources WHERE present AND NOT injected AND state IN ('real', 'bogus') "
        "ORDER BY night DESC, id LIMIT :most"
    )
    with catalog.reading("look at the queue") as connection:
        rows: list[dict[str, Any]] = [
            dict(row)
            for query, values in ((unseen, {"night": night, "most": MOST}), (labelled, {"most": MOST_LABELS}))
            for row in connection.execute(query, values).mappings()
        ]
    flat = [{**{name: row["features"].get(name) for name in COLUMNS}, **row} for row in rows]
    return pd.DataFrame(flat, columns=[*dict.fromkeys([*COLUMNS, "id", "night", "state"])])


def _probability(given: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Return the probability of being real of each source, by the model and by the labels so far."""
    from astrid_pipeline.learning.correction import LEAST, fit_correction

    score = given["score"].to_numpy(float)
    base = np.where(np.isfinite(score), score, PASSED_OVER)
    state = table["state"].to_numpy(object)
    known = np.isin(state, ("real", "bogus"))
    real = state == "real"
    if min(int(real.sum()), int((known & ~real).sum())) < LEAST:
        return np.asarray(base)
    try:
        made = fit_correction(
            given[known],
            real[known],
            base[known],
            COLUMNS,
            groups=table["night"][known].astype(str) + _cells(table)[known],
        )
    except ModelError:
        return np.asarray(base)
    return np.asarray(base) if made is None else made(given, base)


def _cells(table: pd.DataFrame) -> pd.Series:
    # Labels of one night are cut into five by their ids: enough to see whether trees help, and no more is asked here.
    return (table["id"] % 5).astype(str)
