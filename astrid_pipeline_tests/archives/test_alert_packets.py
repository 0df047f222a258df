"""Alert packets of several surveys: read with their own names, and named where they cannot be read."""

from __future__ import annotations

import collections
import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.time import Time
from fastavro import writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astrid_pipeline.archives.alert_cutouts import CutoutError, decode_cutout
from astrid_pipeline.archives.alert_packets import (
    AlertPacket,
    UnreadablePacket,
    find_alert_files,
    read_alert_file,
    read_alerts,
)
from astrid_pipeline.errors import ReadError

STAMP = np.arange(63 * 63, dtype=np.float32).reshape(63, 63)


def fits_bytes(image: np.ndarray, *, pack: bool = True) -> bytes:
    buffer = io.BytesIO()
    fits.PrimaryHDU(image).writeto(buffer)
    return gzip.compress(buffer.getvalue(), mtime=0) if pack else buffer.getvalue()


def ztf_schema() -> dict[str, Any]:
    cutout = {
        "type": "record",
        "name": "cutout",
        "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
    }
    source = [("jd", "double"), ("fid", "int"), ("isdiffpos", "string"), ("ra", "double"), ("dec", "double"),
              ("magpsf", "float"), ("rb", "float"), ("drb", "float"), ("drbversion", "string")]  # fmt: skip
    return {
        "type": "record",
        "name": "alert",
        "namespace": "ztf",
        "fields": [
            {"name": "objectId", "type": "string"},
            {"name": "candid", "type": "long"},
            {
                "name": "candidate",
                "type": {
                    "type": "record",
                    "name": "candidate",
                    "fields": [{"name": n, "type": t} for n, t in source],
                },
            },
            {"name": "cutoutScience", "type": ["null", cutout]},
            {"name": "cutoutTemplate", "type": ["null", "ztf.cutout"]},
            {"name": "cutoutDifference", "type": ["null", "ztf.cutout"]},
        ],
    }


def ztf_record(number: int = 0, **source: Any) -> dict[str, Any]:
    stamp = {"fileName": "x.fits.gz", "stampData": fits_bytes(STAMP + number)}
    candidate = {"jd": 2460000.5, "fid": 2, "isdiffpos": "f", "ra": 10.0, "dec": -5.0, "magpsf": 18.5, "rb": 0.4,
                 "drb": 0.9, "drbversion": "d6_m7", **source}  # fmt: skip
    return {
        "objectId": f"ZTF20aaaaaa{number}",
        "candid": 1127561440015015001 + number,
        "candidate": candidate,
        "cutoutScience": stamp,
        "cutoutTemplate": stamp,
        "cutoutDifference": stamp,
    }


def write_avro(path: Path, records: list[dict[str, Any]], schema: dict[str, Any], **options: Any) -> Path:
    with path.open("wb") as stream:
        writer(stream, schema, records, **options)
    return path


def lsst_file(path: Path) -> Path:
    fields = [("diaSourceId", "long"), ("diaObjectId", ["null", "long"]), ("ssObjectId", ["null", "long"]),
              ("midpointMjdTai", "double"), ("ra", "double"), ("dec", "double"), ("band", "string"),
              ("psfFlux", "float"), ("snr", "float"), ("reliability", ["null", "float"])]  # fmt: skip
    schema = {
        "type": "record",
        "name": "alert",
        "namespace": "lsst.v7_4",
        "fields": [
            {
                "name": "diaSource",
                "type": {
                    "type": "record",
                    "name": "diaSource",
                    "fields": [{"name": n, "type": t} for n, t in fields],
                },
            },
            *(
                {"name": f"cutout{k}", "type": ["null", "bytes"]}
                for k in ("Difference", "Science", "Template")
            ),
        ],
    }
    image = fits_bytes(STAMP[:51, :51], pack=False)
    source = {"diaSourceId": 170028500437917711, "diaObjectId": 0, "ssObjectId": 21163611375481943,
              "midpointMjdTai": 61000.25, "ra": 1.0, "dec": 2.0, "band": "i", "psfFlux": -512.0, "snr": 9.0,
              "reliability": 0.75}  # fmt: skip
    record = {
        "diaSource": source,
        "cutoutDifference": image,
        "cutoutScience": image,
        "cutoutTemplate": None,
    }
    return write_avro(path, [record], schema)


def only(path: Path) -> AlertPacket:
    (packet,) = read_alert_file(path)
    assert isinstance(packet, AlertPacket), packet
    return packet


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_a_ztf_packet_is_read_with_its_own_names(tmp_path: Path, codec: str) -> None:
    packet = only(write_avro(tmp_path / "a.avro", [ztf_record()], ztf_schema(), codec=codec))
    assert (packet.survey, packet.id_name, packet.source_id) == ("ztf", "candid", "1127561440015015001")
    assert (packet.object_id, packet.filter, packet.positive) == ("ZTF20aaaaaa0", "r", False)
    assert packet.mjd == 60000.0
    assert packet.survey_score == pytest.approx(0.9)
    for cutout in (packet.science, packet.template, packet.difference):
        np.testing.assert_array_equal(cutout, STAMP)
    assert "cutoutScience" not in packet.record_fields


def test_a_score_without_a_version_is_no_score(tmp_path: Path) -> None:
    """Packets from before the deep model carry drb 0: taken for a score, it would call every one of them bogus."""
    old = only(write_avro(tmp_path / "a.avro", [ztf_record(drb=0.0, drbversion="")], ztf_schema()))
    assert old.survey_score == pytest.approx(0.4)


def test_a_rubin_packet_is_read_with_its_own_names(tmp_path: Path) -> None:
    packet = only(lsst_file(tmp_path / "a.avro"))
    assert (packet.survey, packet.id_name, packet.source_id) == ("lsst", "diaSourceId", "170028500437917711")
    assert packet.object_id == "21163611375481943"
    assert packet.positive is False
    assert packet.template is None
    assert packet.science is not None
    assert packet.science.shape == (51, 51)
    assert packet.mjd == pytest.approx(Time(61000.25, format="mjd", scale="tai").utc.mjd, abs=1e-9)
    assert packet.mjd == pytest.approx(61000.25 - 37 / 86400, abs=1e-8)
    assert packet.survey_score == 0.75


def test_parquet_tables_carry_cut_outs_as_bytes_records_or_rows(tmp_path: Path) -> None:
    record = ztf_record()
    rows = {
        "objectId": ["A", "B", "C"],
        "candid": [2**53 + 1, 2**53 + 2, 2**53 + 3],
        "ra": [1.0, 2.0, 3.0],
    }
    packed = fits_bytes(STAMP)
    for kind, values in {
        "bytes": [packed] * 3,
        "records": [record["cutoutScience"]] * 3,
        "rows": [STAMP.tolist()] * 3,
        "flat": [STAMP.ravel().tolist()] * 3,
    }.items():
        path = tmp_path / f"{kind}.parquet"
        pq.write_table(pa.table({**rows, "cutoutScience": pa.array(values)}), path)
        packets = list(read_alert_file(path))
        assert [p.source_id for p in packets if isinstance(p, AlertPacket)] == [
            str(2**53 + i) for i in (1, 2, 3)
        ]
        for packet in packets:
            assert isinstance(packet, AlertPacket)
            np.testing.assert_array_equal(packet.science, STAMP)
            assert packet.survey == "ztf"


def test_one_bad_packet_leaves_the_others(tmp_path: Path) -> None:
    records = [ztf_record(i) for i in range(3)]
    records[1]["cutoutDifference"]["stampData"] = records[1]["cutoutDifference"]["stampData"][:500]
    records[1]["cutoutScience"] = records[1]["cutoutDifference"]
    write_avro(tmp_path / "b.avro", records, ztf_schema())
    (tmp_path / "a.avro").write_bytes(b"")
    (tmp_path / "c.avro").write_bytes(b"\0\0\0\1\2rest of a stream message")
    (tmp_path / "notes.txt").write_text("no alert")
    found = list(read_alerts([tmp_path, tmp_path / "missing.avro"]))
    bad = [p for p in found if isinstance(p, UnreadablePacket)]
    assert [p.record for p in found if isinstance(p, AlertPacket)] == [0, 2]
    text = [str(p) for p in bad]
    assert "a.avro: the file is empty" in text[0]
    assert "b.avro, record 1: cutoutScience: the gzipped cut-out is cut short" in text[1]
    assert "carries no schema" in text[2]
    assert "missing.avro: cannot be opened" in text[3]


def test_a_file_cut_short_gives_its_whole_blocks(tmp_path: Path) -> None:
    path = write_avro(
        tmp_path / "a.avro", [ztf_record(i) for i in range(6)], ztf_schema(), sync_interval=1000
    )
    path.write_bytes(path.read_bytes()[:-3000])
    found = list(read_alert_file(path))
    assert [p.record for p in found if isinstance(p, AlertPacket)] == list(range(5))
    (bad,) = (p for p in found if isinstance(p, UnreadablePacket))
    assert bad.record == 5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), cut=st.floats(0, 1), flips=st.integers(0, 8))
def test_damage_is_named_and_never_raised(tmp_path: Path, seed: int, cut: float, flips: int) -> None:
    path = tmp_path / "damaged.avro"
    if not (tmp_path / "whole").exists():
        write_avro(tmp_path / "whole", [ztf_record(i) for i in range(3)], ztf_schema(), sync_interval=1)
    data = bytearray((tmp_path / "whole").read_bytes())
    rng = random.Random(seed)
    for _ in range(flips):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data[: int(cut * len(data))]))
    for packet in read_alert_file(path):
        assert isinstance(packet, AlertPacket | UnreadablePacket)
        assert len(str(packet)) > 0


def test_cut_outs_that_are_none() -> None:
    bomb = gzip.compress(b"SIMPLE" + b"\0" * (64 * 2**20))
    for value, reason in {
        b"": "empty",
        b"\x1f\x8bnonsense": "damaged gzip",
        bomb: "larger than any cut-out",
        b"GIF89a": "no FITS",
        fits_bytes(STAMP, pack=False)[:3000]: "FITS|image",
        fits_bytes(np.full((5, 5), np.nan, np.float32)): "blank",
    }.items():
        with pytest.raises(CutoutError, match=reason):
            decode_cutout(value)
    for value in ([1.0, 2.0], "text", [[1, 2], [3]], None):
        with pytest.raises(CutoutError):
            decode_cutout(value)


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no alert packets"):
        find_alert_files([tmp_path])


@pytest.mark.real_data
def test_every_real_packet_is_read_as_its_index_says(shared_data: Path) -> None:
    folder = shared_data / "alerts"
    index = {row["file"]: row for row in csv.DictReader((folder / "index.csv").open())}
    found = list(read_alerts([folder]))
    assert len(found) == 220
    surveys = collections.Counter()
    for packet in found:
        assert isinstance(packet, AlertPacket), packet
        row = index[str(Path(packet.file).relative_to(folder))]
        assert row["objectId"] in ("", packet.object_id)
        assert row["candid"] in ("", packet.source_id)
        assert packet.source_id
        assert packet.difference is not None
        assert packet.science is not None
        assert "x".join(map(str, packet.difference.shape)) == row["diff"].split("+")[0]
        surveys[packet.survey] += 1
    assert surveys == {"ztf": 189, "pgir": 17, "atlas": 12, "desirt": 1, "winter": 1}
