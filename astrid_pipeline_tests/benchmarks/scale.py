"""What 10⁴ and 10⁷ detections a night need: `python -m astrid_pipeline_tests.benchmarks.scale`; docs/scale.md tells.

`--measure` makes small nights on this machine and measures limits (about a quarter of an hour), into `scale.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from astrid_pipeline_tests.benchmarks.scale_model import (
    CASES,
    CLASS_A,
    CLASS_B,
    FEATURES,
    bytes_fit,
    cost_of,
    demand,
    limits,
    operations_fit,
    seconds_fit,
    steps_fit,
)
from astrid_pipeline_tests.benchmarks.scale_queues import Design, Survey, simulate

PARTS = ("night", "catalogue", "listing", "sensor", "dagster")
GROUPINGS = {
    "night": "a run a field's night, made again at each visit (as it is)",
    "exposure": "a run an exposure, started at once",
    "stream": "exposures to processes that live on",
}
#: Workers that are tried: a few, and shares of the cores that exposures alone would fill.
FEW, SHARES = (1, 2, 4, 8, 16), (0.8, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


def measure(output: Path, parts: list[str]) -> None:
    """Measure the parts, in a home of their own with a real PostgreSQL and S3 server; add to what `output` holds."""
    # Short: a PostgreSQL socket lies in it.
    home = Path(tempfile.mkdtemp(prefix="scale-"))
    os.environ |= {"ASTRID_HOME": str(home), "DAGSTER_HOME": str(home / "dagster"), "OMP_NUM_THREADS": "1"}
    os.environ |= {"ASTRID_WORKERS": str(os.cpu_count() or 1), "ASTRID_DEVICE": "cpu"}
    import torch

    from astrid_pipeline.services import postgres
    from astrid_pipeline.settings import get_settings, reset_settings
    from astrid_pipeline_tests.benchmarks import scale_limits, scale_measure
    from astrid_pipeline_tests.s3_servers import s3_server

    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    found |= {"machine": scale_measure.machine(), "commit": scale_measure.commit()}
    try:
        with s3_server("rclone", home) as server:
            os.environ |= server.environment()
            reset_settings()
            measures = {
                "night": lambda: scale_measure.measure_night(home / "data", scale_measure.NIGHTS),
                "catalogue": lambda: scale_limits.measure_catalogue(home / "data", "scale-dense"),
                "listing": lambda: scale_limits.measure_listing(server, home),
                "sensor": lambda: scale_limits.measure_sensor(home),
                "dagster": lambda: scale_limits.measure_dagster(home),
            }
            for part in parts:
                found[part] = measures[part]()
                output.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        postgres.stop(get_settings())
        shutil.rmtree(home, ignore_errors=True)


def latencies(measured: dict[str, Any], survey: Survey) -> dict[str, list[dict[str, Any]]]:
    """Simulate a survey in each grouping with more and more workers.

    The sensor bounds the first grouping whatever the workers; the second asks for its runs at once.
    """
    cost = cost_of(measured, survey)
    busy = survey.exposures * cost.exposure / (3600 * survey.hours)
    out: dict[str, list[dict[str, Any]]] = {}
    for grouping in GROUPINGS:
        workers = sorted({round(share * busy) for share in SHARES} if busy > max(FEW) else set(FEW))
        out[grouping] = [simulate(survey, Design(n, grouping), cost) for n in workers]
    return out


def draw(found: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Draw latency against workers: lines are medians, the rims above them p95."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (name, groupings) in zip(axes, found.items(), strict=True):
        for colour, (grouping, rows) in zip(
            ("#b2182b", "#2166ac", "#1a9850"), groupings.items(), strict=True
        ):
            workers = [row["workers"] for row in rows]
            median, p95 = ([row[key] / 60 for row in rows] for key in ("median", "p95"))
            axis.plot(workers, median, color=colour, marker="o", ms=3, label=GROUPINGS[grouping])
            axis.fill_between(workers, median, p95, color=colour, alpha=0.2, lw=0)
        axis.set(
            xscale="log", yscale="log", xlabel="workers, a core each", title=f"{name} detections a night"
        )
        shown = workers if len(workers) < 6 else workers[::2]
        axis.set_xticks(shown, [str(n) for n in shown])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3, which="both", lw=0.4)
    axes[0].set_ylabel("arrival to detection, minutes")
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(rows: list[list[str]]) -> str:
    """Return rows as a markdown table, the first its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def number(value: float) -> str:
    """Return three digits of a number, as a person writes it."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def reckon(measured: dict[str, Any], picture: Path | None) -> str:
    """Return all tables as markdown, and draw the figure."""
    out = [f"{measured['machine']}, commit {measured['commit']}"]
    steps, seconds, sizes = steps_fit(measured), seconds_fit(measured), bytes_fit(measured)
    operations = {"S3, class A": CLASS_A, "S3, class B": CLASS_B}
    fits = {"core seconds": seconds, **{f"… {name}": f for name, f in steps.items()}}
    fits |= {name: operations_fit(measured, kinds) for name, kinds in operations.items()}
    fits |= {f"kB of {name}": f for name, f in sizes.items()}
    rows = [["", *FEATURES, "scatter"]]
    for name, found in fits.items():
        unit = 1000 if name.startswith("kB") else 1
        rows.append([name, *(number(found.of[key] / unit) for key in FEATURES), f"{found.scatter:.2f}"])
    out.append(table(rows))
    needs = {name: demand(measured, survey) for name, survey in CASES.items()}
    first = next(iter(needs.values()))
    out.append(
        table(
            [["a night", *needs], *([key, *(number(need[key]) for need in needs.values())] for key in first)]
        )
    )
    out.append(
        table([["bound", "exposures a night", "why"], *([n, number(v), w] for n, v, w in limits(measured))])
    )
    # A tenth of the large night's fields, visited twice in an hour: as many exposures an hour as in all of it.
    large = CASES["10⁷"]
    found = {
        "10⁴": latencies(measured, CASES["10⁴"]),
        "10⁷": latencies(measured, replace(large, fields=round(large.fields / large.hours), hours=1.0)),
    }
    rows = [["case", "grouping", "workers", "median min", "p95 min", "left", "busiest"]]
    for name, groupings in found.items():
        for grouping, results in groupings.items():
            for r in results:
                busiest = max(r["busy"], key=r["busy"].get)
                shown = [name, grouping, str(r["workers"]), number(r["median"] / 60), number(r["p95"] / 60)]
                rows.append([*shown, f"{r['left']:.2f}", f"{busiest} {r['busy'][busiest]:.0%}"])
    out.append(table(rows))
    if picture is not None:
        draw(found, picture)
    return "\n\n".join(out)


def main() -> None:
    """Measure, or reckon from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--measure", action="store_true", help="measure on this machine first")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--measured", type=Path, default=Path(__file__).with_name("scale.json"))
    parser.add_argument("--picture", type=Path, help="draw the latencies here")
    options = parser.parse_args()
    if options.measure:
        measure(options.measured, options.parts)
    print(reckon(json.loads(options.measured.read_text()), options.picture))


if __name__ == "__main__":
    main()
