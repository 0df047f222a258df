"""`astrid score`: real or bogus of any survey's alert packets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from astrid_pipeline.cli.console import err, out
from astrid_pipeline.errors import ReadError

#: Problems told one by one; more are only counted, the rest stands in the JSON summary.
_TOLD = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("score")(score)


def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH…", help="Avro or Parquet files, or folders of them.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")] = Path("scores.csv"),
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Alert model (.safetensors). Default: the packaged one."),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option("--detector", help="Detector that it was fitted to. Default: that of the packaged one."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit the probabilities to the survey's own verdicts in these packets, each without its own object.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1.")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON, and nothing else.")
    ] = False,
) -> None:
    """Say of every alert packet how probable it is real, from its cut-outs alone.

    Reads packets of ZTF, Rubin (LSST) and their like: Avro files as surveys distribute them, and Parquet tables with
    cut-outs. Packets that cannot be read are named, the others are scored. The CSV has the columns `file`, `record`,
    `candid` (`diaSourceId` for Rubin), `objectId`, `real_probability`, `class` (transient, variable, moving, bogus, or
    unsure where the model does not know) and `uncertainty`.

    The packaged model learned from simulated cut-outs only; no survey's alerts are in it. Its ranking holds on real
    alerts; for probabilities that hold too, use --calibrate with packets that carry their survey's score.

    Examples:

    - `astrid score alerts/ --output scores.csv`

    - `astrid score night.parquet --calibrate --json`
    """
    from astrid_pipeline.learning.alert_model import load_alert_model, load_alert_network
    from astrid_pipeline.learning.alert_scores import agreement, score_alerts

    found = score_alerts(
        paths,
        load_alert_model(model),
        load_alert_network(detector),
        calibrate=calibrate,
        device=None if device == "auto" else device,
    )
    if not len(found.table):
        first = f"; the first: {found.problems[0]}" if found.problems else ""
        raise ReadError(
            f"none of {len(found.problems)} packets could be read{first}",
            remedy="name alert packets of ZTF or Rubin (Avro), or a Parquet table with cut-outs",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    found.written().to_csv(output, index=False)
    agrees, real, bogus = agreement(found.table)
    if as_json:
        summary = {
            "output": str(output),
            "scored": len(found.table),
            "unreadable": [
                {"file": p.file, "record": p.record, "problem": p.problem} for p in found.problems
            ],
            "real": int((found.table["real_probability"] > 0.5).sum()),
            "classes": found.table["class"].value_counts().to_dict(),
            "calibrated": calibrate,
            "survey_agreement": None
            if agrees.value != agrees.value
            else {"auc": agrees.value, "low": agrees.low, "high": agrees.high, "real": real, "bogus": bogus},
        }
        typer.echo(json.dumps(summary, indent=2))
        return
    for problem in found.problems[:_TOLD]:
        err.print(f"[yellow]not scored:[/] {problem}", soft_wrap=True, highlight=False)
    if len(found.problems) > _TOLD:
        err.print(f"[yellow]not scored:[/] {len(found.problems) - _TOLD} more (--json names all)")
    counts = ", ".join(f"{n} {name}" for name, n in found.table["class"].value_counts().items())
    out.print(
        f"{len(found.table)} packets scored ({counts}), {len(found.problems)} not → {output}", soft_wrap=True
    )
    if agrees.value == agrees.value:
        out.print(
            f"[dim]agreement with the survey's own verdicts: AUC {agrees} on {real} real and {bogus} bogus[/]"
        )
