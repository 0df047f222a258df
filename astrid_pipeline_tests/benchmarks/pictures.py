"""Cut-outs of what was found, for a person to say what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set


def draw(path: Path, difference: Difference, found: pd.DataFrame, most: int = 24) -> None:
    """Draw science, reference, difference and score around what was found."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = found.head(most)
    if not len(found):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = 3
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, 4 * columns, figsize=(12, 1.15 * rows + 0.4), squeeze=False)
    half = 15
    planes = [
        np.pad(p, half) for p in (difference.science, difference.reference, difference.data, difference.score)
    ]
    bad = np.pad(
        is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True), half, constant_values=True
    )
    noise_level = float(difference.meta["science_sky_sigma"])
    for axis in axes.ravel():
        axis.axis("off")
    for i, peak in enumerate(found.itertuples()):
        x, y = round(peak.x), round(peak.y)
        cut = (slice(y, y + 2 * half + 1), slice(x, x + 2 * half + 1))
        for k, plane in enumerate(planes):
            axis = axes[i // columns, 4 * (i % columns) + k]
            limit = {0: (-3, 15), 1: (-3, 15), 2: (-6, 6), 3: (-6, 6)}[k]
            scale = 1.0 if k == 3 else noise_level
            axis.imshow(plane[cut] / scale, origin="lower", cmap="gray", vmin=limit[0], vmax=limit[1])
            axis.contour(bad[cut], [0.5], colors="tab:red", linewidths=0.5)
            if k == 0:
                axis.set_title(f"({x}, {y}) {peak.sign * peak.score:+.1f}", fontsize=6, pad=1)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=130)
    plt.close(figure)
