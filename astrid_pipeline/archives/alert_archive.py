"""Alert packets of a survey as an archive: a folder that a broker or stream writes Avro or Parquet files into.

Opened by ``alerts:PATH``, with ``?survey=ztf`` only packets of that survey. There are no frames behind it: what is
listed are alerts, each an `ExposureRecord` of kind ``alert``, and what is fetched are packets with their cut-outs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from astrid_pipeline.archives.alert_packets import (
    SUFFIXES,
    AlertPacket,
    UnreadablePacket,
    read_alert_file,
)
from astrid_pipeline.archives.base import ExposureRecord, Field, night_of, safe_name
from astrid_pipeline.archives.header_cache import cache_folder
from astrid_pipeline.errors import ConfigError, ReadError

#: Raised when what is kept of a packet changes.
VERSION = 1
#: Kind of a record that is an alert.
ALERT = "alert"


class AlertArchive:
    """Alert packets in a folder, read recursively.

    Parameters
    ----------
    spec:
        ``PATH`` or ``PATH?survey=NAME,…``.

    Raises
    ------
    ConfigError
        If an option is not known.
    ReadError
        If the folder is absent.
    """

    #: Tells the planner that nights are made of packets, not of frames.
    gives_packets = True

    def __init__(self, spec: str) -> None:
        path, _, options = spec.partition("?")
        given = {key: values[-1] for key, values in parse_qs(options).items()}
        if unknown := set(given) - {"survey"}:
            raise ConfigError(
                f"unknown option {', '.join(sorted(unknown))}",
                where=f"alerts:{spec}",
                remedy="use survey=ztf, or none",
            )
        self.folder = Path(path).expanduser().resolve()
        if not self.folder.is_dir():
            raise ReadError("no such folder", where=self.folder, remedy="make it, or mend the archive's text")
        self.surveys = {one.strip().lower() for one in given.get("survey", "").split(",") if one.strip()}
        self.name = f"alerts:{self.folder}"
        self.problems: list[UnreadablePacket] = []

    def _index(self) -> list[dict[str, Any]]:
        """Return what is known of every packet; files that have not changed are not read again."""
        name = hashlib.sha256(f"{VERSION}\n{self.folder}".encode()).hexdigest()[:24]
        path = cache_folder().parent / "alerts" / f"{name}.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        used: dict[str, Any] = {}
        for file in sorted(self.folder.rglob("*")):
            if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):  # renamed since the folder was read
                stat = file.stat()
                stamp = [stat.st_size, stat.st_mtime_ns]
                entry = known.get(str(file))
                if entry is None or entry["stamp"] != stamp:
                    entry = {"stamp": stamp, "packets": [_facts(packet) for packet in read_alert_file(file)]}
                used[str(file)] = entry
        if used != known:
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(OSError):  # without the cache, files are read again
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps(used), encoding="utf-8")
                os.replace(partial, path)
        return [
            {**facts, "file": file, "size": entry["stamp"][0]}
            for file, entry in used.items()
            for facts in entry["packets"]
        ]

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the field's alerts in order of time; those without a time or place cannot belong to any field."""
        found: dict[str, ExposureRecord] = {}
        self.problems = []
        for facts in self._index():
            if problem := facts.get("problem"):
                self.problems.append(UnreadablePacket(facts["file"], facts["record"], problem))
                continue
            mjd, ra, dec = (math.nan if facts[k] is None else facts[k] for k in ("mjd", "ra", "dec"))
            wanted = not self.surveys or facts["survey"] in self.surveys
            if not wanted or not (math.isfinite(mjd) and field.holds(ra, dec)):
                continue
            if since is not None and mjd <= since:
                continue
            # The same packet in two files (a stream read again) is one alert.
            found.setdefault(
                facts["id"],
                ExposureRecord(
                    exposure_id=facts["id"],
                    field=field.name,
                    kind=ALERT,
                    mjd=mjd,
                    night=night_of(mjd, field.site_longitude),
                    filter=facts["filter"],
                    instrument=facts["survey"],
                    exposure=math.nan,
                    url=f"{facts['file']}#{facts['record']}",
                    size=int(facts["size"]),
                    ra=ra,
                    dec=dec,
                ),
            )
        return sorted(found.values(), key=lambda r: (r.mjd, r.exposure_id))

    def packets(self, records: Iterable[ExposureRecord]) -> dict[str, AlertPacket | UnreadablePacket]:
        """Return the packets of some records, each file read once."""
        by_file: dict[str, dict[int, str]] = {}
        for record in records:
            file, _, number = record.url.rpartition("#")
            by_file.setdefault(file, {})[int(number)] = record.exposure_id
        out: dict[str, AlertPacket | UnreadablePacket] = {}
        for file, wanted in by_file.items():
            for packet in read_alert_file(Path(file)):
                if packet.record is None:
                    out |= dict.fromkeys(wanted.values(), packet)
                elif packet.record in wanted:
                    out[wanted[packet.record]] = packet
        return out

    def fields(self) -> list[Field]:
        """Return nothing: alerts come from wherever the survey looks, and a person says what is wanted."""
        return []

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return none: there are no frames."""
        return []

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Refuse: an alert has no frame; its packet is had from `packets`.

        Raises
        ------
        ReadError
            Always.
        """
        raise ReadError(
            "an alert packet has cut-outs and no frame", where=record.url, remedy="run the job take_alerts"
        )

    def catalogue(self, field: Field) -> None:
        """Return None: packets bring their own neighbours."""

    def truth(self, field: Field, night: str) -> None:
        """Return None: nobody planted anything."""


def alert_id(packet: AlertPacket) -> str:
    """Return a name that is the same wherever the packet is read again."""
    own = packet.source_id or f"{packet.object_id}-{packet.mjd:.6f}"
    if own.startswith("-"):
        own = hashlib.sha256(f"{packet.ra} {packet.dec} {packet.mjd}".encode()).hexdigest()[:16]
    return safe_name(f"{packet.survey}-{own}")


def _facts(packet: AlertPacket | UnreadablePacket) -> dict[str, Any]:
    if isinstance(packet, UnreadablePacket):
        return {"record": packet.record, "problem": packet.problem}
    numbers = {name: getattr(packet, name) for name in ("mjd", "ra", "dec")}
    return {
        "record": packet.record,
        "id": alert_id(packet),
        "survey": packet.survey,
        "filter": packet.filter,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
    }
