"""From what was measured to what a survey needs: costs by least squares, demands, limits, money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from astrid_pipeline_tests.benchmarks.scale_queues import Cost, Survey

#: Cloudflare R2, standard storage, US dollars, as published in the summer of 2026
#: (https://developers.cloudflare.com/r2/pricing): a GB-month, a million operations of class A (writes, lists) and B
#: (reads); what leaves it is free, and so are deletions. Without the monthly free part (10 GB, 1 and 10 million).
R2_STORAGE, R2_CLASS_A, R2_CLASS_B = 0.015, 4.50, 0.36
CLASS_A = (
    "PutObject",
    "ListObjectsV2",
    "CopyObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
)
CLASS_B = ("GetObject", "HeadObject")

#: Most partitions of an asset that Dagster's documentation recommends.
DAGSTER_PARTITIONS = 100_000

#: Products that a survey would keep for good; the others (calibrated frames, differences, samples) can be made again.
KEPT = (
    "raw",
    "alert-packets",
    "alerts",
    "candidates",
    "detections",
    "injections",
    "night_summary",
    "observations",
    "stamps",
)

HOURS, NIGHTS_A_YEAR = 10.0, 300
MEGAPIXELS = 4096**2 / 1e6

#: Rubin's density: some 10,000 detections in a visit of 3.2 gigapixels. Both cases are cut into exposures of 4096², two
#: of each field a night, which come as those of a mosaic do: 10 at once every half hour, 200 every 36 seconds.
CASES = {
    "10⁴": Survey(fields=100, visits=2, megapixels=MEGAPIXELS, detections=50.0, hours=HOURS, chips=10),
    "10⁷": Survey(fields=100_000, visits=2, megapixels=MEGAPIXELS, detections=50.0, hours=HOURS, chips=200),
}

#: Steps of a night's run that come after its detections are in the catalogue.
AFTERWARDS = ("gold_standard", "injected_night", "light_curves", "stamps", "night_summary", "alerts")

#: What each quantity grows with.
FEATURES = ("run", "exposure", "megapixel", "injected megapixel", "detection")


@dataclass(frozen=True)
class Fit:
    """A quantity by what it grows with (`FEATURES`), and the standard deviation of the logarithm about it."""

    of: dict[str, float]
    scatter: float

    def night(self, exposures: float, megapixels: float, detections: float) -> float:
        """Return the quantity for a field's night: exposures of so many megapixels and detections each."""
        features = (1.0, exposures, exposures * megapixels, megapixels, exposures * detections)
        return float(sum(self.of[name] * value for name, value in zip(FEATURES, features, strict=True)))


def fit(runs: list[dict[str, Any]], values: list[float]) -> Fit:
    """Return the non-negative least squares of `values`, one a run, each weighed by its own size.

    Injections are put into one exposure a night, so that they grow with one exposure's pixels.
    """
    from scipy.optimize import nnls

    features = np.array(
        [
            (1.0, r["exposures"], r["megapixels"], r["megapixels"] / r["exposures"], r["detections"])
            for r in runs
        ]
    )
    wanted = np.maximum(np.array(values, float), 1e-9)
    found, _ = nnls(features / wanted[:, None], np.ones(len(wanted)))
    predicted = np.maximum(features @ found, 1e-9)
    return Fit(dict(zip(FEATURES, map(float, found), strict=True)), float(np.std(np.log(wanted / predicted))))


def warm(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of judged nights, without the one of a cold process."""
    return [run for run in measured["night"]["runs"] if run["field"] != "scale-cold"]


def seconds_fit(measured: dict[str, Any]) -> Fit:
    """Return the processor seconds of a night's run."""
    runs = warm(measured)
    return fit(runs, [run["processor_seconds"] for run in runs])


def steps_fit(measured: dict[str, Any]) -> dict[str, Fit]:
    """Return the same by step."""
    runs = warm(measured)
    return {name: fit(runs, [run["steps"][name] for run in runs]) for name in runs[0]["steps"]}


def operations_fit(measured: dict[str, Any], names: tuple[str, ...]) -> Fit:
    """Return the S3 operations of some kinds of a night's run."""
    runs = warm(measured)
    return fit(runs, [sum(run["requests"].get(name, 0) for name in names) for run in runs])


def bytes_fit(measured: dict[str, Any]) -> dict[str, Fit]:
    """Return the bytes in the store of each product of a night."""
    runs = {(r["field"], r["exposures"]): r for r in warm(measured)}
    rows = [row for row in measured["night"]["store"] if (row["field"], row["exposures"]) in runs]
    names = sorted({name for row in rows for name in row["products"]})
    mine = [runs[row["field"], row["exposures"]] for row in rows]
    return {
        name: fit(mine, [row["products"].get(name, {"bytes": 0})["bytes"] for row in rows]) for name in names
    }


def cost_of(measured: dict[str, Any], survey: Survey) -> Cost:
    """Return the costs that the simulation takes, of exposures of the survey's size."""
    runs = warm(measured)
    rest = [sum(run["steps"][name] for name in AFTERWARDS) for run in runs]
    # What no step is charged with lies mostly before the first.
    until, later = (
        fit(runs, values)
        for values in ([run["processor_seconds"] - r for run, r in zip(runs, rest, strict=True)], rest)
    )
    size = (survey.megapixels, survey.detections)

    def of_run(f: Fit) -> float:
        return f.night(0, *size)

    best = max(row["detections_a_second"] for row in measured["catalogue"]["inserts"])
    # A run is a new process: it loads the definitions, and then what a warm one has loaded already.
    (cold,) = (run for run in measured["night"]["runs"] if run["field"] == "scale-cold")
    again = seconds_fit(measured).night(1, cold["megapixels"], cold["detections"])
    start = measured["dagster"]["process_start_core_seconds"] + max(cold["processor_seconds"] - again, 0.0)
    return Cost(
        found_run=of_run(until) + start,
        found_exposure=until.night(1, *size) - of_run(until),
        rest_run=of_run(later),
        rest_exposure=later.night(1, *size) - of_run(later),
        start=1 / measured["dagster"]["through_the_daemon"]["queued_a_second"],
        # `best` was reached by two writers together.
        row=2 / best,
        scatter=seconds_fit(measured).scatter,
    )


def demand(measured: dict[str, Any], survey: Survey) -> dict[str, float]:
    """Return what a night of a survey needs, each field's night made in one run."""
    night = (survey.visits, survey.megapixels, survey.detections)
    fields, runs = survey.fields, warm(measured)
    seconds = seconds_fit(measured)
    detections = survey.exposures * survey.detections
    kept = {name: fields * f.night(*night) for name, f in bytes_fit(measured).items()}
    a, b = (fields * operations_fit(measured, names).night(*night) for names in (CLASS_A, CLASS_B))
    inserts = measured["catalogue"]["inserts"]
    once = survey.exposures * (
        seconds.of["exposure"]
        + seconds.of["megapixel"] * survey.megapixels
        + seconds.of["detection"] * survey.detections
    )
    network = steps_fit(measured)["detections"]
    of_run = {name: float(np.median([run[name] for run in runs])) for name in ("events",)}
    disk = {name: float(np.median([run["disk"].get(name, 0) for run in runs])) for name in runs[0]["disk"]}
    dagster = float(np.median([run["database_bytes"]["dagster"] for run in runs]))
    yearly = NIGHTS_A_YEAR * sum(size for name, size in kept.items() if name in KEPT)
    return {
        "exposures": survey.exposures,
        "gigapixels": survey.exposures * survey.megapixels / 1e3,
        "detections": detections,
        "core_hours": fields * seconds.night(*night) / 3600,
        "cores": fields * seconds.night(*night) / (3600 * HOURS),
        "cores_of_pixels_alone": once / (3600 * HOURS),
        "cores_of_the_network": survey.exposures * survey.megapixels * network.of["megapixel"] / (3600 * HOURS),
        "network_megapixels_a_second": survey.exposures * survey.megapixels / (3600 * HOURS),
        "runs_a_second": fields / (3600 * HOURS),
        "events_a_second": fields * of_run["events"] / (3600 * HOURS),
        "transactions_a_second": fields * disk["transactions"] / (3600 * HOURS),
        "connections_a_second": fields * disk["connections"] / (3600 * HOURS),
        "disk_writes_a_second": fields * (disk["writes"] + disk["fsyncs"]) / (3600 * HOURS),
        "dagster_gigabytes": fields * dagster / 1e9,
        "catalogue_gigabytes": detections * inserts[-1]["bytes_a_detection"] / 1e9,
        "store_terabytes": sum(kept.values()) / 1e12,
        "store_kept_terabytes": sum(size for name, size in kept.items() if name in KEPT) / 1e12,
        "class_a_millions": a / 1e6,
        "class_b_millions": b / 1e6,
        "operations_dollars": a / 1e6 * R2_CLASS_A + b / 1e6 * R2_CLASS_B,
        "year_kept_dollars_a_month": yearly / 1e9 * R2_STORAGE,
        "partitions_a_year": fields * NIGHTS_A_YEAR,
    }  # fmt: skip


def limits(measured: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Return what bounds a night of this design: name, exposures of 4096² a night at most (two a field), and why.

    One run a field's night, all exposures in it; sorted, the tightest first.
    """
    from astrid_pipeline.sensors import MAX_RUNS_PER_TICK

    survey = CASES["10⁷"]
    need = demand(measured, survey)
    seconds = 3600 * HOURS
    runs = need["exposures"] / survey.visits
    dagster = measured["dagster"]
    events = max(dagster["events_a_second"].values())
    rows = max(row["detections_a_second"] for row in measured["catalogue"]["inserts"])
    queued = dagster["through_the_daemon"]["queued_a_second"]
    per_run = need["events_a_second"] * seconds / runs
    # Of one page: the test's server looks through its folder anew for each, and R2 does not.
    page = measured["listing"][0]
    listed = page["objects"] / page["s3_seconds"]
    visits = survey.visits
    found = [
        ("the sensor", visits * MAX_RUNS_PER_TICK / 60 * seconds, f"{MAX_RUNS_PER_TICK} runs a tick of 60 s"),
        ("Dagster's queue", visits * queued * seconds, f"{queued:g} runs a second taken, one after another"),
        (
            "Dagster's partitions",
            visits * DAGSTER_PARTITIONS / NIGHTS_A_YEAR,
            f"{DAGSTER_PARTITIONS:,} an asset, for a year of {NIGHTS_A_YEAR} nights",
        ),
        (
            "Dagster's event log",
            visits * events / per_run * seconds,
            f"{events:g} events a second, {per_run:.0f} a run",
        ),
        (
            "the catalogue",
            rows * seconds / survey.detections,
            f"{rows:g} detections a second, 50 an exposure",
        ),
        (
            "listing an asset on S3",
            visits * 60 * listed / NIGHTS_A_YEAR,
            f"{listed:.0f} objects a second; a year's nights in the 60 s of a tick",
        ),
    ]
    return sorted(found, key=lambda entry: entry[1])
