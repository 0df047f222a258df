"""Curated examples: who labelled them, a balanced sample, no object in two splits, and that they teach."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrid_pipeline.cli.app import run
from astrid_pipeline.cli.curate import dated
from astrid_pipeline.errors import MissingProductError, ModelError, ReadError
from astrid_pipeline.learning import gathering
from astrid_pipeline.learning.alert_fitting import VIEWS, Material, fit_forests
from astrid_pipeline.learning.alert_model import FEATURES, load_alert_network
from astrid_pipeline.learning.curated import SNR_EDGES, CuratedSet, balanced, curate, objects_of
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.stamps import measure
from astrid_pipeline_tests.archives.test_alert_packets import write_avro, ztf_schema
from astrid_pipeline_tests.learning.test_alert_scores import half_of_it_false, packet
from astrid_pipeline_tests.learning.test_stamps import noise, star


def alert(number: int, real: bool, **source):
    image = star(25) if real else star(60, x=-1.0) - star(60, x=1.0)
    known = {"drb": 0.97 if real else 0.03, "ra": 10 + number * 0.01, "dec": 5.0, "jd": 2460000.5 + number}
    return packet(number, image + noise(number), **{**known, **source})


@pytest.fixture(scope="module")
def alerts(tmp_path_factory) -> Path:
    """60 alerts: every other one real by the survey's score; three of one object, one that the survey is unsure of."""
    where = tmp_path_factory.mktemp("alerts")
    records = [alert(i, i % 2 == 0) for i in range(59)] + [alert(59, True, drb=0.6)]
    for record in records[10:13]:
        record["objectId"] = "ZTF20together"
    write_avro(where / "night.avro", records, ztf_schema())
    return where


def slow_objects(table: pd.DataFrame) -> list[set[int]]:
    """Join rows pair by pair until nothing changes."""
    groups = [{i} for i in range(len(table))]
    rows = table.to_dict("records")

    def same(a, b) -> bool:
        named = a["object_id"] != "" and (a["survey"], a["object_id"]) == (b["survey"], b["object_id"])
        return named or np.hypot(a["ra"] - b["ra"], a["dec"] - b["dec"]) * 3600 <= gathering_radius

    changed = True
    while changed:
        changed = False
        for i in range(len(groups)):
            for j in range(i):
                if any(same(rows[a], rows[b]) for a in groups[i] for b in groups[j]):
                    groups[j] |= groups.pop(i)
                    changed = True
                    break
            if changed:
                break
    return groups


gathering_radius = 2.0

names = st.sampled_from(["", "a", "b", "c"])
places = st.lists(
    st.tuples(names, st.sampled_from(["ztf", "lsst"]), st.integers(0, 8)), min_size=1, max_size=9
)


@settings(max_examples=80, deadline=None)
@given(places)
def test_objects_are_those_of_the_slow_twin(rows):
    # On the equator, 1.5 arcsec apart: neighbours are one object, and so are their neighbours.
    table = pd.DataFrame(
        [
            {"survey": s, "object_id": name, "ra": 10 + k * 3.1 / 3600, "dec": 0.0, "file": "f", "record": i}
            for i, (name, s, k) in enumerate(rows)
        ]
    )
    table.loc[table.index % 3 == 1, "ra"] += 1.5 / 3600
    found = objects_of(table)
    mine = {frozenset(np.flatnonzero(found == name)) for name in set(found)}
    assert mine == {frozenset(group) for group in slow_objects(table)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(0, 5))
def test_a_sample_is_shared_out_evenly(most, seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "survey": rng.choice(["ztf", "lsst", "pgir"], 120, p=[0.8, 0.15, 0.05]),
            "real": rng.random(120) < 0.8,
            "class": None,
            "snr": rng.choice([5.0, 10.0, 40.0], 120),
            "object": rng.integers(0, 50, 120).astype(str),
        }
    )
    rows = balanced(table, most, seed)
    assert len(rows) == len(set(rows)) == min(most, 120)
    taken, all_ = table.iloc[rows]["survey"].value_counts(), table["survey"].value_counts()
    for name in all_.index:
        # Whoever got less than another had no more to give.
        if taken.get(name, 0) < all_[name]:
            assert taken.get(name, 0) >= taken.max() - 1
    ztf, of_all = table.iloc[rows].query("survey == 'ztf'"), table.query("survey == 'ztf'")
    for kind, other in ((True, False), (False, True)):
        if (ztf["real"] == kind).sum() < (of_all["real"] == kind).sum():
            assert (ztf["real"] == kind).sum() >= (ztf["real"] == other).sum() - 1


def test_in_a_stratum_every_object_gives_one_before_any_gives_two():
    table = pd.DataFrame(
        {
            "survey": "ztf",
            "real": True,
            "class": None,
            "snr": 30.0,
            "object": ["often"] * 50 + list("abcdefghi"),
        }
    )
    assert table.iloc[balanced(table, 10)]["object"].nunique() == 10
    assert SNR_EDGES[-1] < 30


def test_classes_get_equal_shares():
    kinds = ["moving"] * 40 + ["SN Ia", "SN II", "transient"] * 10 + [None] * 30
    table = pd.DataFrame({"survey": "ztf", "real": True, "class": kinds, "snr": 30.0})
    table["object"] = table.index.astype(str)
    chosen = table.iloc[balanced(table, 30)]["class"]
    assert (chosen == "moving").sum() == 10
    assert chosen.isna().sum() == 10


def test_labels_of_four_springs_and_what_contradicts(alerts, tmp_path):
    sources = gathering.from_alerts([alerts])
    assert Counter(sources.table["label_source"].fillna("")) == {"survey_score": 59, "": 1}
    mjd = sources.table["mjd"].to_numpy()
    catalogue = pd.DataFrame(
        {
            "ra": [10.59, 10.0 + 1 / 3600, 10.01, 10.02, 10.04],
            "dec": 5.0,
            # 20 is too late for its object; 4 has no date.
            "mjd": [mjd[59] - 100, mjd[0] + 10, mjd[1], mjd[2] - 400, np.nan],
            "type": ["SN Ia", "", "SN II", "SN Ia", "AGN"],
        }
    )
    known, against = gathering.match_catalogue(sources, catalogue, name="tns")
    table = known.table
    assert against == 1
    assert np.isnan(table.at[1, "real"]), "the survey says bogus, the catalogue real"
    assert [table.at[i, "class"] for i in (59, 0, 4)] == ["SN Ia", "transient", "AGN"]
    assert (table.loc[[59, 0, 4], "label_source"] == "catalogue:tns").all()
    assert table.at[2, "label_source"] == "survey_score"
    verdicts = pd.DataFrame(
        {
            "objectId": ["ZTF20together", "nobody", table.at[0, "object_id"]],
            "label": ["Bogus", "real", "bogus"],
        }
    )
    said, missing = gathering.match_verdicts(known, verdicts)
    assert missing == 1
    assert (said.table.loc[[10, 11, 12, 0], "real"] == 0).all(), "people's word is above all others'"
    assert (said.table.loc[[10, 11, 12, 0], "label_source"] == "human").all()
    again, _ = gathering.match_catalogue(said, catalogue, name="tns")
    assert again.table.at[0, "label_source"] == "human"
    with pytest.raises(ReadError, match="maybe"):
        gathering.match_verdicts(sources, verdicts.assign(label="maybe"))
    with pytest.raises(ReadError, match="name them label"):
        gathering.match_verdicts(sources, verdicts.rename(columns={"objectId": "which"}))


def test_a_known_mover_is_one_whatever_the_score(tmp_path):
    schema = ztf_schema()
    schema["fields"][2]["type"]["fields"].append(
        {"name": "ssdistnr", "type": ["null", "float"], "default": None}
    )
    write_avro(tmp_path / "a.avro", [alert(0, True, drb=0.1, ssdistnr=1.0), alert(1, True)], schema)
    table = gathering.from_alerts([tmp_path]).table
    assert table["label_source"].tolist() == ["solar_system", "survey_score"]
    assert table.loc[0, ["real", "class"]].tolist() == [1.0, "moving"]


def test_what_is_kept_is_what_was_read_and_objects_stay_together(alerts, tmp_path):
    sources = gathering.from_alerts([alerts])
    made = curate(sources, tmp_path / "set", seed=3)
    assert len(made) == 59
    table = made.table
    assert (table.groupby("object")["split"].nunique() == 1).all()
    together = table[table["object_id"] == "ZTF20together"]
    assert len(together) == 3
    assert together["object"].nunique() == 1
    assert len(set(table["split"])) == 3
    for kind in (True, False):
        assert table.loc[table["real"] == kind, "weight"].sum() == pytest.approx(59 / 2, rel=1e-6)
    order = [sources.table.index[sources.table["source_id"] == i][0] for i in table["source_id"]]
    before, after = measure([sources.stamps[i].load() for i in order]), measure(made.stamps())
    np.testing.assert_allclose(after, before, rtol=0.02, atol=0.02)
    assert made.shards.truth["label_source"].tolist() == table["label_source"].tolist()
    assert set(made.shards.truth["label"]) == {"transient", "artefact"}
    assert CuratedSet(tmp_path / "set").hash == made.hash
    with pytest.raises(ModelError, match="not empty"):
        curate(sources, tmp_path / "set")
    frame = pd.read_parquet(tmp_path / "set" / "examples.parquet")
    frame.assign(real=~frame["real"]).to_parquet(tmp_path / "set" / "examples.parquet", index=False)
    with pytest.raises(ReadError, match="not the set's own"):
        CuratedSet(tmp_path / "set")
    with pytest.raises(MissingProductError):
        CuratedSet(tmp_path / "none")


def test_a_detection_comes_once_and_a_person_s_word_stays(tmp_path):
    write_avro(tmp_path / "a.avro", [alert(i, i % 2 == 0) for i in range(6)], ztf_schema())
    first = gathering.from_alerts([tmp_path])
    said = pd.DataFrame({"candid": [first.table.at[0, "source_id"]], "label": ["bogus"]})
    again, _ = gathering.match_verdicts(gathering.from_alerts([tmp_path]), said)
    table = curate(first.plus(again), tmp_path / "set").table
    assert len(table) == 6
    mine = table[table["source_id"] == first.table.at[0, "source_id"]]
    assert mine[["real", "label_source"]].to_numpy().tolist() == [[False, "human"]]


def test_nothing_labelled_is_an_error(tmp_path):
    write_avro(tmp_path / "a.avro", [alert(0, True, drb=0.5)], ztf_schema())
    with pytest.raises(ModelError, match="none of 1 sources has a label"):
        curate(gathering.from_alerts([tmp_path]), tmp_path / "set")


def test_candidates_between_unchanged_frames_are_bogus():
    from astrid_pipeline_tests.learning.helpers import toy_candidates, toy_difference

    difference, _ = toy_difference(3, (128, 128), sources=6, snr=(12, 40))
    candidates = toy_candidates(difference)
    found = gathering.from_difference(difference, candidates, survey="toy", file="a", unchanged=True)
    assert len(found.table) == len(candidates) > 3
    assert (found.table["real"] == 0).all()
    assert set(found.table["label_source"]) == {"unchanged"}
    np.testing.assert_allclose(found.table["snr"], candidates["peak_score"], rtol=0.25)


def test_dates_of_catalogues():
    rows = [{"disc_date": "2014-09-27", "sn_type": "Ia"}, {"JD": "2456928.0"}, {"mjd": 57000.5}, {"date": "2014"},
            {"Discovery_Date": "2019/02/03 12:00:00"}, {}]  # fmt: skip
    found = dated(pd.DataFrame({"properties": rows}))
    np.testing.assert_allclose(found["mjd"], [56927.0, 56927.5, 57000.5, np.nan, 58517.5, np.nan])
    assert found["type"].tolist() == ["Ia", "", "", "", "", ""]


def material(count: int, seed: int, flipped: bool = False) -> Material:
    """Features of which one says all; where `flipped`, its opposite."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(count, len(FEATURES))), columns=list(FEATURES))
    for name in CLASSES:
        table[f"p_{name}"] = 0.3
    real = (table["snr"] > 0).to_numpy() != flipped
    return Material(table, real, np.arange(count) // 2, np.ones(count))


def test_the_share_decides_who_is_believed():
    detector = load_alert_network()
    simulated, curated, test = material(160, 0), material(160, 1, flipped=True), material(200, 2)
    agrees = {}
    for share in (0.0, 0.9):
        scored = fit_forests([simulated], detector, curated, share=share).score(test.features)
        agrees[share] = np.mean((scored["real_probability"] > 0.5) == test.real)
    assert agrees[0.0] > 0.9
    assert agrees[0.9] < 0.1
    with pytest.raises(ModelError, match="share"):
        fit_forests([simulated], detector, curated, share=1.0)


def test_each_kind_of_stamps_and_all_together_grow_a_forest_a_view():
    kinds = [material(120, 0), material(160, 1)]
    made = fit_forests(kinds, load_alert_network())
    assert [member.features for member in made.members] == 3 * list(VIEWS.values())
    assert made.facts["kinds"] == [120, 160]
    assert made.facts["stamps"] == 280
    # A kind of which the opposite is true: where the others agree, it is outvoted, and the doubt is shown.
    odd = fit_forests([*kinds, material(120, 2, flipped=True)], load_alert_network())
    test = material(200, 3)
    scored = odd.score(test.features)
    assert np.mean((scored["real_probability"] > 0.5) == test.real) > 0.9
    assert scored["uncertainty"].median() > 2 * made.score(test.features)["uncertainty"].median()


def test_curate_train_and_score_from_the_command_line(alerts, tmp_path, capsys):
    half_of_it_false(tmp_path / "skies")
    assert run(["curate", str(alerts), "-o", str(tmp_path / "set"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"] == 59
    assert told["without_label"] == 1
    assert told["counts"] == [{"survey": "ztf", "label_source": "survey_score", "real": 30, "bogus": 29}]
    options = ["--skies", str(tmp_path / "skies"), "--share", "0.5", "--workers", "1", "--json"]
    assert run(["train", "--curated", str(tmp_path / "set"), "-o", str(tmp_path / "mine"), *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["facts"]["curated_share"] == 0.5
    rows = {row["part"]: row for row in made["figures"]}
    assert rows["learned"]["real"] + rows["learned"]["bogus"] == made["facts"]["curated"]
    assert sum(rows[part][kind] for part in rows for kind in ("real", "bogus")) == 59
    assert rows["learned"]["auc"] > 0.95, "dipoles and stars, each judged without its object"
    target = tmp_path / "scores.csv"
    model = str(tmp_path / "mine" / "alerts.safetensors")
    assert run(["score", str(alerts), "--model", model, "-o", str(target)]) == 0
    scores = pd.read_csv(target)["real_probability"]
    assert scores[:59:2].mean() > 0.8
    assert scores[1:59:2].mean() < 0.2
    assert run(["train", "--share", "0.5"]) == 2
    assert run(["curate", "-o", str(tmp_path / "none")]) == 2


@pytest.mark.real_data
def test_the_real_alerts_give_139_examples(shared_data, tmp_path):
    made = curate(gathering.from_alerts([shared_data / "alerts"]), tmp_path / "set")
    counts = made.counts().set_index(["survey", "label_source"])
    assert counts.loc[("ztf", "survey_score")].tolist() == [90, 19]
    assert counts.loc[("ztf", "solar_system")].tolist() == [18, 0]
    assert counts[["real", "bogus"]].sum().tolist() == [115, 24]
    assert (made.table.groupby("object")["split"].nunique() == 1).all()
