"""Cut-outs of sky surveys on a science grid: fluxes kept, provenance told, gates held, servers that misbehave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.archives.survey_images import SurveyChoice, parse_policy, survey_reference, surveys
from astrid_pipeline.archives.survey_servers import ps1_linear
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, NoReferenceError, ServiceError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline_tests.archive_server import ArchiveServer

QUICK = Patience(tries=4, first=0.01, longest=0.02, connect=2, read=3)
SHAPE = (90, 100)


def science_grid(scale: float = 0.4, angle: float = 20.0) -> tuple[WCS, tuple[int, int]]:
    """A rotated grid that is neither the survey's scale nor its orientation."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.1, 2.2]
    wcs.wcs.crpix = [50.5, 45.5]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    return wcs, SHAPE


@pytest.fixture
def server():
    with ArchiveServer() as started:
        yield started


def choice(server: ArchiveServer, text: str) -> SurveyChoice:
    paths = {"hips": "/hips-image-services/hips2fits", "skyview": "/current/cgi/basicform.pl"}
    kind = surveys()[text.partition(":")[0].partition("@")[0]]["kind"]
    return SurveyChoice.parse(f"{text}?server={server.url}{paths.get(kind, '')}")


def make(server, text: str, tmp_path: Path, filter_name: str = "r", **more):
    return survey_reference(
        choice(server, text),
        filter_name,
        science_grid(),
        patience=QUICK,
        home=tmp_path,
        instrument="Cam",
        **more,
    )


def truth(server: ArchiveServer) -> np.ndarray:
    """The made-up sky on the science grid, its stars of 1.2″."""
    wcs, shape = science_grid()
    return server.images.sky(wcs, shape, seeing_px=1.2 / 0.4)


@pytest.mark.parametrize("text", ["ps1", "legacy", "dss2", "hips:CDS/P/SDSS9/r@1998-2009", "skyview"])
def test_every_survey_gives_its_flux_on_the_grid(server, tmp_path, text):
    frame = make(server, text, tmp_path)
    assert frame.shape == SHAPE
    meta = frame.meta
    assert meta["cross_mission"] is True
    assert "not by Cam" in meta["caveats"]
    assert meta["source"].startswith(server.url)
    assert meta["mjd_min"] < meta["mjd_max"]
    assert meta["coverage"] > 0.98
    # The whole flux of the brightest isolated star, in nanomaggies.
    sky = truth(server)
    y, x = np.unravel_index(np.argmax(sky[15:-15, 15:-15]), (SHAPE[0] - 30, SHAPE[1] - 30))
    box = np.s_[y + 15 - 7 : y + 15 + 8, x + 15 - 7 : x + 15 + 8]
    if (zero_point := meta.get("zero_point")) is not None:
        flux = frame.data[box].sum() * 10 ** (-0.4 * (zero_point - 22.5))
        assert flux == pytest.approx(sky[box].sum(), rel=0.05)
    else:
        assert "without a photometric zero point" in meta["caveats"]
    # Stars stay where they are.
    peak = np.unravel_index(np.argmax(np.where(frame.mask == 0, frame.data, 0)[box]), (15, 15))
    assert np.hypot(peak[0] - 7, peak[1] - 7) <= 1.5


def test_pan_starrs_scale_is_undone():
    alpha = 2.5 / np.log(10)
    counts = np.array([-50.0, 0.0, 3.0, 1e4, 1e6])
    header = {"BSOFTEN": 120.0, "BOFFSET": 7.0}
    packed = alpha * np.arcsinh((counts - 7.0) / 240.0)
    assert ps1_linear(packed, header) == pytest.approx(counts, abs=1e-6)
    assert ps1_linear(counts, {}) == pytest.approx(counts)


def test_epochs_and_zero_point_of_pan_starrs_are_the_stack_s_own(server, tmp_path):
    frame = make(server, "ps1", tmp_path)
    assert (frame.meta["mjd_min"], frame.meta["mjd_max"]) == server.images.epochs
    assert frame.meta["zero_point"] == pytest.approx(25 + 2.5 * np.log10(600))
    assert choice(server, "ps1").valid_from == "2016-01-01"


def test_what_the_survey_does_not_have_is_masked_or_refused(server, tmp_path):
    """With weights or, as an older server gives it, without: zeros."""
    server.images.covered = lambda ra, dec: ra < 150.1037
    frame = make(server, "legacy", tmp_path)
    assert 0.85 <= frame.meta["coverage"] < 0.99
    assert (frame.mask & int(Mask.NO_DATA) > 0).mean() == pytest.approx(1 - frame.meta["coverage"], abs=0.02)
    server.images.covered = lambda ra, dec: ra < 150.1
    with pytest.raises(NoReferenceError, match=r"covers [45]\d% of the field"):
        make(server, "dss2", tmp_path / "2")


def test_a_filter_that_the_survey_lacks_is_refused_unless_a_band_is_named(server, tmp_path):
    with pytest.raises(NoReferenceError, match=r"no filter F606W .*it has g, i, r, y, z"):
        make(server, "ps1", tmp_path, "F606W")
    frame = make(server, "ps1:r", tmp_path, "F606W")
    assert frame.meta["filter"] == "F606W"
    assert "which is not F606W" in frame.meta["caveats"]


@pytest.mark.parametrize(
    ("kind", "path", "more"),
    [
        ("status", "fitscut", {"value": 503}),
        ("status", "ps1filenames", {"value": 429}),
        ("html", "fitscut", {}),
        ("html", "ps1filenames", {}),
        ("truncated", "fitscut", {}),
        ("reset", "fitscut", {}),
    ],
)
def test_a_server_that_recovers_is_asked_again(server, tmp_path, kind, path, more):
    server.misbehave(kind, path, 2, **more)
    assert make(server, "ps1", tmp_path).meta["coverage"] > 0.98


def test_a_server_that_is_down_is_told_and_its_files_are_kept(server, tmp_path):
    make(server, "dss2", tmp_path)
    server.misbehave("status", "hips2fits", -1, value=503)
    make(server, "dss2", tmp_path)  # kept on disk
    with pytest.raises(ServiceError, match="503"):
        make(server, "dss2", tmp_path / "elsewhere")


def test_large_grids_are_put_together_from_pieces(server, tmp_path, monkeypatch):
    monkeypatch.setitem(surveys()["legacy"], "tile", 0.007)  # the grid is 0.011° wide
    frame = make(server, "legacy", tmp_path)
    assert server.count("/viewer/cutout.fits") == 4
    assert frame.meta["coverage"] == 1
    sky = truth(server)
    assert frame.data.sum() == pytest.approx(sky.sum(), rel=0.1)
    assert np.corrcoef(frame.data.ravel(), sky.ravel())[0, 1] > 0.85  # narrower stars in the same places


def test_a_coarse_grid_keeps_the_flux(server, tmp_path):
    """The same patch of sky in pixels of 0.4″ and of 4″, from a survey of 0.25″."""
    (wcs, _), fine = science_grid(scale=4.0), science_grid()
    wcs.wcs.crpix = [5.5, 5.0]
    sums = [
        survey_reference(choice(server, "ps1"), "r", grid, patience=QUICK, home=tmp_path).data.sum()
        for grid in (fine, (wcs, (9, 10)))
    ]
    assert sums[1] == pytest.approx(sums[0], rel=0.05)


def test_skyview_s_survey_must_be_of_its_list(server, tmp_path):
    with pytest.raises(NoReferenceError, match="no survey 'The Sky'"):
        make(server, "skyview:The Sky", tmp_path)


def test_policies():
    parts = parse_policy("auto+ps1+hips:CDS/P/PanSTARRS/DR1/r@2009-2015")
    assert parts[0] == "auto"
    assert [p.name for p in parts[1:]] == ["ps1", "hips"]
    assert parse_policy("exposures:A,B") == ["exposures:A,B"]
    for text, message in (
        ("auto+panstarrs", "no survey is called"),
        ("hips:CDS/P/X", "nobody says when"),
        ("hips@1990-1999", "no HiPS"),
        ("ps1@then-now", "no years"),
        ("exposures:", "no survey"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_policy(text)


def test_the_grid_goes_to_hips2fits_whole(server, tmp_path):
    make(server, "dss2", tmp_path)
    line = next(line for line in server.requests if "hips2fits" in line)
    assert "NAXIS1" in line
    assert json.dumps(SHAPE[1]) in line
    kept = next(p for p in tmp_path.rglob("*") if p.is_file())
    assert fits.getdata(kept).shape == SHAPE
