"""Stamps as pictures: the colours of the report, within the steps of one table for both scales."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night.stamps import write_stamps
from astrid_pipeline.report import stretch
from astrid_pipeline.resources.folders import put_folder
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline.review import stamps
from astrid_pipeline_tests.report.example import make_difference


def made(seed: int = 0) -> stamps.Stamp:
    rng = np.random.default_rng(seed)
    planes = rng.normal(0, 1, (4, 63, 63)).astype(np.float32)
    planes[:2, 30, 30] = 300.0
    planes[2:, 30, 30] = 40.0
    planes[2:, 10, 10] = -40.0
    planes[2:, 20, 20] = 0.0
    planes[:, :5] = np.nan
    return stamps.Stamp(planes, {})


def test_a_picture_has_the_colours_of_the_scales():
    stamp = made()
    picture = Image.open(io.BytesIO(stamps.sprite_png(stamp)))
    assert picture.mode == "P", "a byte a pixel"
    shown = np.asarray(picture.convert("RGB"), int)
    wanted = np.concatenate(
        [stretch.grey(np.nan_to_num(plane), 0.0, 1.0, 300.0) for plane in stamp.planes[:2]]
        + [stretch.diverging(plane) for plane in stamp.planes[2:]],
        axis=1,
    ).astype(int)
    # The lookup tables have 256 steps, the picture half of them: it is within one and a half of the larger steps.
    steps = [np.abs(np.diff(table.astype(int), axis=0)).max() for table in stretch.TABLES]
    away = np.abs(shown - wanted)[5:]
    assert away[:, :126].max() <= 3 * steps[0]
    assert away[:, 126:].max() <= 3 * steps[1]
    assert away.mean() < 2
    assert (shown[:5] == stretch.MASKED).all()
    assert not (shown[5:] == stretch.MASKED).all(-1).any(), "no other pixel looks like one outside"
    assert np.abs(shown[20, 126 + 20] - (13, 15, 22)).max() <= 1, "zero is the scale's darkest"


@pytest.mark.parametrize("how", ["asinh", "linear", "zscale"])
def test_more_is_never_darker(how):
    ramp = np.linspace(-3, 30, 63 * 63, dtype=np.float32).reshape(63, 63)
    stamp = stamps.Stamp(np.stack([ramp, ramp, ramp, ramp]), {})
    index = np.asarray(Image.open(io.BytesIO(stamps.sprite_png(stamp, how))), int)
    for k in range(4):
        assert (np.diff(index[:, 63 * k : 63 * (k + 1)].ravel()) >= 0).all()
    assert index.min() >= 1, "nothing is outside the frame"
    assert index.max() == 255


def test_a_night_made_again_shows_at_once_where_the_old_one_has_nothing(tmp_path: Path, monkeypatch):
    store = LocalStore(tmp_path / "store")

    def make(*places: tuple[float, float]) -> None:
        import pandas as pd

        bright = tuple((x, y, 20.0) for x, y in places)
        difference = make_difference((200, 200), bright, exposure_id="e")
        table = pd.DataFrame([{"exposure_id": "e", "x": x, "y": y} for x, y in places])
        folder = tmp_path / "made"
        folder.mkdir(exist_ok=True)
        write_stamps(folder, {"e": difference}, table)
        put_folder(store, "stamps/m31/2026-01-02", folder, {"run_id": "r", "partition": ""})

    def source(x: float, y: float) -> dict:
        return {"field": "m31", "night": "2026-01-02", "exposure_id": "e", "x": x, "y": y}

    now = [100.0]
    monkeypatch.setattr(stamps.time, "monotonic", lambda: now[0])
    found = stamps.StampStore(store)
    with pytest.raises(MissingProductError):
        found.get(source(50, 60))
    make((50, 60))
    old = found.get(source(50, 60))
    with pytest.raises(MissingProductError, match="hold none"):
        found.get(source(120, 60))
    make((120, 60), (52.5, 60))
    found.get(source(120, 60))
    now[0] += 10
    with pytest.raises(MissingProductError):
        found.get(source(50, 60))
    make((50, 60))
    assert np.array_equal(found.get(source(50, 60)).planes, old.planes, equal_nan=True)
