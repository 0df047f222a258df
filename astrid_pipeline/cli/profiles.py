"""What `astrid train --profile` does: a survey's own injections make a detector's scores mean there what they say."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from astrid_pipeline.cli.console import out
from astrid_pipeline.errors import ConfigError, MissingProductError

if TYPE_CHECKING:
    from astrid_pipeline.learning.profile import ProfileVerdict, SurveyProfile
    from astrid_pipeline.resources.tracking import Model, Tracking


def train_profile(
    name: str,
    output: Path,
    fields: Sequence[str],
    skies: Sequence[Path],
    instruments: Sequence[str],
    model: Path | None,
    promote: bool,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Fit, judge on sky it was not fitted to, write, and show; with `promote`, register it as champion if it is better.

    Raises
    ------
    ConfigError
        If neither fields nor labelled images are named, or nobody says whose frames it serves.
    MissingProductError
        If the fields have no injections yet.
    ModelError
        If there are too few of them.
    """
    from astrid_pipeline.learning import ShardSet, load_model
    from astrid_pipeline.learning.profile import fit_profile, judge_profile, survey_peaks
    from astrid_pipeline.learning.second_stage import real_weight

    if bool(fields) == bool(skies):
        raise ConfigError(
            "a profile is fitted to injections of fields, or to labelled images",
            remedy="name --field, or --skies and --instrument",
        )
    if promote and model is not None:
        raise ConfigError(
            "--promote carries the champion on, not a file", remedy="leave --model or --promote out"
        )
    folders, known = (list(skies), []) if skies else _samples(fields)
    serves = tuple(instruments) or tuple(known)
    if not serves:
        raise ConfigError("nobody says whose frames the profile serves", remedy="name --instrument")
    with tempfile.TemporaryDirectory(prefix="astrid-profile-") as temporary:
        champion: tuple[Tracking, Model] | None = None
        if model is None and (fields or promote):
            champion = _champion(Path(temporary))
        detector = load_model(model if champion is None else _weights(champion[1]))
        if champion is not None:
            detector = detector.replace(version=f"{champion[1].name}-{champion[1].version}")
        shards = ShardSet(folders)
        peaks, wanted, area = survey_peaks(detector, shards, device=device)
        weight = real_weight(shards)
        verdict = judge_profile(detector, peaks, wanted, area, real_weight=weight, seed=seed)
        made = fit_profile(detector, peaks, name=name, instruments=serves, real_weight=weight, seed=seed)
        others = tuple(profile for profile in detector.profiles if profile.name != name)
        path = output / "detector.safetensors"
        detector.replace(profiles=(*others, made)).save(path)
        promoted = ""
        if promote and verdict.better and champion is not None:
            promoted = _promote(*champion, path, made, verdict)
    _tell(made, verdict, path, promoted, promote, as_json)


def _samples(fields: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the folders of the fields' labelled tiles, and the instruments of their nights."""
    from astrid_pipeline.driver.survey import open_products

    products = open_products()
    keys = [key for key in products.partitions("training_samples") if key.rpartition("|")[0] in set(fields)]
    if not keys:
        raise MissingProductError(
            "no night of these fields has injections",
            where=", ".join(fields),
            remedy="run some of their nights",
        )
    instruments: set[str] = set()
    for key in keys:
        field, _, night = key.rpartition("|")
        metas = products.metas("difference_images", field, night).values()
        instruments |= {str(meta["instrument"]) for meta in metas if meta.get("instrument")}
    return [products.folder("training_samples", key) for key in keys], sorted(instruments)


def _champion(folder: Path) -> tuple[Tracking, Model]:
    from astrid_pipeline.resources.detector import DETECTOR, DetectorResource
    from astrid_pipeline.resources.tracking import Tracking

    tracking = Tracking()
    DetectorResource(tracking=tracking).champion()  # registers the packaged one where there is none yet
    return tracking, tracking.load(DETECTOR, folder)


def _weights(model: Model) -> Path:
    assert model.folder is not None
    (path,) = sorted(model.folder.glob("*.safetensors"))
    return path


def _promote(
    tracking: Tracking, before: Model, path: Path, made: SurveyProfile, verdict: ProfileVerdict
) -> str:
    """Register the champion with its new profile as the next version and champion; return its name and version."""
    from astrid_pipeline.resources.tracking import CHAMPION

    with tracking.attempt(
        f"profile {made.name}",
        params={"instruments": ", ".join(made.instruments), "threshold": made.threshold, **made.facts},
        tags={"profile": made.name, "champion": before.version},
    ) as attempt:
        attempt.log_metrics(_flat(verdict))
        # What the champion has learned from stays true of it: the loop of labels asks.
        tags = {**before.tags, "profile": made.name}
        model = tracking.register(
            before.name,
            {path.name: path},
            attempt.run_id,
            alias=CHAMPION,
            tags=tags,
            description=verdict.reason,
        )
    return f"{model.name} version {model.version}"


def _flat(verdict: ProfileVerdict) -> dict[str, float]:
    return {
        f"{when}_{name}{end}": float(getattr(value, part))
        for when in ("before", "after")
        for name, value in getattr(verdict, when).items()
        for end, part in (("", "value"), (".low", "low"), (".high", "high"))
    }


def _tell(
    made: SurveyProfile, verdict: ProfileVerdict, path: Path, promoted: str, asked: bool, as_json: bool
) -> None:
    if as_json:
        told: dict[str, Any] = {
            "file": str(path),
            "profile": {
                "name": made.name,
                "instruments": list(made.instruments),
                "threshold": made.threshold,
            },
            "facts": dict(made.facts),
            "figures": _flat(verdict),
            "better": verdict.better,
            "reason": verdict.reason,
            "promoted": promoted,
        }
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("on sky it was not fitted to", "as it was", "with the profile"):
        table.add_column(name)
    words = {
        "ece": "calibration error of scores over 0.1",
        "log_loss": "log loss",
        "precision": "precision at the threshold",
        "recall": "recall there, S/N ≥ 4",
        "false_per_mpix": "false alarms a megapixel there",
    }
    for name, text in words.items():
        table.add_row(text, str(verdict.before[name]), str(verdict.after[name]))
    out.print(table)
    out.print(
        f"[dim]{made.name} serves {', '.join(made.instruments)}: map {made.facts['kind']}, threshold "
        f"{made.threshold:.3f}; {verdict.reason}[/]",
        soft_wrap=True,
    )
    if promoted:
        out.print(f"[green]{promoted} is the champion now[/]")
    elif asked:
        out.print("[yellow]not promoted[/]: it is not better beyond the interval; inject into more nights")
    out.print(f"[dim]{'detector':<12}[/]{path}", soft_wrap=True)
