"""`astrid demo`: a simulated survey from raw frames to detections and a trained model, through Dagster."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from astrid_pipeline.archives.base import Field, open_archive
from astrid_pipeline.driver.display import Display
from astrid_pipeline.driver.runner import Runner, RunResult
from astrid_pipeline.driver.survey import Survey
from astrid_pipeline.errors import AstridError
from astrid_pipeline.night.plan import Step
from astrid_pipeline.resources.catalogue import open_catalogue
from astrid_pipeline.resources.products import Products
from astrid_pipeline.settings import get_settings, reset_settings

#: 2 fields × 4 nights × 2 filters × 3 exposures, and a season of templates 60 days before.
ARCHIVE = "simulated?seed=1"
QUICK_ARCHIVE = "simulated?seed=1&fields=1&nights=2&exposures=2"
#: Steps of the demo's training: enough to see the loss fall, on the demo's few nights more would only overfit.
TRAINING_STEPS = 120
#: Columns of a terminal that the whole table needs.
WIDE = 150


class DemoFailedError(AstridError):
    """Some runs of the demo failed; what the others made is kept."""


@dataclass
class Story:
    """What the demo did: runs and seconds a stage."""

    results: list[RunResult] = field(default_factory=list)
    seconds: float = 0.0

    def stages(self) -> pd.DataFrame:
        """Return runs, seconds and peak memory by job."""
        rows = [(r.step.job, r.seconds, r.peak_megabytes) for r in self.results]
        table = pd.DataFrame(rows, columns=["job", "seconds", "megabytes"])
        grouped = table.groupby("job", sort=False)
        return grouped.agg(
            runs=("seconds", "size"),
            seconds=("seconds", "sum"),
            longest=("seconds", "max"),
            megabytes=("megabytes", "max"),
        )


def demo(
    console: Console, workers: int | None = None, home: Path | None = None, quick: bool = False
) -> Story:
    """Run the demo in `home` (default: `ASTRID_HOME`); what is made already is left as it is.

    Raises
    ------
    DemoFailedError
        If a run failed; its reason was told in a line.
    """
    if home is not None:
        os.environ["ASTRID_HOME"] = str(home.expanduser().absolute())
        reset_settings()
    settings = get_settings()
    workers = workers or settings.workers
    started = time.perf_counter()
    fields = open_archive(QUICK_ARCHIVE if quick else ARCHIVE).fields()
    console.print(
        f"[bold]AstrID demo[/]: a simulated survey of {len(fields)} field{'s' * (len(fields) > 1)}, "
        f"{workers} workers; everything is kept in {settings.home}",
        soft_wrap=True,
    )
    catalogue = open_catalogue()
    for sky_field in fields:
        catalogue.add_field(sky_field)
    survey = Survey(fields)
    story = Story()
    with Runner(workers) as runner, Display(console) as display:
        story.results += survey.walk(runner, display.done, display.begin)
        # The quick survey's labelled images are too few to fit and calibrate every model on.
        if not quick and _dataset_is_due(survey.products):
            steps = [Step.on("retrain", "", survey.products.partitions("training_samples"))]
            display.begin(steps)
            story.results += runner.run(steps, display.done, _training_config())
    story.seconds = time.perf_counter() - started
    if not story.results:
        console.print("everything is made already; nothing was done twice")
    _tell(console, fields, survey.products, story)
    failed = [r for r in story.results if r.error]
    if failed:
        raise DemoFailedError(
            f"{len(failed)} of {len(story.results)} runs failed",
            remedy="the lines above say why; the same command goes on from what was made",
        )
    return story


def _training_config() -> dict:
    return {"ops": {"unet": {"config": {"mode": "custom", "steps": TRAINING_STEPS}}}}


def _dataset_is_due(products: Products) -> bool:
    """Tell whether there are samples that the last dataset does not hold, or no evaluation yet."""
    samples = set(products.partitions("training_samples"))
    if not samples:
        return False
    if "training_dataset" not in _unpartitioned(products) or "evaluation" not in _unpartitioned(products):
        return True
    return samples != set(products.table("training_dataset", None).partition)


def _unpartitioned(products: Products) -> set[str]:
    names = {"training_dataset": "training_dataset.parquet", "evaluation": "evaluation/index.json"}
    return {name for name, key in names.items() if products.store.exists(key)}


def summaries(products: Products, fields: list[Field]) -> pd.DataFrame:
    """Return the night summaries of the fields, one below the other."""
    tables = [
        products.table("night_summary", f"{f.name}|{night}")
        for f in fields
        for night in products.nights("night_summary", f.name)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _tell(console: Console, fields: list[Field], products: Products, story: Story) -> None:
    table = summaries(products, fields)
    if len(table):
        console.print()
        # In a file or a pipe there is no width to keep to.
        narrow = console.is_terminal and console.width < WIDE
        wide = console if console.is_terminal else Console(file=console.file, highlight=False, width=WIDE)
        wide.print(night_table(table, _night_seconds(story), narrow=narrow))
    if story.results:
        console.print(_stage_table(story))
    settings = get_settings()
    report = write_pictures(settings.home / "report", fields, products)
    console.print(f"\npicture report   file://{report}", soft_wrap=True)
    console.print(
        f"Dagster page     make dev, then http://{settings.host}:{settings.dagster_port}", soft_wrap=True
    )


def write_pictures(folder: Path, fields: list[Field], products: Products) -> Path:
    """Write the picture report of the fields' nights; it opens by double click."""
    from astrid_pipeline.report.survey import Night, write_survey_report

    nights = []
    for sky_field in fields:
        for night in products.nights("night_summary", sky_field.name):
            key = f"{sky_field.name}|{night}"
            summary = products.table("night_summary", key)
            nights.append(
                Night(
                    sky_field.name,
                    night,
                    products.frames("difference_images", sky_field.name, night),
                    products.table("detections", key),
                    summary,
                    {row["filter"]: json.loads(row["completeness"]) for _, row in summary.iterrows()},
                )
            )
    return write_survey_report(folder, nights, "What the nights show")


def _night_seconds(story: Story) -> dict[tuple[str, str], float]:
    seconds: dict[tuple[str, str], float] = {}
    for result in story.results:
        name, _, night = result.step.partition.partition("|")
        if result.step.job == "process_night":
            seconds[name, night] = seconds.get((name, night), 0.0) + result.seconds
    return seconds


def night_table(
    summary: pd.DataFrame, seconds: dict[tuple[str, str], float] | None = None, *, narrow: bool = False
) -> Table:
    """Return the table that ends the demo: a row a field and night; `narrow` fits into 80 columns."""
    out = Table(
        title="What was found",
        box=None,
        header_style="dim",
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0) if narrow else (0, 1),
    )
    bins = [(r["snr_low"], r["snr_high"]) for r in json.loads(summary.completeness.iloc[0])]
    names = ["exposures", "candidates", "detections", "real found", "false alarms", "σ score", "seconds"]
    if narrow:
        names = ["exp.", "cand.", "det.", "real", "false", "", "s"]
    for name in ("field", "night"):
        out.add_column(name, no_wrap=True)
    spans = [f"{low:g}–{high:g}" if narrow else f"S/N {low:g}–{high:g}" for low, high in bins]
    for name in (*names[:3], *spans, *names[3:]):
        if name:
            out.add_column(name, justify="right", no_wrap=True)
    for key, rows in summary.groupby(["field", "night"]):
        field_name, night = (str(part) for part in key)
        put, got = [0] * len(bins), [0] * len(bins)
        for text in rows.completeness:
            for k, cell in enumerate(json.loads(text)):
                put[k] += cell["injected"]
                got[k] += cell["found"]
        spent = (seconds or {}).get((field_name, night))
        known = rows.true_changes.notna().all()
        out.add_row(
            field_name,
            night,
            str(int(rows.exposures.sum())),
            str(int(rows.candidates.sum())),
            str(int(rows.detections.sum())),
            *(f"{g}/{p}" for g, p in zip(got, put, strict=True)),
            f"{int(rows.true_found.sum())}/{int(rows.true_changes.sum())}" if known else "–",
            str(int(rows.false_alarms.sum())) if known else "–",
            *([] if narrow else [f"{rows.score_sigma.median():.3f}"]),
            "–" if spent is None else f"{spent:.0f}",
        )
    out.caption = (
        "S/N columns: injected transients found / put in.\n"
        "Real found: true changes of S/N ≥ 5. False alarms: detections where nothing changed."
    )
    out.caption_justify = "left"
    return out


def _stage_table(story: Story) -> Table:
    out = Table(title="\nTime and memory", box=None, header_style="dim", title_justify="left", pad_edge=False)
    for name in ("stage", "runs", "seconds", "longest", "peak MiB"):
        out.add_column(name, justify="left" if name == "stage" else "right")
    for job, row in story.stages().iterrows():
        out.add_row(
            str(job), str(int(row.runs)), f"{row.seconds:.0f}", f"{row.longest:.0f}", f"{row.megabytes:.0f}"
        )
    out.add_row("wall time", "", f"{story.seconds:.0f}", "", "")
    return out
