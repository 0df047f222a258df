"""Registration and stacking of real frames: other people's detectors, distortions and seeing."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.imaging.align import align
from astrid_pipeline.imaging.bayer import superpixels
from astrid_pipeline.imaging.coadd import coadd
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.registration import register

pytestmark = [pytest.mark.real_data, pytest.mark.filterwarnings("ignore::Warning")]

EPOCHS = (1, 2, 3, 7)


@cache
def vista(folder: Path, epoch: int) -> Frame:
    with fits.open(folder / "vista_video_A" / f"image_{epoch}.fits") as hdus:
        data = np.array(hdus[1].data, np.float32)
        wcs = WCS(hdus[1].header)
    sigma = 1.4826 * np.nanmedian(np.abs(data - np.nanmedian(data)))
    meta = {"exposure_id": f"image_{epoch}", "sky_subtracted": True}
    return Frame(data, np.full(data.shape, sigma**2), wcs=wcs, meta=meta)


@pytest.mark.slow
def test_vista_epochs_register_to_a_tenth_of_a_pixel(shared_data: Path) -> None:
    """All pairs of four epochs with native ZPN headers, on stars of S/N over 50 that the fit did not use."""
    for first, second in itertools.combinations(EPOCHS, 2):
        found = register(vista(shared_data, first), vista(shared_data, second))
        assert max(found.dx_rms, found.dy_rms) < 0.1, (first, second)
        assert found.n_matched > 300
        assert found.source.startswith("wcs+stars")


@pytest.mark.slow
def test_there_and_back_is_where_one_began(shared_data: Path) -> None:
    """The maps between three epochs close: errors of each are not hidden by its own residuals."""
    a, b, c = (vista(shared_data, epoch) for epoch in (1, 3, 7))
    x, y = np.meshgrid(np.linspace(100, 1700, 9), np.linspace(100, 1700, 9))
    here = register(b, a).function(x, y)
    there = register(c, b).function(*here)
    back = register(a, c).function(*there)
    assert np.sqrt(np.mean((back[0] - x) ** 2)) < 0.03
    assert np.sqrt(np.mean((back[1] - y) ** 2)) < 0.03


def test_two_exposures_without_wcs(shared_data: Path) -> None:
    frames = []
    for number in (4, 5):
        with fits.open(shared_data / "pairs_same_night" / f"eso085-030_00{number}.fit") as hdus:
            data = hdus[0].data.astype(np.float32)
        frames.append(Frame(data, meta={"exposure_id": f"eso {number}", "saturation": 65000.0}))
    out = align(frames[0], to=frames[1])
    assert out.meta["registration"].startswith("identity")
    assert max(out.meta["dx_rms"], out.meta["dy_rms"]) < 0.06
    assert out.meta["n_matched"] > 200
    assert out.meta["coverage"] > 0.99


def test_a_bayer_pair_where_one_has_no_wcs(shared_data: Path) -> None:
    """The shift measured on the mosaics themselves is (0.49, 1.73) px: half of it on superpixels."""
    folder = shared_data / "pairs_same_night"
    with fits.open(folder / "panoptes_unsolved.fits") as hdus:
        first = Frame(hdus[0].data.astype(np.float32), meta={"exposure_id": "unsolved", "bayer": "RGGB"})
    with fits.open(folder / "panoptes_solved.fits.fz") as hdus:
        data, wcs = hdus[1].data.astype(np.float32), WCS(hdus[1].header)
    second = Frame(data, wcs=wcs, meta={"exposure_id": "solved", "bayer": "RGGB"})
    half = superpixels(second)
    # SIP terms follow into the larger pixels.
    x, y = np.array([3.0, 170.0, 340.0]), np.array([340.0, 20.0, 200.0])
    np.testing.assert_allclose(
        half.wcs.all_pix2world(x, y, 0), wcs.all_pix2world(2 * x + 0.5, 2 * y + 0.5, 0), atol=1e-9
    )
    found = register(superpixels(first), half)
    u, v = found.function(170.0, 170.0)
    shift = 2 * np.array([170 - u, 170 - v])
    assert np.abs(np.abs(shift) - (0.49, 1.73)).max() < 0.1
    out = align(half, to=superpixels(first))
    assert out.wcs is not None


def test_decam_stamps_of_few_stars(shared_data: Path) -> None:
    """Stamps on one grid with some ten stars: the epochs lie 0.5 px apart all the same, exposures of one much less."""
    stamps = {}
    for path in sorted((shared_data / "decam_sfft_minis" / "input_data").glob("*.mini.fits")):
        with fits.open(path) as hdus:
            stamps[path.name[7:10]] = Frame(
                hdus[0].data.astype(np.float32),
                wcs=WCS(hdus[0].header),
                meta={"exposure_id": path.stem, "gain": hdus[0].header["GAIN"], "sky_subtracted": True},
            )
    assert len(stamps) == 10
    shifts = {}
    for name, frame in stamps.items():
        u, v = register(frame, stamps["04e"]).function(128.0, 128.0)
        shifts[name] = (float(u) - 128, float(v) - 128)
    new = np.array([value for name, value in shifts.items() if name[:2] == "04"])
    old = np.array([value for name, value in shifts.items() if name[:2] == "18"])
    assert np.abs(new).max() < 0.2
    assert np.ptp(old, axis=0).max() < 0.12
    assert np.abs(np.median(old, axis=0) - np.median(new, axis=0)).max() > 0.2
    stack = coadd([frame for name, frame in stamps.items() if name[:2] == "18"])
    assert stack.meta["n_frames"] == 5
    one = float(np.sqrt(np.median(coadd([stamps["18c"]]).variance)))
    assert stack.meta["sky_sigma"] < 0.6 * one
