"""Made-up skies: pairs of calibrated frames, and whole surveys of raw ones, with the truth beside them.

`simulate_pair` makes two frames and what changed between them, for learning and benchmarks; `SimulatedArchive` is an
archive like any other, whose exposures are rendered when they are fetched. Nothing here knows of Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrid_pipeline.simulation.archive import SimulatedArchive
    from astrid_pipeline.simulation.pairs import (
        CASE_SHAPE,
        CASES,
        PairOptions,
        SimulatedPair,
        random_options,
        simulate_pair,
        spoiled_options,
    )
    from astrid_pipeline.simulation.survey import SimulatedSurvey
    from astrid_pipeline.simulation.truth import TRUTH

_HOMES = {
    "CASES": "pairs",
    "CASE_SHAPE": "pairs",
    "PairOptions": "pairs",
    "SimulatedPair": "pairs",
    "random_options": "pairs",
    "simulate_pair": "pairs",
    "spoiled_options": "pairs",
    "SimulatedArchive": "archive",
    "SimulatedSurvey": "survey",
    "TRUTH": "truth",
}

__all__ = [
    "CASES",
    "CASE_SHAPE",
    "TRUTH",
    "PairOptions",
    "SimulatedArchive",
    "SimulatedPair",
    "SimulatedSurvey",
    "random_options",
    "simulate_pair",
    "spoiled_options",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: astropy and scipy are slow to load, and Dagster loads every room.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
