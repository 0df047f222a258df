"""What a detector is worth, as one HTML file that opens by double click, with nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from astrid_pipeline import __version__
from astrid_pipeline.learning.evaluate import METHODS, Evaluation
from astrid_pipeline.learning.goals import GOALS
from astrid_pipeline.learning.kinds import share_right
from astrid_pipeline.report.tables import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN: Mapping[str, str] = {
    "ap": "AP",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_per_mpix": "false a Mpix",
    "false_per_mpix_at_recall_90": "false a Mpix at recall .9",
    "recall_at_precision_95": "recall at precision .95",
}


def write_evaluation(strata: Mapping[str, Evaluation], path: Path, cross: pd.DataFrame | None = None) -> Path:
    """Write the page of one or several evaluations of a detector.

    Parameters
    ----------
    strata:
        By name of what it was measured on; the first is shown whole, all of them side by side.
    cross:
        The alert model on surveys' examples (`learning.cross_survey`), where that was measured too.
    """
    html = render_evaluation(strata, cross)
    return write_whole(path, lambda name: name.write_text(html, encoding="utf-8"))


def write_cross_survey(cross: pd.DataFrame, path: Path) -> Path:
    """Write the page of what the alert model is worth on surveys' examples (`learning.cross_survey`)."""
    html = _template("alerts.html").render(version=__version__, cross=_cross(cross))
    return write_whole(path, lambda name: name.write_text(html, encoding="utf-8"))


def _cross(table: pd.DataFrame) -> dict[str, Any]:
    from astrid_pipeline.learning.cross_survey import as_matrix

    taught = table[table["trained_on"] == table["tested_on"]]
    return {
        "grid": _cells(as_matrix(table)),
        "why": taught.loc[taught["why"] != "", ["tested_on", "why"]].values.tolist(),
    }


def render_evaluation(strata: Mapping[str, Evaluation], cross: pd.DataFrame | None = None) -> str:
    """Return the page as HTML."""
    name, first = next(iter(strata.items()))
    goals = [
        {
            "text": goal.text,
            "value": str(goal.of(first)),
            "bound": goal.bound,
            "reached": goal.reached(first),
        }
        for goal in GOALS
    ]
    return str(
        _template("evaluation.html").render(
            title=f"{first.model.get('name', 'detector')} {first.model.get('version', '')}".strip(),
            version=__version__,
            name=name,
            e=first,
            goals=goals,
            reached=sum(bool(goal["reached"]) for goal in goals),
            methods=_methods(first),
            columns=list(_SHOWN.values()),
            calibration=_figure(_calibration, first),
            by_snr=_figure(_by_snr, strata),
            ranks=_figure(_ranks, first),
            artefacts=_cells(first.artefacts),
            types=_cells(first.types.rename_axis("true").reset_index()),
            classes=_cells(first.classes.rename_axis("true").reset_index()),
            by_class=_cells(first.by_class),
            types_right=f"{100 * share_right(first.types):.1f} %",
            strata=_strata(strata),
            cross=None if cross is None else _cross(cross),
        )
    )


@cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True
    )
    return environment.get_template(name)


def _methods(e: Evaluation) -> list[list[str]]:
    return [
        [METHODS.get(name, name), *(str(figures[column]) if column in figures else "–" for column in _SHOWN)]
        for name, figures in e.figures.items()
    ]


def _strata(strata: Mapping[str, Evaluation]) -> list[list[str]]:
    rows = []
    for name, e in strata.items():
        best = e.best
        rows.append(
            [
                name,
                f"{e.megapixels:.1f}",
                str(e.truths),
                *(
                    str(best[figure])
                    for figure in ("ap", "precision", "recall", "recall_at_precision_95", "false_per_mpix")
                ),
                f"{e.snr_half:.2f}",
                f"{e.ece:.3f}",
                f"{e.iou:.3f}",
            ]
        )
    return rows


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    def text(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "–" if value != value else f"{value:.4g}"
        return str(value)

    return {
        "head": [str(column).replace("_", " ") for column in table.columns],
        "rows": [[text(value) for value in row] for row in table.itertuples(index=False)],
    }


def recall_png(strata: Mapping[str, Evaluation]) -> bytes:
    """Draw the share of the true changes found against their S/N, one line an evaluation."""
    return _png(_by_snr, strata)


def _png(draw: Any, source: Any) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), dpi=120, layout="constrained")
    draw(figure.add_subplot(), source)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _figure(draw: Any, source: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(draw, source)).decode()


def _calibration(axes: Axes, e: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    axes.plot(e.reliability["score"], e.reliability["share_real"], marker="o", lw=1.2)
    for score, share, count in e.reliability.itertuples(index=False):
        axes.annotate(f"{int(count)}", (score, share), fontsize=6, xytext=(3, -8), textcoords="offset points")
    axes.set(
        xlabel="score",
        ylabel="share that is real",
        title=f"calibration: error {e.ece:.3f} (numbers: detections)",
    )
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)


def _by_snr(axes: Axes, strata: Mapping[str, Evaluation]) -> None:
    for offset, (name, e) in enumerate(strata.items()):
        rows = e.recall[e.recall["truths"] > 0]
        # Strata are set off sideways by 3 %, so that their error bars do not lie on each other.
        x = np.sqrt(rows["snr_low"] * rows["snr_high"]) * 1.03**offset
        y = rows["recall"].to_numpy(float)
        error = [np.maximum(y - rows["low"], 0), np.maximum(rows["high"] - y, 0)]
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, lw=1.2, label=name)
    axes.set_xscale("log")
    axes.set_xticks([3, 5, 7, 10, 20, 50], labels=["3", "5", "7", "10", "20", "50"])
    axes.minorticks_off()
    axes.set(
        xlabel="true S/N", ylabel="share found, at the threshold", ylim=(-0.03, 1.03), title="recall by S/N"
    )
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def _ranks(axes: Axes, e: Evaluation) -> None:
    axes.plot(e.ranks["rank"], e.ranks["recall"], marker="o", lw=1.2)
    axes.set_xscale("log")
    axes.set_xticks(list(e.ranks["rank"]), labels=[str(rank) for rank in e.ranks["rank"]])
    axes.minorticks_off()
    axes.set(
        xlabel="surest detections of an image looked at",
        ylabel="share of the changes seen",
        ylim=(-0.03, 1.03),
    )
    axes.grid(alpha=0.3)
