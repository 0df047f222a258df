"""`astrid train` and `astrid evaluate`: models from nothing and their figures, without Dagster or a service."""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrid_pipeline.cli.console import err, out
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.learning import Evaluation

#: Figures worth a place on the line that shows a training's progress.
_SHOWN = ("loss", "valid_ap", "valid_iou")


class Mode(enum.StrEnum):
    """How much to train."""

    quick = "quick"
    full = "full"
    custom = "custom"


class Network(enum.StrEnum):
    """Which network."""

    unet = "unet"
    unetpp = "unetpp"


_Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1.")]
_Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same data.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def train(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for data, checkpoint and model.")
    ] = Path("astrid-model"),
    mode: Annotated[
        Mode,
        typer.Option("--mode", help="full: 400 images, 2000 steps. quick: only a check. custom: as given."),
    ] = Mode.full,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Training images (custom).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps (custom).")] = None,
    network: Annotated[Network, typer.Option("--network", help="Which network.")] = Network.unet,
    curated: Annotated[
        Path | None,
        typer.Option(
            "--curated", help="Examples of `astrid curate`: make the model of `astrid score` instead."
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--share", min=0, max=0.9, help="Their weight beside simulated stamps. Default: 0.3."),
    ] = None,
    skies: Annotated[
        list[Path] | None,
        typer.Option(
            "--skies",
            help="With --curated: labelled images to use instead of simulating (--images). With --profile: the "
            "survey's differences with injections.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="Fit a detector's probabilities and threshold to one survey instead.",
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", help="With --profile: a field whose nights' injections are fitted to."),
    ] = None,
    instrument: Annotated[
        list[str] | None,
        typer.Option(
            "--instrument",
            help="With --profile: whose frames it serves. Default: those of the fields' nights.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="With --profile: the detector. Default: the champion; with --skies, the package's.",
        ),
    ] = None,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote",
            help="With --profile: make it the champion, if it is better on sky it was not fitted to.",
        ),
    ] = False,
    seed: _Seed = 0,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes and threads to use.")] = 2,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that train together, one a GPU.")
    ] = 1,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Make a detector from nothing: simulate skies, train, calibrate, and measure it on skies it never saw.

    Stopped and started again, it goes on where it was. Writes `detector.safetensors` and its `MODEL_CARD.md`. The
    models of the pipeline, trained on your own fields, are Dagster assets: see `astrid dev`.

    With --curated, it makes a model of alert packets instead, of simulated stamps and real ones in a stated share, and
    says how it ranks each survey's examples, every one judged by forests that have not seen its object.

    Examples:

    - `astrid train` makes such a model as the packaged one, in some hours on a laptop, minutes on a GPU

    - `astrid train --mode quick -o /tmp/check` sees in two minutes whether training works here

    - `astrid train --mode custom --images 100 --steps 500 -o small`

    - `astrid train --processes 4` shares each step among four GPUs

    - `astrid detect new.fits old.fits --model astrid-model/detector.safetensors` uses it

    - `astrid train --curated curated/ -o mine`, then `astrid score alerts/ --model mine/alerts.safetensors`

    - `astrid train --profile vista --field video-a --promote` makes scores of that camera's frames mean what they say
    """
    from astrid_pipeline.learning import run_training

    where = None if device == "auto" else device
    if profile is not None:
        from astrid_pipeline.cli.profiles import train_profile

        train_profile(
            profile, output, field or [], skies or [], instrument or [], model, promote, seed, where, as_json
        )
        return
    if field or instrument or model or promote:
        raise ConfigError(
            "--field, --instrument, --model and --promote belong to --profile", remedy="name the profile"
        )
    if curated is not None:
        from astrid_pipeline.cli.alerts import train_on_curated

        with _progress(quiet=as_json) as report:
            train_on_curated(
                curated, output, share, skies or [], images, seed, workers, where, report, as_json
            )
        return
    if share is not None or skies:
        raise ConfigError(
            "--share and --skies belong to --curated", remedy="name the folder of curated examples"
        )
    with _progress(quiet=as_json) as report:
        outcome = run_training(
            mode.value,
            output,
            seed=seed,
            n_images=images,
            steps=steps,
            workers=workers,
            network=network.value,
            device=where,
            report=report,
            processes=processes,
        )
    figures = {} if outcome.evaluation is None else outcome.evaluation.flat()
    if as_json:
        files = {name: str(path) for name, path in outcome.files.items()}
        typer.echo(json.dumps({"files": files, "seconds": outcome.seconds, "figures": figures}, indent=2))
        return
    if outcome.evaluation is None:
        out.print("Training works here. Quick mode only checks that: its network finds nothing.")
    else:
        _show(outcome.evaluation)
    for name, path in outcome.files.items():
        out.print(f"[dim]{name:<12}[/]{path}", soft_wrap=True)


def evaluate(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Weights (.safetensors). Default: those in the package."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            "-d",
            help="Folder of labelled images, as `astrid train` leaves; several stand side by side. Default: simulate.",
        ),
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images to simulate, 512² each.")] = 20,
    spoiled: Annotated[
        int,
        typer.Option(
            "--spoiled",
            min=0,
            help="Images of 320² full of artefacts to simulate besides; 460 hold a thousand of each kind.",
        ),
    ] = 0,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep", metavar="FOLDER", help="Keep what is simulated, to measure another model on it."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write all of it as one HTML page."),
    ] = None,
    curated: Annotated[
        Path | None,
        typer.Option(
            "--curated", help="Examples of `astrid curate`: the alert model, trained here and tested there."
        ),
    ] = None,
    alerts: Annotated[
        Path | None, typer.Option("--alerts", help="With --curated: alert model. Default: the packaged one.")
    ] = None,
    seed: _Seed = 0,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes that simulate.")] = 2,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """Measure a detector on labelled images, beside the classical ways of doing the same; figures with intervals.

    Without --data, images are simulated from a split that no training draws from. With --curated, it is the model of
    `astrid score` that is measured, on each survey's examples, as it is and taught by each survey's labels (none judged
    by what has seen its object); with --data besides, both.

    Examples:

    - `astrid evaluate` measures the packaged model on 20 new skies

    - `astrid evaluate --images 420 --spoiled 460 --report all.html` takes half an hour and leaves little to chance

    - `astrid evaluate --model astrid-model/detector.safetensors --images 100 --json`

    - `astrid evaluate -d skies/test -d my-survey/test --report both.html` shows both side by side

    - `astrid evaluate --curated curated/ --report alerts.html`
    """
    import tempfile

    from astrid_pipeline.cli.alerts import measure_on_curated, write_alone
    from astrid_pipeline.learning import ShardSet, build_shards, load_model
    from astrid_pipeline.learning.data import SURVEY_CHANGES
    from astrid_pipeline.learning.evaluate import evaluate as measure

    where = None if device == "auto" else device
    cross = None if curated is None else measure_on_curated(curated, alerts, seed, where, quiet=as_json)
    if cross is not None and not data:
        write_alone(cross, report, as_json)
        return
    detector = load_model(model)
    with contextlib.ExitStack() as stack:
        tell = stack.enter_context(_progress(quiet=as_json))
        base = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="astrid-evaluate-")))

        def simulate(name: str, count: int, side: int) -> Path:
            build_shards(
                base / name, count, seed, (side, side), workers,
                lambda done, total: tell(f"data: {name}", done, total, {}),
                split=f"evaluate-{name}", changes=SURVEY_CHANGES, spoiled=name == "spoiled",
            )  # fmt: skip
            return base / name

        folders = data or [simulate("skies", images, 512)]
        bad = ShardSet(simulate("spoiled", spoiled, 320)) if spoiled else None
        names = [folder.name for folder in folders]
        results: dict[str, Evaluation] = {}
        for number, folder in enumerate(folders):
            tell("evaluation", number, len(folders), {})
            unique = names[number] if names.count(names[number]) == 1 else str(folder)
            results[unique] = measure(
                detector, ShardSet(folder), device=where, seed=seed, spoiled=None if number else bad
            )
        tell("evaluation", len(folders), len(folders), {})
    if report is not None:
        from astrid_pipeline.report.evaluation import write_evaluation

        write_evaluation(results, report, cross)
    if as_json:
        flat: dict[str, Any] = {name: result.flat() for name, result in results.items()}
        flat = flat if len(flat) > 1 else next(iter(flat.values()))
        known = {} if cross is None else {"cross_survey": json.loads(cross.to_json(orient="records"))}
        typer.echo(json.dumps({**flat, **known}, indent=2))
        return
    for name, result in results.items():
        if len(results) > 1:
            out.rule(name)
        _show(result)
    if report is not None:
        out.print(f"[dim]{'report':<12}[/]{report}", soft_wrap=True)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int, dict[str, float]], None]]:
    """Yield the function that learning calls with stage, steps done, steps in all, and figures."""
    if quiet:
        yield lambda *_: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[figures]}[/]"),
    )
    with Progress(*columns, console=err) as progress:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
            text = "  ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, figures=text)
            progress.update(tasks[stage], completed=done, total=total, figures=text)  # type: ignore[arg-type]

        yield report


def _show(result: Evaluation) -> None:
    from rich.table import Table

    from astrid_pipeline.learning.goals import GOALS

    found = result.table()
    shown = [c for c in ("method", "ap", "precision", "recall", "f1", "false_per_mpix") if c in found]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in shown:
        table.add_column(name.replace("_", " "))
    for row in found[shown].itertuples(index=False):
        table.add_row(*(str(value) for value in row))
    out.print(table)
    goals = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("the detector", "measured", "wanted", ""):
        goals.add_column(name)
    for goal in GOALS:
        good = goal.reached(result)
        mark = "[green]reached[/]" if good else "[yellow]not reached[/]"
        goals.add_row(goal.text, str(goal.of(result)), goal.bound, mark)
    out.print(goals)
    out.print(
        f"[dim]{result.images} images, {result.megapixels:.1f} megapixels, {result.truths} true changes of "
        f"S/N ≥ {result.min_snr:g}; {result.seconds_per_mpix:.2f} s and {result.joules_per_mpix:.1f} J a megapixel "
        f"({result.energy_source}) on {result.device}[/]"
    )
