"""What people have decided, as files: CSV, VOTable, Parquet, and a bulk report for the Transient Name Server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from sqlalchemy import text

from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

_LABELS = (
    "SELECT id, source_key, object_name, field, night, exposure_id, x, y, ra, dec, who, at, verdict, class, confidence,"
    " note, score, model_name, model_version, injected, truth, undoes FROM validation_events ORDER BY id"
)
_OBJECTS = (
    "SELECT o.name, f.name AS field, o.kind, o.ra, o.dec, o.detections, o.nights, o.first_mjd, o.last_mjd,"
    " o.best_score, o.class, "
    " (SELECT count(*) FROM sources s WHERE s.object_id = o.id AND s.state = 'real') AS called_real,"
    " (SELECT count(*) FROM sources s WHERE s.object_id = o.id AND s.state = 'bogus') AS called_bogus,"
    " (SELECT mode() WITHIN GROUP (ORDER BY s.label_class) FROM sources s WHERE s.object_id = o.id) AS label_class"
    " FROM objects o JOIN fields f ON f.id = o.field_id WHERE o.kind <> 'injected' ORDER BY o.name"
)
#: TNS numbers (wis-tns.org/api/values) of filters (Sloan u to z, y) and units (AB magnitudes), and of the archive and
#: filter that are none of its list. Which instrument and group report is for the sender to add: their numbers are given
#: out by TNS.
_TNS_FILTERS = {"u": 20, "g": 21, "r": 22, "i": 23, "z": 24, "y": 81}
_TNS_OTHER, _TNS_AB = 0, 1


def labels_table(catalog: Catalog) -> pd.DataFrame:
    """Return all label events, oldest first."""
    return _table(catalog, _LABELS)


def objects_table(catalog: Catalog) -> pd.DataFrame:
    """Return all objects, with how many of their sources people called real or bogus."""
    return _table(catalog, _OBJECTS)


def _table(catalog: Catalog, query: str) -> pd.DataFrame:
    with catalog.reading("export") as connection:
        return pd.read_sql(text(query), connection)


def write(catalog: Catalog, path: Path, what: Literal["labels", "objects"], *, reporter: str = "") -> int:
    """Write a file of the kind that its name says, and return its number of rows.

    Raises
    ------
    ConfigError
        If the name's ending is unknown, or a TNS report has no reporter.
    """
    from astrid_pipeline.report.tables import write_csv, write_parquet, write_whole

    kind = path.suffix.lower()
    if kind == ".json":
        report = tns_report(catalog, reporter)
        write_whole(path, lambda part: part.write_text(json.dumps(report, indent=1)))
        return len(report["at_report"])
    table = labels_table(catalog) if what == "labels" else objects_table(catalog)
    if kind == ".csv":
        write_csv(table, path)
    elif kind == ".parquet":
        write_parquet(table, path)
    elif kind in (".vot", ".votable", ".xml"):
        write_whole(path, lambda part: _votable(table).write(part, format="votable"))
    else:
        raise ConfigError("not a kind of file", where=path, remedy="use .csv, .vot, .parquet or .json (TNS)")
    return len(table)


def _votable(table: pd.DataFrame) -> Any:
    from astropy.table import Table

    plain = {}
    for name in table.columns:
        values = table[name]
        # VOTable knows numbers and text; whole numbers with gaps become floating.
        plain[name] = (
            values.to_numpy()
            if pd.api.types.is_numeric_dtype(values)
            else values.map(lambda value: "" if value is None or value != value else str(value)).to_numpy(str)
        )
    result = Table(plain)
    for name, unit in (
        ("ra", "deg"),
        ("dec", "deg"),
        ("x", "pix"),
        ("y", "pix"),
        ("first_mjd", "d"),
        ("last_mjd", "d"),
    ):
        if name in result.colnames:
            result[name].unit = unit
    return result


def tns_report(catalog: Catalog, reporter: str) -> dict[str, Any]:
    """Return the TNS bulk report (JSON, AT reports) of the objects that people confirmed as new transients.

    Confirmed is a stationary object with a source whose consensus is `real` and whose class is no known kind of
    variable; its first such detection with a magnitude is the discovery. The last forced point below 3σ before it,
    where there is one, is the last non-detection. Nothing is sent.

    Raises
    ------
    ConfigError
        Without a reporter.
    """
    if not reporter.strip():
        raise ConfigError("a TNS report names who reports", remedy="give --reporter")
    found = _table(
        catalog,
        "SELECT DISTINCT ON (o.id) o.id, o.name, o.ra, o.dec, s.mjd, s.mag, s.mag_err, s.filter, s.label_class "
        "FROM objects o JOIN sources s ON s.object_id = o.id WHERE o.kind = 'stationary' AND s.state = 'real' "
        "AND NOT s.injected AND s.present AND s.mag IS NOT NULL AND s.flux > 0 "
        "AND coalesce(s.label_class, '') NOT IN ('variable star', 'AGN', 'flare', 'moving object') "
        "ORDER BY o.id, s.mjd",
    )
    reports = {}
    for number, row in enumerate(found.to_dict(orient="records")):
        entry: dict[str, Any] = {
            "ra": {"value": f"{row['ra']:.6f}"},
            "dec": {"value": f"{row['dec']:.6f}"},
            "reporter": reporter,
            "discovery_datetime": _utc(row["mjd"]),
            "at_type": "1",
            "internal_name": row["name"],
            "photometry": {"photometry_group": {"0": _tns_point(row)}},
        }
        limit = _table_of_limit(catalog, int(row["id"]), float(row["mjd"]))
        entry["non_detection"] = (
            {"archiveid": "0", "archival_remarks": "no earlier upper limit in this survey"}
            if limit is None
            else {
                "obsdate": _utc(limit["mjd"]),
                "limiting_flux": f"{limit['mag_limit']:.3f}",
                "flux_units": str(_TNS_AB),
                "filter_value": str(_TNS_FILTERS.get(str(limit["filter"]), _TNS_OTHER)),
            }
        )
        reports[str(number)] = entry
    return {"at_report": reports}


def _tns_point(row: dict[Any, Any]) -> dict[str, str]:
    return {
        "obsdate": _utc(row["mjd"]),
        "flux": f"{row['mag']:.3f}",
        "flux_error": "" if row["mag_err"] is None else f"{row['mag_err']:.3f}",
        "flux_units": str(_TNS_AB),
        "filter_value": str(_TNS_FILTERS.get(str(row["filter"]), _TNS_OTHER)),
    }


def _table_of_limit(catalog: Catalog, object_id: int, before: float) -> dict[str, Any] | None:
    with catalog.reading("look for a limit") as connection:
        row = (
            connection.execute(
                text(
                    "SELECT mjd, filter, mag_limit FROM light_curve_points WHERE object_id = :id AND mjd < :before "
                    "AND snr < 3 AND mag_limit IS NOT NULL ORDER BY mjd DESC LIMIT 1"
                ),
                {"id": object_id, "before": before},
            )
            .mappings()
            .one_or_none()
        )
    return None if row is None else dict(row)


def _utc(mjd: float) -> str:
    from astropy.time import Time

    return str(Time(mjd, format="mjd", scale="utc").strftime("%Y-%m-%d %H:%M:%S"))
