"""Figures of numbers: completeness against S/N. Small PNGs that fit into a page's metadata."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def completeness_png(bins: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> bytes:
    """Draw the share of injections found in each bin of S/N, with its 68 % interval, one line a filter.

    Parameters
    ----------
    bins:
        By filter, what `night.injections.completeness` returned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for offset, (name, rows) in enumerate(sorted(bins.items())):
        filled = [r for r in rows if r["injected"]]
        # Filters are set off sideways by 3 %, so that their error bars do not lie on each other.
        x = [(r["snr_low"] * r["snr_high"]) ** 0.5 * 1.03**offset for r in filled]
        y = [r["found"] / r["injected"] for r in filled]
        error = [
            [max(v - r["low"], 0) for v, r in zip(y, filled, strict=True)],
            [max(r["high"] - v, 0) for v, r in zip(y, filled, strict=True)],
        ]
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, lw=1.2, label=name)
    axes.set_xscale("log")
    axes.set_xticks([3, 5, 7, 10, 20, 50], labels=["3", "5", "7", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("true S/N of the injected transient")
    axes.set_ylabel("share detected")
    axes.grid(alpha=0.3)
    if bins:
        axes.legend(title="filter", frameon=False, fontsize=8)
    axes.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def training_png(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draw loss and average precision on the validation images against steps.

    Parameters
    ----------
    history:
        One row a validation: step, loss, valid_loss, valid_ap.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    for name, label in (("loss", "loss, training"), ("valid_loss", "loss, validation")):
        values = [row.get(name, float("nan")) for row in history]
        axes.plot(steps, values, marker="o", lw=1.2, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    other = axes.twinx()
    other.plot(
        steps,
        [row.get("valid_ap", float("nan")) for row in history],
        "k--",
        marker="s",
        label="AP, validation",
    )
    other.set_ylabel("average precision")
    other.set_ylim(0, 1.02)
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
