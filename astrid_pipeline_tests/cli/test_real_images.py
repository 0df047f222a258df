"""`astrid detect` on real images with known transients: VISTA's four unaligned epochs, DECam's two stacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from astrid_pipeline.cli import app
from astrid_pipeline.imaging.io import read_difference
from astrid_pipeline.report.stretch import robust

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def detect(science: Path, reference: Path, output: Path) -> pd.DataFrame:
    """Run the command and return its candidates."""
    assert app.run(["detect", str(science), str(reference), "-o", str(output)]) == 0
    return pd.read_parquet(output / "candidates.parquet")


@pytest.mark.parametrize("file", ["image_1.fits", "image_2.fits", "image_7.fits"])
def test_vista_s_moving_objects_are_detected(
    file: str, shared_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = shared_data / "vista_video_A"
    known = pd.read_csv(folder / "transients.csv").set_index("file").loc[file]
    table = detect(folder / file, folder / "image_3.fits", tmp_path)
    found = table[table.is_detection]
    apart = (
        np.hypot((found.ra - known.ra_deg) * np.cos(np.radians(known.dec_deg)), found.dec - known.dec_deg)
        * 3600
    )
    assert (apart < 1.0).any(), f"nearest detection is {apart.min():.2f} arcsec away"
    difference = read_difference(tmp_path / "difference.fits")
    assert difference.meta["score_sigma"] == pytest.approx(1, abs=0.05)
    assert max(difference.meta["dx_rms"], difference.meta["dy_rms"]) < 0.3
    others = int((apart >= 1.0).sum())
    record_property("other_detections", others)
    print(f"{file}: {known['id']} found at {apart.min():.2f} arcsec, {others} other detections")


def aperture_sums(image: np.ndarray, positions: list[tuple[int, int]], radius: float = 5) -> np.ndarray:
    """Return the sums within `radius` px around (x, y)."""
    reach = int(radius) + 1
    yy, xx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = np.hypot(yy, xx) <= radius
    return np.array(
        [image[y - reach : y + reach + 1, x - reach : x + reach + 1][inside].sum() for x, y in positions]
    )


def test_decam_s_brightening_is_found_as_well_as_published(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "decam_sfft_minis" / "4check"
    known = pd.read_csv(folder.parent / "transients.csv").iloc[0]
    table = detect(folder / "Stack-DEC-OBS04.fits", folder / "Stack-DEC-OBS18.fits", tmp_path)
    apart = np.hypot(table.x - known.x, table.y - known.y)
    near = table[(apart < 2) & table.is_detection]
    assert len(near) >= 1
    assert (near.flux > 0).all()
    # The same aperture on both differences, at the source and on empty sky: whose source stands out more?
    ours = read_difference(tmp_path / "difference.fits").data
    published = fits.getdata(folder / "FinalDifference.fits").astype(float)
    stack = fits.getdata(folder / "Stack-DEC-OBS18.fits").astype(float)
    middle, spread = robust(stack)
    grid = [(x, y) for x in range(20, 236, 13) for y in range(20, 236, 13)]
    brightest = [np.abs(stack[y - 10 : y + 11, x - 10 : x + 11] - middle).max() for x, y in grid]
    empty = [p for p, value in zip(grid, brightest, strict=True) if value < 5 * spread]
    assert len(empty) > 40
    at = [(int(known.x), int(known.y))]
    snr = [float(aperture_sums(i, at)[0] / robust(aperture_sums(i, empty))[1]) for i in (ours, published)]
    print(f"S/N in an aperture of 5 px: {snr[0]:.1f}, published difference {snr[1]:.1f}")
    assert snr[0] > 0.8 * snr[1]
