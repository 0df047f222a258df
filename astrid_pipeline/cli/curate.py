"""`astrid curate`: labelled examples from alerts, known transients, reviewed nights, and pairs of images."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astrid_pipeline.cli.console import err, out
from astrid_pipeline.errors import AstridError, ConfigError, ReadError

if TYPE_CHECKING:
    import pandas as pd

    from astrid_pipeline.learning.gathering import Gathered

#: What a catalogue's columns of date and type may be called, in lower case, in the order of preference.
_DATES = ("mjd", "peak_mjd", "mjd_peak", "discovery_mjd", "jd", "disc_date", "discovery_date", "discoverydate", "date",
          "max_date")  # fmt: skip
_TYPES = ("type", "sn_type", "class", "classification", "objtype", "obj_type")
#: Julian dates are greater than this, modified ones smaller; what is smaller than the other is a year.
_JULIAN, _YEAR = 2_000_000.0, 10_000.0
_TOLD = 10


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("curate")(curate)


def curate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH…]", help="Alert packets: Avro or Parquet files, or folders of them."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must be empty.")] = Path(
        "curated"
    ),
    catalogue: Annotated[
        list[Path] | None,
        typer.Option(
            "--catalogue", help="Table of known transients: what lies at their place, at their time, is real."
        ),
    ] = None,
    radius: Annotated[float, typer.Option("--radius", min=0, help="How near, arcsec.")] = 2.0,
    before: Annotated[
        float, typer.Option("--before", help="Days before the table's date, if it has one.")
    ] = 30.0,
    after: Annotated[float, typer.Option("--after", help="Days after it.")] = 365.0,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels", help="CSV of people's verdicts: candid (or objectId), label (real, bogus), class."
        ),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair", metavar="NEW,OLD", help="Two images: their candidates, for --catalogue to label."
        ),
    ] = None,
    unchanged: Annotated[
        list[str] | None,
        typer.Option(
            "--unchanged",
            metavar="NEW,OLD",
            help="Two images between which nothing changed: all candidates are bogus.",
        ),
    ] = None,
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="What people agree on in this survey's own nights and alerts.")
    ] = False,
    since: Annotated[
        str, typer.Option("--since", metavar="NIGHT", help="First night of --reviewed.")
    ] = "1900-01-01",
    until: Annotated[str, typer.Option("--until", metavar="NIGHT", help="Last night of it.")] = "2999-12-31",
    most: Annotated[
        int, typer.Option("--most", min=1, help="Examples at most, shared out over survey, label and S/N.")
    ] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same sample and split.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the counts as JSON, and nothing else.")
    ] = False,
) -> None:
    """Make a set of labelled real examples to learn from: `astrid train --curated FOLDER`.

    A label is a person's (--labels, --reviewed), a known object's (--catalogue, or a solar-system object that the
    packet names), or that of the survey's own model where it is sure; each example says which (`label_source`). What
    nobody labels is left out. All examples of one object, and of one place, stand in one split.

    Examples:

    - `astrid curate alerts/ -o curated`

    - `astrid curate ztf/ lsst.parquet --catalogue tns.csv --labels mine.csv --most 20000 -o curated`

    - `astrid curate --reviewed --since 2026-03-01 -o spring`

    - `astrid curate --unchanged b.fits,a.fits -o false`
    """
    from astrid_pipeline.learning import curated, gathering

    found: list[Gathered] = []
    if paths:
        found.append(gathering.from_alerts(paths))
    for text, same in [(t, False) for t in pair or ()] + [(t, True) for t in unchanged or ()]:
        found.append(_of_pair(text, unchanged=same))
    if reviewed:
        found.append(_reviewed(since, until))
    if not found:
        raise ConfigError(
            "there is nothing to curate", remedy="name alert packets, --reviewed, --pair or --unchanged"
        )
    sources = found[0]
    for more in found[1:]:
        sources = sources.plus(more)
    notes: dict[str, int] = {"sources": len(sources.table), "unreadable": len(sources.problems)}
    for path in labels or ():
        sources, missing = gathering.match_verdicts(sources, _read_labels(path))
        notes["verdicts_without_source"] = notes.get("verdicts_without_source", 0) + missing
    for path in catalogue or ():
        known = dated(_read_catalogue(path))
        sources, against = gathering.match_catalogue(
            sources, known, name=path.stem, radius=radius, before=before, after=after
        )
        notes["contradictory"] = notes.get("contradictory", 0) + against
    notes["without_label"] = int(sources.table["real"].isna().sum())
    made = curated.curate(sources, output, most=most, seed=seed, name=output.name)
    splits = made.table.groupby(["split", "real"]).size().unstack(fill_value=0)
    counts = made.counts()
    if as_json:
        parts = {
            str(k): {"real": int(v.get(True, 0)), "bogus": int(v.get(False, 0))} for k, v in splits.iterrows()
        }
        told = {
            "output": str(output),
            "examples": len(made),
            "objects": made.table["object"].nunique(),
            **notes,
        }
        typer.echo(json.dumps({**told, "counts": counts.to_dict("records"), "splits": parts}, indent=2))
        return
    for problem in sources.problems[:_TOLD]:
        err.print(f"[yellow]not used:[/] {problem}", soft_wrap=True, highlight=False)
    _show(counts)
    out.print(
        f"{len(made)} examples of {made.table['object'].nunique()} objects → {output}   [dim]("
        + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in notes.items())
        + ")[/]",
        soft_wrap=True,
    )


def _show(counts: pd.DataFrame) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in counts.columns:
        table.add_column(str(name).replace("_", " "))
    for row in counts.itertuples(index=False):
        table.add_row(*map(str, row))
    out.print(table)


def _of_pair(text: str, *, unchanged: bool) -> Gathered:
    from astrid_pipeline.archives.alert_packets import UnreadablePacket
    from astrid_pipeline.cli.compare import compare
    from astrid_pipeline.learning.gathering import Gatherer, from_difference

    new, comma, old = text.partition(",")
    if not comma:
        raise ConfigError(
            f"a pair is two files with a comma between, not {text!r}", remedy="--pair new.fits,old.fits"
        )
    try:
        made = compare(Path(new), Path(old))
    except AstridError as error:
        # One pair that cannot be compared does not take the others along.
        failed = Gatherer()
        failed.problems.append(UnreadablePacket(new, None, str(error)))
        return failed.done()
    # What only the network sees is a candidate of no S/N threshold: it is its own opinion.
    candidates = made.candidates[made.candidates["origin"] == "candidate"]
    survey = str(made.science.get("instrument") or "unknown").lower()
    return from_difference(
        made.difference, candidates, survey=survey, file=Path(new).name, unchanged=unchanged
    )


def _reviewed(since: str, until: str) -> Gathered:
    from astrid_pipeline.resources.catalogue import open_catalogue
    from astrid_pipeline.resources.store import open_store
    from astrid_pipeline.review.reviewed import reviewed

    try:
        first, last = dt.date.fromisoformat(since), dt.date.fromisoformat(until)
    except ValueError as error:
        raise ConfigError(f"not a night: {error}", remedy="write nights as 2026-03-01") from error
    return reviewed(open_catalogue(), open_store(), first, last)


def _read_labels(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str, comment="#")
    except (OSError, ValueError) as error:
        raise ReadError(
            f"not a table of labels: {error}", where=path, remedy="hand over a CSV file"
        ) from error


def _read_catalogue(path: Path) -> pd.DataFrame:
    from astrid_pipeline.catalog.matching import read_catalogue

    return read_catalogue(path)


def dated(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Return a user's catalogue (`catalog.matching.read_catalogue`) with mjd (NaN if not told) and type ("" likewise).

    A date may be a Julian date, a modified one, or text that astropy or ISO 8601 knows.
    """
    dates, types = [], []
    for row in catalogue["properties"]:
        lower = {str(name).strip().lower(): value for name, value in row.items()}
        dates.append(next((d for name in _DATES if (d := _mjd(lower.get(name))) == d), float("nan")))
        types.append(_text(lower, _TYPES))
    return catalogue.assign(mjd=dates, type=types)


def _text(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((str(row[name]).strip() for name in names if str(row.get(name) or "").strip()), "")


def _mjd(value: Any) -> float:
    from astropy.time import Time

    try:
        number = float(value)
        if number > _YEAR:
            return number - 2_400_000.5 if number > _JULIAN else number
    except (TypeError, ValueError):
        pass
    try:
        return float(Time(str(value).strip().replace("/", "-")).mjd)
    except ValueError:
        return float("nan")
