"""What was put in to measure people: kept apart from the sky's objects, blind until the verdict, counted aright."""

from __future__ import annotations

import uuid

import pandas as pd
import pytest

from astrid_pipeline.catalog import export, gold, labels, queue
from astrid_pipeline.catalog.objects import light_curve, objects_of_field, replace_points
from astrid_pipeline_tests.review.conftest import FIELD, NIGHT

pytestmark = pytest.mark.postgres


def some_gold(scene, n: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`n` known transients and `n` known artefacts, of which the model passed over the last; at places of their own."""
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 1).rows
    at = {k: rows[0][k] for k in ("exposure_id", "mjd", "filter")}
    table = pd.DataFrame(
        {
            **at,
            "candidate_id": [f"g{i}" for i in range(2 * n)],
            "detection_id": [rows[0]["detection_id"]] * (2 * n),
            "x": [500.0 + 10 * i for i in range(2 * n)],
            "y": 20.0,
            "ra": [150.2 + 0.001 * i for i in range(2 * n)],
            "dec": 2.1,
            "flux": 100.0,
            "flux_err": 10.0,
            "snr": 10.0,
            "mag": 20.0,
            "mag_err": 0.1,
            "flags": 0,
            "score": 0.9,
            "class": "transient",
            "model_name": "unet",
            "model_version": "1",
            "truth": ["real"] * n + ["bogus"] * n,
        }
    )
    return table.tail(1).drop(columns=["score", "class"]), table.head(2 * n - 1)


def keep(scene) -> pd.DataFrame:
    return gold.keep_gold(scene.catalog, FIELD, NIGHT, *some_gold(scene))


def of_gold(scene) -> list[dict]:
    whole = queue.list_sources(
        scene.catalog, queue.Filter(kind="all", gold=True, sort="id", descending=False), 1000
    ).rows
    sky = queue.list_sources(scene.catalog, queue.Filter(kind="all", sort="id"), 1000).rows
    ids = {row["id"] for row in sky}
    return [row for row in whole if row["id"] not in ids]


@pytest.fixture
def kept(scene):
    yield keep(scene)
    empty = pd.DataFrame()
    gold.keep_gold(scene.catalog, FIELD, NIGHT, empty, empty)


def test_it_is_in_the_queue_and_in_nothing_else(scene, client, kept):
    before = len(export.objects_table(scene.catalog))
    mine = of_gold(scene)
    assert len(mine) == 8
    assert all("truth" not in row and "injected" not in row for row in mine)
    assert all(row["object"].startswith("AST26") for row in mine), "without a name it would stand out"
    names = {row["object"] for row in mine}
    assert not names & set(export.objects_table(scene.catalog)["name"])
    assert not set(kept["id"]) & set(objects_of_field(scene.catalog, FIELD)["id"])
    listed = client.get("/api/v1/candidates", params={"limit": 1000}).json()["items"]
    assert not {row["id"] for row in listed} & {row["id"] for row in mine}
    assert client.get(f"/api/v1/objects/{next(iter(names))}").status_code == 404
    page = client.get("/review", params={"kind": "all"}).text
    assert all(f'data-id="{row["id"]}"' in page for row in mine)
    assert len(export.objects_table(scene.catalog)) == before


def test_made_again_it_stays_itself_and_the_night_leaves_it_alone(scene, kept):
    mine = of_gold(scene)
    given = labels.record(scene.catalog, mine[0]["id"], who="eve", verdict="real", token=uuid.uuid4().hex)
    assert given["truth"] == "real"
    assert list(keep(scene)["id"]) == list(kept["id"])
    again = {row["id"]: row for row in of_gold(scene)}
    assert set(again) == {row["id"] for row in mine}
    assert again[mine[0]["id"]]["state"] == "real"
    points = pd.DataFrame([{**POINT, "object_id": int(kept["id"][0])}])
    assert replace_points(scene.catalog, FIELD, NIGHT, points, kept["id"].tolist()) == 1
    replace_points(scene.catalog, FIELD, NIGHT, pd.DataFrame())
    assert len(light_curve(scene.catalog, int(kept["id"][0]))) == 1, "the night's own curves leave it alone"
    labels.undo(scene.catalog, given["id"], who="eve", token=uuid.uuid4().hex)


POINT = {
    "exposure_id": "x",
    "mjd": 61044.0,
    "filter": "g",
    "flux": 1.0,
    "flux_err": 0.1,
    "snr": 10.0,
    "upper_limit": 0.3,
    "zero_point": 25.0,
    "mag": 20.0,
    "mag_err": 0.1,
    "mag_limit": 22.0,
    "flags": 0,
}


def test_people_are_measured_by_their_standing_verdicts(scene, client, kept):
    mine = of_gold(scene)
    # Of 4 transients: 3 real, 1 unsure. Of 4 artefacts: 1 real, 3 bogus. One verdict was changed, one taken back.
    verdicts = ["bogus", "real", "real", "unsure", "real", "bogus", "bogus", "bogus"]
    for row, verdict in zip(mine, verdicts, strict=True):
        labels.record(scene.catalog, row["id"], who="ada", verdict=verdict, token=uuid.uuid4().hex)
    labels.record(scene.catalog, mine[0]["id"], who="ada", verdict="real", token=uuid.uuid4().hex)
    gone = labels.record(scene.catalog, mine[0]["id"], who="cy", verdict="bogus", token=uuid.uuid4().hex)
    labels.undo(scene.catalog, gone["id"], who="cy", token=uuid.uuid4().hex)
    table = gold.scanners(scene.catalog).set_index("who")
    ada = table.loc["ada"]
    assert (ada.transients, ada.found, ada.artefacts, ada.taken_for_real) == (4, 3, 4, 1)
    assert ada.completeness == pytest.approx(0.75)
    assert ada.purity == pytest.approx(0.75)
    # Wilson's interval of 3 in 4 at z = 1, worked out by hand: (0.75 + 1/8 ± sqrt(0.1875/4 + 1/64)) / 1.25.
    half = (0.1875 / 4 + 1 / 64) ** 0.5
    for share in ("completeness", "purity"):
        assert ada[f"{share}_low"] == pytest.approx((0.875 - half) / 1.25, abs=1e-5)
        assert ada[f"{share}_high"] == pytest.approx((0.875 + half) / 1.25, abs=1e-5)
    assert "cy" not in table.index
    page = client.get("/review/report", params={"night": NIGHT}).text
    assert "3 of 4" in page
    assert "1 of 4" in page
    assert mine[0]["object"] not in page, "what was put in is not among the confirmed"
    told = client.get(f"/api/v1/detections/{mine[0]['id']}/labels").json()
    assert all("truth" not in event for event in told), "others' verdicts do not tell what it is"


def test_the_answer_tells_what_it_was(scene, client, kept):
    artefact = of_gold(scene)[-1]
    path = f"/api/v1/detections/{artefact['id']}"
    assert "truth" not in client.get(path).json()
    assert "put in" not in client.get(f"/review/panel/{artefact['id']}").text
    given = client.post(f"{path}/labels", json={"verdict": "real", "token": str(uuid.uuid4())}).json()
    assert (given["injected"], given["truth"]) == (True, "bogus")
    assert client.get(path).json()["truth"] == "bogus"
    assert "put in: a known artefact" in client.get(f"/review/panel/{artefact['id']}").text
