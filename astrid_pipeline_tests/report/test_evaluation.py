"""The page of an evaluation: one file, whole, and true to the figures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from astrid_pipeline.learning.calibration import Calibrator
from astrid_pipeline.learning.detector import Detector
from astrid_pipeline.learning.evaluate import Evaluation, evaluate
from astrid_pipeline.learning.goals import GOALS
from astrid_pipeline.report.evaluation import render_evaluation, write_evaluation
from astrid_pipeline_tests.learning.helpers import toy_set
from astrid_pipeline_tests.learning.test_infer import ScoreNetwork


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    shards = toy_set(tmp_path_factory.mktemp("toy"), range(4), (128, 128), sources=6, snr=(5, 40))
    detector = Detector(
        ScoreNetwork().eval(), "<b>score</b>", "3", Calibrator("platt", np.array([1.0, 0.0])), threshold=0.5
    )
    return evaluate(detector, shards, resamples=20)


def test_one_file_with_every_figure_and_nothing_from_outside(measured: Evaluation, tmp_path: Path) -> None:
    path = write_evaluation({"toy skies": measured, "others": measured}, tmp_path / "e.html")
    html = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<b>score</b>" not in html  # a model's name is text
    for name in ("ap", "precision", "recall", "f1"):
        value = measured.best[name]
        assert f'{value.value:.3f}<br><small class="muted">[{value.low:.3f}, {value.high:.3f}]' in html
    assert "others" in html
    assert html.count("data:image/png;base64,") == 3


def test_goals_are_judged_by_what_was_measured(measured: Evaluation) -> None:
    by_name = {goal.name: goal for goal in GOALS}
    assert by_name["ap"].reached(measured) == (measured.best["ap"].value >= 0.975)
    assert by_name["snr_half"].reached(measured) == (measured.snr_half <= 5.5)
    # No artefact was there: what was not measured was not reached.
    assert not by_name["artefacts"].reached(measured)
    html = render_evaluation({"toy": measured})
    assert html.count(">reached<") == sum(goal.reached(measured) for goal in GOALS)
