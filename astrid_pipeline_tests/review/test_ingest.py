"""Ingestion requests: runs of a real Dagster, an archive and a survey server on this machine, what is refused."""

from __future__ import annotations

import io
import json
import sys
import threading
import time

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS
from fastapi.testclient import TestClient

from astrid_pipeline.catalog import Catalog
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline.review.app import create_app
from astrid_pipeline.review.ingest import RandomSample, random_places
from astrid_pipeline.review.problems import Problem
from astrid_pipeline.services import dev, postgres
from astrid_pipeline.settings import load_settings, reset_settings
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.s3_servers import free_port, s3_server
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres
V1 = "/api/v1/observations/ingest"
#: The first two places of seed 3, and the night of MJD 59000.
PLACES = random_places(RandomSample(start="2020-05-01", end="2020-06-30", count=2, seed=3))
TIME = {"start": "2020-05-01", "end": "2020-06-30"}


@pytest.fixture(scope="module")
def server():
    holdings = Holdings()
    for number, (ra, dec) in enumerate([(10.68, 41.27), PLACES[0]]):
        for night in range(2):
            holdings.add(f"ib{number}{night}0q", ra, dec, 59000.2 + night, "F160W")
    with ArchiveServer(holdings) as started:
        yield started


@pytest.fixture(scope="module")
def app(server, tmp_path_factory):
    """The application beside a home whose archive and surveys are on the local server; Dagster does not run yet."""
    folder = tmp_path_factory.mktemp("ingest")
    mirror = folder / "surveys.yaml"
    mirror.write_text(yaml.safe_dump({"dss2": {"server": f"{server.url}/hips-image-services/hips2fits"}}))
    with home() as plain, pytest.MonkeyPatch.context() as patch:
        values = {
            "archive": f"mast:HST?server={server.url}",
            "surveys": str(mirror),
            "dagster_port": free_port(),
            "workers": 4,
        }
        settings = load_settings(home=plain.home, **values)
        for name, value in {"home": plain.home, **values}.items():
            patch.setenv(f"ASTRID_{name.upper()}", str(value))
        reset_settings()
        from astrid_pipeline.archives.survey_images import surveys

        surveys.cache_clear()
        catalog = Catalog(postgres.database_url("astrid", settings))
        yield create_app(settings, catalog, LocalStore(settings.store_url))
        catalog.close()
        surveys.cache_clear()
    reset_settings()


@pytest.fixture
def client(app):
    return TestClient(app)


def region(**changes) -> dict:
    return {"ra": 10.68, "dec": 41.27, "radius": 0.1, **TIME, **changes}


def test_without_dagster_the_problem_says_so(client):
    answer = client.post(V1, json=region())
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "astrid dev" in answer.json()["remedy"]
    assert not client.get("/health").json()["parts"]["dagster"]["ok"]
    assert "cannot start the job ingest" in answer.json()["title"]
    assert client.post(f"{V1}/reference-dataset", json={"ra": 150.1, "dec": 2.2}).status_code == 503


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dec": -41.0}, 404),
        ({"start": "2021-01-01", "end": "2021-02-01"}, 404),
        ({"filters": ["F814W"]}, 404),
        ({"start": "2020-07-01"}, 422),
        ({"radius": 0}, 422),
        ({"ra": 360}, 422),
        ({"archive": "folder:/etc"}, 422),
        ({"archive": "mast:HST?server=http://127.0.0.1:1"}, 422),
        ({"archive": "simulated:/tmp/x"}, 422),
        ({"more": 1}, 422),
    ],
)
def test_what_cannot_be_had_is_refused(client, changes, status):
    answer = client.post(V1, json=region(**changes))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "changes", [{"survey": "hips"}, {"survey": "nosuch"}, {"pixels": 5000}, {"size": 9}, {"size": 5e-324}]
)
def test_no_other_survey_or_size_is_asked_for(client, changes):
    assert client.post(f"{V1}/reference-dataset", json={"ra": 1, "dec": 2, **changes}).status_code == 422


def test_random_places_are_even_in_solid_angle_and_off_the_plane():
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    drawn = []
    for seed in range(40):
        drawn += random_places(RandomSample(**TIME, count=50, seed=seed))
    ra, dec = np.array(drawn).T
    # The sine of the declination is uniform: mean 0, variance 1/3; of 2000 draws the mean is good to 0.013.
    assert abs(np.sin(np.radians(dec)).mean()) < 0.05
    assert np.sin(np.radians(dec)).var() == pytest.approx(1 / 3, abs=0.03)
    assert np.histogram(ra, 4, (0, 360))[0].min() > 430
    limits = {"dec_min": -20, "dec_max": 30, "galactic_latitude_min": 40}
    off = np.array(random_places(RandomSample(**TIME, count=50, **limits)))
    assert (np.abs(SkyCoord(off * u.deg).galactic.b.deg) >= 40).all()
    assert ((off[:, 1] >= -20) & (off[:, 1] <= 30)).all()
    with pytest.raises(Problem, match="hardly any sky"):
        random_places(RandomSample(**TIME, dec_min=89, dec_max=90, galactic_latitude_min=60))


@pytest.fixture(scope="module")
def dagster(app):
    """Dagster's page, code server and daemon as `astrid dev` starts them."""
    settings = app.state.context.settings
    service = next(s for s in dev.services(settings) if s.name == "dagster")
    dev._start(service, sys.stdout)
    try:
        dev._await_answer(service, threading.Event())
        yield service
    finally:
        dev.end([service])


def finished(client: TestClient, run_ids: list[str]) -> list[dict]:
    """Wait until runs have ended, and return what became of them."""
    while True:
        found = [client.get(f"/api/v1/runs/{run_id}").json() for run_id in run_ids]
        if all(run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in found):
            return found
        time.sleep(0.5)


@pytest.mark.slow
def test_runs_of_a_real_dagster(app, client, dagster, server):
    """One test: Dagster takes half a minute to start, and its runs go side by side."""
    one = client.post(V1, json=region())
    assert one.status_code == 202, one.text
    assert one.json()["exposures"] == 2
    assert one.json()["nights"] == ["2020-05-31", "2020-06-01"]
    first = {**TIME, "end": "2020-05-31"}
    sample = client.post(f"{V1}/batch-random", json={**first, "count": 2, "seed": 3, "radius": 0.1})
    assert sample.status_code == 202, sample.text
    assert [(p["ra"], p["dec"]) for p in sample.json()["places"]] == PLACES
    assert [p["exposures"] for p in sample.json()["places"]] == [1, 0]
    image = client.post(f"{V1}/reference-dataset", json={"ra": 150.1, "dec": 2.2, "survey": "DSS2"})
    assert image.status_code == 202, image.text
    key = "reference-datasets/dss2/150.1000_2.2000_0.25deg_512px.fits"
    assert image.json()["key"] == key
    assert client.get("/health").json()["parts"]["dagster"]["ok"]
    assert client.get(image.json()["url"]).status_code == 404, "it is not there before the run has ended"
    runs = [*one.json()["run_ids"], *sample.json()["run_ids"], *image.json()["run_ids"]]
    assert len(set(runs)) == 4
    found = finished(client, runs)
    assert [run["status"] for run in found] == ["SUCCESS"] * 4
    assert found[0]["partition"] == f"{one.json()['field']}|2020-05-31"
    # What was asked for is there.
    context = app.state.context
    from astrid_pipeline.resources.products import Products

    nights = Products(context.store).nights("observations", one.json()["field"])
    assert nights == ["2020-05-31", "2020-06-01"]
    got = client.get(image.json()["url"])
    assert got.status_code == 200
    with fits.open(io.BytesIO(got.content)) as hdus:
        plane = next(hdu for hdu in hdus if hdu.data is not None and hdu.data.ndim == 2)
        assert plane.data.shape == (512, 512)
        assert WCS(plane.header).all_pix2world([[255.5, 255.5]], 0)[0] == pytest.approx(
            [150.1, 2.2], abs=1e-6
        )
        assert WCS(plane.header).proj_plane_pixel_scales()[0].value == pytest.approx(0.25 / 512)
        assert np.isfinite(plane.data).all()
        assert plane.data.std() > 0
    # The address is for this file alone, and cannot be made up.
    token = image.json()["url"].rsplit("/", 1)[-1]
    assert client.get(f"/api/v1/files/{token[:-2]}xx").status_code == 403
    # The same region is the same field, and what started it is in the audit trail.
    again = client.post(V1, json=region(end="2020-05-31")).json()
    assert again["field"] == one.json()["field"]
    with context.catalog.reading("test") as connection:
        from sqlalchemy import text

        actions = connection.scalars(text("SELECT action FROM audit_log ORDER BY id")).all()
    assert actions == ["ingest", "ingest random sample", "fetch reference", "ingest"]
    assert server.count("hips2fits") == 1


def test_a_bucket_signs_by_itself(app, tmp_path):
    """The S3 server's own address: good for who has no keys, and for nothing else."""
    import urllib.error
    import urllib.request

    with s3_server("rclone", tmp_path) as bucket:
        store = bucket.store()
        context = app.state.context
        from dataclasses import replace

        from astrid_pipeline.review import signed

        store.put_bytes("reference-datasets/dss2/x.fits", b"pixels")
        url, expires = signed.url(
            replace(context, store=store), "http://unused", "reference-datasets/dss2/x.fits"
        )
        assert urllib.request.urlopen(url).read() == b"pixels"
        assert expires > "2026"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url.replace("x.fits", "y.fits"))


def test_a_file_of_surveys_that_cannot_be_used_is_said(tmp_path, monkeypatch):
    from astrid_pipeline.archives.survey_images import surveys
    from astrid_pipeline.errors import ConfigError

    (tmp_path / "bad.yaml").write_text(json.dumps({"own": {"title": "x"}}))
    monkeypatch.setenv("ASTRID_SURVEYS", str(tmp_path / "bad.yaml"))
    reset_settings()
    surveys.cache_clear()
    with pytest.raises(ConfigError, match="own lacks bands, kind, server"):
        surveys()
    monkeypatch.undo()
    reset_settings()
    surveys.cache_clear()
