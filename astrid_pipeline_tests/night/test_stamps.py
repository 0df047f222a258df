"""Stamps against slow cuts and every way a camera can be turned; forced light curves against what was put in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.night.light_curves import measure_exposure, nights_to_measure
from astrid_pipeline.night.stamps import cut, orientation, turned, write_stamps
from astrid_pipeline_tests.report.example import SIGMA, make_difference, make_rows, tan_wcs


def test_cuts_are_those_of_a_padded_image():
    image = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    padded = np.pad(image, 40, constant_values=np.nan)
    for x, y in [(0, 0), (39, 29), (20.4, 11.6), (-3, 5), (60, 60)]:
        column, row = round(x) + 40, round(y) + 40
        expected = padded[row - 4 : row + 5, column - 4 : column + 5]
        if expected.shape == (9, 9):
            np.testing.assert_array_equal(cut(image, x, y, 9), expected)


@pytest.mark.parametrize("angle", [0.0, 30.0, 100.0, 179.0, 260.0, -40.0])
@pytest.mark.parametrize("parity", [1, -1])
def test_north_is_up_and_east_is_left_however_the_camera_is_turned(angle, parity):
    wcs = tan_wcs((101, 101))
    turn = np.radians(angle)
    wcs.wcs.pc = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag(
        [parity, 1]
    )
    mirrored, turns, north, scale = orientation(wcs, 50.0, 50.0)
    assert scale == pytest.approx(0.4)
    assert abs(north) <= 45.001
    ra, dec = (float(v) for v in wcs.all_pix2world(50.0, 50.0, 0))
    for east, up in ((0.0, 8.0), (8.0, 0.0)):
        image = np.zeros((101, 101))
        x, y = wcs.all_world2pix(ra + east / 3600 / np.cos(np.radians(dec)), dec + up / 3600, 0)
        image[round(float(y)), round(float(x))] = 1
        shown = turned(cut(image, 50, 50, 63), mirrored, turns)
        row, column = np.argwhere(shown == 1)[0]
        # From up towards right, in the stamp as it is shown: 0 for north, -90 for east, turned by `north`.
        seen = np.degrees(np.arctan2(column - 31, 31 - row))
        expected = north - (90 if east else 0)
        assert (seen - expected + 180) % 360 - 180 == pytest.approx(0, abs=4), (mirrored, turns, north)


def test_stamps_lie_where_their_table_says(tmp_path):
    one = make_difference(sources=((30, 40, 50.0), (150, 110, 30.0)))
    places = pd.DataFrame({"exposure_id": "e", "x": [150.2, 29.8, 80.0], "y": [110.1, 40.3, 60.0]})
    table = write_stamps(tmp_path, {"e": one}, places)
    stack = np.load(tmp_path / "stamps.npy", mmap_mode="r")
    assert stack.shape == (3, 4, 63, 63)
    assert stack.dtype == np.float16
    for row in table.itertuples():
        plane = stack[row.row, 3].astype(float)
        expected = turned(cut(one.score, row.x, row.y), row.mirrored, row.turns)
        np.testing.assert_allclose(plane, expected, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(
            stack[row.row, 0],
            turned(cut(one.science, row.x, row.y) / SIGMA, row.mirrored, row.turns),
            rtol=2e-3,
            atol=1e-3,
        )
    assert table.masked.between(0, 1).all()
    assert table.loc[table.x > 150, "masked"].item() > 0.3, "most of that stamp lies off the frame"
    empty = write_stamps(tmp_path, {"e": one}, places.head(0))
    assert len(empty) == 0
    assert len(np.load(tmp_path / "stamps.npy")) == 0


def test_forced_points_are_fluxes_and_limits_of_usable_places():
    one = make_difference(mjd=61000.5, filter="r", zero_point=25.0)
    flux = np.array(one.flux)
    flux[50:70, 60:80] = 300.0
    one = one.replace(flux=flux)
    # On the bright patch, on empty sky, on the bad column, off the frame.
    places = make_rows(one, [(70, 60), (120, 90), (3, 50), (500, 500)]).assign(id=[7, 8, 9, 10])
    points = measure_exposure(one, places).set_index("object_id")
    assert set(points.index) == {7, 8}
    bright, faint = points.loc[7], points.loc[8]
    assert bright.flux == pytest.approx(300, rel=0.01)
    assert bright.mag == pytest.approx(25 - 2.5 * np.log10(300), abs=0.02)
    assert bright.mag_err == pytest.approx(1.0857 / 30, rel=0.02)
    if abs(faint.snr) < 3:
        assert np.isnan(faint.mag)
    assert faint.upper_limit == pytest.approx(max(faint.flux, 0) + 3 * SIGMA)
    assert faint.mag_limit == pytest.approx(25 - 2.5 * np.log10(faint.upper_limit))
    assert (points.mjd == 61000.5).all()
    assert not len(measure_exposure(one.replace(wcs=None), places))


def test_new_objects_are_measured_on_all_nights_and_old_ones_on_the_new():
    objects = pd.DataFrame({"id": [1, 2], "nights": [["2026-01-01", "2026-01-02"], []]})
    wanted = nights_to_measure(objects, ["2026-01-01", "2026-01-02", "2026-01-03"], "2026-01-02")
    assert {night: ids.tolist() for night, ids in wanted.items()} == {
        "2026-01-01": [2],
        "2026-01-02": [1, 2],
        "2026-01-03": [1, 2],
    }
