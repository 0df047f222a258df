"""`astrid champion`: which detector judges the nights, and which is to from now on."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astrid_pipeline.cli.console import out
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.resources.tracking import Model, Tracking

#: What takes the weights that come with AstrID.
PACKAGE = "package"


def register(parent: typer.Typer) -> None:
    """Add the command to `parent`."""
    parent.command("champion")(champion)


def champion(
    which: Annotated[
        str | None,
        typer.Argument(
            help="`package` for the weights of this AstrID, a registered version's number, or a file that "
            "`astrid train` wrote. Without it, all versions are listed."
        ),
    ] = None,
    why: Annotated[str, typer.Option("--why", help="Kept with the version.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which detector judges the nights, or have another do it from now on.

    Retraining promotes a model by itself only if it is better on the test images beyond the interval. What is named
    here is taken as it is: measure it before (`astrid evaluate -m FILE`). Nights made already stay as they are; each
    detection says which model found it. No version is ever lost, so `astrid champion NUMBER` goes back.

    Examples:

    - `astrid champion` lists the versions

    - `astrid champion package` after an upgrade of AstrID that brought better weights

    - `astrid champion mine/detector.safetensors --why "trained on our camera"`

    - `astrid champion 3` goes back to version 3
    """
    from astrid_pipeline.resources.detector import DETECTOR, DetectorResource
    from astrid_pipeline.resources.tracking import CHAMPION, Tracking

    tracking = Tracking()
    detector = DetectorResource(tracking=tracking)
    detector.champion()  # registers the packaged one where there is none yet
    if which is not None:
        if which.isdecimal():
            if which not in {model.version for model, _, _ in tracking.versions(DETECTOR)}:
                raise ConfigError(
                    f"there is no version {which}", where=DETECTOR, remedy="list them: `astrid champion`"
                )
            tracking.set_alias(DETECTOR, CHAMPION, which)
        elif which == PACKAGE:
            detector.take_packaged(why)
        else:
            _take_file(tracking, Path(which), why)
    versions = tracking.versions(DETECTOR)
    if as_json:
        typer.echo(json.dumps([_plain(*each) for each in versions]))
        return
    _show(versions, which is not None)


def _take_file(tracking: Tracking, path: Path, why: str) -> None:
    """Register a detector's file as the next version and champion."""
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.resources.detector import DETECTOR
    from astrid_pipeline.resources.tracking import CHAMPION

    made = load_model(path)
    with (
        tempfile.TemporaryDirectory(prefix="astrid-champion-") as temporary,
        tracking.attempt("champion by hand", tags={"source": "file"}) as attempt,
    ):
        # Whole and readable in one, whatever else lies beside it or happens to it.
        copy = Path(temporary) / "detector.safetensors"
        made.save(copy)
        tracking.register(
            DETECTOR,
            {copy.name: copy},
            attempt.run_id,
            alias=CHAMPION,
            tags={"source": "file", "model": f"{made.name} {made.version}"},
            description=why or f"{path.name}, taken by hand",
        )


def _plain(model: Model, aliases: tuple[str, ...], about: dict[str, str]) -> dict[str, object]:
    return {
        "version": int(model.version),
        "aliases": list(aliases),
        "source": model.tags.get("source", "training"),
        "model": model.tags.get("model", ""),
        "created": about["created"],
        "description": about["description"],
    }


def _show(versions: list[tuple[Model, tuple[str, ...], dict[str, str]]], changed: bool) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("version", "is", "source", "model", "registered", "why"):
        table.add_column(name, justify="right" if name == "version" else "left")
    for model, aliases, about in versions:
        row = _plain(model, aliases, about)
        when = dt.datetime.fromisoformat(about["created"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            model.version,
            ", ".join(aliases),
            str(row["source"]),
            str(row["model"]),
            when,
            about["description"],
        )
    out.print(table)
    if changed:
        (now,) = [model.version for model, aliases, _ in versions if "champion" in aliases]
        out.print(
            f"Version {now} judges every night made from now on. Nights made before keep their detections until the "
            "asset `detections` is materialized again."
        )
