"""What people have decided, as files; and the commands that make keys."""

from __future__ import annotations

import json
import uuid

import pandas as pd
import pytest
from astropy.table import Table
from sqlalchemy import text
from typer.testing import CliRunner

from astrid_pipeline.catalog import access, export, labels, queue
from astrid_pipeline.cli import key as key_commands
from astrid_pipeline.cli import review as review_commands
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.resources import catalogue

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def labelled(scene):
    """The scene with three labels: a supernova, a variable star, a bogus one."""
    rows = queue.list_sources(scene.catalog, queue.Filter(sort="id"), 60).rows
    by_object = {row["object"]: row for row in rows}
    chosen = list(by_object.values())[:3]
    for row, (verdict, name) in zip(
        chosen, [("real", "supernova"), ("real", "variable star"), ("bogus", None)], strict=True
    ):
        labels.record(
            scene.catalog,
            row["id"],
            who="ada",
            verdict=verdict,
            class_name=name,
            token=uuid.uuid4().hex,
            note='é, "x"',
        )
    return [row["object"] for row in chosen]


@pytest.mark.parametrize("kind", ["csv", "vot", "parquet"])
def test_labels_and_objects_come_back_from_files(scene, labelled, tmp_path, kind):
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "vot": lambda p: Table.read(p).to_pandas()}[kind]
    path = tmp_path / f"labels.{kind}"
    assert export.write(scene.catalog, path, "labels") == 3
    table = read(path)
    assert list(table["verdict"]) == ["real", "real", "bogus"]
    assert table["note"][0] == 'é, "x"'
    path = tmp_path / f"objects.{kind}"
    count = export.write(scene.catalog, path, "objects")
    table = read(path).set_index("name")
    assert len(table) == count
    assert table.loc[labelled[0], "called_real"] == 1
    assert table.loc[labelled[0], "label_class"] == "supernova"
    assert table.loc[labelled[2], "called_bogus"] == 1


def test_the_tns_report_holds_confirmed_transients_only(scene, labelled, tmp_path):
    path = tmp_path / "tns.json"
    assert export.write(scene.catalog, path, "objects", reporter="A. Observer, for AstrID") == 1
    (report,) = json.loads(path.read_text())["at_report"].values()
    assert report["internal_name"] == labelled[0]
    assert report["discovery_datetime"].startswith("2026-01-04")
    assert report["photometry"]["photometry_group"]["0"]["filter_value"] == "21"
    assert report["non_detection"]["archiveid"] == "0", "there is no earlier night"
    with pytest.raises(ConfigError, match="who reports"):
        export.write(scene.catalog, path, "objects")
    with pytest.raises(ConfigError, match="not a kind of file"):
        export.write(scene.catalog, tmp_path / "x.doc", "labels")


def test_the_commands(scene, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "open_catalogue", lambda *a: scene.catalog)
    run = CliRunner().invoke
    made = run(key_commands.app, ["create", "robot", "--scope", "read"])
    assert made.exit_code == 0, made.output
    secret = made.output.strip()
    assert access.check_key(scene.catalog, secret) == ("robot", ["read"])
    listed = run(key_commands.app, ["list"]).output
    assert "robot" in listed
    assert secret not in listed
    assert run(key_commands.app, ["revoke", secret.split("_")[1]]).exit_code == 0
    assert access.check_key(scene.catalog, secret) is None
    person = run(key_commands.app, ["person", "ada"], input="a long password\na long password\n")
    assert person.exit_code == 0, person.output
    assert access.check_password(scene.catalog, "ada", "a long password") == ["read", "label"]
    assert access.check_password(scene.catalog, "eve", "a long password") is None
    assert run(key_commands.app, ["disable", "ada"]).exit_code == 0
    assert access.check_password(scene.catalog, "ada", "a long password") is None
    assert access.person_scopes(scene.catalog, "ada") is None, "a session that is open ends"
    (tmp_path / "stars.csv").write_text("name,ra,dec\na,1,2\nb,3,4\n")
    kept = run(review_commands.app, ["match", str(tmp_path / "stars.csv"), "--kind", "star"])
    assert kept.exit_code == 0, kept.exception
    assert kept.output == "stars: 2 entries\n"
    written = run(review_commands.app, ["export", str(tmp_path / "l.csv")])
    assert written.output.startswith("3 rows")
    with scene.catalog.reading("look") as connection:
        trail = connection.execute(text("SELECT who, action, what FROM audit_log ORDER BY id")).all()[-2:]
    assert [tuple(entry) for entry in trail] == [
        (review_commands.user_name(), "keep catalogue", {"name": "stars", "kind": "star", "entries": 2}),
        (review_commands.user_name(), "export", {"what": "labels", "file": "l.csv", "rows": 3}),
    ]
    refused = run(review_commands.app, ["export", str(tmp_path / "l.doc")])
    assert isinstance(refused.exception, ConfigError)
