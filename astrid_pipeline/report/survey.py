"""The picture report of a survey: one page a person scrolls through, night after night, with nothing to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from astrid_pipeline import __version__
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.report.pictures import quad_png, stamps_png
from astrid_pipeline.report.plots import completeness_png
from astrid_pipeline.report.tables import write_whole

#: Cut-outs of the best detections shown for each night.
STAMPS_A_NIGHT = 12


@dataclass(frozen=True)
class Night:
    """What the report shows of one field and night.

    Attributes
    ----------
    name, night:
        Of the field, and of its evening.
    differences:
        Difference images by exposure id; read when their picture is drawn.
    detections:
        Table of schema DETECTIONS.
    summary:
        Rows of schema NIGHT_SUMMARY, one a filter.
    completeness:
        By filter, the bins of `night.injections.completeness`.
    """

    name: str
    night: str
    differences: Mapping[str, Difference]
    detections: pd.DataFrame
    summary: pd.DataFrame
    completeness: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def write_survey_report(folder: Path, nights: Sequence[Night], title: str) -> Path:
    """Write `index.html` with its pictures into `folder` and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    html = _template().render(title=title, version=__version__, nights=[_night(folder, n) for n in nights])
    return write_whole(folder / "index.html", lambda path: path.write_text(html, encoding="utf-8"))


def _template() -> Any:
    import jinja2

    templates = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("survey.html")


def _night(folder: Path, night: Night) -> dict[str, Any]:
    pictures = []
    for band, exposure in _chosen(night):
        mine = night.detections[night.detections.exposure_id == exposure]
        target = f"{night.name}_{night.night}_{band}.png"
        difference = night.differences[exposure]
        png = quad_png(difference, mine, exposure, max_px=2000, numbered=0)
        _write_png(folder / target, png)
        pictures.append({"file": target, "name": exposure, "detections": len(mine)})
    chart = f"{night.name}_{night.night}_completeness.png"
    drawn = completeness_png(night.completeness, title="transients put in and found again")
    _write_png(folder / chart, drawn)
    return {
        "field": night.name,
        "night": night.night,
        "pictures": pictures,
        "stamps": _stamps(folder, night),
        "chart": chart,
        "rows": night.summary.to_dict("records"),
    }


def _write_png(path: Path, png: bytes) -> None:
    write_whole(path, lambda target: target.write_bytes(png))


def _chosen(night: Night) -> list[tuple[str, str]]:
    """Return in each filter the exposure with the most detections."""
    counts = night.detections.exposure_id.value_counts()
    chosen: dict[str, str] = {}
    for exposure in sorted(night.differences, key=lambda e: (-int(counts.get(e, 0)), e)):
        stored = getattr(night.differences, "meta", None)
        meta = stored(exposure) if callable(stored) else night.differences[exposure].meta
        chosen.setdefault(str(meta.get("filter")), exposure)
    return sorted(chosen.items())


def _stamps(folder: Path, night: Night) -> list[dict[str, Any]]:
    best = night.detections.sort_values(["score", "snr"], ascending=False).head(STAMPS_A_NIGHT)
    stamps = []
    for exposure, rows in best.groupby("exposure_id", sort=False):
        difference = night.differences[str(exposure)]
        for row in rows.to_dict("records"):
            target = f"stamp_{row['detection_id']}.png"
            png = stamps_png(difference, row["x"], row["y"])
            _write_png(folder / target, png)
            stamps.append(
                {
                    "file": target,
                    "id": row["detection_id"],
                    "class": row["class"],
                    "score": row["score"],
                    "snr": row["snr"],
                    "ra": row["ra"],
                    "dec": row["dec"],
                }
            )
    return stamps
