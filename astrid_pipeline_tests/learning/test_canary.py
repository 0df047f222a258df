"""The canary: the same skies, the same answers, and what is said where they differ."""

from __future__ import annotations

from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.canary import Canary, canary, canary_differs


def test_the_canary_sings_the_same_and_tells_a_broken_model() -> None:
    detector = load_model()
    seen = canary(detector)
    assert len(seen.scores) >= 6
    assert canary(detector) == seen
    assert canary_differs(seen, seen.as_dict()) is None
    noted = detector.facts["canary"]  # by whichever processor made the model
    assert canary_differs(seen, noted) is None
    silent = Canary(tuple(0.0 for _ in seen.scores), 0)
    assert "scores differ" in str(canary_differs(silent, seen.as_dict()))
    assert "simulation has changed" in str(canary_differs(Canary(seen.scores[1:], 0), seen.as_dict()))
    assert "false detections" in str(canary_differs(Canary(seen.scores, seen.false + 5), seen.as_dict()))
