"""Four real epochs, not aligned and with a ZPN projection, through the folder archive and Dagster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives.base import open_archive
from astrid_pipeline_tests.assets.conftest import walk
from astrid_pipeline_tests.assets.test_folder_nights import WITHOUT_INJECTIONS

pytestmark = [pytest.mark.slow, pytest.mark.real_data, pytest.mark.postgres, pytest.mark.mlflow]

#: Middle and size (rows, columns) of the piece of every epoch that holds all three moving objects.
MIDDLE, SIZE = (36.8910, -5.2110), (1180, 760)


def cut(source: Path, target: Path) -> None:
    """Write the piece around `MIDDLE`, its WCS moved along: a third of the frame in a third of the time."""
    data, header = fits.getdata(source, header=True)
    x, y = (round(float(v)) for v in WCS(header).all_world2pix([MIDDLE], 0)[0])
    x0, y0 = x - SIZE[1] // 2, y - SIZE[0] // 2
    piece = data[y0 : y0 + SIZE[0], x0 : x0 + SIZE[1]]
    assert piece.shape == SIZE
    header["CRPIX1"] -= x0
    header["CRPIX2"] -= y0
    fits.PrimaryHDU(piece, header).writeto(target)


def test_the_moving_objects_are_detected(home, shared_data, tmp_path, record_property):
    source = shared_data / "vista_video_A"
    for path in source.glob("*.fits"):
        cut(path, tmp_path / path.name)
    archive = open_archive(f"folder:{tmp_path}")
    (field,) = archive.fields()
    field = dataclasses.replace(field, reference="exposures:image_3")
    products, results = walk([field], {"process_night": WITHOUT_INJECTIONS})
    assert [r.error for r in results if r.error] == []
    # That the survey's noise is correlated, as the training's is not, is told of each night, and nothing else is.
    told = [check for r in results for check in r.bad_checks]
    assert [check.split(" — ")[0] for check in told] == ["detections: like_the_training"] * 3
    assert all("score_sigma_raw" in check for check in told)
    jobs = [r.step.job for r in results]
    assert jobs == ["calibrate_night", "make_references"] + ["process_night"] * 3
    known = pd.read_csv(source / "transients.csv")
    nights = {
        exposure: night
        for night in products.nights("detections", field.name)
        for exposure in products.metas("difference_images", field.name, night)
    }
    assert set(nights) == {Path(name).stem for name in known.file}
    for row in known.itertuples():
        exposure = Path(row.file).stem
        found = products.table("detections", f"{field.name}|{nights[exposure]}")
        east = (found.ra - row.ra_deg) * np.cos(np.radians(row.dec_deg))
        apart = np.hypot(east, found.dec - row.dec_deg) * 3600
        assert apart.min() < 1.0, f"{row.file}: nearest detection is {apart.min():.2f} arcsec away"
        others = int((apart >= 1.0).sum())
        record_property(f"other_detections_{exposure}", others)
        print(f"{exposure}: {row.id} at {apart.min():.2f} arcsec, {others} other detections")
        assert others <= 6
