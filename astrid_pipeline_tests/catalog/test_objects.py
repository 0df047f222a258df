"""Objects over nights and filters, labels that survive a night made again, light curves, users' catalogues."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, labels, matching, objects
from astrid_pipeline.errors import ReadError
from astrid_pipeline.services import postgres
from astrid_pipeline_tests.catalog.test_catalog import detections, observations
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres

RA, DEC = 10.68, 41.27


@pytest.fixture(scope="module")
def catalog() -> Iterator[Catalog]:
    with home() as made:
        opened = Catalog(postgres.database_url("astrid", made))
        yield opened
        opened.close()


@pytest.fixture
def field(catalog: Catalog) -> str:
    """A field of its own for each test, all at different places."""
    name = f"f{uuid.uuid4().hex[:8]}"
    catalog.add_field(Field(name, RA, DEC, 0.5, ("g", "r")))
    yield name
    catalog.remove_field(name)


def finds(places: list[tuple[float, float]], exposure: str, mjd: float, filter: str = "g") -> pd.DataFrame:
    """Sources at offsets (arcsec east, north) of one exposure; a pixel is an arcsec."""
    east, north = (np.array(v, float) for v in zip(*places, strict=True))
    return pd.DataFrame(
        {
            "candidate_id": [f"{exposure}-{i}" for i in range(len(places))],
            "exposure_id": exposure,
            "x": 500 - east,
            "y": 500 + north,
            "ra": RA + east / 3600 / np.cos(np.radians(DEC)),
            "dec": DEC + north / 3600,
            "mjd": mjd,
            "filter": filter,
            "flux": 100.0,
            "flux_err": 5.0,
            "snr": 20.0,
            "flags": 0,
            "dipole": 0.1,
        }
    )


def put(catalog: Catalog, field: str, night: str, *tables: pd.DataFrame, only: int | None = None) -> None:
    """Keep a night; the first `only` sources of it (all by default) are detections."""
    table = pd.concat(tables, ignore_index=True)
    found = detections(table if only is None else table.head(only))
    catalog.replace_partition(
        field, night, observations=observations(), candidates=table, detections=found, run_id="r"
    )


def sources(catalog: Catalog, field: str) -> pd.DataFrame:
    query = (
        "SELECT s.*, o.name, o.kind FROM sources s JOIN fields f ON f.id = s.field_id "
        "LEFT JOIN objects o ON o.id = s.object_id WHERE f.name = :field ORDER BY s.mjd, s.x, s.id"
    )
    with catalog.reading("test") as connection:
        return pd.read_sql(text(query), connection, params={"field": field})


def test_detections_of_nights_and_filters_become_one_object(catalog, field):
    put(catalog, field, "2026-01-02", finds([(0, 0), (60, 0)], f"{field}a", 61042.1))
    put(catalog, field, "2026-01-03", finds([(0.4, -0.3), (90, 0)], f"{field}b", 61043.1, "r"))
    table = sources(catalog, field)
    by_name = table.groupby("name").size()
    assert sorted(by_name) == [1, 1, 2]
    name = by_name.idxmax()
    assert name.startswith("AST26")
    assert len(name) == 11
    with catalog.reading("test") as connection:
        row = connection.execute(
            text("SELECT nights, detections, kind, ra FROM objects WHERE name = :n"), {"n": name}
        ).one()
    assert tuple(row)[:3] == (2, 2, "stationary")
    assert row.ra == pytest.approx(RA + 0.2 / 3600 / np.cos(np.radians(DEC)), abs=1e-6)


def test_a_night_made_again_keeps_names_ids_and_labels(catalog, field):
    before = finds([(0, 0), (60, 0), (120, 0)], f"{field}a", 61042.1)
    put(catalog, field, "2026-01-02", before)
    first = sources(catalog, field)
    labelled = first.iloc[1]
    labels.record(
        catalog, int(labelled.id), who="ada", verdict="real", token=uuid.uuid4().hex, class_name="nova"
    )
    moved = before.assign(x=before.x + 0.6, candidate_id=[f"new{field}{i}" for i in range(3)])
    put(catalog, field, "2026-01-02", moved.iloc[::-1])
    again = sources(catalog, field)
    assert list(again.id) == list(first.id)
    assert list(again.key) == list(first.key)
    assert list(again.name) == list(first.name)
    row = again[again.id == labelled.id].iloc[0]
    assert (row.state, row.label_class, row.labels) == ("real", "nova", 1)
    with catalog.reading("test") as connection:
        validated = connection.execute(
            text("SELECT is_validated FROM detections d JOIN fields f ON f.id = field_id WHERE f.name = :f"),
            {"f": field},
        ).scalars()
        assert sorted(validated) == [False, False, True]
    # What was labelled and is not found any more stays; what was not labelled goes.
    put(catalog, field, "2026-01-02", moved.iloc[:1])
    left = sources(catalog, field)
    assert (
        dict(zip(left.id, left.present, strict=True)) == {first.id[2]: True, labelled.id: False}
        or len(left) == 2
    )
    assert not left[left.id == labelled.id].present.item()


def test_one_exposure_may_lie_in_many_fields_that_overlap(catalog, field):
    names = [field, *(f"{field}-{number}" for number in range(4))]
    for name in names[1:]:
        catalog.add_field(Field(name, RA, DEC, 0.5, ("g",)))
    try:
        for name in [*names, *names]:  # made, and made again
            table = finds([(0, 0)], "shared", 61042.1)
            catalog.replace_partition(
                name,
                "2026-01-02",
                observations=observations(),
                candidates=table,
                detections=detections(table),
                run_id="run",
            )
        with catalog.reading("look") as connection:
            keys = connection.scalars(text("SELECT key FROM sources WHERE exposure_id = 'shared'")).all()
        assert len(keys) == len(set(keys)) == len(names)
    finally:
        for name in names[1:]:
            catalog.remove_field(name)


def test_labels_outlive_their_field(catalog, field):
    table = finds([(0, 0)], f"{field}a", 61042.1)
    put(catalog, field, "2026-01-02", table)
    labels.record(
        catalog, int(sources(catalog, field).id[0]), who="ada", verdict="bogus", token=uuid.uuid4().hex
    )
    catalog.remove_field(field)
    catalog.add_field(Field(field, RA, DEC, 0.5, ("g",)))
    put(catalog, field, "2026-01-02", table.assign(x=table.x + 1.0))
    row = sources(catalog, field).iloc[0]
    assert (row.state, row.labels) == ("bogus", 1)
    assert len(labels.history(catalog, row.key)) == 1


def test_a_mover_gets_a_track_and_keeps_its_name(catalog, field):
    night = [finds([(30 * k, -10 * k), (200, 0)], f"{field}{k}", 61042.0 + k / 24) for k in range(4)]
    put(catalog, field, "2026-01-02", *night)
    first = sources(catalog, field)
    assert sorted(first.groupby("name").kind.first()) == ["moving", "stationary"]
    assert sorted(first.groupby("name").size()) == [4, 4]
    with catalog.reading("test") as connection:
        track = connection.execute(
            text(
                "SELECT rate_ra, rate_dec, t.rms, t.detections, o.name FROM tracks t JOIN objects o"
                " ON o.id = object_id JOIN fields f ON f.id = t.field_id WHERE f.name = :f"
            ),
            {"f": field},
        ).one()
    assert track.rate_ra == pytest.approx(30, abs=0.1)
    assert track.rate_dec == pytest.approx(-10, abs=0.1)
    assert track.rms < 0.05
    assert track.detections == 4
    put(catalog, field, "2026-01-02", *night)
    again = sources(catalog, field)
    assert set(again.name) == set(first.name)


def test_candidates_that_the_model_passed_over_are_there_without_an_object(catalog, field):
    put(catalog, field, "2026-01-02", finds([(0, 0), (60, 0)], f"{field}a", 61042.1), only=1)
    table = sources(catalog, field)
    assert sorted(table.score.isna()) == [False, True]
    assert (table.score.isna() == table.name.isna()).all()
    assert table.features[0]["dipole"] == 0.1


def test_consensus_undo_and_events_that_nobody_can_change(catalog, field):
    put(catalog, field, "2026-01-02", finds([(0, 0)], f"{field}a", 61042.1))
    identity = int(sources(catalog, field).id[0])

    def say(who: str, verdict: str, token: str | None = None) -> dict:
        return labels.record(catalog, identity, who=who, verdict=verdict, token=token or uuid.uuid4().hex)

    assert say("ada", "unsure")["state"] == "unsure"
    first = say("ada", "real", "same" + field)
    assert say("ada", "real", "same" + field)["id"] == first["id"], "the same token is kept once"
    assert first["state"] == "real"
    assert say("bob", "bogus")["state"] == "disputed"
    third = say("cyd", "bogus")
    assert third["state"] == "bogus"
    with pytest.raises(labels.NotYoursError, match="cyd gave"):
        labels.undo(catalog, third["id"], who="ada", token=uuid.uuid4().hex)
    assert labels.undo(catalog, third["id"], who="cyd", token=uuid.uuid4().hex)["state"] == "disputed"
    assert labels.undo(catalog, third["id"], who="cyd", token=uuid.uuid4().hex)["state"] == "disputed"
    assert labels.undo(catalog, first["id"], who="ada", token=uuid.uuid4().hex)["state"] == "bogus"
    given = labels.history(catalog, sources(catalog, field).key[0])
    assert [e["verdict"] for e in given] == ["unsure", "real", "bogus", "bogus", None, None]
    for statement in ("UPDATE validation_events SET who = 'eve'", "DELETE FROM validation_events"):
        with pytest.raises(IntegrityError, match="only ever added"), catalog.engine.begin() as connection:
            connection.execute(text(statement))
    with pytest.raises(labels.NoSuchSourceError):
        labels.record(catalog, 10**12, who="ada", verdict="real", token="t")


def test_kappa_is_that_of_fleiss():
    assert labels.fleiss_kappa([(2, 0), (0, 2), (2, 0), (0, 2)]) == pytest.approx(1.0)
    assert labels.fleiss_kappa([(1, 1)] * 6) == pytest.approx(-1.0)
    assert labels.fleiss_kappa([(2, 0)] * 3) is None
    # Worked by hand: shares of agreeing pairs 1, 1 and 1/2 (3 of 6 pairs), 7 of 10 votes are of the first kind.
    observed, chance = (1 + 1 + 1 / 2) / 3, 0.7**2 + 0.3**2
    assert labels.fleiss_kappa([(4, 0), (0, 2), (3, 1)]) == pytest.approx((observed - chance) / (1 - chance))


def test_light_curves_are_replaced_by_night(catalog, field):
    put(catalog, field, "2026-01-02", finds([(0, 0), (60, 0)], f"{field}a", 61042.1))
    mine = objects.objects_of_field(catalog, field)
    assert len(mine) == 2
    points = points_of([*mine.id, 10**12], [3.0, -1.0, 1.0])
    assert objects.replace_points(catalog, field, "2026-01-02", points) == 2
    assert objects.replace_points(catalog, field, "2026-01-02", points.head(1)) == 1
    curve = objects.light_curve(catalog, int(mine.id[0]))
    assert list(curve.flux) == [3.0]
    assert objects.objects_of_field(catalog, field).nights[0]


def points_of(ids: list[int], flux: list[float]) -> pd.DataFrame:
    """Points of an exposure, one an object."""
    return pd.DataFrame(
        {
            "object_id": ids,
            "exposure_id": "e1",
            "mjd": 61042.1,
            "filter": "g",
            "flux": flux,
            "flux_err": 1.0,
            "snr": flux,
            "upper_limit": 5.0,
            "zero_point": 25.0,
            "mag": np.nan,
            "mag_err": np.nan,
            "mag_limit": 23.5,
            "flags": 0,
        }
    )


def test_nights_made_at_once_leave_each_others_points(catalog, field):
    """A later night puts its new objects' points on an earlier night, while that one puts its own there."""
    put(catalog, field, "2026-01-02", finds([(0, 0), (60, 0), (120, 0)], f"{field}a", 61042.1))
    first, second, third = (int(i) for i in objects.objects_of_field(catalog, field).id)
    listed = {"the night": [first, second], "a later one": [second, third]}
    start, failures = threading.Barrier(len(listed)), []

    def work(ids: list[int]) -> None:
        try:
            for turn in range(40):
                start.wait()
                objects.replace_points(catalog, field, "2026-01-02", points_of(ids, [turn] * len(ids)), ids)
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(ids,)) for ids in listed.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    curves = {i: objects.light_curve(catalog, i) for i in (first, second, third)}
    assert {i: list(curve.flux) for i, curve in curves.items()} == {i: [39.0] for i in curves}


def test_points_of_what_turns_out_to_move_go(catalog, field):
    put(catalog, field, "2026-01-02", finds([(0, 0), (60, 0)], f"{field}a", 61042.1))
    stays, moves = (int(i) for i in objects.objects_of_field(catalog, field).id)
    both = points_of([stays, moves], [1.0, 2.0])
    assert objects.replace_points(catalog, field, "2026-01-02", both, [stays, moves]) == 2
    with catalog.transaction("test") as connection:
        connection.execute(text("UPDATE objects SET kind = 'moving' WHERE id = :id"), {"id": moves})
    assert objects.replace_points(catalog, field, "2026-01-02", both.head(1), [stays]) == 1
    assert [len(objects.light_curve(catalog, i)) for i in (stays, moves)] == [1, 0]


def test_names_are_letters_that_grow():
    assert objects.object_name(2026, 0) == "AST26aaaaaa"
    assert objects.object_name(2026, 27) == "AST26aaaabb"
    assert objects.object_name(2031, 26**6) == "AST31baaaaaa"


@pytest.mark.parametrize("kind", ["csv", "parquet", "vot", "sexagesimal"])
def test_users_catalogues_are_matched(catalog, tmp_path, kind):
    table = pd.DataFrame(
        {
            "Name": ["host", "far"],
            "RA": [50.0, 50.1],
            "Dec": [-20.0, -20.0],
            "mag": [17.0, 18.0],
            "z": [0.1, 0.2],
        }
    )
    path = tmp_path / f"known.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "vot":
        from astropy.table import Table

        Table.from_pandas(table).write(path, format="votable")
    else:
        path = tmp_path / "known.txt"
        path.write_text(
            "sn_name | sn_ra | sn_dec | z\n---+---+---+---\nhost | 03 20 00.0 | - 20 00 00.0 | 0.1\n"
        )
    matching.add_catalogue(catalog, "known", "galaxy", path)
    count = matching.add_catalogue(catalog, "known", "galaxy", path)
    assert count == (1 if kind == "sexagesimal" else 2)
    found = matching.cross_match(catalog, [50.0, 120.0], [-20.0 + 5 / 3600, 0.0])
    assert list(found["name"]) == ["host"]
    assert found.separation[0] == pytest.approx(5.0, abs=0.01)
    assert found.properties[0]["z"] == pytest.approx(0.1)
    assert list(found["index"]) == [0]


def test_a_file_that_is_no_catalogue_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("colour,size\nred,3\n")
    with pytest.raises(ReadError, match="no columns of positions"):
        matching.read_catalogue(tmp_path / "a.csv")
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(ReadError, match="not a table"):
        matching.read_catalogue(tmp_path / "b.parquet")


@pytest.mark.real_data
def test_a_real_catalogue_of_supernovae(shared_data: Path):
    table = matching.read_catalogue(shared_data / "catalogs" / "sncat_compiled.txt")
    # 6539 rows, of which some have no position; 2014dm is the first.
    assert len(table) > 6000
    row = table[table.name == "2014dm"].iloc[0]
    assert row.ra == pytest.approx(15 * (4 + 8 / 60 + 7.13 / 3600), abs=1e-6)
    assert row.dec == pytest.approx(-(8 + 49 / 60 + 37.0 / 3600), abs=1e-6)
    stars = matching.read_catalogue(shared_data / "catalogs" / "all_refcat2_ey_uma.ecsv")
    assert len(stars) == 187
