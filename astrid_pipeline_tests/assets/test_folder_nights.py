"""A folder of FITS files through Dagster: good nights, bad files, and real epochs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives.base import open_archive
from astrid_pipeline.settings import reset_settings

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """A fresh home for one test; its database is stopped at the end."""
    import tempfile

    from astrid_pipeline.services import postgres
    from astrid_pipeline.settings import get_settings

    folder = Path(tempfile.mkdtemp(prefix="nights-"))
    monkeypatch.setenv("ASTRID_HOME", str(folder))
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
    reset_settings()
    yield folder
    postgres.stop(get_settings())
    reset_settings()
    shutil.rmtree(folder, ignore_errors=True)


def walk(fields):
    """Do what is ready, in this process."""
    from astrid_pipeline.driver import Survey, execute, open_catalogue

    catalogue = open_catalogue()
    for field in fields:
        catalogue.add_field(field)
    survey = Survey(fields)
    results, tried = [], set()
    while steps := [s for s in survey.ready() if s.run_key not in tried]:
        tried |= {s.run_key for s in steps}
        results += [execute(step) for step in steps]
    return survey.products, results


def write_light(path: Path, data: np.ndarray, date: str, wcs: WCS, **cards) -> None:
    header = wcs.to_header()
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
    return out


def test_bad_files_are_named_and_the_good_one_is_made(home, folder):
    archive = open_archive(f"folder:{folder}")
    (field,) = archive.fields()
    listed = " ".join(str(problem) for problem in archive.problems)
    assert "text.fits" in listed
    products, results = walk([field])
    failed = [r for r in results if r.error]
    assert not failed, failed
    night = "2026-02-10"
    observed = products.table("observations", f"{field.name}|{night}")
    told = observed.set_index("exposure_id").problem.dropna().to_dict()
    told |= {Path(p.where or "").stem: str(p) for p in archive.problems}
    last = next(r for r in results if r.step.job == "process_night" and r.step.partition.endswith(night))
    told_later = " ".join(last.bad_checks)
    for name in ("nan", "constant", "noexposure", "cut"):
        assert name in told or name in told_later, f"nobody says what was wrong with {name}.fits"
    differences = products.frames("difference_images", field.name, night)
    assert "good" in differences
    assert abs(differences["good"].meta["score_sigma"] - 1) < 0.05
