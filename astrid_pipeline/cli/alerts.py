"""What `astrid train --curated` does: the model of `astrid score`, of simulated stamps and curated ones."""

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
