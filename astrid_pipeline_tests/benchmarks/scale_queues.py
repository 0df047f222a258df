"""A night as a queue: exposures arrive, runs are asked for, started one after another, worked on, written down.

A discrete simulation (simpy). `flow` lets runs go their way; `jobs_of` says which runs a night's exposures become
in a design. What sensor and queue do is AstrID's: a tick asks for so many runs at most, and a field's night to which
exposures have come is made again, whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What each of N runs takes, s: to start it, until its detections are known, to write them, and what is left."""

    start: Array
    found: Array
    rows: Array
    rest: Array

    @classmethod
    def of(cls, found: Array) -> Work:
        """Return runs that do nothing but find."""
        none = np.zeros(len(found))
        return cls(none, found, none, none)


def flow(asked: Array, work: Work, workers: int, writers: int = 1) -> tuple[Array, dict[str, float]]:
    """Let runs go their way; return when the detections of each were written, and how busy each kind of server was.

    One queue takes them, in the order in which they were asked for; each has a worker until its end, and within that
    time one of the catalogue's writers.

    Parameters
    ----------
    asked:
        (N,) s, in any order.
    """
    world = simpy.Environment()
    queue, pool, catalogue = (simpy.Resource(world, n) for n in (1, workers, writers))
    done = np.zeros(len(asked))

    def run(number: int) -> Iterator[Any]:
        yield world.timeout(float(asked[number]))
        with queue.request() as turn:
            yield turn
            yield world.timeout(float(work.start[number]))
        with pool.request() as place:
            yield place
            yield world.timeout(float(work.found[number]))
            with catalogue.request() as turn:
                yield turn
                yield world.timeout(float(work.rows[number]))
            done[number] = world.now
            yield world.timeout(float(work.rest[number]))

    for number in np.argsort(asked, kind="stable"):
        world.process(run(int(number)))
    world.run()
    span = float(world.now - asked.min()) or 1.0
    spent = {
        "queue": work.start.sum(),
        "workers": (work.found + work.rows + work.rest).sum() / workers,
        "catalogue": work.rows.sum() / writers,
    }
    return done, {name: float(seconds) / span for name, seconds in spent.items()}


@dataclass(frozen=True)
class Cost:
    """Measured seconds of one core, for exposures of one size.

    Attributes
    ----------
    found_run, found_exposure:
        Until the detections are known: of a run beside its exposures, and of each exposure.
    rest_run, rest_exposure:
        Of what a run does then: checks by injections, light curves, cut-outs, alerts.
    start:
        Of Dagster's queue, to take one run.
    row:
        Of a writer, for a detection with its candidates.
    scatter:
        Standard deviation of the logarithm of a run's seconds about its cost.
    """

    found_run: float
    found_exposure: float
    rest_run: float
    rest_exposure: float
    start: float
    row: float
    scatter: float = 0.0

    @property
    def exposure(self) -> float:
        """Of an exposure, all of it."""
        return self.found_exposure + self.rest_exposure


@dataclass(frozen=True)
class Survey:
    """What comes in.

    Attributes
    ----------
    fields, visits:
        Pieces of sky, and exposures of each in the simulated time. All fields are visited once, one after another, then
        again: the usual way of a survey that looks for movers.
    megapixels, detections:
        Of an exposure.
    hours:
        The simulated time.
    chips:
        Exposures that arrive at once: those of a mosaic, each a field of its own.
    """

    fields: int
    visits: int
    megapixels: float
    detections: float
    hours: float
    chips: int = 1

    @property
    def exposures(self) -> int:
        """Exposures in all."""
        return self.fields * self.visits


@dataclass(frozen=True)
class Design:
    """How runs are made of exposures.

    Attributes
    ----------
    workers:
        Runs at once, each on a core of its own.
    grouping:
        ``night``: a run makes a field's night, whole, each time exposures have come (AstrID as it is); ``exposure``: a
        run an exposure; ``stream``: exposures go to processes that live on, without a run of their own.
    tick, runs_a_tick:
        Seconds between the sensor's looks, and runs that one look may ask for; 0: asked for at once, without a sensor.
    writers:
        Connections that write to the catalogue at once.
    """

    workers: int
    grouping: str = "night"
    tick: float = 60.0
    runs_a_tick: int = 25
    writers: int = 2

    def with_workers(self, workers: int) -> Design:
        """Return the same with so many workers."""
        return replace(self, workers=workers)


@dataclass(frozen=True)
class Jobs:
    """Runs: when each was asked for, how many exposures it treats, and which run each exposure waits for."""

    asked: Array
    treated: npt.NDArray[np.int64]
    of_exposure: npt.NDArray[np.int64]
    arrivals: Array


def arrivals_of(survey: Survey) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return when each exposure arrives, s, and of which field it is: mosaics evenly over the time, in turn."""
    number = np.arange(survey.exposures)
    apart = 3600 * survey.hours * survey.chips / max(survey.exposures, 1)
    return number // survey.chips * apart, number % survey.fields


def jobs_of(survey: Survey, design: Design) -> Jobs:
    """Return the runs that a survey's exposures become."""
    arrivals, field = arrivals_of(survey)
    count = len(arrivals)
    if design.grouping != "night":
        return Jobs(arrivals, np.ones(count, np.int64), np.arange(count), arrivals)
    asked: list[float] = []
    treated: list[int] = []
    of_exposure = np.zeros(count, np.int64)
    come = np.zeros(survey.fields, np.int64)  # exposures of each field so far
    waiting: dict[int, list[int]] = {}  # by field, in the order of their first exposure not yet asked for
    next_one, now = 0, design.tick
    while next_one < count or waiting:
        while next_one < count and arrivals[next_one] <= now:
            come[field[next_one]] += 1
            waiting.setdefault(int(field[next_one]), []).append(next_one)
            next_one += 1
        for name in list(waiting)[: design.runs_a_tick or None]:
            of_exposure[waiting.pop(name)] = len(asked)
            asked.append(now)
            treated.append(int(come[name]))
        now += design.tick
    return Jobs(np.array(asked), np.array(treated), of_exposure, arrivals)


def simulate(survey: Survey, design: Design, cost: Cost, seed: int = 0) -> dict[str, Any]:
    """Let a survey's exposures go through a design; return latencies from arrival to rows in the catalogue.

    Returns
    -------
    dict
        ``median``, ``p95``, ``longest`` (s), ``runs``, ``exposures_treated`` (more than there are where nights are made
        again), ``busy`` (share by station), ``left`` (share of exposures not done an hour after the last arrived: above
        0, the design does not keep up).
    """
    jobs = jobs_of(survey, design)
    count = len(jobs.asked)
    rng = np.random.default_rng(seed)
    # Of mean 1, so that scatter alone adds no work.
    spread = (
        np.exp(rng.normal(0, cost.scatter, count) - cost.scatter**2 / 2) if cost.scatter else np.ones(count)
    )
    run = 0.0 if design.grouping == "stream" else 1.0
    work = Work(
        start=np.full(count, run * cost.start),
        found=(run * cost.found_run + jobs.treated * cost.found_exposure) * spread,
        rows=jobs.treated * survey.detections * cost.row,
        rest=(run * cost.rest_run + jobs.treated * cost.rest_exposure) * spread,
    )
    done, busy = flow(jobs.asked, work, design.workers, design.writers)
    latency = done[jobs.of_exposure] - jobs.arrivals
    late = done[jobs.of_exposure] > jobs.arrivals.max() + 3600
    return {
        "workers": design.workers,
        "median": float(np.median(latency)),
        "p95": float(np.percentile(latency, 95)),
        "longest": float(latency.max()),
        "runs": count,
        "exposures_treated": int(jobs.treated.sum()),
        "busy": busy,
        "left": float(late.mean()),
    }
