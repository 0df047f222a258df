"""One normal form out of many headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.archives.headers import (
    Reader,
    as_angle,
    as_number,
    merged_header,
    normal_unit,
    normalise,
)
from astrid_pipeline.archives.keywords import load_keywords
from astrid_pipeline.archives.times import parse_clock, parse_date
from astrid_pipeline.errors import ConfigError, HeaderError
from astrid_pipeline_tests.archives.some_fits import LIGHT, header

START = float(Time("2024-03-02T04:00:00").mjd)
HALF = 30 / 86400


def said(**cards: Any) -> dict[str, Any]:
    keep = {k: v for k, v in LIGHT.items() if k not in ("DATE-OBS", "EXPTIME")}
    return normalise(
        header(keep, {"EXPTIME": 60.0}, {k.replace("_", "-"): v for k, v in cards.items()}), load_keywords()
    )


@pytest.mark.parametrize(
    "cards",
    [
        {"DATE_OBS": "2024-03-02T04:00:00"},
        {"DATE_OBS": "2024-03-02T04:00:00", "MJD_OBS": 60371.0},
        {"DATE_OBS": "2024-03-02", "UT": "04:00:00", "MJD_OBS": 60371.0},
        {"DATE_OBS": "2024-03-02", "TIME_OBS": "04:00:00.0"},
        {"DATE_OBS": "2024/03/02", "UTSTART": "04:00"},
        {"MJD_OBS": START},
        {"JD": START + 2400000.5},
        {"MJD_AVG": START + HALF, "DATE_OBS": "2024-03-02T03:00:00"},
        {"DATE_AVG": "2024-03-02T04:00:30"},
        {"EXPSTART": START, "EXPEND": START + 2 * HALF},
        {"DATE_OBS": "2024-03-02T04:00:00", "EXPEND": START - 5},
    ],
)
def test_middle_of_the_exposure(cards: dict[str, Any]) -> None:
    assert said(**cards)["mjd"] == pytest.approx(START + HALF, abs=1e-7)


def test_a_long_sequence_counts_to_its_end() -> None:
    # Several reads: the time between first and last is longer than the exposure time.
    assert said(EXPSTART=START, EXPEND=START + 0.5)["mjd"] == pytest.approx(START + 0.25)


def test_a_header_without_time_says_nothing() -> None:
    assert "mjd" not in said()
    assert "mjd" not in said(DATE_OBS="yesterday", JD=3.0)


def test_dates_of_the_last_century() -> None:
    assert parse_date("26/10/92") == float(Time("1992-10-26").mjd)
    assert parse_date("2024-02-30") is None
    assert parse_date("") is None


@given(h=st.integers(0, 23), m=st.integers(0, 59), s=st.integers(0, 59))
def test_clock(h: int, m: int, s: int) -> None:
    assert parse_clock(f"{h:02d}:{m:02d}:{s:02d}") == pytest.approx((h + m / 60 + s / 3600) / 24)
    assert parse_clock(f"{h}:{m}:{s + 61}") is None


@given(degrees=st.floats(-89.99, 89.99))
def test_sexagesimal_angles(degrees: float) -> None:
    total = round(abs(degrees) * 3600, 3)
    d, rest = divmod(total, 3600)
    m, s = divmod(rest, 60)
    sign = "-" if degrees < 0 else "+"
    for text in (f"{sign}{int(d):02d}:{int(m):02d}:{s:06.3f}", f"{sign}{int(d):02d} {int(m):02d} {s:06.3f}"):
        value = as_angle(text, hours=False)
        assert value is not None
        assert value == pytest.approx(degrees, abs=1e-6)
        hours = as_angle(text, hours=True)
        assert hours == pytest.approx(15 * degrees, abs=1e-5)


def test_numbers_with_units_are_numbers_and_times_are_not() -> None:
    assert as_number("13 C") == 13
    assert as_number("-1.5D2") == -150
    assert as_number("04:00:00") is None
    assert as_number(True) is None
    assert as_number(float("nan")) is None
    assert as_number("none") is None


@pytest.mark.parametrize(
    ("text", "unit", "factor"),
    [
        (None, "adu", 1), ("", "adu", 1), ("ADU", "adu", 1), ("counts", "adu", 1), ("DN", "adu", 1),
        ("electron", "electron", 1), ("Electrons", "electron", 1), ("e-", "electron", 1),
        ("ELECTRONS/S", "electron/s", 1), ("adu/s", "adu/s", 1), ("count / s", "adu/s", 1), ("DN s-1", "adu/s", 1),
        ("cps", "electron/s", 1), ("electron s**-1", "electron/s", 1), ("e-/pix", "electron", 1),
        ("Jy", "nJy", 1e9), ("mJy", "nJy", 1e6), ("MJy", "nJy", 1e15), ("uJy", "nJy", 1e3), ("nJy", "nJy", 1),
        ("MJy/sr", "nJy", 1e15 * 2e-14),
    ],
)  # fmt: skip
def test_units(text: str | None, unit: str, factor: float) -> None:
    found = normal_unit(text, load_keywords(), pixel_area_sr=2e-14)
    assert found[0] == unit
    assert found[1] == pytest.approx(factor)


@pytest.mark.parametrize("text", ["furlong", "mag", "Jy/s", "kg"])
def test_unknown_units_are_refused(text: str) -> None:
    with pytest.raises(HeaderError, match="not known") as caught:
        normal_unit(text, load_keywords(), where="file.fits")
    assert "file.fits" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Light Frame", "light"), ("object", "light"), ("EXPOSE", "light"), ("OBJECT,SKY", "light"),
        ("Bias Frame", "bias"), ("zero", "bias"), ("BIAS", "bias"), ("Dark Frame", "dark"), ("dark", "dark"),
        ("Flat Field", "flat"), ("SKYFLAT", "flat"), ("dome flat", "flat"), ("twilight", "flat"), ("wibble", "light"),
    ],
)  # fmt: skip
def test_kinds(text: str, kind: str) -> None:
    assert said(IMAGETYP=text)["kind"] == kind


def test_zero_exposure_is_refused_for_light_alone() -> None:
    for cards in ({"EXPTIME": 0.0}, {"EXPTIME": -1.0}):
        with pytest.raises(HeaderError, match="exposure time"):
            normalise(header(LIGHT, cards), load_keywords(), where="x.fits")
    assert normalise(header(LIGHT, EXPTIME=0.0, IMAGETYP="Bias"), load_keywords())["exposure"] == 0


def test_temperatures_in_kelvin_become_celsius() -> None:
    assert said(CCD_TEMP=-20.5)["temperature"] == -20.5
    assert said(CCD_TEMP=180.2)["temperature"] == pytest.approx(-92.95)


def test_colour_filter_array_with_its_offset() -> None:
    assert said(BAYERPAT="RGGB")["bayer"] == "RGGB"
    assert said(BAYERPAT="RGGB", XBAYROFF=1)["bayer"] == "GRBG"
    assert said(BAYERPAT="RGGB", YBAYROFF=1)["bayer"] == "GBRG"
    assert said(FILTER="GRBG")["bayer"] == "GRBG"
    assert "bayer" not in said()


def test_filter_names_are_short_and_safe() -> None:
    assert said(FILTER="i DECam SDSS c0003 7835.0 1470.0")["filter"] == "i"
    assert said(FILTER="ZTF_g")["filter"] == "g"
    assert said(FILTER="Ha 6nm/wide")["filter"] == "Ha_6nm_wide"
    assert said(FILTER="UNKNOWN")["filter"] == "none"


def test_a_real_gain_goes_before_a_setting() -> None:
    assert said(GAIN=120, EGAIN=0.9)["gain"] == 0.9
    assert said(GAIN=1.7)["gain"] == 1.7
    assert "gain" not in said(GAIN=0.0)


def test_pixel_scale_from_the_optics() -> None:
    # 9 µm behind 1 m of focal length: 1.856″.
    assert said(GAIN=1.0, XPIXSZ=9.0, FOCALLEN=1000.0)["pixel_scale"] == pytest.approx(1.8564, abs=1e-4)


def test_zero_point_from_hubbles_keywords() -> None:
    # WFC3/IR F160W: 25.946 AB.
    found = said(PHOTFLAM=1.9275602e-20, PHOTPLAM=15369.176)
    assert found["zero_point"] == pytest.approx(25.946, abs=2e-3)
    assert said(MAGZERO=24.0)["zero_point"] == 24.0


def test_a_silent_extension_does_not_overrule_the_primary() -> None:
    merged = merged_header(header(BIASSEC="[1:2,1:2]", FILTER="r"), header(FILTER="UNKNOWN", GAIN=2.0))
    assert merged["FILTER"] == "r"
    assert merged["GAIN"] == 2.0
    assert merged["BIASSEC"] == "[1:2,1:2]"
    assert Reader(merged, load_keywords()).number("gain") == 2.0


def test_users_extend_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(
        "keys: {filter: [BAND], exposure: MYTIME}\nunits: {adu: [wibbles]}\nkinds: {flat: [lampe]}\n"
        "filters: [['^Johnson ', '']]\n"
        "instruments: [{match: {INSTRUME: '^Cam'}, set: {instrument: Kamera, site_longitude: 7.0}}]\n"
    )
    keywords = load_keywords(file)
    head = header(LIGHT, BAND="Johnson V", MYTIME=33.0, IMAGETYP="Lampe an")
    meta = normalise(head, keywords)
    assert (meta["filter"], meta["exposure"], meta["kind"]) == ("V", 33.0, "flat")
    assert (meta["instrument"], meta["site_longitude"]) == ("Kamera", 7.0)
    assert normal_unit("wibbles", keywords) == ("adu", 1.0)
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path))
    (tmp_path / "keywords.yaml").write_text("keys: {filter: [BAND]}")
    assert normalise(head, load_keywords())["filter"] == "Johnson_V"
    assert normalise(header(LIGHT), load_keywords({"keys": {"filter": ["INSTRUME"]}}))["filter"] == "Cam_1"


@pytest.mark.parametrize("text", ["surprise: {}", "- 1", "keys: [", "keys: 3", "filters: [1]"])
def test_wrong_tables_are_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_keywords(file)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_keywords(tmp_path / "none.yaml")
