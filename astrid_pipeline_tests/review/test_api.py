"""The API: lists and pages, labels, who may do what, errors as problems, and no answer that says 500."""

from __future__ import annotations

import io
import uuid
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from fastapi.testclient import TestClient
from PIL import Image

from astrid_pipeline.catalog import access, gold
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.review import access as gate
from astrid_pipeline.review import app as application
from astrid_pipeline.review.access import Buckets
from astrid_pipeline.review.app import create_app
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT, Away, Scene

pytestmark = pytest.mark.postgres
V1 = "/api/v1"


def every(client: TestClient, path: str, **query: object) -> list[dict]:
    found, cursor = [], None
    while True:
        page = client.get(path, params={**query, **({"cursor": cursor} if cursor else {})}).json()
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found


@pytest.mark.parametrize(
    "sort", ["score", "snr", "mag", "labels", "night", "id", "worth", "object", "class", "state"]
)
@pytest.mark.parametrize("descending", [True, False])
def test_pages_hold_every_row_once_in_order(client, sort, descending):
    found = every(client, f"{V1}/detections", limit=7, sort=sort, descending=descending)
    assert len({row["id"] for row in found}) == 60
    rows = every(client, f"{V1}/candidates", limit=7, sort=sort, descending=descending)
    assert len(rows) == 65
    assert len({row["id"] for row in rows}) == 65
    values = [row[sort] for row in rows if row[sort] is not None]
    assert values == sorted(values, reverse=descending)
    assert all(row[sort] is None for row in rows[len(values) :]), "what has no value comes last"


def test_filters_and_cones(client):
    everything = every(client, f"{V1}/detections", limit=1000)
    assert len(everything) == 60
    high = every(client, f"{V1}/detections", score_min=0.8)
    assert {row["id"] for row in high} == {row["id"] for row in everything if row["score"] >= 0.8}
    one = everything[7]
    near = every(client, f"{V1}/detections", ra=one["ra"], dec=one["dec"], radius=0.2)
    assert one["id"] in {row["id"] for row in near}
    assert len(near) < 5
    assert every(client, f"{V1}/detections", night="2020-01-01") == []
    assert every(client, f"{V1}/detections", field="nowhere") == []
    named = every(client, f"{V1}/detections", object=one["object"])
    assert one["id"] in {row["id"] for row in named}
    for wrong in (
        {"ra": 1.0},
        {"sort": "key"},
        {"cursor": "AAAA"},
        {"limit": 0},
        {"who": "x"},
        {"field": "a\x00"},
    ):
        answer = client.get(f"{V1}/detections", params=wrong)
        assert answer.status_code == 422, wrong
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_label_and_its_undoing(client):
    one = client.get(f"{V1}/detections", params={"seen": "unseen"}).json()["items"][0]
    data = {
        "verdict": "real",
        "token": str(uuid.uuid4()),
        "class_name": "supernova",
        "note": "on a spiral's arm",
    }
    given = client.post(f"{V1}/detections/{one['id']}/labels", json=data)
    assert given.status_code == 201
    assert given.json()["state"] == "real"
    assert given.json()["injected"] is False
    assert client.post(f"{V1}/detections/{one['id']}/labels", json=data).json()["id"] == given.json()["id"]
    shown = client.get(f"{V1}/detections/{one['id']}").json()
    assert (shown["state"], shown["label_class"]) == ("real", "supernova")
    undone = client.post(f"{V1}/labels/{given.json()['id']}/undo", json={"token": str(uuid.uuid4())})
    assert undone.json()["state"] == "unseen"
    history = client.get(f"{V1}/detections/{one['id']}/labels").json()
    assert [event["undone"] for event in history] == [True, False]
    assert client.get(f"{V1}/labels").json()["items"][-1]["undoes"] == given.json()["id"]
    assert client.post(f"{V1}/labels/{10**15}/undo", json={"token": "12345678"}).status_code == 404


def test_stamps_as_png_and_fits(client):
    one = client.get(f"{V1}/detections", params={"sort": "snr"}).json()["items"][0]
    whole = client.get(f"{V1}/detections/{one['id']}/stamp.png")
    image = Image.open(io.BytesIO(whole.content))
    assert image.size == (252, 63)
    for stretch in ("linear", "zscale"):
        other = client.get(f"{V1}/detections/{one['id']}/stamp.png", params={"stretch": stretch})
        assert Image.open(io.BytesIO(other.content)).size == (252, 63)
        assert other.content != whole.content
    score = client.get(f"{V1}/detections/{one['id']}/stamp.png", params={"plane": "score"})
    single = np.asarray(Image.open(io.BytesIO(score.content)))
    np.testing.assert_array_equal(single, np.asarray(image)[:, 189:])
    hdus = fits.open(io.BytesIO(client.get(f"{V1}/detections/{one['id']}/stamp.fits").content))
    assert [hdu.name for hdu in hdus[1:]] == ["SCIENCE", "REFERENCE", "DIFFERENCE", "SCORE"]
    middle = hdus["SCORE"].data[31, 31]
    assert middle > 4, "the source is in the middle"
    assert hdus[0].header["XPOS"] == pytest.approx(one["x"])
    again = client.get(
        f"{V1}/detections/{one['id']}/stamp.png", headers={"If-None-Match": whole.headers["etag"]}
    )
    assert again.status_code == 304
    assert not again.content


def test_objects_and_light_curves(client, scene):
    page = client.get(f"{V1}/objects", params={"field": FIELD, "limit": 5}).json()
    assert len(page["items"]) == 5
    assert page["next"]
    one = client.get(f"{V1}/objects/{page['items'][0]['name']}").json()
    assert one["sources"]
    curve = client.get(f"{V1}/objects/{one['name']}/light-curve").json()
    assert curve[0]["exposure_id"] == f"e-{NIGHT}"
    assert curve[0]["upper_limit"] > 0
    assert client.get(f"{V1}/objects/AST99zzzzzz").status_code == 404
    assert client.get(f"{V1}/observations").json()["items"]
    assert "path" not in client.get(f"{V1}/observations").json()["items"][0]
    assert client.get(f"{V1}/difference-runs").json()[0]["detections"] == 60
    assert client.get(f"{V1}/models").json()[0]["name"] == "unet"
    assert client.get(f"{V1}/fields").json()[0]["name"] == FIELD


def test_etags_and_headers(client):
    first = client.get(f"{V1}/fields")
    assert client.get(f"{V1}/fields", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert client.get(f"{V1}/fields", headers={"If-None-Match": '"other"'}).status_code == 200
    assert "default-src 'self'" in client.get("/review").headers["content-security-policy"]
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert client.get(path).status_code == 404


def test_health_really_asks(client, scene):
    answer = client.get("/health")
    parts = answer.json()["parts"]
    assert answer.status_code == 503, "Dagster and MLflow do not run here"
    assert parts["catalogue"]["ok"]
    assert parts["store"]["ok"]
    assert not parts["dagster"]["ok"]
    assert not parts["mlflow"]["ok"]
    assert not answer.json()["ok"]


def test_health_sees_what_breaks(scene, tmp_path):
    """A store that cannot be written, a database that is away, a full disk; Dagster's answer is in `test_ingest`."""
    from astrid_pipeline.resources.store import LocalStore
    from astrid_pipeline.services import checkup

    (tmp_path / "file").write_text("no folder")

    app = create_app(scene.settings, scene.catalog, LocalStore(tmp_path / "file" / "store"))
    parts = TestClient(app).get("/health").json()["parts"]
    assert parts["catalogue"]["ok"]
    assert not parts["store"]["ok"]
    assert "cannot write" in parts["store"]["detail"]
    app = create_app(scene.settings, Away(), scene.store)
    parts = TestClient(app).get("/health").json()["parts"]
    assert not parts["catalogue"]["ok"]
    assert parts["store"]["ok"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkup, "LEAST_FREE_BYTES", 2**60)
        parts = TestClient(app).get("/health").json()["parts"]
    assert not parts["disk"]["ok"]


def test_saved_filters(client):
    assert client.put(f"{V1}/filters/bright", json={"snr_min": 20, "night": NIGHT}).status_code == 204
    assert client.get(f"{V1}/filters").json()["bright"]["snr_min"] == 20
    assert client.put(f"{V1}/filters/..%2fx", json={}).status_code in (404, 422)
    page = client.get("/review").text
    assert ">bright</a>" in page
    whole = {"kind": "all", "per_object": "true", "sort": "object", "descending": "false", "score_max": "0.9"}
    assert client.put(f"{V1}/filters/whole", json=whole).status_code == 204
    kept = client.get(f"{V1}/filters").json()["whole"]
    assert (kept["kind"], kept["per_object"], kept["sort"], kept["descending"]) == (
        "all",
        True,
        "object",
        False,
    )
    assert client.get("/review", params=kept).status_code == 200
    assert client.delete(f"{V1}/filters/bright").status_code == 204
    assert client.delete(f"{V1}/filters/bright").status_code == 404
    assert list(client.get(f"{V1}/filters").json()) == ["whole"]
    client.delete(f"{V1}/filters/whole")


def test_requests_of_other_sites_are_refused(client):
    one = client.get(f"{V1}/detections").json()["items"][0]
    data = {"verdict": "real", "token": str(uuid.uuid4())}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        answer = client.post(f"{V1}/detections/{one['id']}/labels", json=data, headers=headers)
        assert answer.status_code == 403, headers
    assert client.get(f"{V1}/detections", headers={"Host": "evil.example"}).status_code == 401, (
        "DNS rebinding"
    )


def test_keys_people_and_scopes(scene: Scene, monkeypatch):
    """In this order: the first key ends single-user mode."""
    catalog = scene.catalog
    client = TestClient(create_app(scene.settings, catalog, scene.store), follow_redirects=False)
    assert "single-user mode" in client.get("/review").text
    reader = access.create_key(catalog, "robot", ["read"])
    writer = access.create_key(catalog, "writer", ["read", "label"])
    now = [0.0]
    monkeypatch.setattr(application, "Gate", partial(gate.Gate, clock=lambda: now[0]))
    client = TestClient(create_app(scene.settings, catalog, scene.store), follow_redirects=False)
    try:
        assert client.get(f"{V1}/detections").status_code == 401
        assert client.get("/review").headers["location"] == "/sign-in"
        with_key = {"Authorization": f"Bearer {reader}"}
        one = client.get(f"{V1}/detections", headers=with_key).json()["items"][0]
        data = {"verdict": "bogus", "token": str(uuid.uuid4())}
        path = f"{V1}/detections/{one['id']}/labels"
        assert client.post(path, json=data, headers=with_key).status_code == 403
        given = client.post(path, json=data, headers={"Authorization": f"Bearer {writer}"})
        assert given.json()["who"] == "key:writer"
        assert (
            client.get(f"{V1}/detections", headers={"Authorization": f"Bearer {reader[:-1]}x"}).status_code
            == 401
        )
        stored = next(key for key in access.keys(catalog) if key["name"] == "robot")
        assert reader.split("_", 2)[2] not in str(stored)
        access.revoke_key(catalog, stored["prefix"])
        now[0] = gate.KEPT - 0.1
        assert client.get(f"{V1}/detections", headers=with_key).status_code == 200, "looked up a moment ago"
        assert client.post(path, json=data, headers=with_key).status_code == 403, "with its scopes only"
        now[0] = gate.KEPT
        assert client.get(f"{V1}/detections", headers=with_key).status_code == 401
        assert client.get(f"{V1}/detections", headers=with_key).status_code == 401

        access.set_person(catalog, "ada", "correct horse battery", ["read", "label"])
        form = {"name": "ada", "password": "wrong"}
        assert client.post("/sign-in", data=form).status_code == 401
        signed = client.post("/sign-in", data={**form, "password": "correct horse battery"})
        assert signed.status_code == 303
        assert "httponly" in signed.headers["set-cookie"].lower()
        assert "samesite=strict" in signed.headers["set-cookie"].lower()
        assert client.post(path, json={**data, "token": str(uuid.uuid4())}).json()["who"] == "ada"
        assert "single-user" not in client.get("/review").text
        access.disable_person(catalog, "ada")
        now[0] += gate.KEPT
        assert client.get(f"{V1}/detections").status_code == 401, "a session ends with the person's leave"
        tries = [client.post("/sign-in", data=form).status_code for _ in range(8)]
        assert tries[-1] == 429
        with pytest.raises(ConfigError, match="not scopes"):
            access.create_key(catalog, "x", ["all"])
    finally:
        with scene.catalog.transaction("tidy up") as connection:
            from sqlalchemy import text

            connection.execute(text("DELETE FROM api_keys"))
            connection.execute(text("DELETE FROM people"))


def test_what_was_put_in_is_told_after_the_label_only(client, scene):
    from sqlalchemy import text

    with scene.catalog.transaction("test") as connection:
        identity = connection.scalar(
            text(
                "UPDATE sources SET injected = true WHERE id = (SELECT max(id) FROM sources"
                " WHERE score IS NOT NULL AND state = 'unseen') RETURNING id"
            )
        )
    path = f"{V1}/detections/{identity}"
    assert "injected" not in client.get(path).json()
    listed = client.get(f"{V1}/detections", params={"sort": "id"}).json()["items"]
    assert all(row["id"] != identity for row in listed), "programs take no injection for a find"
    assert "put in" not in client.get(f"/review/panel/{identity}").text
    given = client.post(f"{path}/labels", json={"verdict": "real", "token": str(uuid.uuid4())}).json()
    assert given["injected"] is True
    assert "put in: a known transient" in client.get(f"/review/panel/{identity}").text
    rows = gold.scanners(scene.catalog)
    assert rows.transients.sum() == 1
    assert rows.found.sum() == 1


def test_a_client_that_asks_too_often_waits(scene, monkeypatch):
    monkeypatch.setattr(gate, "BURST", 3.0)
    monkeypatch.setattr(gate, "RATE", 0.5)
    client = TestClient(create_app(scene.settings, scene.catalog, scene.store))
    answers = [client.get(f"{V1}/fields") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 3
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert client.get("/health").status_code in (200, 503), "who watches AstrID is never turned away"


def test_the_audit_trail_says_who_did_what_and_stays(scene):
    """Signing in and out, refusals, filters, datasets; for administrators, and never changed."""
    from sqlalchemy import text

    catalog = scene.catalog
    client = TestClient(create_app(scene.settings, catalog, scene.store), follow_redirects=False)
    before = client.get(f"{V1}/audit", params={"limit": 1000}).json()["items"]
    reader = access.create_key(catalog, "curious", ["read", "label", "ingest"])
    access.set_person(catalog, "ada", "correct horse battery", ["read", "label"])
    try:
        client = TestClient(create_app(scene.settings, catalog, scene.store), follow_redirects=False)
        with_key = {"Authorization": f"Bearer {reader}"}
        assert client.get(f"{V1}/audit", headers=with_key).status_code == 403
        client.post("/sign-in", data={"name": "adam", "password": "wrong"})
        client.post("/sign-in", data={"name": "ada", "password": "correct horse battery"})
        client.put(f"{V1}/filters/faint", json={"score_max": 0.5})
        client.post(
            "/training/datasets/collect", json={"name": "empty", "start": "2020-01-01", "end": "2020-01-02"}
        )
        client.post("/sign-out")
    finally:
        with catalog.transaction("tidy up") as connection:
            connection.execute(text("DELETE FROM api_keys"))
            connection.execute(text("DELETE FROM people"))
    client = TestClient(create_app(scene.settings, catalog, scene.store))
    page = client.get(f"{V1}/audit", params={"after": before[-1]["id"] if before else 0}).json()["items"]
    told = [(entry["who"], entry["action"]) for entry in page]
    assert told == [
        ("nobody", "sign in refused"),
        ("ada", "sign in"),
        ("ada", "save filter"),
        ("ada", "dataset refused"),
        ("ada", "sign out"),
    ]
    assert page[0]["what"]["name"] == "ada", "shortened: it might be a password"
    assert "total is 0" in page[3]["what"]["why"]
    for statement in ("UPDATE audit_log SET who = 'eve'", "DELETE FROM audit_log"):
        with pytest.raises(ServiceError), catalog.transaction("forge") as connection:
            connection.execute(text(statement))


def test_rates_are_limited():
    now = [0.0]
    buckets = Buckets(2.0, 3.0, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


def test_the_report_counts(client):
    page = client.get("/review/report", params={"night": NIGHT}).text
    assert "Scan report of 2026-01-02" in page
    assert client.get("/docs").status_code == 200
    assert "/detections/{source_id}/labels" in client.get("/docs").text
