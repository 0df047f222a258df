"""Alert packets that go out: read back by fastavro alone, with cut-outs, history and version; and by AstrID itself."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from sqlalchemy import text

import astrid_pipeline.night
from astrid_pipeline.archives.alert_archive import AlertArchive
from astrid_pipeline.archives.alert_packets import AlertPacket
from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog.alerts import histories
from astrid_pipeline.night.alerts import HISTORY_DAYS, History, avro_schema, select_alerts, write_packets
from astrid_pipeline.night.survey_alerts import history_points
from astrid_pipeline_tests.report.example import make_difference
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT, Scene

pytestmark = pytest.mark.postgres

LATER = "2026-01-09"


@pytest.fixture(scope="module")
def packed(scene: Scene):
    """The same sky again a week later, its packets, and what the catalogue holds."""
    scene.make_night(LATER)
    with scene.catalog.engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT detection_id, exposure_id, x, y, ra, dec, mjd, filter, flux, flux_err, snr, mag, mag_err, "
                "score, class, model_name, model_version FROM sources "
                "WHERE night = :night AND detection_id IS NOT NULL AND NOT injected"
            ),
            {"night": LATER},
        )
        import pandas as pd

        table = pd.DataFrame(found.all(), columns=list(found.keys()))
    alerts = select_alerts(table, 0.5)
    bright = tuple((row.x, row.y, 20.0) for row in alerts.itertuples())
    exposure = str(alerts.exposure_id.iloc[0])
    difference = make_difference((300, 400), bright, exposure_id=exposure)
    known = {
        alert: History(*what) for alert, what in histories(scene.catalog, FIELD, LATER, HISTORY_DAYS).items()
    }
    return alerts, difference, known, write_packets(alerts, {exposure: difference}, FIELD, LATER, known)


def test_fastavro_reads_them_with_the_schema_that_they_carry(scene, packed):
    alerts, difference, known, data = packed
    records = list(fastavro.reader(io.BytesIO(data)))
    assert len(records) == len(alerts) > 20
    before = 0
    for record, row in zip(records, alerts.itertuples(), strict=True):
        assert record["schemavsn"] == "1.1"
        assert record["alertId"] == row.alert_id
        for name, plane in (
            ("cutoutScience", difference.science),
            ("cutoutTemplate", difference.reference),
            ("cutoutDifference", difference.data),
        ):
            image = fits.getdata(io.BytesIO(gzip.decompress(record[name])))
            assert image.shape == (63, 63)
            assert image[31, 31] == np.float32(plane[round(row.y), round(row.x)])
        assert record["objectId"] == known[row.alert_id].object_name
        for point in record["prv_candidates"]:
            before += 1
            assert point["mjd"] < record["candidate"]["mjd"]
            assert point["exposureId"] == f"e-{NIGHT}"
            # A measurement has a magnitude, everything has a limit.
            assert (point["magpsf"] is not None) == (abs(point["snr"]) >= 3)
            assert point["diffmaglim"] is not None
            assert point["alertId"] is not None
            assert point["score"] >= 0.5
    with scene.catalog.engine.connect() as connection:
        kept = connection.execute(
            text("SELECT count(*) FROM light_curve_points WHERE night = :n"), {"n": NIGHT}
        )
        assert 0 < before <= kept.scalar_one()


def test_a_packet_alone_is_read_with_the_schema_s_file(packed):
    *_, data = packed
    first = next(iter(fastavro.reader(io.BytesIO(data))))
    plain = json.loads((Path(astrid_pipeline.night.__file__).parent / "alert.avsc").read_text())
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, avro_schema(), first)
    buffer.seek(0)
    assert fastavro.schemaless_reader(buffer, fastavro.parse_schema(plain)) == first


def test_what_was_written_before_there_was_a_history_is_read_still(packed):
    *_, data = packed
    first = next(iter(fastavro.reader(io.BytesIO(data))))
    older = json.loads((Path(astrid_pipeline.night.__file__).parent / "alert.avsc").read_text())
    older["fields"] = [f for f in older["fields"] if f["name"] not in ("objectId", "prv_candidates")]
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(older), first)
    buffer.seek(0)
    read = fastavro.schemaless_reader(buffer, fastavro.parse_schema(older), avro_schema())
    assert read == {**first, "objectId": None, "prv_candidates": None}


def test_another_astrid_takes_them_as_an_archive(packed, tmp_path):
    alerts, _, known, data = packed
    (tmp_path / f"{LATER}.avro").write_bytes(data)
    field = Field("there", 150.0, 2.0, 0.5, archive=f"alerts:{tmp_path}")
    archive = AlertArchive(str(tmp_path))
    records = archive.exposures(field)
    assert {r.exposure_id for r in records} == {f"astrid-{name}" for name in alerts.alert_id}
    packets = archive.packets(records)
    for packet in packets.values():
        assert isinstance(packet, AlertPacket)
        assert packet.difference.shape == (63, 63)
        assert packet.object_id == known[packet.source_id].object_name
    objects = {name: number for number, name in enumerate(sorted(packets))}
    points = history_points(packets, objects, None)
    assert sum(map(len, points.values())) == len(packets) + sum(
        len(known[name].points) for name in alerts.alert_id
    )
