"""The simulation of a night as a queue against theory and a slow twin, and that money adds up."""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline_tests.benchmarks import scale, scale_model
from astrid_pipeline_tests.benchmarks.scale_model import CASES, FEATURES, Fit, demand, fit, limits
from astrid_pipeline_tests.benchmarks.scale_queues import (
    Cost,
    Design,
    Survey,
    Work,
    flow,
    jobs_of,
    simulate,
)

COST = Cost(found_run=6.0, found_exposure=5.0, rest_run=4.0, rest_exposure=1.0, start=0.5, row=0.001)


def _wait(arrivals: np.ndarray, seconds: np.ndarray, servers: int) -> np.ndarray:
    done, _ = flow(arrivals, Work.of(seconds), servers)
    return done - arrivals - seconds


def _interval(waits: list[float]) -> tuple[float, float]:
    """Mean of independent repeats, and four standard errors of it: a test that is right fails once in 16,000."""
    return float(np.mean(waits)), 4 * float(np.std(waits, ddof=1)) / math.sqrt(len(waits))


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (3, 0.8), (8, 0.9)])
def test_poisson_arrivals_at_exponential_servers_wait_as_erlang_says(servers, load):
    # Erlang C: P(wait) = (a^c / c!) (1/(1-rho)) / (sum_k<c a^k/k! + the same); mean wait = P / (c mu - lambda).
    rate, count, waits = load * servers, 6000, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1 / rate, count))
        # The first sixth finds the station emptier than it is in the long run.
        waits.append(float(_wait(arrivals, rng.exponential(1.0, count), servers)[1000:].mean()))
    last = rate**servers / math.factorial(servers) / (1 - load)
    erlang = last / (sum(rate**k / math.factorial(k) for k in range(servers)) + last)
    mean, error = _interval(waits)
    assert abs(mean - erlang / (servers - rate)) < error
    assert error < 0.5 * mean


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_poisson_arrivals_at_one_steady_server_wait_as_pollaczek_and_khinchine_say(load):
    waits = []
    for seed in range(12):
        arrivals = np.cumsum(np.random.default_rng([1, seed]).exponential(1 / load, 6000))
        waits.append(float(_wait(arrivals, np.ones(6000), 1)[1000:].mean()))
    mean, error = _interval(waits)
    assert abs(mean - load / (2 * (1 - load))) < error
    assert error < 0.25 * mean


@given(
    jobs=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20)), min_size=1, max_size=40),
    servers=st.integers(1, 5),
)
def test_a_station_does_what_a_heap_of_free_servers_does(jobs, servers):
    arrivals, seconds = np.array([j[0] for j in jobs]), np.array([j[1] for j in jobs])
    free, wanted = [0.0] * servers, np.zeros(len(jobs))
    for number in np.argsort(arrivals, kind="stable"):
        begin = max(arrivals[number], heapq.heappop(free))
        wanted[number] = begin + seconds[number]
        heapq.heappush(free, wanted[number])
    done, busy = flow(arrivals, Work.of(seconds), servers)
    assert np.allclose(done, wanted)
    assert 0 <= busy["workers"] <= 1 + 1e-9


@given(
    fields=st.integers(1, 30),
    visits=st.integers(1, 4),
    workers=st.integers(1, 12),
    grouping=st.sampled_from(["night", "exposure", "stream"]),
    runs_a_tick=st.integers(1, 30),
)
def test_no_exposure_is_lost_or_quicker_than_its_work(fields, visits, workers, grouping, runs_a_tick):
    survey = Survey(fields, visits, megapixels=4.0, detections=10.0, hours=1.0)
    design = Design(workers, grouping, runs_a_tick=runs_a_tick)
    jobs = jobs_of(survey, design)
    assert set(jobs.of_exposure) == set(range(len(jobs.asked)))
    assert (jobs.asked[jobs.of_exposure] >= jobs.arrivals).all()
    found = simulate(survey, design, COST)
    least = 5.0 + 0.01 + (0 if grouping == "stream" else 6.5)
    assert found["median"] >= least - 1e-9
    assert found["exposures_treated"] >= survey.exposures
    if grouping != "night":
        assert found["exposures_treated"] == survey.exposures


@given(workers=st.integers(1, 20))
def test_more_workers_never_make_it_later_where_all_runs_are_alike(workers):
    survey = Survey(40, 1, megapixels=4.0, detections=10.0, hours=0.2)
    few, more = (simulate(survey, Design(n, "exposure"), COST) for n in (workers, workers + 1))
    assert more["longest"] <= few["longest"] + 1e-9
    assert more["median"] <= few["median"] + 1e-9


@given(
    count=st.integers(1, 30),
    workers=st.integers(1, 4),
    writers=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_what_is_found_is_told_before_a_run_ends_and_never_by_more_writers_than_there_are(
    count, workers, writers, seed
):
    rng = np.random.default_rng(seed)
    asked, parts = rng.uniform(0, 30, count), rng.uniform(0, 10, (4, count))
    work = Work(*parts)
    done, busy = flow(asked, work, workers, writers)
    assert (done >= asked + work.start + work.found + work.rows - 1e-9).all()
    assert all(0 <= share <= 1 + 1e-9 for share in busy.values())
    # Of writers, as of workers, so many finish in a time as their work allows.
    assert work.rows.sum() <= writers * (done.max() - asked.min()) + 1e-9
    if workers == 1:
        # One at a time: all but the last run's rest lies before the last is told.
        whole = work.found + work.rows + work.rest
        assert done.max() - asked.min() >= (whole.sum() - work.rest.max()) - 1e-9


def test_a_night_is_made_again_with_each_visit():
    # 3 visits an hour apart, each its own tick: 1 + 2 + 3 exposures of each field are treated.
    found = simulate(Survey(5, 3, 1.0, 1.0, hours=3.0), Design(50), COST)
    assert found["runs"] == 15
    assert found["exposures_treated"] == 5 * 6


def test_the_sensor_asks_for_no_more_than_it_may():
    jobs = jobs_of(Survey(100, 1, 1.0, 1.0, hours=0.001), Design(10, tick=60, runs_a_tick=25))
    assert np.unique(jobs.asked, return_counts=True)[1].tolist() == [25, 25, 25, 25]


def test_what_cannot_keep_up_is_seen():
    survey = Survey(500, 1, megapixels=16.0, detections=1.0, hours=1.0)
    assert simulate(survey, Design(1, "exposure"), COST)["left"] > 0.05
    assert simulate(survey, Design(64, "exposure"), COST)["left"] == 0


@given(
    run=st.floats(0, 20),
    exposure=st.floats(0, 5),
    megapixel=st.floats(0.1, 5),
    injected=st.floats(0, 5),
    detection=st.floats(0, 0.1),
)
def test_costs_are_found_again_from_nights_that_they_make(run, exposure, megapixel, injected, detection):
    truth = dict(zip(FEATURES, (run, exposure, megapixel, injected, detection), strict=True))
    nights = [(n, size, found) for n in (1, 3, 4) for size in (0.26, 1.05, 4.2) for found in (3, 60)]
    runs = [{"exposures": n, "megapixels": n * size, "detections": n * found} for n, size, found in nights]
    values = [Fit(truth, 0.0).night(n, size, found) for n, size, found in nights]
    found = fit(runs, values)
    assert found.scatter < 1e-3
    for n, size, many in ((2, 16.8, 50), (1, 1.0, 0)):
        assert found.night(n, size, many) == pytest.approx(Fit(truth, 0.0).night(n, size, many), rel=0.02)


@pytest.fixture(scope="module")
def measured():
    return json.loads(Path(scale.__file__).with_name("scale.json").read_text())


def test_a_thousand_times_the_sky_needs_a_thousand_times_as_much(measured):
    small, large = (demand(measured, survey) for survey in CASES.values())
    assert small["detections"] == 1e4
    assert large["detections"] == 1e7
    for name, value in small.items():
        assert large[name] == pytest.approx(1000 * value), name


def test_money_is_operations_and_storage_at_the_published_prices(measured):
    need = demand(measured, CASES["10⁴"])
    runs = scale_model.warm(measured)
    # A night of two exposures asks for no fewer objects than the smallest measured, of one.
    least = min(sum(run["requests"].values()) for run in runs)
    assert (need["class_a_millions"] + need["class_b_millions"]) * 1e6 > 100 * least
    dollars = need["class_a_millions"] * 4.5 + need["class_b_millions"] * 0.36
    assert need["operations_dollars"] == pytest.approx(dollars)
    assert 0 < need["store_kept_terabytes"] < need["store_terabytes"]


def test_all_that_is_printed_and_drawn_comes_of_the_measured_nights(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SHARES", (1.0, 2.0))
    small = {"10⁴": CASES["10⁴"], "10⁷": replace(CASES["10⁷"], fields=1000)}
    monkeypatch.setattr(scale, "CASES", small)
    text = scale.reckon(measured, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    for words in ("core seconds", "class_a_millions", "the sensor", "stream"):
        assert words in text
    assert "nan" not in text


def test_the_tightest_bound_comes_first(measured):
    bounds = [exposures for _, exposures, _ in limits(measured)]
    assert bounds == sorted(bounds)
    assert min(bounds) > 0
