"""A folder of FITS files as an archive: fields, nights, calibration frames, fetching."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.archives import fits_reader
from astrid_pipeline.archives.fits_reader import read_exposure
from astrid_pipeline.archives.folder import FolderArchive, same_pixels
from astrid_pipeline.archives.grouping import separation
from astrid_pipeline.archives.keywords import Keywords
from astrid_pipeline.errors import ReadError
from astrid_pipeline_tests.archives.some_fits import TAN, pixels, write


def at(
    path: Path, seed: int, ra: float, dec: float, when: str = "2024-03-02T04:00:00", **cards: object
) -> Path:
    return write(path, pixels(seed), TAN, {"CRVAL1": ra, "CRVAL2": dec, "DATE-OBS": when}, cards)


def test_frames_are_grouped_by_where_they_point(tmp_path: Path) -> None:
    # The field of view is 64 × 48 pixels of 0.72″: 46″ × 35″, its half diagonal 29″.
    at(tmp_path / "a1.fits", 1, 150.0, 2.0)
    at(tmp_path / "a2.fits", 2, 150.0, 2.0 + 10 / 3600, "2024-03-03T04:00:00", FILTER="g")
    at(tmp_path / "sub" / "b1.fits", 3, 150.0, 2.1, OBJECT="NGC 1|x/y")
    archive = FolderArchive(tmp_path)
    named = {field.name: field for field in archive.fields()}
    assert set(named) == {"J1000p0200", "NGC_1_x_y"}
    field = named["J1000p0200"]
    assert field.filters == ("g", "r")
    assert field.archive == f"folder:{tmp_path}"
    assert separation(field.ra, field.dec, 150.0, 2.0) < 1e-4
    assert [r.exposure_id for r in archive.exposures(field)] == ["a1", "a2"]
    assert [r.exposure_id for r in archive.exposures(named["NGC_1_x_y"])] == ["b1"]
    later = archive.exposures(field, since=archive.exposures(field)[0].mjd)
    assert [r.exposure_id for r in later] == ["a2"]
    assert not archive.problems


def test_the_pole_and_the_seam_of_right_ascension(tmp_path: Path) -> None:
    at(tmp_path / "a.fits", 1, 359.999, 10.0)
    at(tmp_path / "b.fits", 2, 0.001, 10.0, "2024-03-03T04:00:00")
    at(tmp_path / "c.fits", 3, 10.0, 89.999)
    at(tmp_path / "d.fits", 4, 190.0, 89.999, "2024-03-03T04:00:00")
    archive = FolderArchive(tmp_path)
    assert sorted(len(archive.exposures(field)) for field in archive.fields()) == [2, 2]


def test_frames_without_position_go_by_their_objects(tmp_path: Path) -> None:
    for number, name in enumerate(["M 13", "M 13", "M 92", None]):
        cards = {"DATE-OBS": f"2024-03-02T04:0{number}:00", "OBJECT": name}
        write(tmp_path / f"{number}.fits", pixels(number), cards)
    archive = FolderArchive(tmp_path)
    assert {f.name: len(archive.exposures(f)) for f in archive.fields()} == {"M_13": 2, "M_92": 1, "Cam_1": 1}


def test_nights_are_those_of_the_site(tmp_path: Path) -> None:
    at(tmp_path / "a.fits", 1, 150, 2, "2024-03-03T05:00:00", SITELONG="-70 24 00")
    (field,) = FolderArchive(tmp_path).fields()
    assert field.site_longitude == pytest.approx(-70.4)
    (record,) = FolderArchive(tmp_path).exposures(field)
    assert record.night == "2024-03-02"
    assert record.field == field.name


def test_files_of_one_name_get_ids_of_their_own(tmp_path: Path) -> None:
    for number, folder in enumerate(["n1", "n2", "n 2"]):
        at(tmp_path / folder / "img 001.fits", number, 150, 2, f"2024-03-0{number + 1}T04:00:00")
    archive = FolderArchive(tmp_path)
    (field,) = archive.fields()
    ids = [record.exposure_id for record in archive.exposures(field)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in ids)


def test_calibration_frames_of_the_nearest_nights(tmp_path: Path) -> None:
    def calibration(name: str, kind: str, day: int, **cards: object) -> None:
        when = {"DATE-OBS": f"2024-03-{day:02d}T04:00:00", "IMAGETYP": kind, **cards}
        write(tmp_path / f"{name}.fits", pixels(hash(name) % 1000), when)

    for i in range(6):
        calibration(f"bias-near{i}", "bias", 2, EXPTIME=0.0)
        calibration(f"bias-far{i}", "bias", 9, EXPTIME=0.0)
    calibration("dark-near", "dark", 3)
    calibration("dark-far", "dark", 12)
    calibration("flat-r", "flat", 4)
    calibration("flat-g", "flat", 20, FILTER="g")
    calibration("flat-other", "flat", 2, INSTRUME="Cam 2")
    archive = FolderArchive(tmp_path)
    names = [record.exposure_id for record in archive.calibrations("Cam 1", "2024-03-02")]
    # Enough bias frames of the night itself; darks and flats are fetched from further away while they are few.
    assert sorted(names) == ["bias-near0", "bias-near1", "bias-near2", "bias-near3", "bias-near4", "bias-near5",
                             "dark-far", "dark-near", "flat-g", "flat-r"]  # fmt: skip
    assert archive.calibrations("Cam 1", "2024-05-20") == []
    assert archive.fields() == []


def test_fetching_is_a_whole_copy_that_reads(tmp_path: Path) -> None:
    at(tmp_path / "in" / "a b.fits", 1, 150, 2)
    archive = FolderArchive(tmp_path / "in")
    (record,) = archive.exposures(archive.fields()[0])
    path = archive.fetch(record, tmp_path / "out")
    assert path == tmp_path / "out" / "a_b.fits"
    np.testing.assert_array_equal(read_exposure(path).amplifiers[0].data, pixels(1))
    assert archive.fetch(record, tmp_path / "out") == path
    (tmp_path / "in" / "a b.fits").write_bytes(b"")
    with pytest.raises(ReadError, match="has 0 bytes"):
        archive.fetch(record, tmp_path / "out2")
    assert not list((tmp_path / "out2").glob("*.fits"))


def test_new_files_show_after_refresh(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path)
    assert archive.fields() == []
    at(tmp_path / "a.fits", 1, 150, 2)
    assert archive.fields() == []
    archive.refresh()
    assert len(archive.fields()) == 1


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is a file, not a folder"):
        FolderArchive(write(tmp_path / "a.fits"))


def test_same_pixels_means_same_exposure() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(100, 10, (50, 60)).astype(np.float32)
    assert same_pixels(image, image + rng.uniform(-1, 1, image.shape).astype(np.float32))
    assert not same_pixels(image, rng.normal(100, 10, (50, 60)).astype(np.float32))
    assert not same_pixels(image, image[:40])


angle = st.floats(0, 359.99)
latitude = st.floats(-89.9, 89.9)


@given(ra1=angle, dec1=latitude, ra2=angle, dec2=latitude)
def test_separation_is_astropys(ra1: float, dec1: float, ra2: float, dec2: float) -> None:
    from astropy.coordinates import angular_separation

    expected = np.degrees(angular_separation(*np.radians([ra1, dec1, ra2, dec2])))
    assert separation(ra1, dec1, ra2, dec2) == pytest.approx(expected, abs=1e-6)


def test_headers_are_read_once_and_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path / "home"))
    folder = tmp_path / "in"
    at(folder / "a.fits", 1, 150, 2)
    at(folder / "b.fits", 2, 150, 2, "2024-03-03T04:00:00")
    write(folder / "bad.fits", None, BUNIT="parsec")
    read: list[str] = []
    real = fits_reader.summarise

    def counted(path: str | Path, keywords: Keywords) -> list[fits_reader.Summary]:
        read.append(Path(path).name)
        return real(path, keywords)

    monkeypatch.setattr(fits_reader, "summarise", counted)

    def look() -> tuple[list[object], list[str]]:
        archive = FolderArchive(folder)
        return [archive.exposures(field) for field in archive.fields()], [str(p) for p in archive.problems]

    first = look()
    assert sorted(read) == ["a.fits", "b.fits", "bad.fits"]
    assert len(first[1]) == 1
    assert look() == first
    assert read[3:] == ["bad.fits"]  # what cannot be read is tried each time
    read.clear()
    at(folder / "b.fits", 2, 150, 2, "2024-03-04T04:00:00")
    (folder / "a.fits").unlink()
    changed = look()
    assert sorted(read) == ["b.fits", "bad.fits"]
    assert len(changed[0][0]) == 1  # type: ignore[arg-type]
    write(folder / "bad.fits", pixels(7), TAN)
    assert look()[1] == []
    # Damaged, or of another user's tables: it is made anew.
    (cache,) = (tmp_path / "home" / "cache" / "headers").glob("*.json")
    cache.write_text("{")
    read.clear()
    assert len(look()[0]) == 1
    assert read == ["b.fits", "bad.fits"]
    FolderArchive(folder, aliases={"keys": {"filter": ["BAND"]}}).fields()
    assert len(read) == 4
    FolderArchive(folder).fields()
    assert len(read) == 4
