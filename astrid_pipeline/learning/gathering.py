"""Gathering real sources to learn from: alerts of any survey and AstrID's own differences, and who labels them.

Labels come from people, from catalogues of known objects, from the survey's list of solar-system objects, or from the
survey's own model; what nobody has labelled stays without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from astrid_pipeline.archives.alert_packets import AlertPacket, UnreadablePacket, read_alerts
from astrid_pipeline.errors import ReadError
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.learning.alert_scores import SOLAR_SYSTEM, stamp_of, survey_label
from astrid_pipeline.learning.channels import CHANNELS, unusable
from astrid_pipeline.learning.stamps import SIDE, Stamp, cut_out, from_planes, make_stamp, measure, planes
from astrid_pipeline.tables import Column, TableSchema

#: What may say so, the surest first: a person; a known source at the place; the survey's list of solar-system objects;
#: the survey's own model. What differs between two exposures of one hour or so is bogus, where it is told that nothing
#: changed between them.
HUMAN, CATALOGUE, KNOWN_MOVER, MACHINE, UNCHANGED = (
    "human",
    "catalogue",
    "solar_system",
    "survey_score",
    "unchanged",
)

#: Stamps that are measured at once, and what one of them takes in a file: half floats, and a bit a pixel.
_BATCH = 256
_PIXELS = 2 * len(CHANNELS) * SIDE * SIDE
_RECORD = _PIXELS + SIDE * SIDE // 8

EXAMPLES = TableSchema(
    "curated_examples",
    "Cut-outs of real sources with a label, one row each",
    (
        Column("image_id", "string", "the stamp's name in the shards"),
        Column("survey", "string", "ztf, lsst, pgir, …; of reviewed nights the field's instrument or field"),
        Column("file", "string", "where it was read, without the folder"),
        Column("record", "int64", "its number there"),
        Column("source_id", "string", "the survey's number of the detection"),
        Column("object_id", "string", "the survey's name of the object"),
        Column("object", "string", "of all examples of one place or name the same: never in two splits"),
        Column("mjd", "float64", "UTC", "d"),
        Column("filter", "string", "filter name"),
        Column("ra", "float64", "ICRS", "deg"),
        Column("dec", "float64", "ICRS", "deg"),
        Column("mag", "float64", "as the survey gives it", "mag"),
        Column("snr", "float64", "of the difference cut-out, filtered by a Gaussian of 2.6 px FWHM"),
        Column("survey_score", "float64", "the survey's own real/bogus score"),
        Column("real", "bool", "the label"),
        Column(
            "class", "string", "transient, variable, moving, or what the labeller calls it; null if not told"
        ),
        Column("label_source", "string", "human, catalogue:<name>, solar_system, survey_score or unchanged"),
        Column("split", "string", "train, valid or test"),
        Column("weight", "float64", "how much it counts, so that each survey's real and bogus count alike"),
    ),
    sort_by=("image_id",),
)


@dataclass(frozen=True)
class Held:
    """A stamp in a temporary file: those of a survey's night do not fit into memory."""

    file: IO[bytes]
    number: int

    def load(self) -> Stamp:
        """Return it, as exact as a training set keeps it."""
        self.file.seek(self.number * _RECORD)
        record = self.file.read(_RECORD)
        kept = np.frombuffer(record[:_PIXELS], np.float16).reshape(len(CHANNELS), SIDE, SIDE)
        bits = np.unpackbits(np.frombuffer(record[_PIXELS:], np.uint8)).astype(bool)
        return from_planes(kept, bits.reshape(SIDE, SIDE))


@dataclass(frozen=True)
class Gathered:
    """Sources before they are labelled: a table, the stamp of each of its rows, and what could not be used.

    `table` has the columns of `EXAMPLES` up to `survey_score` (no image_id and object), and ``real`` (1, 0 or NaN),
    ``class`` and ``label_source`` as far as they are known.
    """

    table: pd.DataFrame
    stamps: list[Held]
    problems: list[UnreadablePacket]

    def plus(self, other: Gathered) -> Gathered:
        """Return both."""
        tables = [part.table for part in (self, other) if len(part.table)] or [self.table]
        stamps, problems = [*self.stamps, *other.stamps], [*self.problems, *other.problems]
        return Gathered(pd.concat(tables, ignore_index=True), stamps, problems)


class Gatherer:
    """Takes sources one by one, with their stamps, and measures the S/N of each cut-out."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[Stamp] = []
        self._snr: list[float] = []
        self._file = tempfile.TemporaryFile(prefix="astrid-stamps-")  # noqa: SIM115  it lives as long as the stamps
        self.problems: list[UnreadablePacket] = []

    def add(self, row: Mapping[str, Any], stamp: Stamp) -> None:
        """Take one; `row` has the columns that `Gathered` tells of, but for the S/N."""
        self._rows.append(dict(row))
        self._waiting.append(stamp)
        self._file.write(planes(stamp).astype(np.float16).tobytes() + np.packbits(stamp.blank).tobytes())
        if len(self._waiting) == _BATCH:
            self._measure()

    def _measure(self) -> None:
        self._snr += measure(self._waiting)["snr"].tolist()
        self._waiting.clear()

    def done(self) -> Gathered:
        """Return all of them."""
        self._measure()
        table = pd.DataFrame(self._rows, columns=[*EXAMPLES.names[1:6], *EXAMPLES.names[7:17]])
        table["snr"] = np.asarray(self._snr, float)
        return Gathered(table, [Held(self._file, n) for n in range(len(table))], self.problems)


def from_alerts(paths: Iterable[Path | str]) -> Gathered:
    """Read alert packets; those that the survey itself is clear about have its label.

    Raises
    ------
    ReadError
        If there is no file of alerts.
    """
    found = Gatherer()
    for packet in read_alerts(paths):
        if isinstance(packet, UnreadablePacket):
            found.problems.append(packet)
            continue
        try:
            found.add(_row(packet), stamp_of(packet))
        except ValueError as error:
            found.problems.append(UnreadablePacket(packet.file, packet.record, str(error)))
    return found.done()


def _row(packet: AlertPacket) -> dict[str, Any]:
    names = (
        "survey",
        "record",
        "source_id",
        "object_id",
        "mjd",
        "filter",
        "ra",
        "dec",
        "mag",
        "survey_score",
    )
    distance = packet.source.get("ssdistnr")
    moving = isinstance(distance, int | float) and 0 <= distance <= SOLAR_SYSTEM
    label = survey_label(packet)
    known = {"real": label, "class": "moving" if moving else None}
    known["label_source"] = (KNOWN_MOVER if moving else MACHINE) if label == label else None
    return {**{name: getattr(packet, name) for name in names}, "file": Path(packet.file).name, **known}


def from_difference(
    difference: Difference, candidates: pd.DataFrame, *, survey: str, file: str, unchanged: bool = False
) -> Gathered:
    """Return the candidates of a difference that AstrID made; bogus where it is told that nothing had changed.

    Parameters
    ----------
    candidates:
        x, y (px), and ra, dec, mjd, filter, mag as far as they are known (`imaging.find_candidates`).
    """
    bad = unusable(difference)
    sigma = np.sqrt(np.where(difference.variance > 0, difference.variance, np.inf))
    change = np.where(bad, np.nan, difference.data / sigma).astype(np.float32)
    found = Gatherer()
    label = {"real": 0.0, "label_source": UNCHANGED} if unchanged else {"real": np.nan, "label_source": None}
    for number, row in enumerate(candidates.to_dict(orient="records")):
        x, y = row["x"], row["y"]
        cuts = [cut_out(image, x, y) for image in (change, difference.science, difference.reference)]
        known = {name: row.get(name) for name in ("mjd", "filter", "ra", "dec", "mag")}
        known |= {"survey": survey, "file": file, "record": number, "object_id": "", "class": None}
        known |= {"source_id": str(row.get("candidate_id", number)), "survey_score": np.nan, **label}
        try:
            found.add(known, make_stamp(*cuts))
        except ValueError as error:
            found.problems.append(UnreadablePacket(file, number, str(error)))
    return found.done()


def match_catalogue(
    sources: Gathered,
    catalogue: pd.DataFrame,
    *,
    name: str,
    radius: float = 2.0,
    before: float = 30.0,
    after: float = 365.0,
    what: str = "transient",
) -> tuple[Gathered, int]:
    """Label what lies at a known object's place, at a time at which it shone; return how many contradict that.

    A subtraction may go wrong at a supernova's place as anywhere. Where the survey's own score says bogus, it is not
    known which of the two is right, and the source has no label any more.

    Parameters
    ----------
    catalogue:
        ra, dec (ICRS degrees); may have mjd (of discovery or peak, NaN where unknown: then any time) and type.
    radius:
        Arcsec.
    before, after:
        Days around the catalogue's date within which it may be seen: a supernova is rarely found earlier than a month
        before its date, and rarely seen a year after it.
    what:
        Class of those whose type the catalogue does not tell.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord, search_around_sky

    table = sources.table.copy()
    places = np.flatnonzero(table[["ra", "dec"]].notna().all(axis=1))
    if not len(places) or not len(catalogue):
        return sources, 0
    mine, theirs = (
        SkyCoord(t["ra"].to_numpy(float), t["dec"].to_numpy(float), unit="deg")
        for t in (table.iloc[places], catalogue)
    )
    i, j, apart, _ = search_around_sky(mine, theirs, radius * units.arcsec)
    dates = catalogue["mjd"].to_numpy(float)[j] if "mjd" in catalogue else np.full(len(j), np.nan)
    days = table["mjd"].to_numpy(float)[places[i]] - dates
    fits = ~np.isfinite(dates) | ((days >= -before) & (days <= after))
    kinds = (
        catalogue["type"].to_numpy(object) if "type" in catalogue else np.full(len(catalogue), None, object)
    )
    against: list[int] = []
    done: set[int] = set()
    for k in np.argsort(apart, kind="stable"):
        row = int(places[i[k]])
        if not fits[k] or row in done or table.at[row, "label_source"] == HUMAN:
            continue
        done.add(row)
        if table.at[row, "label_source"] == MACHINE and table.at[row, "real"] == 0:
            against.append(row)
            continue
        kind = str(kinds[j[k]]).strip() if isinstance(kinds[j[k]], str) else ""
        table.at[row, "real"], table.at[row, "class"] = 1.0, kind or what
        table.at[row, "label_source"] = f"{CATALOGUE}:{name}"
    table.loc[against, "real"], table.loc[against, "label_source"] = np.nan, None
    return Gathered(table, sources.stamps, sources.problems), len(against)


def match_verdicts(sources: Gathered, verdicts: pd.DataFrame) -> tuple[Gathered, int]:
    """Take people's verdicts over; return how many of them belong to no source.

    Parameters
    ----------
    verdicts:
        ``label`` (real or bogus) and, to say whose it is, one of ``source_id``, ``candid``, ``diaSourceId``, or
        ``object_id``, ``objectId`` (all of the object's sources); ``class`` may stand beside it.

    Raises
    ------
    ReadError
        If there is no such column, or a label is neither real nor bogus.
    """
    names = {"source_id": "source_id", "candid": "source_id", "diaSourceId": "source_id"}
    names |= {"object_id": "object_id", "objectId": "object_id"}
    key = next((name for name in names if name in verdicts), None)
    if key is None or "label" not in verdicts:
        raise ReadError(
            f"verdicts with the columns {', '.join(map(str, verdicts.columns))}",
            where="labels",
            remedy=f"name them label, and one of {', '.join(names)}",
        )
    said = verdicts["label"].astype(str).str.strip().str.lower()
    if len(unknown := sorted(set(said) - {"real", "bogus"})):
        raise ReadError(f"labels {', '.join(unknown[:5])}", where="labels", remedy="use real and bogus")
    table = sources.table.copy()
    ids = verdicts[key].astype(str).str.strip()
    rows_of = table.groupby(table[names[key]].astype(str)).indices
    missing = 0
    for number, (identity, label) in enumerate(zip(ids, said, strict=True)):
        rows = rows_of.get(identity, []) if identity else []
        missing += not len(rows)
        kind = verdicts["class"].iloc[number] if "class" in verdicts else None
        for row in rows:
            table.at[row, "real"], table.at[row, "label_source"] = float(label == "real"), HUMAN
            table.at[row, "class"] = kind if isinstance(kind, str) and label == "real" else None
    return Gathered(table, sources.stamps, sources.problems), missing
