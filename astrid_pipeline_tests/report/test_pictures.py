"""Pictures: what is where, that nothing usual or unusual breaks them, and that a thumb is small."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.report import frame_png, quad_png, stamps_png, thumb_png
from astrid_pipeline_tests.report.example import make_difference, make_rows


def pixels(png: bytes) -> np.ndarray:
    """Decode to (H, W, 3) integers."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def greenish(image: np.ndarray) -> np.ndarray:
    return (image[..., 1] > image[..., 0] + 40) & (image[..., 1] > image[..., 2] + 40)


def test_quad_has_four_panels_within_the_width_asked_for() -> None:
    difference = make_difference(sources=((60, 80, 40),))
    for width in (500, 1200):
        image = pixels(quad_png(difference, max_px=width))
        assert width * 0.93 <= image.shape[1] <= width


def test_a_new_source_is_orange_in_the_score_and_up_is_up() -> None:
    # Top right of the frame, y upwards: in the picture's last panel it must be at the top right, too.
    difference = make_difference((200, 200), sources=((160, 170, 60),))
    image = pixels(quad_png(difference, title=" ", max_px=1200))
    size = round((image.shape[1] - 5 * 6) / 4)
    panel = image[-size - 3 : -3, -size - 6 : -6]
    y, x = np.unravel_index((panel[..., 0] - panel[..., 2]).argmax(), panel.shape[:2])
    assert x / size == pytest.approx(160.5 / 200, abs=0.03)
    assert 1 - y / size == pytest.approx(170.5 / 200, abs=0.03)
    science = image[-size - 3 : -3, 6 : size + 6].sum(-1)
    y, x = np.unravel_index(science[: size // 2, size // 2 :].argmax(), (size // 2, size - size // 2))
    assert 1 - y / size == pytest.approx(170.5 / 200, abs=0.05)


def test_a_detection_is_circled_in_green_where_it_is() -> None:
    difference = make_difference((200, 200))
    bare = pixels(quad_png(difference, title=" ", max_px=1200))
    rows = make_rows(difference, [(100, 60)])
    marked = pixels(quad_png(difference, rows, title=" ", max_px=1200))
    changed = greenish(marked) & ~greenish(bare)
    ys, xs = np.nonzero(changed)
    size = (marked.shape[1] - 5 * 6) / 4
    last = xs > marked.shape[1] - size - 6
    assert last.sum() > 20
    assert xs[last].mean() == pytest.approx(marked.shape[1] - 6 - size + 100.5 / 200 * size, abs=3)
    assert ys[last].mean() == pytest.approx(marked.shape[0] - 6 - 60.5 / 200 * size, abs=4)


def test_masked_pixels_are_violet() -> None:
    difference = make_difference((64, 64))
    image = pixels(quad_png(difference, max_px=1200))
    violet = (image == (58, 38, 74)).all(-1)
    # Two columns of 64 in difference and score, one (the science frame's own) in the others at least.
    assert violet.sum() > 64 * 4


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (7, 5), (33, 400), (1030, 515)])
def test_any_shape_draws(shape: tuple[int, int]) -> None:
    difference = make_difference((max(shape[0], 8), max(shape[1], 8)))
    cut = difference.replace(
        **{
            name: getattr(difference, name)[: shape[0], : shape[1]]
            for name in ("data", "variance", "mask", "score", "flux", "flux_err", "science", "reference")
        }
    )
    for picture in (quad_png(cut), thumb_png(cut), stamps_png(cut, 0, 0)):
        assert pixels(picture).size


def test_without_wcs_without_meta_with_nan_and_outside_positions() -> None:
    difference = make_difference(score_sigma=float("nan"), seeing=None, dx_rms="?").replace(wcs=None)
    rows = make_rows(make_difference(), [(-50, 20), (1e6, 3), (10, 10)], score=np.nan)
    rows.loc[2, ["x", "y"]] = np.nan
    assert pixels(quad_png(difference, rows, numbered=3)).size
    assert pixels(quad_png(difference, pd.DataFrame({"x": [3.0], "y": [4.0]}))).size
    assert pixels(quad_png(difference, rows.iloc[:0])).size


def test_thousands_of_candidates_are_counted_and_the_strongest_drawn() -> None:
    difference = make_difference((256, 256))
    rng = np.random.default_rng(1)
    rows = make_rows(difference, [tuple(p) for p in rng.uniform(0, 255, (3000, 2))])
    assert pixels(quad_png(difference, rows)).size


@pytest.mark.parametrize("size", [60, 700, 2048])
def test_a_thumb_stays_under_the_limit_and_keeps_the_marks_colour(size: int) -> None:
    difference = make_difference((size, size), sources=((size / 2, size / 2, 50),))
    rows = make_rows(difference, [(size / 2, size / 2)])
    thumb = thumb_png(difference, rows)
    assert len(thumb) <= 150_000
    assert greenish(pixels(thumb)).sum() > 30


def test_same_input_same_bytes() -> None:
    difference = make_difference()
    rows = make_rows(difference, [(20, 20), (40, 50)])
    assert quad_png(difference, rows) == quad_png(difference, rows)
    assert thumb_png(difference, rows) == thumb_png(difference, rows)


def test_stamps_show_the_source_in_the_middle_and_violet_outside() -> None:
    difference = make_difference((100, 100), sources=((98, 50, 9),))
    image = pixels(stamps_png(difference, 98, 50, radius=10, size=84))
    assert image.shape == (84, 4 * 84 + 3 * 2, 3)
    score = image[:, -84:]
    bright = np.unravel_index(score.sum(-1).argmax(), (84, 84))
    assert bright == pytest.approx((42, 42), abs=8)
    assert (score[:, -20:] == (58, 38, 74)).all()


def test_frame_picture_marks_sources() -> None:
    difference = make_difference((90, 120), sources=((60, 40, 90),))
    frame = Frame(
        difference.science, wcs=difference.wcs, meta={"filter": "r", "exposure": 30.0, "seeing": 2.4}
    )
    rows = make_rows(difference, [(60, 40)])
    image = pixels(frame_png(frame, rows, max_px=600))
    assert greenish(image).sum() > 20


def test_frame_picture_fits_the_bytes_it_is_given() -> None:
    difference = make_difference((800, 800))
    frame = Frame(difference.science, wcs=difference.wcs)
    assert len(frame_png(frame, max_px=600)) > 74_000
    assert len(frame_png(frame, max_px=600, max_bytes=74_000)) <= 74_000
