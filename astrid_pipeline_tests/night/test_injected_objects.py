"""Objects that live over the nights: the same in any order, with the flux of their light curve, and found again."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.imaging import subtract
from astrid_pipeline.imaging.quality import prepare
from astrid_pipeline.night import injected_objects
from astrid_pipeline.night.health import survey_summary
from astrid_pipeline.night.injected_changes import STAR_SHARE
from astrid_pipeline.night.injected_objects import (
    CYCLE,
    LEAST_SNR,
    band_of,
    draw_objects,
    followed,
    in_words,
    objects_at,
    plan_objects,
)
from astrid_pipeline.night.injections import HOST_SHARE, inject_exposure
from astrid_pipeline.night.samples import labels
from astrid_pipeline.simulation import simulate_pair
from astrid_pipeline.simulation.transients import supernova_flux
from astrid_pipeline_tests.report.example import make_difference


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(np.random.default_rng(8), (512, 512), transients=0, galaxies=300)


@pytest.fixture(scope="module")
def difference(pair):
    return subtract(pair.science, pair.reference)


@pytest.fixture
def everywhere(monkeypatch):
    """Every galaxy and star is one: a small frame has too few for a twentieth."""
    monkeypatch.setattr(injected_objects, "HOSTS", 1.0)
    monkeypatch.setattr(injected_objects, "STARS", 1.0)


def test_who_it_is_depends_on_field_seed_and_place_alone(pair, everywhere):
    reference = prepare(pair.reference)
    first = draw_objects(reference, "m31", 3)
    assert set(first["kind"]) == {"supernova", "variable"}
    pd.testing.assert_frame_equal(first, draw_objects(reference, "m31", 3))
    for other in (draw_objects(reference, "m31", 4), draw_objects(reference, "m33", 3)):
        assert not np.isin(other["peak"].dropna(), first["peak"].dropna()).any()
    # Made anew, of the same sky with other noise: nearly all of them are there, with dates and places.
    rng = np.random.default_rng(1)
    sigma = float(reference.meta["sky_sigma"])
    again = reference.replace(
        data=(reference.data + rng.normal(0, sigma, reference.shape)).astype(np.float32)
    )
    both = first.merge(draw_objects(again, "m31", 3), on="object_id", suffixes=("", "_again"))
    assert len(both) > 0.8 * len(first)
    sure = both.dropna(subset=["peak"])
    np.testing.assert_array_equal(sure["peak"], sure["peak_again"])
    apart = np.hypot(both["ra"] - both["ra_again"], both["dec"] - both["dec_again"]) * 3600
    assert np.median(apart) < 0.3


def test_a_share_of_the_sources_and_no_more(pair):
    reference = prepare(pair.reference)
    counts = [draw_objects(reference, "f", seed)["kind"].value_counts() for seed in range(40)]
    sources = injected_objects._sources(reference)
    for kind, share, many in (
        ("supernova", injected_objects.HOSTS, int(sources["galaxy"].sum())),
        ("variable", injected_objects.STARS, int((~sources["galaxy"]).sum())),
    ):
        mean = np.mean([c.get(kind, 0) for c in counts])
        # Of two in one cell, the brighter alone is asked.
        assert 0.7 * share * many - 3 * math.sqrt(share * many / 40) <= mean
        assert mean <= share * many + 3 * math.sqrt(share * many / 40)


def one(kind: str, **known) -> pd.DataFrame:
    base = {"object_id": "o", "kind": kind, "ra": 150.0, "dec": 2.0, "flux": 1000.0, "peak": 40.0, "stretch": 1.1,
            "shape": "sawtooth", "period": 0.7, "amplitude": 0.5, "turn": 0.2, "rank": 0.1}  # fmt: skip
    return pd.DataFrame([{**base, **known}])


@given(st.floats(-74, 74), st.integers(0, 500))
def test_a_supernova_follows_its_light_curve_and_the_next_is_another(phase, number):
    mjd = 40.0 + number * CYCLE + phase
    (row,) = objects_at(one("supernova"), mjd, "g").to_dict("records")
    assert row["object_id"] == f"o-{number}"
    assert row["phase"] == pytest.approx(phase, abs=1e-6)
    assert row["flux"] == pytest.approx(
        1000 * float(supernova_flux(phase, "g", stretch=1.1)), rel=1e-6, abs=1e-6
    )


@given(st.floats(50_000, 70_000), st.integers(1, 20))
def test_a_periodic_star_repeats(mjd, turns):
    first, later = (objects_at(one("variable"), t, "r").iloc[0] for t in (mjd, mjd + 0.7 * turns))
    assert first["object_id"] == later["object_id"] == "o"
    assert abs((first["phase"] - later["phase"] + 0.5) % 1 - 0.5) < 1e-6
    if 0.01 < first["phase"] < 0.99:
        assert first["flux"] == pytest.approx(later["flux"], rel=1e-3, abs=0.1)
    assert abs(first["flux"]) < 1000


def test_filters_by_their_letter():
    found = [band_of(name) for name in ("g", "ztf-r", "sdss_i", "V", "H", "F606W", "", "B")]
    assert found == ["g", "r", "i", "g", "z", "r", "r", "g"]


def test_in_an_exposure_nothing_masked_faint_crowded_or_too_many():
    wide = make_difference((400, 400), mjd=61040.0, filter="r", flux_ratio=2.0)
    x, y = np.meshgrid(np.arange(20, 400, 30.0), np.arange(20, 400, 30.0))
    ra, dec = wide.wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    peak = 61040.0 % CYCLE
    rows = [one("supernova", object_id=f"o{i}", ra=a, dec=d, peak=peak, flux=50.0 + i, rank=(i * 7 % 100) / 100)
            for i, (a, d) in enumerate(zip(ra, dec, strict=True))]  # fmt: skip
    beside = rows[0].assign(object_id="beside", ra=ra[0] + 0.5 / 3600, rank=0.99)
    faint, off = (
        rows[1].assign(object_id="faint", flux=1.0, rank=0.995),
        rows[0].assign(object_id="off", dec=10.0),
    )
    table = pd.concat([*rows, beside, faint, off])
    plan = plan_objects(table, wide, hosts=1000, stars=0)
    assert len(plan) == len(rows)
    assert (plan["snr"] >= LEAST_SNR).all()
    number = plan["object_id"].str.extract(r"o(\d+)-")[0].astype(float)
    np.testing.assert_allclose(plan["flux"], 2 * (50 + number))
    np.testing.assert_allclose(plan["flux"] / plan["snr"], 10.0)
    few = plan_objects(table, wide, hosts=5, stars=0)
    assert len(few) == 5
    ranks = pd.Series({f"o{i}": row["rank"].iloc[0] for i, row in enumerate(rows)})
    assert ranks[few["object_id"].str.rsplit("-", n=1).str[0]].max() <= np.sort(ranks)[4]
    # What is too faint tonight keeps its place: the same objects are put in on all nights.
    dark = pd.concat([rows[0].assign(flux=1.0, rank=-1.0), *rows[1:]])
    assert len(plan_objects(dark, wide, hosts=5, stars=0)) == 4
    masked = wide.replace(mask=np.ones_like(wide.mask))
    assert not len(plan_objects(table, masked, hosts=1000, stars=0))
    assert not len(plan_objects(table, wide.replace(wcs=None), hosts=1000, stars=0))


def test_over_the_nights_one_object_is_put_in_and_found_by_its_light_curve(pair, difference, everywhere):
    from astrid_pipeline.learning import load_model

    model = load_model()
    reference = prepare(pair.reference)
    objects = draw_objects(reference, "m31", 0)
    fluxes = {}
    shining = plan_objects(objects, difference, hosts=50, stars=0)
    # The first to be put in, on a galaxy with little light of its own; bright enough to be seen all around its peak.
    name = shining.loc[(shining["flux"] / shining["snr"]).idxmin(), "object_id"].rsplit("-", 1)[0]
    mine = objects["object_id"] == name
    objects.loc[mine, "rank"] = -1.0
    objects.loc[mine, "flux"] = (
        60 * float(np.median(difference.flux_err)) / float(difference.meta["flux_ratio"])
    )
    peak, stretch = float(objects.loc[mine, "peak"].iloc[0]), float(objects.loc[mine, "stretch"].iloc[0])
    nights = []
    for phase in (12.0, -6.0, 0.0):
        mjd = peak + 407 * CYCLE + phase
        science = pair.science.replace(meta={"mjd": mjd})
        made = inject_exposure(
            science,
            pair.reference,
            difference.replace(meta={"mjd": mjd}),
            np.random.default_rng(round(100 + phase)),
            model,
            objects=objects,
        )
        truth = made.truth
        hosts = injected_objects._sources(reference)["galaxy"].sum()
        assert truth["on_galaxy"].sum() <= math.ceil(HOST_SHARE * hosts) + 1
        stars = len(injected_objects._sources(reference)) - hosts
        assert (truth["kind"] == "variable").sum() <= math.ceil(STAR_SHARE * stars) + 1
        (row,) = truth[truth["object_id"] == f"{name}-407"].to_dict("records")
        assert row["kind"] == "supernova"
        assert row["phase"] == pytest.approx(phase, abs=1e-6)
        fluxes[phase] = row["flux"]
        assert row["detected"], f"S/N {row['snr']:.0f} at phase {phase}"
        assert row["measured_flux"] == pytest.approx(row["flux"], rel=0.25)
        assert (labels(made, made.detections.head(0), "science")["kind"] != "supernova").all()
        nights.append((f"2026-01-{10 + phase:02.0f}", in_words(truth)))
    for phase, flux in fluxes.items():
        share = float(supernova_flux(phase, "r", stretch=stretch))
        assert flux == pytest.approx(fluxes[0.0] * share, rel=1e-3)
    table = followed(nights).set_index("object_id")
    assert table.loc[f"{name}-407", ["nights", "found"]].tolist() == [3, 3]
    assert table.loc[f"{name}-407", ["first_phase", "last_phase"]].tolist() == [-6.0, 12.0]


def test_the_survey_s_summary_counts_what_was_followed():
    from astrid_pipeline.archives.base import Field

    def night(day: int, **found: bool) -> pd.DataFrame:
        said = [
            {"object_id": k, "kind": "supernova", "snr": 9.0, "phase": day, "detected": v}
            for k, v in found.items()
        ]
        row = dict.fromkeys(("exposures", "problems", "detections", "injected", "recovered"), 1)
        return pd.DataFrame([{**row, "field": "f", "night": f"2026-01-0{day}", "filter": "r", "depth": 21.0,
                              "score_sigma": 1.0, "objects": json.dumps(said)}])  # fmt: skip

    tables = {
        "f|2026-01-01": night(1, a=True, b=False).drop(columns="objects"),
        "f|2026-01-02": night(2, a=True, b=False),
        "f|2026-01-03": night(3, a=True, b=True),
        "f|2026-01-04": night(4, a=True, c=False),
    }

    class Products:
        def nights(self, asset: str, owner: str) -> list[str]:
            return [key.partition("|")[2] for key in tables]

        def table(self, asset: str, partition: str | None) -> pd.DataFrame:
            return tables[str(partition)]

    (row,) = survey_summary([Field("f", 0, 0, 1)], Products()).to_dict("records")
    assert (row["objects"], row["objects_found"], row["objects_followed"]) == (3, 2, 1)
    assert not len(followed([("2026-01-01", "[]"), ("2026-01-02", "")]))
