"""What `astrid train` and `astrid evaluate` do with curated examples: the model of `astrid score`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import typer

from astrid_pipeline.cli.console import out


def train_on_curated(
    curated: Path,
    output: Path,
    share: float | None,
    skies: list[Path],
    images: int | None,
    seed: int,
    workers: int,
    device: str | None,
    report: Callable[[str, int, int, dict[str, float]], None],
    as_json: bool,
) -> None:
    """Train, write, and show the figures; see `learning.alert_training.train_alerts`."""
    from astrid_pipeline.learning.alert_model import load_alert_network
    from astrid_pipeline.learning.alert_training import SHARE, SKIES, train_alerts
    from astrid_pipeline.learning.curated import CuratedSet

    made = train_alerts(
        CuratedSet(curated),
        load_alert_network(),
        output,
        share=SHARE if share is None else share,
        skies=skies,
        n_images=images or SKIES,
        seed=seed,
        workers=workers,
        device=device,
        report=report,
    )
    if as_json:
        figures = json.loads(made.figures.to_json(orient="records"))
        told = {"files": {"alerts": str(made.path)}, "seconds": made.seconds, "facts": dict(made.model.facts)}
        typer.echo(json.dumps({**told, "figures": figures}, indent=2))
        return
    show(made.figures)
    facts = made.model.facts
    out.print(
        f"[dim]{facts['stamps']} simulated stamps of {facts['images']} skies; {facts.get('curated', 0)} curated "
        f"ones with {facts.get('curated_share', 0):.0%} of the weight; probabilities from {facts['calibrated_on']}[/]",
        soft_wrap=True,
    )
    out.print(f"[dim]{'alerts':<12}[/]{made.path}", soft_wrap=True)


def show(figures: pd.DataFrame) -> None:
    """Print AUC by survey, with and without the curated examples."""
    from rich.table import Table

    from astrid_pipeline.learning.metrics import Value

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("survey", "examples", "real", "bogus", "AUC", "simulated stamps alone"):
        table.add_column(name)
    for row in figures.to_dict("records"):
        mine, other = (
            Value(row["auc"], row["low"], row["high"]),
            Value(row["simulated"], row["simulated_low"], row["simulated_high"]),
        )
        part = "test" if row["part"] == "test" else "learned, object left out"
        table.add_row(row["survey"], part, str(row["real"]), str(row["bogus"]), str(mine), str(other))
    out.print(table)


def measure_on_curated(
    curated: Path, alerts: Path | None, seed: int, device: str | None, *, quiet: bool
) -> pd.DataFrame:
    """Return the table of `learning.cross_survey`, and show it."""
    from rich.table import Table

    from astrid_pipeline.learning.alert_model import load_alert_model, load_alert_network
    from astrid_pipeline.learning.cross_survey import as_matrix, cross_survey
    from astrid_pipeline.learning.curated import CuratedSet

    found = cross_survey(
        CuratedSet(curated), load_alert_model(alerts), load_alert_network(), seed=seed, device=device
    )
    if quiet:
        return found
    wide = as_matrix(found)
    table = Table(
        title="AUC (real/bogus) of the alert model",
        box=None,
        header_style="dim",
        title_justify="left",
        pad_edge=False,
    )
    for name in wide.columns:
        table.add_column(name if name == "trained on" else f"tested on {name}")
    for row in wide.itertuples(index=False):
        table.add_row(*map(str, row))
    out.print(table)
    for why in dict.fromkeys(found.loc[found["trained_on"] == found["tested_on"], "why"]):
        if why:
            names = found.loc[
                (found["why"] == why) & (found["trained_on"] == found["tested_on"]), "tested_on"
            ]
            out.print(f"[dim]{', '.join(names)}: {why}[/]", soft_wrap=True)
    return found


def write_alone(cross: pd.DataFrame, report: Path | None, as_json: bool) -> None:
    """Write the report, and print JSON where that is asked for."""
    if report is not None:
        from astrid_pipeline.report.evaluation import write_cross_survey

        write_cross_survey(cross, report)
    if as_json:
        typer.echo(json.dumps({"cross_survey": json.loads(cross.to_json(orient="records"))}, indent=2))
    elif report is not None:
        out.print(f"[dim]{'report':<12}[/]{report}", soft_wrap=True)
