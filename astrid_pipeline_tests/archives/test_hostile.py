"""Files that mean harm: they are refused in words, and take neither memory nor places that are not theirs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astrid_pipeline.archives import hostile, open_archive
from astrid_pipeline.archives.base import Field, safe_name
from astrid_pipeline.archives.fits_reader import exposure_id_of, read_exposure
from astrid_pipeline.archives.survey_servers import _planes
from astrid_pipeline.archives.tesscut import _opened
from astrid_pipeline.errors import AstridError, PixelError, ReadError
from astrid_pipeline.resources.store import LocalStore, check_key
from astrid_pipeline_tests.archives.some_fits import LIGHT, TAN, header, pixels, write

MIB = 1 << 20


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a thousandth, so that a bomb of 64 MiB is one."""
    monkeypatch.setattr(hostile, "MOST_BYTES", 4 * MIB)
    monkeypatch.setattr(hostile, "IN_MEMORY", MIB)


@pytest.fixture
def memory() -> Iterator[Callable[[], float]]:
    """Give a function that tells the most memory in use since the test began, MiB."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()


def zeros(nbytes: int) -> bytes:
    """Return a whole FITS image of zeros."""
    side = int((nbytes // 2) ** 0.5)
    return fits_bytes(np.zeros((side, side), np.int16))


def fits_bytes(data: np.ndarray) -> bytes:
    stream = io.BytesIO()
    fits.PrimaryHDU(data, header(LIGHT)).writeto(stream)
    return stream.getvalue()


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_a_bomb_is_not_unpacked(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], memory: Callable[[], float]
) -> None:
    bomb = tmp_path / f"bomb.fits.{ending}"
    bomb.write_bytes(pack(zeros(64 * MIB)))
    assert bomb.stat().st_size < 64 * MIB / 500
    before = memory()
    with pytest.raises(ReadError, match="unpacks to more than"):
        read_exposure(bomb)
    assert memory() - before < 8


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("side", [60, 1200])
def test_honest_files_are_read_from_memory_and_from_disk(
    tmp_path: Path, pack: Callable[[bytes], bytes], side: int
) -> None:
    data = pixels(1, (side, side))
    data = data[: min(side, 900)]  # 1200 × 900 of two bytes are more than what is kept in memory
    path = tmp_path / "honest.fits.gz"
    path.write_bytes(pack(fits_bytes(data)))
    np.testing.assert_array_equal(read_exposure(path).amplifiers[0].data, data)


def claim(path: Path, **cards: int) -> Path:
    """Write a light frame whose header claims something else than what follows."""
    write(path)
    raw = path.read_bytes()
    for key, value in cards.items():
        at = raw.index(f"{key:<8}=".encode())
        raw = raw[:at] + f"{key:<8}= {value:>20}".encode().ljust(80) + raw[at + 80 :]
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "cards",
    [
        {"NAXIS1": 2_000_000_000, "NAXIS2": 2_000_000_000},
        {"NAXIS1": 9_223_372_036_854_775_807},
        {"NAXIS1": 1_000_000},
        {"NAXIS1": -64},
        {"NAXIS": 999},
        {"NAXIS": -1},
        {"BITPIX": 17},
    ],
)
def test_dimensions_that_cannot_be(
    tmp_path: Path, cards: dict[str, int], memory: Callable[[], float]
) -> None:
    with pytest.raises(AstridError) as caught:
        read_exposure(claim(tmp_path / "huge.fits", **cards))
    assert caught.value.where
    assert memory() < 8


def compressed(path: Path, kind: str, data: np.ndarray) -> Path:
    hdu = fits.CompImageHDU(data, header(LIGHT), compression_type=kind, tile_shape=(16, 16))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


@pytest.mark.parametrize("keys", [("ZNAXIS1", "ZNAXIS2"), ("ZTILE1", "ZTILE2")])
def test_a_compressed_image_that_claims_too_much(
    tmp_path: Path, keys: tuple[str, str], memory: Callable[[], float]
) -> None:
    path = compressed(tmp_path / "huge.fits.fz", "RICE_1", pixels(1, (64, 64)).astype(np.int32))
    raw = path.read_bytes()
    for key in keys:
        at = raw.index(f"{key:<8}=".encode())
        raw = raw[:at] + f"{key:<8}= {1_000_000:>20}".encode().ljust(80) + raw[at + 80 :]
    path.write_bytes(raw)
    before = memory()
    with pytest.raises(PixelError, match="claims an"):
        read_exposure(path)
    assert memory() - before < 8


@pytest.mark.parametrize("kind", ["GZIP_1", "GZIP_2"])
def test_a_tile_that_is_a_bomb(tmp_path: Path, kind: str, memory: Callable[[], float]) -> None:
    path = compressed(tmp_path / "tiles.fits.fz", kind, pixels(1, (64, 64)).astype(np.int32))
    assert read_exposure(path).amplifiers[0].data.shape == (64, 64), "an honest one is read"
    with fits.open(path, disable_image_compression=True) as hdus:
        table, head = hdus[1].data, hdus[1].header
        rows = [np.asarray(row).copy() for row in table["COMPRESSED_DATA"]]
    rows[3] = np.frombuffer(gzip.compress(bytes(64 * MIB)), np.uint8)
    column = np.empty(len(rows), object)
    column[:] = rows
    made = fits.BinTableHDU.from_columns(
        [fits.Column("COMPRESSED_DATA", f"1PB({max(map(len, rows))})", array=column)]
    )
    for card in head.cards:
        if card.keyword.startswith("Z") or card.keyword in LIGHT:
            made.header[card.keyword] = card.value
    fits.HDUList([fits.PrimaryHDU(), made]).writeto(path, overwrite=True)
    before = memory()
    with pytest.raises(ReadError, match="more than its pixels"):
        read_exposure(path)
    assert memory() - before < 8


@pytest.mark.usefixtures("little")
def test_a_zip_that_is_a_bomb(tmp_path: Path, memory: Callable[[], float]) -> None:
    path = tmp_path / "cutout.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.fits", zeros(64 * MIB))
    before = memory()
    with pytest.raises(ReadError, match="unpacks to more than"):
        _opened(path)
    assert memory() - before < 16


def test_names_in_a_zip_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "inside" / "cutout.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.fits", fits_bytes(pixels()))
    assert _opened(path)[0].data.shape == (48, 64)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


NAMES = ("../../etc/passwd", "/etc/passwd", "..", "a\\..\\b", "a\x00b", "~root", "-rf", "con\nfig", "<b>")


@pytest.mark.parametrize("name", NAMES)
def test_names_become_safe_keys(name: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for key in (safe_name(name), exposure_id_of(f"{name.replace(chr(0), '')}.fits")):
        check_key(f"raw/{key}")
        assert (tmp_path / "store") in store.path(f"raw/{key}").resolve().parents
        assert not key.startswith(("-", ".", "~"))


def test_a_header_cannot_choose_where_it_is_kept(tmp_path: Path) -> None:
    evil = "../../../evil"
    for number in range(2):
        cards = {
            "OBJECT": evil,
            "INSTRUME": evil,
            "FILTER": evil,
            "FILENAME": evil,
            "OBSID": evil,
            "EXPNAME": evil,
        }
        date = {"DATE-OBS": f"2024-03-02T04:0{number}:00"}
        write(tmp_path / "in" / f"e{number}.fits", pixels(number), TAN, cards, date)
    archive = open_archive(f"folder:{tmp_path / 'in'}")
    exposures = archive.exposures(Field("f", 150.0, 2.0, 1.0))
    assert len(exposures) == 2
    for exposure in exposures:
        check_key(f"raw/{exposure.exposure_id}")


@pytest.mark.usefixtures("little")
def test_a_survey_s_image_that_is_a_bomb(tmp_path: Path, memory: Callable[[], float]) -> None:
    path = tmp_path / "cutout.fits"
    path.write_bytes(gzip.compress(zeros(64 * MIB)))
    before = memory()
    with pytest.raises(ReadError, match="unpacks to more than"):
        _planes(path)
    assert memory() - before < 8
    path.write_bytes(gzip.compress(fits_bytes(pixels())))
    ((data, _),) = _planes(path)
    np.testing.assert_array_equal(data, pixels())
