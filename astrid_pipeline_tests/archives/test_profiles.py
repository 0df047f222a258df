"""The survey profiles, on real headers where there are some, else on headers as the surveys document them."""

from __future__ import annotations

import io
import zipfile

import pytest
from astropy.io import fits

from astrid_pipeline.archives.field_files import sites
from astrid_pipeline.archives.headers import normalise
from astrid_pipeline.archives.keywords import load_keywords
from astrid_pipeline.archives.profiles import profile_of, profiles, usual_products
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline_tests.archive_server.holdings import recorded

NAMES = {"hst-wfc3", "jwst-nircam", "tess", "ps1", "ztf", "decam", "vista", "sdss", "swift-uvot", "generic"}

#: Headers as documented, for surveys of which no real file is at hand.
DOCUMENTED = {
    "jwst-nircam": {"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "F200W", "EXPTIME": 100.0},
    "ps1": {"TELESCOP": "PS1", "INSTRUME": "GPC1", "FPA.FILTERID": "r.00000", "EXPTIME": 40.0, "CELL.GAIN": 1.02},
    "ztf": {"INSTRUME": "ZTF/MOSAIC", "FILTER": "ZTF_r", "EXPTIME": 30.0, "GAIN": 6.2, "SATURATE": 31000.0,
            "MAGZP": 26.3, "SEEING": 2.1},
    "sdss": {"ORIGIN": "SDSS", "CAMCOL": "3", "FILTER": "r", "EXPTIME": 53.9, "TELESCOP": "2.5m"},
    "swift-uvot": {"TELESCOP": "SWIFT", "INSTRUME": "UVOTA", "FILTER": "UVW1", "EXPOSURE": 250.0},
}  # fmt: skip


def header(cards: dict) -> fits.Header:
    out = fits.Header()
    for key, value in cards.items():
        out[key if len(key) <= 8 else f"HIERARCH {key}"] = value
    return out


def test_every_survey_has_a_profile_of_the_same_form():
    assert set(profiles()) == NAMES
    known = {m.name for m in Mask}
    for one in profiles().values():
        assert one.title
        assert one.photometric_system
        assert one.site is None or one.site in sites()
        assert set(one.keywords.get("dq", {})) <= known
        assert one.name == "generic" or one.match
    bits = list(profiles()["ztf"].keywords["dq"].values())
    assert sum(bits) == sum(
        {1 << k for bit in bits for k in range(16) if bit >> k & 1}
    )  # no bit means two things


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_documented_headers_are_known(name):
    made = header(DOCUMENTED[name])
    assert profile_of(made).name == name
    meta = normalise(made, load_keywords())
    expected = {"ps1": "r", "ztf": "r", "jwst-nircam": "F200W", "sdss": "r", "swift-uvot": "UVW1"}
    assert meta["filter"].split(".")[0] == expected[name]
    assert meta["exposure"] > 0
    if name == "ztf":
        assert (meta["gain"], meta["saturation"], meta["zero_point"]) == (6.2, 31000.0, 26.3)
    if name == "sdss":
        assert meta["zero_point"] == 22.5


def test_a_real_tess_header():
    with zipfile.ZipFile(io.BytesIO(recorded("astrocut_107.27_-70.0_5x5.zip"))) as archive:
        hdus = fits.open(io.BytesIO(archive.read(archive.namelist()[0])))
    assert profile_of(hdus[0].header).name == "tess"
    meta = normalise(hdus[0].header, load_keywords())
    assert (meta["filter"], meta["zero_point"]) == ("TESS", 20.44)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("single_frames/hst_wfc3ir_f160w_im3433.fits", "hst-wfc3", {"filter": "F160W", "instrument": "WFC3"}),
        ("vista_video_A/image_1.fits", "vista", {"filter": "H", "instrument": "VIRCAM"}),
        ("decam_sfft_minis/input_data/DEC-OBS04a.mini.fits", "decam", {"filter": "i", "instrument": "DECam"}),
    ],
)
def test_real_headers_are_known_and_as_expected(shared_data, path, name, expected):
    from astrid_pipeline.archives.headers import merged_header
    from astrid_pipeline.cli.compare import open_frame

    with fits.open(shared_data / path) as hdus:
        science = next(
            hdu for hdu in hdus if hdu.header.get("NAXIS") == 2 or getattr(hdu, "compressed", None)
        )
        whole = merged_header(hdus[0].header, science.header)
    one = profile_of(whole)
    assert one.name == name
    meta = normalise(whole, load_keywords())
    assert {key: meta[key] for key in expected} == expected
    frame = open_frame(shared_data / path)
    meta = dict(frame.meta)
    if name == "hst-wfc3":
        meta.pop("seeing_arcsec", None)  # the stamp shows galaxies, no star to measure
    assert one.remarks(meta) == []
    if name == "hst-wfc3":
        assert any(key in whole for key in one.gain)


def test_what_is_not_as_expected_is_said():
    ztf = profiles()["ztf"]
    assert ztf.remarks({"pixel_scale": 1.012, "seeing_arcsec": 2.0}) == []
    scale, width = ztf.remarks({"pixel_scale": 21.0, "seeing_arcsec": 9.0})
    assert scale == "a pixel is 21″ wide, where Zwicky Transient Facility has 1.005–1.02″"
    assert "stars are 9″ wide" in width
    assert ztf.remarks({}) == []


def test_unknown_instruments_are_generic_and_the_most_exact_match_wins():
    assert profile_of(header({"INSTRUME": "MyCam"})).name == "generic"
    assert profile_of(header({"TELESCOP": "HST", "INSTRUME": "WFC3"})).name == "hst-wfc3"
    assert profile_of(header({"TELESCOP": "HST", "INSTRUME": "ACS"})).name == "generic"


def test_usual_products():
    assert usual_products("HST")[0] == "DRC"
    assert usual_products("JWST") == ("I2D", "CAL")
    assert usual_products("GALEX") == ()


def test_a_wrong_profile_is_told():
    from astrid_pipeline.archives.profiles import _profile

    with pytest.raises(ConfigError, match="unknown keys colour"):
        _profile("x", {"colour": "red"})
    with pytest.raises(ConfigError, match="form of the others"):
        _profile("x", {"title": "x", "match": {}})
    good = {"title": "x", "match": {}, "pixel_scale": [1, 2], "psf_fwhm": [2, 1], "photometric_system": "AB"}
    with pytest.raises(ConfigError, match="psf_fwhm is no range"):
        _profile("x", good)
