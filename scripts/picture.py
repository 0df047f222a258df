"""Draws docs/detect.png, the README's picture: a simulated pair, subtracted, with what the packaged model finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from astrid_pipeline.imaging import find_candidates, subtract
from astrid_pipeline.learning import detect, load_model
from astrid_pipeline.report import quad_png
from astrid_pipeline.simulation import simulate_pair
from astrid_pipeline.simulation.pairs import CASES

TARGET = Path(__file__).parent.parent / "docs" / "detect.png"


def main() -> None:
    """Draw the picture; the same code gives the same picture."""
    pair = simulate_pair(np.random.default_rng(20), (640, 640), **CASES["real"])
    difference = subtract(pair.science, pair.reference)
    found = detect(difference, find_candidates(difference), load_model())
    TARGET.parent.mkdir(exist_ok=True)
    title = f"A simulated pair · {len(found)} detections"
    TARGET.write_bytes(quad_png(difference, found, title, max_px=1600, colours=64))
    print(f"{TARGET.name}: {len(found)} detections, {TARGET.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
