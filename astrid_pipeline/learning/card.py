"""The model card: what a detector was trained on, what it reaches, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.evaluate import METHODS, Evaluation
from astrid_pipeline.learning.kinds import share_right
from astrid_pipeline.learning.train_config import TrainingResult

_LIMITS = """\
- Trained and measured on one simulator. On real frames it is less pure, mostly beside saturated stars, on artefacts
  that calibration did not mask, and where the noise of the frames is not known. The rates above are no promise for a
  real survey.
- Seeing from 1.9 to 4.5 px (FWHM) was seen in training. Sharper frames are undersampled; wider ones should be binned.
- Changes of S/N below 4 were neither asked for nor forbidden. Scores say how probable a peak is real where real
  changes are as frequent as in the test images (20 a megapixel, many times the sky's own): on a sparse field the
  ranking holds and the probabilities are optimistic; `calibration.shift_prior` brings them to another rate.
- `class` is what one pair of frames tells: a slow asteroid without a trail looks like a new star, and a variable
  whose star is too faint for the reference looks like a transient.
- `uncertainty` is the spread under dropout; it does not know what lies outside the training data.
"""


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _frame(table: pd.DataFrame) -> str:
    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}" if value == value else "–"
        return str(value)

    return _rows(
        [str(c) for c in table.columns], [[text(v) for v in row] for row in table.itertuples(index=False)]
    )


def model_card(
    detector: Detector,
    evaluation: Evaluation,
    result: TrainingResult,
    manifests: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the card as Markdown."""
    e, images = evaluation, {split: int(m["images"]) for split, m in manifests.items()}
    shape = next(iter(manifests.values()))["shape"]
    methods = [
        [
            METHODS.get(name, name).replace("|", "\\|"),
            str(f["ap"]),
            str(f["precision"]),
            str(f["recall"]),
            str(f["false_per_mpix"]),
            str(f["false_per_mpix_at_recall_90"]),
        ]
        for name, f in e.figures.items()
    ]
    about_half = f"{e.snr_half:.2f}"
    facts = [
        ["name, version", f"{detector.name}, {detector.version}"],
        [
            "network",
            f"{result.config.network}, {result.parameters / 1e6:.2f} million parameters, kept in float16",
        ],
        ["inputs", "science/σ, reference/σ, D/σ, S_corr, squeezed by asinh (`learning/channels.py`)"],
        ["answers", "heat maps transient, variable, moving; one mask"],
        ["second stage", "boosted trees, Isolation Forest, One-Class SVM; logistic stacking, calibrated"],
        *(
            [["other exposures of the night", f"{len(detector.epochs.forest.roots)} trees on the score"]]
            if detector.epochs
            else []
        ),
        ["score threshold", f"{detector.threshold:.3f}"],
        [
            "training data",
            ", ".join(f"{split} {n}" for split, n in images.items()) + f" images of {shape[0]} × {shape[1]}",
        ],
        ["steps, best step", f"{result.steps}, {result.best['step']:.0f}"],
        ["seed", str(result.config.seed)],
        ["training time", f"{result.seconds:.0f} s on {result.device} (this run)"],
        ["training energy", f"{result.joules / 1000:.0f} kJ ({result.energy_source})"],
        ["data hash", result.data_hash[:16]],
    ]
    kept = e.recall.assign(truths=e.recall["truths"].astype(int), found=e.recall["found"].astype(int))
    confusion = e.classes.reset_index().rename(columns={"truth": "true \\ found"})
    types = e.types.rename_axis("true \\ taken for").reset_index()
    return f"""# {detector.name} {detector.version}

Marks changes in a difference image made by AstrID, and says of each how probable it is real and what it looks like.

{_rows(["", ""], facts)}
## What it reaches

Measured on {e.images} simulated images ({e.megapixels:.1f} usable megapixels, {e.truths} changes of S/N ≥
{e.min_snr:g}) from seeds that nothing was trained on, by the same simulator. Intervals are 95 %, by drawing images
with replacement. Fainter changes count neither way. The same differences, masks and candidates for all methods.

{_rows(["method", "AP", "precision", "recall", "false a Mpix", "false a Mpix at recall .9"], methods)}
If there were one true change a megapixel, the precision would be {e.best["precision_at_1_per_mpix"]}. Median position
error {e.best["position_error"]} px. Recall at precision .95: {e.best["recall_at_precision_95"]}.
IoU of the masks of detections {e.iou:.3f} (of all
that the network marks, with changes however faint: {e.network_iou:.3f}).
Half of the changes are found at S/N {about_half}.
Calibration error of scores over 0.1: {e.ece:.3f}; at one change a megapixel {e.sparse["ece"]:.3f}, and AP
{e.sparse["ap"]:.3f}.
{e.seconds_per_mpix:.2f} s and {e.joules_per_mpix:.0f} J ({e.energy_source}) a megapixel on {e.device}.

Recall by true S/N, at the threshold:

{_frame(kept)}
Class, of those found:

{_frame(confusion)}
Point, trail or artefact, of all true changes of S/N ≥ {e.min_snr:g} and all candidates that are none
({100 * share_right(e.types):.1f} % right):

{_frame(types)}
Artefacts on pixels that no mask covered, and those that passed for real (a detection within 5 px):

{_frame(e.artefacts)}
## Limits

{_LIMITS}"""
