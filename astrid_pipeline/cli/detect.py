"""`astrid detect`: two images in, detections out; no Dagster, no database, no service."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrid_pipeline.cli.console import err, out, stages

if TYPE_CHECKING:
    from astrid_pipeline.cli.compare import Comparison

#: Rows that the terminal shows; all are in the files.
_SHOWN = 15


class Method(enum.StrEnum):
    """How to subtract."""

    zogy = "zogy"
    classic = "classic"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("detect")(detect)


def detect(
    science: Annotated[
        Path,
        typer.Argument(
            metavar="SCIENCE", help="The new image: FITS, of any instrument, also .gz, .bz2, .fz."
        ),
    ],
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCE", help="An older or deeper image of the same sky; need not be aligned."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results. Default: SCIENCE-detections."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            "-t",
            min=3.0,
            help="|S/N| from which on something is a candidate; nothing fainter is reported.",
        ),
    ] = 5.0,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", min=0.0, max=1.0, help="Score of a detection. Default: the model's own."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Weights (.safetensors). Default: those in the package."),
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="How to subtract.")] = Method.zogy,
    device: Annotated[
        str, typer.Option("--device", help="Where the model runs: auto, cpu, cuda, cuda:1.", metavar="DEVICE")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON, and nothing else.")
    ] = False,
) -> None:
    """Find what changed between two images of the same sky.

    Aligns the reference to the science image, subtracts it (ZOGY), finds what stands out of the noise, and lets the
    model say what is real. Writes `report.html` (opens by double click), `difference.fits`, `candidates.parquet`,
    `candidates.csv` and `detections.reg` (for DS9) to the output folder.

    Examples:

    - `astrid detect new.fits old.fits` writes to new-detections/

    - `astrid detect new.fits.fz deep.fits.gz -o out --threshold 4` goes deeper, with more false ones

    - `astrid detect new.fits old.fits --json | jq .n_detections` for scripts

    - `ds9 new.fits -regions out/detections.reg` shows the detections on the image
    """
    from astrid_pipeline.cli import compare as room

    folder = output or Path(f"{_stem(science)}-detections")
    room.make_folder(folder)
    with stages(len(room.STAGES), quiet=as_json) as begin:
        comparison = room.compare(
            science,
            reference,
            threshold=threshold,
            min_score=min_score,
            model=model,
            method=method.value,
            device=None if device == "auto" else device,
            begin=begin,
        )
        begin("write")
        paths = room.write_results(comparison, folder)
    if as_json:
        typer.echo(json.dumps(summary(comparison, paths), indent=2))
    else:
        _show(comparison, paths)


def _stem(path: Path) -> str:
    """Return the file's name without what its format added."""
    name = path.name
    for ending in (".gz", ".bz2", ".fz", ".fits", ".fit", ".fts"):
        name = name.removesuffix(ending)
    return name or "astrid"


def summary(comparison: Comparison, paths: dict[str, Path]) -> dict[str, Any]:
    """Return the result as plain values, for JSON."""
    from astrid_pipeline.report.remarks import number

    meta = comparison.difference.meta
    keys = ("score_sigma", "score_sigma_raw", "flux_ratio", "dx_rms", "dy_rms", "n_matched", "coverage")
    detections = comparison.detections
    columns = ["ra", "dec", "x", "y", "flux", "flux_err", "snr", "score", "class"]
    return {
        "science": comparison.settings["science"],
        "reference": comparison.settings["reference"],
        "n_candidates": comparison.n_candidates,
        "n_detections": len(detections),
        "difference": {key: number(meta, key) for key in keys},
        "remarks": [{"level": r.level, "about": r.about, "text": r.text} for r in comparison.remarks],
        "seconds": {stage: round(value, 2) for stage, value in comparison.seconds.items()},
        "files": {name: str(path) for name, path in paths.items()},
        # pandas writes NaN as null, which JSON has and Python's own writer does not use
        "detections": json.loads(detections[columns].to_json(orient="records", double_precision=9)),
    }


def _show(comparison: Comparison, paths: dict[str, Path]) -> None:
    from rich.table import Table

    detections = comparison.detections
    for remark in comparison.remarks:
        style = "yellow" if remark.level == "warning" else "dim"
        err.print(f"  [{style}]{'!' if remark.level == 'warning' else '·'} {remark.text}[/]")
    deeper = int((detections["origin"] == "network").sum())
    out.print(
        f"\n[bold]{len(detections)}[/] detection{'' if len(detections) == 1 else 's'}; "
        f"{comparison.n_candidates} candidates of |S/N| ≥ {comparison.settings['threshold']:g}"
        + (f"; {deeper} of the detections no candidate, but seen by the network" if deeper else "")
    )
    if len(detections):
        table = Table(box=None, header_style="dim", pad_edge=False)
        for name in ("#", "ra", "dec", "x", "y", "S/N", "mag", "score", "class"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for position, row in enumerate(detections.head(_SHOWN).to_dict("records"), 1):
            table.add_row(
                str(position),
                _cell(row.get("ra"), 6),
                _cell(row.get("dec"), 6, sign=True),
                _cell(row.get("x"), 1),
                _cell(row.get("y"), 1),
                _cell(row.get("snr"), 1),
                _cell(row.get("mag"), 2),
                _cell(row.get("score"), 3),
                str(row.get("class") or ""),
            )
        out.print(table)
        if len(detections) > _SHOWN:
            out.print(f"[dim]… and {len(detections) - _SHOWN} more[/]")
    out.print(f"\nReport: [bold]{paths['report.html'].resolve().as_uri()}[/]", soft_wrap=True)
    out.print(f"Tables, difference and regions: {paths['report.html'].parent}", soft_wrap=True)


def _cell(value: Any, digits: int, *, sign: bool = False) -> str:
    import math

    if value is None or not math.isfinite(float(value)):
        return "—"
    return f"{float(value):{'+' if sign else ''}.{digits}f}"
