"""What the page asks in two statements, against the plain functions that each answer a part of it."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import text

from astrid_pipeline.catalog import labels, objects, queue
from astrid_pipeline.catalog.dossier import NEAR_ARCSEC, dossier
from astrid_pipeline.catalog.matching import add_catalogue, cross_match
from astrid_pipeline.review.light_curve import light_curve_svg, microjansky
from astrid_pipeline_tests.review.conftest import Scene

pytestmark = pytest.mark.postgres


def some_history(scene: Scene) -> None:
    """Give labels: two people who differ, one who takes back, notes with quotes; on one object, on two nights."""
    scene.make_night("2026-01-03", seed=0)
    with scene.catalog.reading("look") as connection:
        twice = connection.scalars(
            text(
                "SELECT object_id FROM sources WHERE score IS NOT NULL GROUP BY object_id HAVING count(*) > 1 LIMIT 3"
            )
        ).all()
        mine = connection.scalars(
            text("SELECT id FROM sources WHERE object_id = ANY(:some) ORDER BY id"), {"some": list(twice)}
        ).all()
    assert len(mine) >= 6, "the second night shows the same places"
    for k, source in enumerate(mine):
        for who, verdict in (("ada", "real"), ("bob", "bogus" if k % 2 else "real")):
            event = labels.record(
                scene.catalog,
                source,
                who=who,
                verdict=verdict,
                token=uuid.uuid4().hex,
                class_name="supernova" if verdict == "real" else None,
                confidence=0.8 if k % 2 else None,
                note='on a "spiral\'s" arm, 100 %' if k == 0 else None,
            )
        if k == 1:
            labels.undo(scene.catalog, event["id"], who="bob", token=uuid.uuid4().hex)


def some_catalogues(scene: Scene, folder) -> None:  # type: ignore[no-untyped-def]
    """Keep a catalogue of each kind with entries at, near and far from sources."""
    with scene.catalog.reading("look") as connection:
        places = connection.execute(
            text("SELECT ra, dec FROM sources WHERE ra IS NOT NULL ORDER BY id LIMIT 20")
        ).all()
    for kind, offset in (("star", 1.0), ("galaxy", 20.0), ("transient", 2.9)):
        path = folder / f"{kind}.csv"
        lines = [
            f"{kind}{k},{p.ra},{p.dec + offset * (1 + k % 3) / 3600},{15 + k},{k}"
            for k, p in enumerate(places)
        ]
        path.write_text("\n".join(["name,ra,dec,mag,rank", *lines]))
        add_catalogue(scene.catalog, kind, kind, path)


def test_the_dossier_is_what_the_plain_functions_say(scene: Scene, tmp_path):
    with scene.catalog.transaction("look") as connection:
        # One without a position and an object.
        connection.execute(
            text(
                "UPDATE sources SET ra = NULL, dec = NULL, hpx29 = NULL, object_id = NULL, filter = NULL"
                " WHERE id = (SELECT max(id) FROM sources)"
            )
        )
    for catalogues in (False, True):
        if catalogues:
            some_history(scene)
            some_catalogues(scene, tmp_path)
        with scene.catalog.reading("look") as connection:
            every = connection.scalars(text("SELECT id FROM sources ORDER BY id")).all()
        counts = dict.fromkeys(("history", "before", "points", "near", "matches"), 0)
        for source_id in every:
            known = dossier(scene.catalog, source_id)
            assert known is not None
            source = queue.get_source(scene.catalog, source_id)
            assert source is not None
            assert known.source == source
            assert known.history == labels.history(scene.catalog, source["key"])
            points, before, matches = [], [], []
            if source["object_id"] is not None:
                before = labels.object_history(scene.catalog, source["object_id"], source["key"])
                curve = objects.light_curve(scene.catalog, source["object_id"])
                points = curve.astype(object).where(curve.notna(), None).to_dict(orient="records")
            if source["ra"] is not None:
                found = cross_match(scene.catalog, [source["ra"]], [source["dec"]])
                matches = found.to_dict(orient="records")
            assert known.before == before
            assert [{k: row[k] for k in known.points[0]} for row in points] == known.points
            assert known.near == queue.neighbours(scene.catalog, source, NEAR_ARCSEC)
            assert [{k: row[k] for k in known.matches[0]} for row in matches] == known.matches
            for name in counts:
                counts[name] += len(getattr(known, name))
        assert counts["points"] > 50
        assert all(counts.values()) is catalogues, counts
    assert dossier(scene.catalog, 10**15) is None


def test_a_token_sent_for_two_sources_is_kept_once(scene: Scene):
    with scene.catalog.reading("look") as connection:
        one, other = connection.scalars(text("SELECT id FROM sources WHERE state = 'unseen' LIMIT 2")).all()
    first = labels.record(scene.catalog, one, who="eve", verdict="real", token="the-same-one")
    second = labels.record(scene.catalog, other, who="eve", verdict="bogus", token="the-same-one")
    assert second["id"] == first["id"]
    assert (second["state"], second["labels"]) == ("unseen", 0), "nothing was said of the other"


def test_a_curve_is_drawn_in_microjansky_only_where_every_point_can_be():
    rows = [
        {"exposure_id": "<a>", "source_id": 7, "filter": "g", "mjd": 1.0, "flux": 100.0, "flux_err": 5.0, "snr": 20.0,
         "upper_limit": 15.0, "zero_point": 31.4},
        {"exposure_id": "b", "source_id": None, "filter": None, "mjd": 2.0, "flux": 1.0, "flux_err": 5.0, "snr": 0.2,
         "upper_limit": 16.0, "zero_point": 31.4},
    ]  # fmt: skip
    assert microjansky(rows) == ([pytest.approx(1e-3)] * 2, "µJy")
    svg = light_curve_svg(rows, now=1.5)
    assert "&lt;a&gt;: 0.1 ± 0.005 µJy" in svg
    assert "b: below 0.016 µJy (3σ)" in svg
    assert svg.count('data-source="7"') == 1
    assert 'class="now"' in svg
    rows[1]["zero_point"] = None
    assert microjansky(rows) == ([1.0, 1.0], "counts")
    assert "100 ± 5 counts" in light_curve_svg(rows)
    assert light_curve_svg([]) == ""
    assert "<svg" in light_curve_svg(rows[:1]), "one point has no width and no height"
