"""Measuring real frames: what the data's owners measured, and what must not go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.noise import sky_ratio
from astrid_pipeline.imaging.quality import prepare
from astrid_pipeline.imaging.stars import detect_stars

pytestmark = pytest.mark.real_data


def read(path: Path, **meta: Any) -> Frame:
    with fits.open(path) as hdus:
        hdu = next(h for h in hdus if h.data is not None and h.data.ndim == 2)
        return Frame(hdu.data, meta={"exposure_id": path.stem, **meta})


def noise_is_honoured(frame: Frame) -> None:
    from astrid_pipeline.imaging.background import measure_background

    objects = measure_background(frame.data).objects
    assert frame.variance is not None
    ratio, _ = sky_ratio(frame.data, frame.variance, ~objects & (frame.mask == 0))
    assert ratio == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("number", [1, 3])
def test_vista(shared_data: Path, number: int) -> None:
    """GAIN in the header is not the detector's: it would make bright stars three times too noisy."""
    frame = read(shared_data / "vista_video_A" / f"image_{number}.fits", sky_subtracted=True, gain=0.097)
    ready = prepare(frame)
    noise_is_honoured(ready)
    assert ready.meta["sky_sigma"] == pytest.approx({1: 45.5, 3: 36.5}[number], rel=0.03)
    # Seeing of the stars alone: 0.75 arcsec at 0.341 arcsec per pixel; galaxies would make it 2.8 px.
    assert 2.0 < ready.meta["seeing"] < 2.5
    assert ready.meta["n_stars"] > 80
    assert ready.meta["gain"] > 0.25
    assert "stated" in ready.meta["gain_source"]
    # The frames were resampled: neighbours share noise.
    assert 1.3 < ready.meta["noise_correlation"] < 1.7
    assert ready.psf is not None
    assert ready.psf.quality["residual"] < 0.04


@pytest.mark.parametrize(("name", "fwhm"), [("OBS18a", 3.7), ("OBS04a", 4.95)])
def test_decam_stamps_have_a_psf_from_a_handful_of_stars(shared_data: Path, name: str, fwhm: float) -> None:
    path = shared_data / "decam_sfft_minis" / "input_data" / f"DEC-{name}.mini.fits"
    ready = prepare(read(path, sky_subtracted=True, gain=4.0, saturation=46_000.0))
    noise_is_honoured(ready)
    assert ready.psf is not None
    assert ready.psf.is_constant
    assert 3 <= ready.meta["n_stars"] <= 10
    assert ready.meta["seeing"] == pytest.approx(fwhm, rel=0.05)
    assert ready.psf.quality["residual"] < 0.02
    assert ready.meta["noise_correlation"] == pytest.approx(1.05, abs=0.1)


def test_a_null_pair_has_the_same_psf_and_noise(shared_data: Path) -> None:
    """No gain, no read noise, saturated at 65535, both in the same night."""
    pair = [prepare(read(shared_data / "pairs_same_night" / f"eso085-030_00{k}.fit")) for k in (4, 5)]
    for ready in pair:
        noise_is_honoured(ready)
        assert ready.meta["saturation"] > 65_000
        assert ready.meta["gain"] == pytest.approx(1.5, abs=0.2)
        assert ready.meta["n_stars"] > 100
    assert pair[0].meta["seeing"] == pytest.approx(pair[1].meta["seeing"], rel=0.03)
    assert pair[0].psf is not None
    assert pair[1].psf is not None
    one, two = pair[0].psf.stamp(), pair[1].psf.stamp()
    size = min(len(one), len(two)) // 2
    cut = [
        s[len(s) // 2 - size : len(s) // 2 + size + 1, len(s) // 2 - size : len(s) // 2 + size + 1]
        for s in (one, two)
    ]
    overlap = (cut[0] * cut[1]).sum() / np.sqrt(np.square(cut[0]).sum() * np.square(cut[1]).sum())
    assert overlap > 0.998


def test_emmi(shared_data: Path) -> None:
    frame = read(shared_data / "single_frames" / "emmi_sep_image.fits")
    stars = detect_stars(frame, only_stars=False)
    assert 40 < len(stars) < 90
    ready = prepare(frame)
    noise_is_honoured(ready)
    assert ready.meta["seeing"] == pytest.approx(2.4, abs=0.35)


def test_drizzled_hubble(shared_data: Path) -> None:
    ready = prepare(read(shared_data / "single_frames" / "hst_wfc3ir_f160w_im3433.fits", unit="electron/s"))
    noise_is_honoured(ready)
    assert ready.meta["noise_correlation"] > 1.5


def test_decam_s_transient_is_seen_through_five_stars(shared_data: Path) -> None:
    # Of the five sources in common, one is the transient's own host and one a star that moved by 0.3 px: neither may
    # speak for the others. The published difference of the same exposures has 13.6 of its own sigma (28.5 / 2.08).
    from astrid_pipeline.cli.compare import open_frame
    from astrid_pipeline.imaging import align, coadd, find_candidates, subtract

    folder = shared_data / "decam_sfft_minis" / "input_data"
    science, reference = (
        coadd([open_frame(path) for path in sorted(folder.glob(f"DEC-OBS{epoch}?.mini.fits"))])
        for epoch in ("04", "18")
    )
    difference = subtract(science, align(reference, to=science), device="cpu")
    assert difference.meta["score_sigma"] == pytest.approx(1, abs=0.03)
    table = find_candidates(difference)
    near = np.hypot(table.x - 129, table.y - 128) < 3
    assert table[near].snr.max() > 13.6
    assert (table[~near & (table["flags"] == 0)].snr.abs() < 8).all()
