"""Trained on one survey, tested on another: every example judged once, by nothing that has seen its object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.cli.app import run
from astrid_pipeline.learning import gathering
from astrid_pipeline.learning.alert_model import load_alert_model, load_alert_network
from astrid_pipeline.learning.correction import LEAST
from astrid_pipeline.learning.cross_survey import OTHERS, SIMULATED, _parts, as_matrix, cross_survey
from astrid_pipeline.learning.curated import CuratedSet, curate
from astrid_pipeline_tests.archives.test_alert_packets import write_avro, ztf_schema
from astrid_pipeline_tests.learning.test_curated import alert


@pytest.fixture(scope="module")
def two_surveys(tmp_path_factory) -> CuratedSet:
    """110 alerts of two surveys that share sky, and one alert of a third."""
    where = tmp_path_factory.mktemp("two")
    write_avro(where / "a.avro", [alert(i, i % 2 == 0) for i in range(111)], ztf_schema())
    sources = gathering.from_alerts([where])
    sources.table["survey"] = np.where(np.arange(111) < 60, "ztf", "lsst")
    sources.table.loc[110, "survey"] = "pgir"
    # Ten places that both have seen.
    for column in ("ra", "dec"):
        sources.table.loc[55:64, column] = sources.table.loc[0:9, column].to_numpy()
    return curate(sources, where / "set")


def test_the_table_says_who_taught_and_who_could_not(two_surveys):
    table = cross_survey(two_surveys, load_alert_model(), load_alert_network())
    assert len(table) == 3 * (1 + 3 + 1)
    known = table.set_index(["trained_on", "tested_on"])
    for trained in (SIMULATED, "ztf", "lsst", OTHERS):
        for tested in ("ztf", "lsst"):
            row = known.loc[(trained, tested)]
            assert row["auc"] > 0.9, "stars and dipoles"
            assert row["low"] <= row["auc"] <= row["high"]
            assert row["why"] == ""
    assert known.loc[(SIMULATED, "ztf"), "labels"] == 0
    assert known.loc[("pgir", "ztf"), "why"].endswith("labels teach nothing")
    assert "cannot be ranked" in known.loc[(SIMULATED, "pgir"), "why"]
    wide = as_matrix(table)
    assert wide.columns.tolist() == ["trained on", "lsst", "ztf"]
    assert wide["trained on"].tolist() == [SIMULATED, "lsst", "ztf", OTHERS]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_nothing_is_judged_by_what_has_seen_its_object(seed, same):
    rng = np.random.default_rng(seed)
    count = 150
    groups, real = rng.integers(0, 90, count), rng.random(count) < 0.5
    survey = rng.random(count) < 0.5
    labels, tested = survey & (rng.random(count) < 0.9), survey if same else ~survey
    parts = _parts(labels, tested, groups, real, seed)
    judged = np.concatenate([test for _, test in parts])
    assert len(judged) == len(set(judged))
    assert set(judged) <= set(np.flatnonzero(tested))
    if min(real[labels].sum(), (~real[labels]).sum()) > 2 * LEAST:
        assert set(judged) == set(np.flatnonzero(tested))
    for taught, test in parts:
        assert not set(groups[taught]) & set(groups[test])
        assert labels[taught].all()


def test_the_command_shows_it_and_writes_a_page(tmp_path: Path, capsys):
    write_avro(tmp_path / "a.avro", [alert(i, i % 2 == 0) for i in range(50)], ztf_schema())
    folder, page = str(tmp_path / "set"), tmp_path / "alerts.html"
    assert run(["curate", str(tmp_path / "a.avro"), "-o", folder]) == 0
    assert run(["evaluate", "--curated", folder, "--report", str(page)]) == 0
    assert "tested on ztf" in capsys.readouterr().out
    html = page.read_text()
    assert "trained here, tested there" in html
    assert "src=" not in html
    few = str(tmp_path / "few")
    assert run(["curate", str(tmp_path / "a.avro"), "-o", few, "--most", "12"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "--curated", few, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cross_survey"]
    assert [row["trained_on"] for row in rows] == [SIMULATED, "ztf"]
    assert "teach nothing" in rows[1]["why"]
