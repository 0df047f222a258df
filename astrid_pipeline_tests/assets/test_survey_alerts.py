"""ZTF's alert packets as an archive: candidates with their cut-outs, through the models and the vetting page."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.archives.alert_packets import AlertPacket, read_alerts
from astrid_pipeline.archives.base import Field, open_archive

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]


@pytest.fixture(scope="module")
def packets(shared_data) -> list[AlertPacket]:
    folder = shared_data / "alerts" / "kowalski_ztf"
    return [packet for packet in read_alerts([folder]) if isinstance(packet, AlertPacket)]


@pytest.fixture
def stream(shared_data, tmp_path) -> Path:
    """A folder that a broker writes into: ZTF's packets, one of them twice, one cut short, and what is no packet."""
    folder = tmp_path / "stream"
    shutil.copytree(shared_data / "alerts" / "kowalski_ztf", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    files = sorted(folder.glob("*.avro"))
    (folder / "again.avro").write_bytes(files[0].read_bytes())
    (folder / "cut.avro").write_bytes(files[1].read_bytes()[:4000])
    (folder / "notes.txt").write_text("not a packet")
    return folder


def test_an_alert_without_magnitude_or_error_has_the_cut_outs_s_n(home, tmp_path):
    from astrid_pipeline import driver
    from astrid_pipeline_tests.benchmarks.nights import write_packets

    write_packets(tmp_path / "plain", 2, 20.0)
    field = Field("plain", 20.0, 20.0, 0.3, archive=f"alerts:{tmp_path / 'plain'}")
    driver.open_catalogue().add_field(field)
    survey = driver.Survey([field])
    for step in survey.ready():
        assert driver.execute(step).error is None
    table = survey.products.table("survey_alerts", "plain|2025-01-01")
    assert (table["snr"] > 10).all()
    assert (table["real_probability"] > 0.5).all()
    assert survey.ready() == []


def test_a_stream_becomes_candidates_with_stamps_scores_known_objects_and_light_curves(home, stream, packets):
    from fastapi.testclient import TestClient
    from sqlalchemy import text

    from astrid_pipeline import driver
    from astrid_pipeline.catalog import labels
    from astrid_pipeline.catalog.alerts import alert_verdicts, corrected
    from astrid_pipeline.learning.alert_model import load_alert_model
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.review.app import create_app
    from astrid_pipeline.settings import get_settings

    catalogue = driver.open_catalogue()
    field = Field("ztf", 0.0, 0.0, 180.0, archive=f"alerts:{stream}?survey=ztf")
    catalogue.add_field(field)
    archive = open_archive(field.archive)
    records = archive.exposures(field)
    assert len(records) == len(packets)  # the one that came twice is one alert
    assert [str(p.file).rsplit("/", 1)[1] for p in archive.problems] == ["cut.avro"]

    survey = driver.Survey([field])
    steps = survey.ready()
    assert {step.job for step in steps} == {"take_alerts"}
    assert sum(step.exposures for step in steps) == len(packets)
    for step in steps:
        result = driver.execute(step)
        assert result.error is None, result.error
    assert survey.ready() == []

    table = [survey.products.table("survey_alerts", step.partition) for step in steps]
    scored = {row.alert_id: row for part in table for row in part.itertuples()}
    assert all(row.problem is None for row in scored.values())
    by_id = {f"ztf-{packet.source_id}": packet for packet in packets}
    assert set(scored) == set(by_id)
    with catalogue.engine.connect() as connection:
        sources = [
            dict(row) for row in connection.execute(text("SELECT * FROM sources ORDER BY id")).mappings()
        ]
        points = connection.execute(
            text("SELECT exposure_id, mag, mag_limit, snr FROM light_curve_points")
        ).all()
    assert {source["exposure_id"] for source in sources} == set(by_id)
    for source in sources:
        packet, features = by_id[source["exposure_id"]], source["features"]
        assert features["survey_object"] == packet.object_id
        assert features["survey_score"] == pytest.approx(packet.survey_score)
        assert features["alert"]["rb"] == pytest.approx(packet.source["rb"])
        known = packet.source["ssdistnr"]
        assert ("known_distance" in features) == (known is not None and known >= 0)
        assert source["mag"] == pytest.approx(packet.mag)
        assert (source["flux"] < 0) == (packet.positive is False)
    assert any(source["features"].get("known_object") for source in sources)
    # Each packet tells the last thirty days of its object: measurements and limits.
    assert sum(1 for point in points if point.mag is not None) > len(packets) / 2
    assert any(point.mag is None and point.mag_limit is not None for point in points)

    # The vetting page shows them with their three cut-outs, and people's verdicts correct the model.
    with TestClient(create_app(get_settings(), catalogue, open_store())) as client:
        best = max(sources, key=lambda source: source["score"] or 0)
        page = client.get(f"/review/panel/{best['id']}")
        assert page.status_code == 200
        assert f"ZTF alert of {best['features']['survey_object']}" in page.text
        assert "the survey&#39;s own score" in page.text
        image = client.get(f"/api/v1/detections/{best['id']}/stamp.png")
        assert image.status_code == 200, image.text
        assert image.headers["content-type"] == "image/png"
    model = load_alert_model()
    assert corrected(catalogue, model) == (model, 0)
    for number, source in enumerate(sources[:24]):
        verdict = "real" if number % 2 else "bogus"
        labels.record(catalogue, source["id"], who="tester", verdict=verdict, token=str(number))
    features, real = alert_verdicts(catalogue)
    assert Counter(real) == {True: 12, False: 12}
    again, count = corrected(catalogue, model)
    assert count == 24
    assert again.facts["calibrated_on"] == "24 verdicts of people"
    # What the catalogue keeps is what the model looked at.
    assert np.isfinite(again.logits(features)).all()
    one = scored[sources[0]["exposure_id"]]
    assert model.score(features.iloc[:1]).real_probability.iloc[0] == pytest.approx(one.real_probability)

    # A night whose packets are others than those it was made of is made again, alone.
    several = Counter(record.night for record in records).most_common(1)[0][0]
    gone = next(r for r in records if r.night == several and "again.avro" not in r.url)
    Path(gone.url.rpartition("#")[0]).unlink()
    (step,) = driver.Survey([field]).ready()
    assert step.partition == f"ztf|{several}"
