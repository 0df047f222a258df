"""The gold standard: sources that were put in, of which the truth is known, mixed into the queue to measure people.

They are `injected` sources. Each belongs to an object of the kind `injected`, which no other part takes for one of the
sky: without a name and a light curve, what was put in would be known at a glance.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sqlalchemy import delete, exists, insert, select, text, update

from astrid_pipeline.catalog.fields import field_id_of
from astrid_pipeline.catalog.objects import name_objects
from astrid_pipeline.catalog.review_models import SkyObject, Source
from astrid_pipeline.catalog.sources import keep_sources

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

_SCANNERS = """
WITH standing AS (
  SELECT DISTINCT ON (e.who, e.source_key) e.who, e.verdict, e.injected, coalesce(e.truth, 'real') AS truth
  FROM validation_events e
  WHERE e.verdict IS NOT NULL AND NOT EXISTS (SELECT 1 FROM validation_events u WHERE u.undoes = e.id)
    AND (cast(:since AS timestamptz) IS NULL OR e.at >= :since)
  ORDER BY e.who, e.source_key, e.id DESC)
SELECT who, count(*) FILTER (WHERE NOT injected) AS verdicts,
  count(*) FILTER (WHERE injected AND truth = 'real') AS transients,
  count(*) FILTER (WHERE injected AND truth = 'real' AND verdict = 'real') AS found,
  count(*) FILTER (WHERE injected AND truth = 'bogus') AS artefacts,
  count(*) FILTER (WHERE injected AND truth = 'bogus' AND verdict = 'real') AS taken_for_real
FROM standing GROUP BY who ORDER BY who
"""


def keep_gold(
    catalog: Catalog,
    field: str,
    night: str | dt.date,
    candidates: pd.DataFrame,
    detections: pd.DataFrame,
) -> pd.DataFrame:
    """Replace what was put in for a field and night; return id, ra, dec of the objects that it shows as.

    Parameters
    ----------
    candidates, detections:
        What was found of it: the products' tables with a column `truth`, `real` or `bogus`.
    """
    date = dt.date.fromisoformat(str(night))
    with catalog.transaction(f"keep the gold standard of {field} {date}") as connection:
        field_id = field_id_of(connection, field)
        # As `replace_partition` does it: two runs of one partition go in turn.
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext('astrid-night'), hashtext(:key))"),
            {"key": f"{field}|{date}"},
        )
        rows = keep_sources(connection, field_id, field, date, candidates, detections, injected=True)
        placed = [row for row in rows if row["ra"] is not None]
        new = [row for row in placed if row["object_id"] is None]
        records: list[dict[str, Any]] = [
            {
                "field_id": field_id,
                "kind": "injected",
                **{name: row[name] for name in ("ra", "dec")},
                "detections": 1,
                "nights": 1,
                "first_mjd": row["mjd"],
                "last_mjd": row["mjd"],
                "best_score": row["score"],
                "class": row["class"],
            }
            for row in new
        ]
        if records:
            name_objects(connection, records)
            table: Any = SkyObject.__table__
            ids = connection.scalars(
                insert(table).returning(table.c.id, sort_by_parameter_order=True), records
            ).all()
            for row, identity in zip(new, ids, strict=True):
                row["object_id"] = int(identity)
                connection.execute(
                    update(Source).where(Source.id == row["id"]).values(object_id=row["object_id"])
                )
        nothing = ~exists().where(Source.object_id == SkyObject.id)
        connection.execute(
            delete(SkyObject).where(SkyObject.field_id == field_id, SkyObject.kind == "injected", nothing)
        )
        ids = [row["object_id"] for row in placed]
        found = connection.execute(
            select(SkyObject.id, SkyObject.ra, SkyObject.dec)
            .where(SkyObject.id.in_(ids))
            .order_by(SkyObject.id)
        )
        return pd.DataFrame([dict(row) for row in found.mappings()], columns=["id", "ra", "dec"])


def scanners(catalog: Catalog, since: dt.datetime | None = None) -> pd.DataFrame:
    """Return how each person does on what was put in, by their latest standing verdict on each source.

    Returns
    -------
    DataFrame
        who, verdicts (on what was not put in), transients (known ones that were shown), found (called real of them),
        completeness = found / transients, artefacts (known ones), taken_for_real, purity = found / (found +
        taken_for_real), and the 68 % Wilson interval of both shares (completeness_low, completeness_high, purity_low,
        purity_high). `unsure` counts as not called real. The purity is that of a queue half of whose sources are real:
        as many artefacts are put in as transients.
    """
    from astropy.stats import binom_conf_interval

    with catalog.reading("measure the scanners") as connection:
        table = pd.read_sql(text(_SCANNERS), connection, params={"since": since})
    called = table["found"] + table["taken_for_real"]
    for share, k, n in (
        ("completeness", table["found"], table["transients"]),
        ("purity", table["found"], called),
    ):
        some = n.to_numpy() > 0
        table[share] = np.where(some, k / n.where(n > 0, 1), np.nan)
        for end in ("low", "high"):
            table[f"{share}_{end}"] = np.nan
        if some.any():
            low, high = binom_conf_interval(k[some].to_numpy(), n[some].to_numpy(), interval="wilson")
            table.loc[some, f"{share}_low"], table.loc[some, f"{share}_high"] = low, high
    return table
