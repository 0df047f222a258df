from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from astrid_pipeline.errors import InputError, RegistrationError
from astrid_pipeline.imaging.coadd import coadd
from astrid_pipeline.imaging.combine import combine
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.quality import is_prepared
from astrid_pipeline_tests.imaging import star_fields as sf

SHAPE = (256, 280)


def exposures(rng, number=4, *, shifts=None, scales=None, seeing=None, sigmas=None, stars=70):
    """Return frames of one field, dithered by `shifts`, of flux `scales`, and the stars' places and fluxes."""
    places = sf.positions(rng, stars, SHAPE)
    flux = sf.fluxes(rng, len(places), faintest=4e3)
    shifts = rng.uniform(-6, 6, (number, 2)) if shifts is None else np.asarray(shifts)
    made = []
    for i in range(number):
        scale = 1.0 if scales is None else scales[i]
        made.append(
            sf.frame(
                rng,
                SHAPE,
                places + shifts[i],
                flux * scale,
                fwhm=2.6 if seeing is None else seeing[i],
                sigma=10.0 if sigmas is None else sigmas[i],
                wcs=sf.tan_wcs(SHAPE),
                exposure_id=f"e{i}",
                mjd=61000.0 + i,
                exposure=30.0,
                read_noise=5.0,
                saturation=1e5,
            )
        )
    return made, places, flux


def test_a_stack_is_deeper_and_says_what_it_is_made_of() -> None:
    rng = np.random.default_rng(1)
    frames, places, flux = exposures(rng, 4, shifts=[(0, 0), (0.4, -0.3), (-3.6, 2.2), (5.5, 1.5)])
    grid = (frames[0].wcs, SHAPE)
    stack = coadd(frames, grid=grid)
    wanted = sf.draw(SHAPE, places[:, 0], places[:, 1], flux, 2.6)
    # The grid is the deepest frame's by its header; which of four like frames that is, is chance.
    centre = json.loads(stack.meta["flux_scales"])
    assert set(centre) == {"e0", "e1", "e2", "e3"}
    assert [value[0] for value in centre.values()] == pytest.approx([1, 1, 1, 1], abs=0.02)
    assert json.loads(stack.meta["inputs"]) == ["e0", "e1", "e2", "e3"]
    assert stack.meta["n_frames"] == 4
    assert (stack.meta["mjd_min"], stack.meta["mjd_max"]) == (61000.0, 61003.0)
    assert 61000 < stack.meta["mjd"] < 61003
    assert stack.meta["exposure"] == 120
    assert stack.meta["sky_sigma"] == pytest.approx(5.0, rel=0.05)
    assert stack.meta["gain"] == pytest.approx(4.0, rel=0.1)
    assert stack.meta["read_noise"] == pytest.approx(10.0, rel=0.1)
    assert is_prepared(stack)
    good = (stack.mask == 0) & (wanted < 1)
    assert 0.8 < (stack.data[good] / np.sqrt(stack.variance[good])).std() < 1.05


def test_variance_and_flux_of_a_stack_are_true() -> None:
    """Without shifts the stack is an average whose truth is known pixel by pixel."""
    rng = np.random.default_rng(2)
    scales, sigmas, seeing = [1.0, 0.5, 0.8], [10.0, 6.0, 12.0], [2.4, 2.4, 2.4]
    frames, places, flux = exposures(
        rng, 3, shifts=np.zeros((3, 2)), scales=scales, sigmas=sigmas, seeing=seeing
    )
    stack = coadd(frames, clip=None)
    found = {name: value[0] for name, value in json.loads(stack.meta["flux_scales"]).items()}
    anchor = min(found, key=lambda name: abs(found[name] - 1))
    unit = scales[int(anchor[1])]
    for i in range(3):
        assert found[f"e{i}"] == pytest.approx(unit / scales[i], rel=0.01)
    wanted = unit * sf.draw(SHAPE, places[:, 0], places[:, 1], flux, 2.4)
    pull = (stack.data - wanted) / np.sqrt(stack.variance)
    assert pull.std() == pytest.approx(1.0, abs=0.06)
    # The best that three frames of these depths can give together.
    best = unit / np.sqrt(sum((s / n) ** 2 for s, n in zip(scales, sigmas, strict=True)))
    assert np.sqrt(np.median(stack.variance)) == pytest.approx(best, rel=0.02)


def test_good_seeing_counts_more() -> None:
    rng = np.random.default_rng(3)
    frames, _, _ = exposures(rng, 2, shifts=np.zeros((2, 2)), seeing=[2.2, 4.4])
    stack = coadd(frames)
    # Noise areas go with the square: weights 4 to 1, variance (16 + 1) / 25 of one frame's.
    assert stack.meta["sky_sigma"] == pytest.approx(10 * np.sqrt(17) / 5, rel=0.03)
    assert 2.2 < stack.meta["seeing"] < 2.8


@pytest.mark.parametrize("number", [2, 3, 5])
def test_what_only_one_frame_has_goes(number: int) -> None:
    """A moving object, a cosmic ray and a trail that nobody masked, each in one frame; the stars stay as they are."""
    rng = np.random.default_rng(4)
    frames, places, flux = exposures(
        rng, number, shifts=np.zeros((number, 2)), seeing=list(np.linspace(2.4, 3.0, number))
    )
    clean = coadd(frames)
    spoilt = frames[0].data.copy()
    mover = sf.draw(SHAPE, np.array([140.0]), np.array([128.0]), np.array([2e4]), 2.4)
    spoilt += mover
    spoilt[60, 50:54] += 5000
    spoilt[200, :] += 300
    stack = coadd([frames[0].replace(data=spoilt), *frames[1:]])
    left = stack.data - clean.data
    stars = maximum_filter(sf.draw(SHAPE, places[:, 0], places[:, 1], flux, 3.0), 9)
    # On a star a trail is told from seeing only where it is brighter than the star's own flank.
    touched = ((mover > 30) | (np.abs(spoilt - frames[0].data) > 200)) & (stars < 100)
    # Where a value went, the others' mean stands instead: it differs by their noise, not by what was planted.
    assert np.abs(left[touched]).max() < 7 * 10 / np.sqrt(number - 1)
    # The mover's faint rim, under 2 σ of a frame, cannot be told from noise.
    assert np.abs(np.sum(left[mover > 0])) < 0.15 * mover.sum()
    core = [(round(y), round(x)) for x, y in places if 5 < x < 270 and 5 < y < 245]
    for row, column in core:
        kept = stack.data[row, column] / clean.data[row, column]
        if row != 200 and mover[row, column] < 1 and row != 60:
            assert kept == pytest.approx(1, abs=0.03)


def test_stars_are_not_clipped_for_their_seeing() -> None:
    rng = np.random.default_rng(5)
    frames, _, _ = exposures(rng, 5, seeing=[2.2, 2.5, 2.9, 3.3, 3.6], shifts=np.zeros((5, 2)))
    assert coadd(frames).meta["clipped_fraction"] < 0.001


def test_frames_that_do_not_belong_are_left_out_and_named() -> None:
    rng = np.random.default_rng(6)
    frames, _, _ = exposures(rng, 3)
    stranger = frames[1].replace(wcs=sf.tan_wcs(SHAPE, ra=20.0), meta={"exposure_id": "stranger"})
    stack = coadd([*frames, stranger])
    assert json.loads(stack.meta["inputs"]) == ["e0", "e1", "e2"]
    assert "overlap" in json.loads(stack.meta["rejected"])["stranger"]
    with pytest.raises(RegistrationError, match=r"stranger: .*overlap"):
        coadd([frames[0], stranger])


def test_no_frame_is_an_error_and_one_is_enough() -> None:
    with pytest.raises(InputError, match="no frame"):
        coadd([])
    frames, _, _ = exposures(np.random.default_rng(7), 1)
    stack = coadd(frames)
    np.testing.assert_allclose(stack.data, frames[0].data, rtol=1e-5, atol=1e-4)
    assert stack.meta["coverage"] == 1.0


def test_a_larger_grid_is_covered_in_part() -> None:
    frames, _, _ = exposures(np.random.default_rng(8), 3)
    wide = (300, 320)
    grid = sf.tan_wcs(wide)
    stack = coadd(frames, grid=(grid, wide))
    assert stack.shape == wide
    assert stack.wcs is grid
    assert stack.meta["coverage"] == pytest.approx(SHAPE[0] * SHAPE[1] / (300 * 320), abs=0.06)
    assert ((stack.mask & int(Mask.NO_DATA)) != 0).mean() == pytest.approx(
        1 - stack.meta["coverage"], abs=1e-6
    )


def _planes(rng, number=3, shape=(40, 50)):
    data = [rng.normal(0, 1, shape).astype(np.float32) for _ in range(number)]
    return data, [np.ones(shape, np.float32)] * number, [np.zeros(shape, np.int32) for _ in range(number)]


def test_combining_is_what_a_loop_over_pixels_does() -> None:
    rng = np.random.default_rng(9)
    data, variance, masks = _planes(rng, 4)
    variance = [np.full((40, 50), v, np.float32) for v in (1.0, 2.0, 0.5, 1.0)]
    weights = [1.0, 0.5, 2.0, rng.uniform(0.5, 1.5, (40, 50)).astype(np.float32)]
    for mask in masks:
        mask[rng.random((40, 50)) < 0.2] = int(Mask.BAD_PIXEL)
        mask[rng.random((40, 50)) < 0.1] = int(Mask.NO_DATA)
    out = combine(data, variance, masks, weights, clip=None)
    for row in range(40):
        for column in range(50):
            w = [float(np.broadcast_to(x, (40, 50))[row, column]) for x in weights]
            bits = [int(m[row, column]) for m in masks]
            use = [k for k in range(4) if bits[k] == 0] or [
                k for k in range(4) if bits[k] != int(Mask.NO_DATA)
            ]
            if not use:
                assert out.mask[row, column] == int(Mask.NO_DATA)
                assert out.data[row, column] == 0
                continue
            total = sum(w[k] for k in use)
            assert out.data[row, column] == pytest.approx(
                sum(w[k] * data[k][row, column] for k in use) / total, abs=1e-5
            )
            assert out.variance[row, column] == pytest.approx(
                sum(w[k] ** 2 * variance[k][row, column] for k in use) / total**2, rel=1e-5
            )
            covered = [k for k in range(4) if bits[k] != int(Mask.NO_DATA)]
            bad = sum(w[k] for k in covered if bits[k])
            assert (out.mask[row, column] == int(Mask.BAD_PIXEL)) == (bad >= 0.5 * sum(w[k] for k in covered))


def test_bits_need_half_the_weight() -> None:
    data, variance, masks = _planes(np.random.default_rng(10))
    masks[0][5, 5] = int(Mask.COSMIC_RAY)
    masks[0][9, 9] = masks[1][9, 9] = int(Mask.SATURATED)
    masks[0][3, 3], masks[1][3, 3], masks[2][3, 3] = int(Mask.COSMIC_RAY), int(Mask.TRAIL), int(Mask.BLEED)
    out = combine(data, variance, masks, [1.0, 1.0, 1.0])
    assert out.mask[5, 5] == 0
    assert out.mask[9, 9] == int(Mask.SATURATED)
    assert out.data[9, 9] == pytest.approx(data[2][9, 9])
    assert out.mask[3, 3] == int(Mask.COSMIC_RAY | Mask.TRAIL | Mask.BLEED)


def test_noise_is_hardly_clipped() -> None:
    data, variance, masks = _planes(np.random.default_rng(11), 5, (300, 300))
    out = combine(data, variance, masks, [1.0] * 5)
    # Four Gaussian σ: 6e-5 of the values, their neighbours' edges a little more.
    assert max(out.clipped) < 4e-4
    assert out.data.std() == pytest.approx(np.sqrt(0.2), rel=0.01)


def test_the_brighter_of_two_goes() -> None:
    data, variance, masks = _planes(np.random.default_rng(12), 2)
    data[1][20, 20] += 50
    out = combine(data, variance, masks, [1.0, 1.0])
    assert out.data[20, 20] == pytest.approx(data[0][20, 20])
    assert out.variance[20, 20] == pytest.approx(1.0)
    kept = combine(data, variance, masks, [1.0, 1.0], clip=None)
    assert kept.data[20, 20] > 20
