"""What people have decided about nights, as examples to learn from: every source with a consensus, and its stamp."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import text

from astrid_pipeline.archives.alert_packets import UnreadablePacket
from astrid_pipeline.catalog import Catalog
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.learning.gathering import HUMAN, Gathered, Gatherer
from astrid_pipeline.learning.stamps import make_stamp
from astrid_pipeline.resources.store import Store
from astrid_pipeline.review.collect import Collection, choose
from astrid_pipeline.review.stamps import StampStore

#: As many as any survey's people label; `learning.curated.curate` takes its sample of them.
_MOST = 1_000_000


def reviewed(catalog: Catalog, store: Store, start: dt.date, end: dt.date) -> Gathered:
    """Return the sources of some nights on which people agree, labelled by them (`label_source` is human).

    Another survey's alerts keep their survey; of AstrID's own nights it is the archive of the field. Sources whose
    night has no stamps any more are among the problems.
    """
    # A score above 1 is none: no source is taken at the model's word.
    wanted = Collection("reviewed", start, end, confidence_threshold=2.0, max_samples=_MOST)
    found = choose(catalog, wanted)
    with catalog.reading("name surveys") as connection:
        names: dict[int, str] = {
            int(row.id): row.name for row in connection.execute(text("SELECT id, name FROM surveys"))
        }
    kept = StampStore(store)
    out = Gatherer()
    records: list[dict[str, Any]] = [
        {str(k): v for k, v in r.items()} for r in found.to_dict(orient="records")
    ]
    for number, row in enumerate(records):
        night = f"{row['field']}|{row['night']}"
        features = row["features"] or {}
        known = row["anomaly_type"] if row["is_anomaly"] else None
        survey = features.get("survey")
        # Another survey's alert keeps its names, so that it is known again among that survey's packets.
        number_there = str(row["exposure_id"]).removeprefix(f"{survey}-") if survey else row["key"]
        name = "" if pd.isna(row["object_id"]) else f"{row['field']}:{int(row['object_id'])}"
        example = {
            **{name: row[name] for name in ("mjd", "filter", "ra", "dec", "mag")},
            "survey": survey or names[int(row["survey_id"])],
            "file": night,
            "record": number,
            "source_id": number_there,
            "object_id": features.get("survey_object") or name,
            "survey_score": features.get("survey_score", np.nan),
            "real": float(row["is_anomaly"]),
            "class": known if isinstance(known, str) else None,
            "label_source": HUMAN,
        }
        try:
            science, reference, difference, _ = kept.get(row).planes
            out.add(example, make_stamp(difference, science, reference))
        except (MissingProductError, ValueError) as error:
            out.problems.append(UnreadablePacket(night, number, str(error)))
    return out.done()
