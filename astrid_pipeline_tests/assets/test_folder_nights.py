"""A folder of FITS files through Dagster: good nights, bad files, and real epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives.base import Field, open_archive
from astrid_pipeline_tests.assets.conftest import walk

#: Nothing is put into the frames: half of a night's time.
WITHOUT_INJECTIONS = {
    "ops": {
        "injected_night": {"config": {"exposures_per_filter": 0}},
        "gold_standard": {"config": {"most": 0}},
    }
}

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]


def write_light(path: Path, data: np.ndarray, date: str, wcs: WCS | None, **cards) -> None:
    header = fits.Header() if wcs is None else wcs.to_header()
    header.update(
        {
            "DATE-OBS": date,
            "EXPTIME": 60.0,
            "FILTER": "r",
            "INSTRUME": "testcam",
            "OBJECT": "patch",
            "GAIN": 1.0,
            "RDNOISE": 5.0,
            "SATURATE": 60000.0,
            "BUNIT": "electron",
            **cards,
        }
    )
    fits.PrimaryHDU(data.astype(np.float32), header).writeto(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three template frames of one night, a good frame of another, and bad files beside it."""
    from astrid_pipeline.simulation.pairs import simulate_pair

    out = tmp_path / "fits"
    out.mkdir()
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [150.0, 20.0], [192.5, 192.5], [-1 / 3600, 1 / 3600]
    rng = np.random.default_rng(11)
    pair = simulate_pair(rng, (384, 384), psf="none")
    reference = pair.reference.data
    noise = np.sqrt(np.median(pair.reference.variance))
    for k in range(3):
        noisy = reference + rng.normal(0, noise, reference.shape)
        write_light(out / f"template{k}.fits", noisy, f"2026-01-05T03:0{k}:00", wcs)
    night = "2026-02-10T03:"
    science = pair.science.data
    write_light(out / "good.fits", science, f"{night}00:00", wcs)
    write_light(out / "nan.fits", np.full_like(science, np.nan), f"{night}05:00", wcs)
    write_light(out / "constant.fits", np.full_like(science, 100.0), f"{night}10:00", wcs)
    write_light(out / "noexposure.fits", science + 1, f"{night}15:00", wcs, EXPTIME=0.0)
    write_light(out / "cut.fits", science + 3, f"{night}25:00", wcs)
    whole = (out / "cut.fits").read_bytes()
    (out / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (out / "text.fits").write_text("this is not FITS")
    write_light(out / "cube.fits", np.stack([science] * 3), f"{night}30:00", wcs)
    write_light(out / "unit.fits", science + 4, f"{night}35:00", wcs, BUNIT="parsec")
    header = fits.Header({"DATE-OBS": f"{night}40:00", "FILTER": "r", "EXPTIME": 60.0})
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    fits.HDUList([fits.PrimaryHDU(None, header), table]).writeto(out / "noimage.fits")
    (out / "twice.fits").write_bytes((out / "good.fits").read_bytes())
    elsewhere = wcs.deepcopy()
    elsewhere.wcs.crval = [150.0, 20.25]
    write_light(out / "elsewhere.fits", science + 5, f"{night}45:00", elsewhere)
    # Neither a WCS nor stars that could tell where it looks.
    blank = rng.normal(0, noise, science.shape)
    write_light(out / "nowcs.fits", blank, f"{night}50:00", None, RA=150.0, DEC=20.0)
    return out


def test_bad_files_are_named_and_the_good_one_is_made(home, folder):
    """A folder without read permission is tried in `archives/test_bad_files.py`."""
    night = "2026-02-10"
    field = Field("patch", 150.0, 20.0, radius=0.5, archive=f"folder:{folder}")
    archive = open_archive(field.archive)
    archive.exposures(field)
    listed = {Path(p.where or "").stem: str(p) for p in archive.problems}
    products, results = walk([field], {"process_night": WITHOUT_INJECTIONS})
    assert [r.error for r in results if r.error] == []
    observed = products.table("observations", f"{field.name}|{night}")
    told = {**listed, **observed.set_index("exposure_id").problem.dropna().to_dict()}
    last = next(r for r in results if r.step.job == "process_night" and r.step.partition.endswith(night))
    later = " ".join(last.bad_checks)
    bad = {p.stem for p in folder.iterdir()} - {"good", "template0", "template1", "template2"}
    assert len(bad) == 11
    for name in bad:
        assert name in told or f"{name}: " in later, f"nobody says what was wrong with {name}.fits"
    for name, text in told.items():
        # Where, what, and in brackets what to do.
        assert name in text, text
        assert text.rstrip().endswith(")"), text
    differences = products.frames("difference_images", field.name, night)
    assert set(differences) == {"good"}
    assert abs(differences["good"].meta["score_sigma"] - 1) < 0.05
