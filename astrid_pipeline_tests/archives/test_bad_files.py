"""Ways to hand over a bad file: each is a typed error that names the file and the remedy."""

from __future__ import annotations

import gzip
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from astrid_pipeline.archives import open_archive
from astrid_pipeline.archives.fits_reader import read_exposure
from astrid_pipeline.errors import (
    AstridError,
    DuplicateExposureError,
    HeaderError,
    PixelError,
    ReadError,
)
from astrid_pipeline_tests.archives.some_fits import LIGHT, TAN, header, pixels, write


def absent(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    write(path, pixels(0, (300, 300)))
    path.write_bytes(path.read_bytes()[:60_000])


def truncated_header(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:400])


def truncated_gzip(path: Path) -> None:
    write(path, pixels(0, (300, 300)))
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def truncated_compressed(path: Path) -> None:
    hdu = fits.CompImageHDU(pixels(0, (300, 300)), header(LIGHT), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_second_detector(path: Path) -> None:
    parts = [fits.ImageHDU(pixels(i, (200, 200)), header(LIGHT), name=f"CCD{i}") for i in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(path)
    path.write_bytes(path.read_bytes()[:-50_000])


def text(path: Path) -> None:
    path.write_text("dear archive, this is no image\n" * 200)


def web_page(path: Path) -> None:
    path.write_text("<html><body>503 Service Unavailable</body></html>" * 50)


def folder(path: Path) -> None:
    path.mkdir()


def no_image(path: Path) -> None:
    table = fits.BinTableHDU(Table({"a": [1, 2]}))
    fits.HDUList([fits.PrimaryHDU(None, header(LIGHT)), table]).writeto(path)


def all_nan(path: Path) -> None:
    write(path, np.full((40, 40), np.nan, np.float32))


def cube(path: Path) -> None:
    write(path, np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32))


def constant(path: Path) -> None:
    write(path, np.full((40, 40), 300, np.uint16))


def unknown_unit(path: Path) -> None:
    write(path, None, BUNIT="parsec")


def no_exposure_time(path: Path) -> None:
    write(path, None, EXPTIME=0.0)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (absent, ReadError, "is not there"),
        (empty, ReadError, "is empty"),
        (truncated, ReadError, "is truncated"),
        (truncated_header, ReadError, ""),
        (truncated_gzip, ReadError, "is damaged"),
        (truncated_compressed, ReadError, ""),
        (truncated_second_detector, ReadError, "is truncated"),
        (text, ReadError, "is not a FITS file"),
        (web_page, ReadError, "is a web page"),
        (folder, ReadError, "is a folder"),
        (no_image, PixelError, "no HDU holds an image"),
        (all_nan, PixelError, "no pixel has a finite value"),
        (cube, PixelError, "a cube of 3 × 20 × 20"),
        (constant, PixelError, "every pixel has the value 300"),
        (unknown_unit, HeaderError, "BUNIT = 'parsec' is not known"),
        (no_exposure_time, HeaderError, "exposure time of 0 s"),
    ],
)
def test_a_bad_file_is_a_typed_error(
    tmp_path: Path, make: Callable[[Path], None], error: type[AstridError], says: str
) -> None:
    path = tmp_path / "night 1" / "bad.fits"
    path.parent.mkdir()
    make(path)
    with pytest.raises(error) as caught:
        read_exposure(path)
    assert type(caught.value) is error
    assert says in caught.value.what
    assert caught.value.where == str(path)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert caught.value.permanent


def test_an_axis_of_length_one_is_no_cube(tmp_path: Path) -> None:
    raw = read_exposure(write(tmp_path / "one.fits", pixels()[None]))
    assert raw.amplifiers[0].data.shape == (48, 64)


def test_the_others_of_the_night_are_still_there(tmp_path: Path) -> None:
    for number in range(3):
        write(
            tmp_path / f"good{number}.fits", pixels(number), TAN, {"DATE-OBS": f"2024-03-02T04:0{number}:00"}
        )
    for make in (truncated, text, no_image, cube, unknown_unit, no_exposure_time):
        make(tmp_path / f"{make.__name__}.fits")
    write(tmp_path / "timeless.fits", None, {"DATE-OBS": None})
    archive = open_archive(f"folder:{tmp_path}")
    (field,) = archive.fields()
    assert [record.exposure_id for record in archive.exposures(field)] == ["good0", "good1", "good2"]
    problems = archive.problems  # type: ignore[attr-defined]
    assert {Path(str(p.where)).stem: type(p) for p in problems} == {
        "truncated": ReadError,
        "text": ReadError,
        "no_image": PixelError,
        "cube": PixelError,
        "unknown_unit": HeaderError,
        "no_exposure_time": HeaderError,
        "timeless": HeaderError,
    }
    assert all(p.remedy for p in problems)


def test_the_same_exposure_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.fits", pixels(1), TAN)
    write(tmp_path / "copy" / "b.fits", pixels(1), TAN)
    hdu = fits.CompImageHDU(pixels(1), header(LIGHT, TAN), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "packed.fits.fz")
    # Another exposure that shares the whole header, as stamps of one mosaic do.
    write(tmp_path / "other.fits", pixels(2), TAN)
    archive = open_archive(f"folder:{tmp_path}")
    (field,) = archive.fields()
    assert sorted(r.exposure_id for r in archive.exposures(field)) == ["a", "other"]
    problems = archive.problems  # type: ignore[attr-defined]
    assert [type(p) for p in problems] == [DuplicateExposureError] * 2
    assert all("same exposure as a.fits" in p.what for p in problems)
    assert {Path(str(p.where)).name for p in problems} == {"b.fits", "packed.fits.fz"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="astrid-open-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def as_nobody(work: Callable[[], str]) -> str:
    """Return what `work` returns in a child process without a superuser's rights."""
    read, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(write_end, work().encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return answer


def error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except AstridError as error:
        return f"{type(error).__name__}|{error.where}|{error.what}|{error.remedy}"
    return "nothing"


def test_a_folder_without_read_permission(open_folder: Path) -> None:
    closed = open_folder / "closed"
    write(closed / "a.fits")
    closed.chmod(0)
    try:
        answer = as_nobody(lambda: error_of(lambda: open_archive(f"folder:{closed}")))
        assert answer == f"ReadError|{closed}|the folder may not be read|give read permission (chmod +rx)"
    finally:
        closed.chmod(0o755)


def test_a_closed_folder_and_a_closed_file_among_open_ones(open_folder: Path) -> None:
    write(open_folder / "good.fits", None, TAN)
    write(open_folder / "closed" / "a.fits")
    secret = write(open_folder / "secret.fits", pixels(5))
    (open_folder / "closed").chmod(0)
    secret.chmod(0)

    def look() -> str:
        archive = open_archive(f"folder:{open_folder}")
        (field,) = archive.fields()
        names = [record.exposure_id for record in archive.exposures(field)]
        problems = sorted(f"{type(p).__name__} {p}" for p in archive.problems)  # type: ignore[attr-defined]
        return "\n".join([*names, *problems])

    # Modules that are imported late are then there, even if their files are closed to others.
    open_archive(f"folder:{open_folder}").fields()
    try:
        lines = as_nobody(look).splitlines()
    finally:
        (open_folder / "closed").chmod(0o755)
    assert lines[0] == "good"
    assert len(lines) == 3
    assert lines[1].startswith(f"ReadError {open_folder}/closed: the folder may not be read")
    assert lines[2].startswith(f"ReadError {secret}: may not be read")
