"""`astrid detect` on two small images, from the files to what a person reads; and on twelve kinds of bad files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from astrid_pipeline.cli import app
from astrid_pipeline.imaging.io import read_difference
from astrid_pipeline_tests.cli.images import NEW, SHAPE, header, write_image

SHIFT = (7.35, -4.6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A science image with a new source, and a displaced, sharper, fourfold deeper-looking reference."""
    folder = tmp_path_factory.mktemp("pair")
    science = write_image(folder / "new.fits", 1, new=True)
    reference = write_image(
        folder / "old.fits", 2, fwhm=2.6, shift=SHIFT, **{"DATE-OBS": "2025-11-03T04:05:06"}
    )
    return science, reference


@pytest.fixture(scope="module")
def results(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `astrid detect` wrote."""
    folder = tmp_path_factory.mktemp("results") / "out"
    assert app.run(["detect", str(pair[0]), str(pair[1]), "-o", str(folder)]) == 0
    return folder


def test_the_new_source_is_the_one_detection(results: Path) -> None:
    table = pd.read_parquet(results / "candidates.parquet")
    found = table[table.is_detection]
    near = found[np.hypot(found.x - NEW[0], found.y - NEW[1]) < 1]
    assert len(near) == 1
    best = near.iloc[0]
    # Background-limited: error √(4π σ² (sky + read noise²)), σ = 3 / 2.355 px, and the source's own photons.
    expected_error = np.sqrt(4 * np.pi * (3 / 2.3548) ** 2 * 225 + NEW[2])
    assert best.flux == pytest.approx(NEW[2], abs=5 * expected_error)
    assert best.flux / best.flux_err == pytest.approx(best.snr, rel=0.3)
    assert best.score > 0.5
    assert len(found) <= 3
    assert table.is_detection.iloc[0]


def test_position_on_the_sky_is_the_wcs_s(results: Path, pair: tuple[Path, Path]) -> None:
    from astropy.wcs import WCS

    table = pd.read_parquet(results / "candidates.parquet")
    ra, dec = WCS(fits.getheader(pair[0])).pixel_to_world_values(NEW[0], NEW[1])
    best = table.iloc[(np.hypot(table.x - NEW[0], table.y - NEW[1])).argmin()]
    apart = np.hypot((best.ra - ra) * np.cos(np.radians(dec)), best.dec - dec) * 3600
    assert apart < 0.1


def test_every_file_is_there_and_tells_the_same(results: Path) -> None:
    names = {"report.html", "difference.fits", "candidates.parquet", "candidates.csv", "detections.reg"}
    assert {p.name for p in results.iterdir()} == names
    table = pd.read_parquet(results / "candidates.parquet")
    assert len(pd.read_csv(results / "candidates.csv")) == len(table)
    assert (results / "detections.reg").read_text().count("circle(") == len(table)
    difference = read_difference(results / "difference.fits")
    assert difference.shape == SHAPE
    assert difference.meta["score_sigma"] == pytest.approx(1, abs=0.05)
    best = table.iloc[0]
    assert difference.score[round(best.y), round(best.x)] > 0.7 * best.snr
    page = (results / "report.html").read_text()
    assert "new − old" in page
    assert f"<b>{int(table.is_detection.sum())}</b> detection" in page


def test_json_is_all_that_is_printed(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compressed = tmp_path / "new.fits.gz"
    compressed.write_bytes(gzip.compress(pair[0].read_bytes()))
    arguments = [
        "detect",
        str(compressed),
        str(pair[1]),
        "--json",
        "-o",
        str(tmp_path / "a"),
        "--threshold",
        "4.5",
    ]
    assert app.run(arguments) == 0
    told = capsys.readouterr()
    assert told.err == ""
    summary = json.loads(told.out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert summary["n_candidates"] >= summary["n_detections"] >= 1
    assert summary["detections"][0]["score"] > 0.5
    assert all(Path(path).exists() for path in summary["files"].values())


def test_same_images_same_tables(pair: tuple[Path, Path], results: Path, tmp_path: Path) -> None:
    assert app.run(["detect", str(pair[0]), str(pair[1]), "-o", str(tmp_path)]) == 0
    again = pd.read_parquet(tmp_path / "candidates.parquet")
    pd.testing.assert_frame_equal(again, pd.read_parquet(results / "candidates.parquet"))


def test_images_without_wcs_are_matched_on_their_stars(pair: tuple[Path, Path], tmp_path: Path) -> None:
    science = write_image(tmp_path / "new.fits", 1, new=True, wcs=False)
    reference = write_image(tmp_path / "old.fits", 2, shift=SHIFT, wcs=False)
    assert app.run(["detect", str(science), str(reference), "-o", str(tmp_path / "out")]) == 0
    table = pd.read_parquet(tmp_path / "out" / "candidates.parquet")
    assert np.isnan(table.ra.astype(float)).all()
    best = table.iloc[0]
    assert (best.x, best.y) == pytest.approx(NEW[:2], abs=0.5)
    assert "has no WCS" in (tmp_path / "out" / "report.html").read_text()
    assert "image; circle(" in (tmp_path / "out" / "detections.reg").read_text()


@pytest.mark.browser
def test_the_report_opens_without_a_word_on_the_console(browser: Any, results: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((results / "report.html").as_uri())
    assert page.locator("#table tbody tr:not([hidden])").count() >= 1
    assert len(page.screenshot(full_page=True)) > 50_000
    assert said == []
    page.close()


# --- Twelve ways to hand it a bad file ----------------------------------------------------------------------------


def plain(path: Path, data: Any, **keys: object) -> Path:
    fits.writeto(path, data, header(SHAPE, **keys))
    return path


def truncated(folder: Path) -> Path:
    whole = write_image(folder / "whole.fits", 3)
    bad = folder / "bad.fits"
    bad.write_bytes(whole.read_bytes()[:200_000])
    return bad


def not_fits(folder: Path) -> Path:
    bad = folder / "bad.fits"
    bad.write_text("these are not the pixels you are looking for\n" * 200)
    return bad


def no_image(folder: Path) -> Path:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(5.0))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "bad.fits")
    return folder / "bad.fits"


def few_stars(folder: Path) -> Path:
    return write_image(folder / "bad.fits", 3, wcs=False, sky_seed=99, n_stars=90)


def all_nan(folder: Path) -> Path:
    return plain(folder / "bad.fits", np.full(SHAPE, np.nan, np.float32))


def cube(folder: Path) -> Path:
    return plain(folder / "bad.fits", np.zeros((4, *SHAPE), np.float32))


def constant(folder: Path) -> Path:
    return plain(folder / "bad.fits", np.full(SHAPE, 42, np.float32))


def unknown_unit(folder: Path) -> Path:
    return write_image(folder / "bad.fits", 3, BUNIT="furlong")


def elsewhere(folder: Path) -> Path:
    return write_image(folder / "bad.fits", 3, ra=160.0)


def no_exposure(folder: Path) -> Path:
    return write_image(folder / "bad.fits", 3, EXPTIME=0.0)


BAD = {
    "truncated": (truncated, "bad.fits"),
    "not FITS": (not_fits, "bad.fits"),
    "no image in any HDU": (no_image, "bad.fits"),
    "no WCS, other stars": (few_stars, "bad.fits"),
    "all NaN": (all_nan, "bad.fits"),
    "a cube": (cube, "bad.fits"),
    "constant": (constant, "bad.fits"),
    "unknown BUNIT": (unknown_unit, "furlong"),
    "no overlap": (elsewhere, "bad.fits"),
    "zero exposure time": (no_exposure, "bad.fits"),
}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the single error line that was printed."""
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.strip().splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(")"), "the remedy stands in parentheses at the end"
    return lines[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_line_with_exit_code_2(
    name: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make: Callable[[Path], Path] = BAD[name][0]
    bad = make(tmp_path)
    out = tmp_path / "out"
    # As reference; every kind but those about the pair must be refused as science too.
    assert app.run(["detect", str(pair[0]), str(bad), "-o", str(out), "--json"]) == 2
    line = one_line(capsys)
    assert "bad.fits" in line
    assert BAD[name][1] in line
    assert not (out / "report.html").exists()
    if name not in ("no WCS, other stars", "no overlap"):
        assert app.run(["detect", str(bad), str(pair[1]), "-o", str(out), "--json"]) == 2
        assert "bad.fits" in one_line(capsys)


def test_the_same_exposure_twice(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copy(pair[0], tmp_path / "copy.fits")
    for other in (pair[0], copy):
        assert app.run(["detect", str(pair[0]), str(other), "-o", str(tmp_path / "out"), "--json"]) == 2
        assert "same exposure" in one_line(capsys)


@pytest.fixture
def no_privilege() -> Iterator[None]:
    """Give up root for a while: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_read_permission(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_privilege: None
) -> None:
    import tempfile

    # tmp_path belongs to the run's user; this folder belongs to whoever the test is now.
    with tempfile.TemporaryDirectory() as name:
        locked = Path(name) / "locked"
        locked.mkdir()
        (locked / "bad.fits").write_bytes(b"")
        locked.chmod(0)
        try:
            arguments = [
                "detect",
                str(locked / "bad.fits"),
                str(locked / "old.fits"),
                "-o",
                f"{name}/out",
                "--json",
            ]
            assert app.run(arguments) == 2
            assert "permission" in one_line(capsys).lower()
        finally:
            locked.chmod(0o700)


def test_folders_and_missing_files(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad in (tmp_path, tmp_path / "absent.fits"):
        assert app.run(["detect", str(pair[0]), str(bad), "-o", str(tmp_path / "out"), "--json"]) == 2
        assert bad.name in one_line(capsys)


def test_output_that_is_a_file(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["detect", str(pair[0]), str(pair[1]), "-o", str(pair[0]), "--json"]) == 2
    assert "new.fits" in one_line(capsys)


def test_a_model_that_is_none(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["detect", str(pair[0]), str(pair[1]), "-o", str(tmp_path), "--json", "--model", str(pair[0])]
    assert app.run(arguments) == 1
    assert "new.fits" in one_line(capsys)
