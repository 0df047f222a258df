"""Reading alert packets of any survey: Avro containers, folders of them, and Parquet tables with cut-outs.

What surveys call differently has one name here (`AlertPacket`); the record as it came stays beside it. A packet that
cannot be read is an `UnreadablePacket`, which says where and why; it never stops the others.

Schemas: ZTF (candidate, objectId, candid, cutoutScience.stampData as gzipped FITS), those like it (PGIR, WINTER,
DECam, ATLAS, and AstrID's own), and Rubin's (diaSource, diaObject, cutoutScience as FITS).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.archives.alert_cutouts import CutoutError, decode_cutout
from astrid_pipeline.errors import ReadError

Image = npt.NDArray[np.float32]

#: Endings of files that a folder is searched for.
SUFFIXES: tuple[str, ...] = (".avro", ".parquet")

_AVRO_MAGIC, _PARQUET_MAGIC = b"Obj\x01", b"PAR1"

#: Rows of a Parquet table held at once: three cut-outs of 63² are some 50 kB a row.
_BATCH = 256

# Names of the same thing, most specific first; looked for in the source's record, then in the packet itself.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "ra": ("ra", "RA", "raDeg"),
    "dec": ("dec", "decl", "Dec", "decDeg"),
    "x": ("xpos", "x", "X"),
    "y": ("ypos", "y", "Y"),
    "filter": ("band", "filterName", "filter", "fid"),
    "snr": ("snr", "scorr"),
    "mag": ("magpsf", "Mag", "mag", "forcediffimmag"),
    "flux": ("psfFlux", "psFlux", "flux", "fluxpsf"),
}
_CUTOUTS: Mapping[str, tuple[str, ...]] = {
    "science": ("cutoutScience", "cutout_science", "cutout_sci"),
    "template": ("cutoutTemplate", "cutout_template", "cutout_tmpl", "cutoutReference"),
    "difference": ("cutoutDifference", "cutout_difference", "cutout_diff"),
}
_ZTF_FILTERS = {1: "g", 2: "r", 3: "i"}


@dataclass(frozen=True, eq=False)
class AlertPacket:
    """One alert.

    Attributes
    ----------
    file, record:
        Where it was read: the file, and its number in it, from 0.
    survey:
        ztf, lsst, pgir, atlas, …: what the writer's schema is called.
    id_name, source_id:
        ``candid`` or ``diaSourceId``, and its value as text; empty where the packet has none.
    object_id:
        The survey's name of the object; empty where there is none.
    mjd:
        UTC days; NaN where unknown.
    ra, dec:
        ICRS degrees; NaN where unknown.
    x, y:
        Column and row in the survey's frame, its own counting; NaN where unknown.
    filter:
        Its name; empty where unknown.
    positive:
        Whether the source is brighter in the science image; None where the packet does not say.
    snr, mag, flux:
        As the packet says (units of the survey), NaN where it does not.
    science, template, difference:
        Cut-outs, float32, north and scale as the survey gives them, NaN outside the frame; None where the packet has
        none.
    record_fields:
        The record as it came, without its cut-outs.
    """

    file: str
    record: int
    survey: str
    id_name: str
    source_id: str
    object_id: str
    mjd: float
    ra: float
    dec: float
    x: float
    y: float
    filter: str
    positive: bool | None
    snr: float
    mag: float
    flux: float
    science: Image | None
    template: Image | None
    difference: Image | None
    record_fields: Mapping[str, Any] = field(repr=False)

    @property
    def source(self) -> Mapping[str, Any]:
        """The fields of the detection itself (candidate, diaSource)."""
        for name in ("diaSource", "candidate"):
            inner = self.record_fields.get(name)
            if isinstance(inner, Mapping):
                return inner
        return self.record_fields

    @property
    def survey_score(self) -> float:
        """The survey's own real/bogus score, 0-1; NaN where it gave none.

        Rubin's `reliability`; else `drb` where `drbversion` says that it was worked out (older packets carry 0 and no
        version); else `rb`, likewise.
        """
        source = self.source
        reliability = _number(source.get("reliability"))
        if math.isfinite(reliability):
            return reliability
        drb = _number(source.get("drb"))
        if math.isfinite(drb) and source.get("drbversion"):
            return drb
        rb = _number(source.get("rb"))
        return rb if math.isfinite(rb) and (source.get("rbversion") or rb > 0) else math.nan


@dataclass(frozen=True)
class UnreadablePacket:
    """A packet, or a whole file (`record` is None), that cannot be read, and why."""

    file: str
    record: int | None
    problem: str

    def __str__(self) -> str:
        where = self.file if self.record is None else f"{self.file}, record {self.record}"
        return f"{where}: {self.problem}"


def find_alert_files(paths: Iterable[Path | str]) -> list[Path]:
    """Return the files named, and all Avro and Parquet files under the folders named, each once, in order.

    Raises
    ------
    ReadError
        If nothing is left: no path, or folders without such files. A named file that does not exist is kept, so that
        reading names it.
    """
    given = [Path(path) for path in paths]
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found.update(dict.fromkeys(inside))
        else:
            found[path] = None
    if not found:
        names = ", ".join(str(path) for path in given) or "nothing"
        raise ReadError(
            "there are no alert packets here",
            where=names,
            remedy="name Avro or Parquet files, or their folder",
        )
    return list(found)


def read_alerts(paths: Iterable[Path | str]) -> Iterator[AlertPacket | UnreadablePacket]:
    """Yield every packet of the files and folders, in order; one that cannot be read is named in its place.

    Raises
    ------
    ReadError
        As `find_alert_files`.
    """
    for path in find_alert_files(paths):
        yield from read_alert_file(path)


def read_alert_file(path: Path) -> Iterator[AlertPacket | UnreadablePacket]:
    """Yield the packets of one Avro container or Parquet table, told apart by their first bytes."""
    name = str(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        yield UnreadablePacket(name, None, f"cannot be opened: {error.strerror or error}")
        return
    if magic == _AVRO_MAGIC:
        yield from _read_avro(path, name)
    elif magic == _PARQUET_MAGIC:
        yield from _read_parquet(path, name)
    elif not magic:
        yield UnreadablePacket(name, None, "the file is empty")
    else:
        # Kafka's wire format begins with a zero byte and a schema number, which only the survey's registry knows.
        kafka = ": it looks like a message of a stream, which carries no schema" if magic[:1] == b"\0" else ""
        yield UnreadablePacket(name, None, f"neither an Avro container nor a Parquet table{kafka}")


def _read_avro(path: Path, name: str) -> Iterator[AlertPacket | UnreadablePacket]:
    from fastavro import block_reader

    number = 0
    # A damaged file can raise anything from fastavro's decoder (EOFError, struct.error, IndexError, zlib.error, …).
    with path.open("rb") as stream:
        try:
            blocks = block_reader(stream)
            schema: Any = blocks.writer_schema
            survey = _survey_of(schema)
        except Exception as error:  # noqa: BLE001
            yield UnreadablePacket(name, None, f"damaged Avro container: {_text(error)}")
            return
        while True:
            try:
                block = next(blocks)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001
                yield UnreadablePacket(name, number, f"damaged from here on: {_text(error)}")
                return
            last = number + block.num_records
            records = iter(block)
            while number < last:
                try:
                    record = next(records)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001
                    problem = f"damaged record: {_text(error)}"
                    yield from (UnreadablePacket(name, n, problem) for n in range(number, last))
                    break
                yield _packet(name, number, survey, record)
                number += 1
            number = last


def _read_parquet(path: Path, name: str) -> Iterator[AlertPacket | UnreadablePacket]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            meta = table.schema_arrow.metadata or {}
            survey = meta.get(b"survey", b"").decode() or _survey_of_columns(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield _packet(name, number, survey, row)
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        where = None if number == 0 else number
        yield UnreadablePacket(name, where, f"damaged Parquet table: {_text(error)}")


def _survey_of(schema: Any) -> str:
    """Return ztf of ``ztf.alert``, lsst of ``lsst.v7_4.alert``, astrid of AstrID's own."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        schema = next((s for s in schema if isinstance(s, Mapping) and "alert" in str(s.get("name"))), {})
    full = f"{schema.get('namespace') or ''}.{schema.get('name') or ''}".strip(".").lower()
    # Tools that write packets again name the schema after themselves (Spark: topLevelRecord).
    return full.split(".")[0] if "alert" in full else "unknown"


def _survey_of_columns(names: Sequence[str]) -> str:
    if any(name in names for name in ("diaSource", "diaSourceId")):
        return "lsst"
    return "ztf" if "candid" in names and "objectId" in names else "unknown"


def _packet(name: str, number: int, survey: str, record: Any) -> AlertPacket | UnreadablePacket:
    if not isinstance(record, Mapping):
        return UnreadablePacket(name, number, f"the record is a {type(record).__name__}, not an alert")
    cutouts: dict[str, Image | None] = {}
    taken: set[str] = set()
    for role, names in _CUTOUTS.items():
        key = next((n for n in names if record.get(n) is not None), None)
        taken.update(names)
        try:
            cutouts[role] = None if key is None else decode_cutout(record[key])
        except CutoutError as error:
            return UnreadablePacket(name, number, f"{key}: {error}")
    fields = {key: value for key, value in record.items() if key not in taken}
    if survey == "unknown" and isinstance(fields.get("publisher"), str):
        survey = (fields["publisher"].lower().split() or [survey])[0]
    inner: Mapping[str, Any] = next(
        (fields[n] for n in ("diaSource", "candidate") if isinstance(fields.get(n), Mapping)), {}
    )
    if "diaSourceId" in fields or "diaSourceId" in inner:
        id_name, identity = "diaSourceId", _first(inner, fields, ("diaSourceId",))
        survey = "lsst"
    else:
        id_name, identity = "candid", _first(fields, inner, ("candid", "alertId"))
    if identity is None and not any(cutout is not None for cutout in cutouts.values()):
        return UnreadablePacket(name, number, "no alert: it has neither an id nor a cut-out")

    def number_of(role: str) -> float:
        return _number(_first(inner, fields, _ALIASES[role]))

    return AlertPacket(
        file=name,
        record=number,
        survey=survey,
        id_name=id_name,
        source_id=_identity(identity),
        object_id=_object_id(fields, inner),
        mjd=mjd_of(inner, fields),
        ra=number_of("ra"),
        dec=number_of("dec"),
        x=number_of("x"),
        y=number_of("y"),
        filter=filter_name(_first(inner, fields, _ALIASES["filter"])),
        positive=is_positive(inner, fields),
        snr=number_of("snr"),
        mag=number_of("mag"),
        flux=number_of("flux"),
        science=cutouts["science"],
        template=cutouts["template"],
        difference=cutouts["difference"],
        record_fields=fields,
    )


def _first(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> Any:
    for where in (one, other):
        for name in names:
            if where.get(name) is not None:
                return where[name]
    return None


def _object_id(fields: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    for name in ("objectId", "objectid"):
        if fields.get(name) is not None:
            return _identity(fields[name])
    for name, key in (("diaObject", "diaObjectId"), ("ssSource", "ssObjectId")):
        nested = fields.get(name)
        if isinstance(nested, Mapping) and nested.get(key):
            return _identity(nested[key])
    # Rubin writes 0 for "no such object".
    found = next((w[n] for w in (inner, fields) for n in ("diaObjectId", "ssObjectId") if w.get(n)), None)
    return _identity(found)


def _identity(value: Any) -> str:
    """Return an id as text; a float (a table with gaps) without its decimals."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: Any) -> float:
    try:
        return math.nan if value is None or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        return math.nan


def mjd_of(inner: Mapping[str, Any], fields: Mapping[str, Any]) -> float:
    """Return the time of a source's record, else of its packet: MJD (UTC), NaN where unknown."""
    jd = _number(_first(inner, fields, ("jd",)))
    if math.isfinite(jd):
        return jd - 2_400_000.5
    tai = _number(_first(inner, fields, ("midpointMjdTai", "midPointTai")))
    if math.isfinite(tai):
        from astropy.time import Time

        return float(Time(tai, format="mjd", scale="tai").utc.mjd)
    return _number(_first(inner, fields, ("mjd", "MJD")))


def filter_name(value: Any) -> str:
    """Return a filter's name from a packet's name or number; "" where unknown."""
    if isinstance(value, bool) or value is None:
        return ""
    return _ZTF_FILTERS.get(value, str(value)) if isinstance(value, int) else str(value)


def is_positive(inner: Mapping[str, Any], fields: Mapping[str, Any]) -> bool | None:
    """Return the sign: ``isdiffpos`` is t, f, 1, 0, a boolean or a number; Rubin gives ``isNegative`` or the flux."""
    value = _first(inner, fields, ("isdiffpos",))
    if value is not None:
        return str(value).strip().lower() in ("t", "true", "1", "1.0")
    negative = _first(inner, fields, ("isNegative",))
    if negative is not None:
        return not bool(negative)
    flux = _number(_first(inner, fields, _ALIASES["flux"]))
    return flux > 0 if math.isfinite(flux) else None


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
